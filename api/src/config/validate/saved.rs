//! The rules for what clients say of snapshots, some of which hold for migrations as well.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use super::{Fault, check_id, check_socket_path};
use crate::config::VmConfig;
use crate::snapshot::{PauseBy, RestoreRequest, SnapshotRequest};

impl SnapshotRequest {
    /// The longest time for which a guest is held.
    pub const HOLD_MOST: Duration = Duration::from_secs(86400);
    /// The longest time for which back-ends prepare.
    pub const PREPARE_MOST: Duration = Duration::from_secs(600);

    /// Checks everything, without a look at the directory. The fields are named as in the API.
    pub fn check(&self) -> Result<(), Fault> {
        if let Some(hold) = self.hold
            && (hold.is_zero() || hold > Self::HOLD_MOST)
        {
            let most = Self::HOLD_MOST.as_secs();
            let reason = format!("is not above 0 and up to {most}");
            return Err(Fault::value("hold_s", hold.as_secs_f64(), reason));
        }
        if self.prepare > Self::PREPARE_MOST {
            let reason = format!("is more than {}", Self::PREPARE_MOST.as_millis());
            return Err(Fault::value("prepare_ms", self.prepare.as_millis(), reason));
        }
        if self.pause == PauseBy::Client && self.prepare != Self::PREPARE {
            let text =
                "prepare_ms= needs pause=true: back-ends prepare only while the guest still runs";
            return Err(Fault::Conflict(text.into()));
        }
        Ok(())
    }
}

impl RestoreRequest {
    /// Checks everything, without a look at the directory.
    pub fn check(&self) -> Result<(), Fault> {
        check_sockets(&self.sockets)
    }
}

/// Checks where the back-ends of a guest's devices listen, by the devices' names.
pub(super) fn check_sockets(sockets: &BTreeMap<String, PathBuf>) -> Result<(), Fault> {
    const MOST: usize = VmConfig::DEVICES_MOST;
    let mut seen = HashSet::new();
    for (id, socket) in sockets {
        if id.is_empty() {
            return Err(Fault::value("id", id, "has no value"));
        }
        check_id(id)?;
        check_socket_path(socket)?;
        if !seen.insert(socket) {
            return Err(Fault::Duplicate {
                field: "socket",
                value: socket.display().to_string(),
                rest: ": each device has its own back-end",
            });
        }
    }
    match sockets.len() {
        ..=MOST => Ok(()),
        _ => {
            let text =
                format!("sockets are named for more than {MOST} devices, and no guest has more");
            Err(Fault::Conflict(text.into()))
        }
    }
}
