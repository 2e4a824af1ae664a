//! What clients write to save a guest, and to bring one back.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Console, check, list};
use crate::config::validate::Fault;
use crate::snapshot::{self, PauseBy, RestoreRequest, SnapshotRequest, Start};
use crate::url;

/// How a guest is to be saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// The directory, a new or an empty one, as `file:///directory`.
    #[schema(required = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_url: Option<String>,
    /// Whether Ferry pauses the guest; if false or absent, it has to be paused already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<bool>,
    /// What becomes of the guest once it is saved; if absent, it is as it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<After>,
    /// Seconds for which the guest is held when it is saved, until vm.snapshot-release; not held if absent.
    #[schema(exclusive_minimum = 0, maximum = 86400)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_s: Option<f64>,
    /// Milliseconds that back-ends have for preparing before the pause; 500 if absent.
    #[schema(maximum = 600000)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepare_ms: Option<u64>,
    /// The most bytes of state that one back-end may have; 16 GiB if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_most: Option<u64>,
}

/// What becomes of a guest that is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum After {
    /// It runs.
    Resume,
    /// It is shut down.
    Stop,
    /// It is paused.
    Pause,
}

/// How a saved guest is to be brought back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restore {
    /// The snapshot's directory, as `file:///directory`.
    #[schema(required = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_url: Option<String>,
    /// What becomes of the RAM files, also in lower case; Copy if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_restore_mode: Option<MemoryMode>,
    /// Whether the guest runs at once; if false or absent, it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<bool>,
    /// Has no effect: Copy reads all RAM anyway, and the other modes are for not doing so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefault: Option<bool>,
    /// Devices whose back-ends listen elsewhere than when the guest was saved, by their names.
    #[schema(value_type = BTreeMap<String, RestoreDevice>, required = false)]
    #[serde(
        default,
        deserialize_with = "list::bounded_map",
        skip_serializing_if = "Option::is_none"
    )]
    pub devices: Option<BTreeMap<String, Option<RestoreDevice>>>,
    /// Where the serial port leads now; where it did if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Console>,
}

/// How guest RAM comes out of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MemoryMode {
    /// It is copied and checked.
    #[serde(alias = "copy")]
    Copy,
    /// A clone of the files becomes guest RAM; the file system has to know clones.
    #[serde(alias = "ondemand")]
    OnDemand,
    /// The files themselves become guest RAM, and the snapshot is used up.
    #[serde(alias = "adopt")]
    Adopt,
}

/// A device of a saved guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreDevice {
    /// The unix socket on which its back-end listens now; the saved one if absent.
    #[schema(max_length = 107)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// Devices by their names, of which some may be null.
type Devices = BTreeMap<String, Option<RestoreDevice>>;

impl Snapshot {
    /// Checks all that can be checked without a look at the directory.
    pub fn check(self) -> Result<SnapshotRequest, Fault> {
        let pause = match self.pause {
            Some(true) => PauseBy::Ferry,
            Some(false) | None => PauseBy::Client,
        };
        let hold = match self.hold_s {
            None => None,
            Some(seconds) => Some(Duration::try_from_secs_f64(seconds).map_err(|_| {
                let most = SnapshotRequest::HOLD_MOST.as_secs();
                Fault::value(
                    "hold_s",
                    seconds,
                    format!("is not above 0 and up to {most}"),
                )
            })?),
        };
        let request = SnapshotRequest {
            destination: directory("destination_url", self.destination_url)?,
            pause,
            after: self
                .after
                .map_or(snapshot::After::AsBefore, snapshot::After::from),
            hold,
            prepare: self
                .prepare_ms
                .map_or(SnapshotRequest::PREPARE, Duration::from_millis),
            state_most: self.state_most.unwrap_or(SnapshotRequest::STATE_MOST),
        };
        request.check()?;
        Ok(request)
    }
}

impl From<&SnapshotRequest> for Snapshot {
    fn from(request: &SnapshotRequest) -> Self {
        let SnapshotRequest {
            destination,
            pause,
            after,
            hold,
            prepare,
            state_most,
        } = request;
        Snapshot {
            destination_url: Some(url::of(destination)),
            pause: Some(*pause == PauseBy::Ferry),
            after: match after {
                snapshot::After::AsBefore => None,
                snapshot::After::Pause => Some(After::Pause),
                snapshot::After::Resume => Some(After::Resume),
                snapshot::After::Stop => Some(After::Stop),
            },
            hold_s: hold.map(|hold| hold.as_secs_f64()),
            prepare_ms: match pause {
                PauseBy::Ferry => Some(super::millis(*prepare)),
                PauseBy::Client => None,
            },
            state_most: Some(*state_most),
        }
    }
}

impl Restore {
    /// Checks all that can be checked without a look at the directory.
    pub fn check(self) -> Result<RestoreRequest, Fault> {
        let request = RestoreRequest {
            source: directory("source_url", self.source_url)?,
            memory: self
                .memory_restore_mode
                .map(snapshot::MemoryMode::from)
                .unwrap_or_default(),
            start: match self.resume {
                Some(true) => Start::Running,
                Some(false) | None => Start::Paused,
            },
            sockets: sockets(self.devices),
            serial: self
                .serial
                .map(|serial| check::serial(Some(serial)))
                .transpose()?,
        };
        request.check()?;
        Ok(request)
    }
}

impl From<&RestoreRequest> for Restore {
    fn from(request: &RestoreRequest) -> Self {
        let RestoreRequest {
            source,
            memory,
            start,
            sockets,
            serial,
        } = request;
        Restore {
            source_url: Some(url::of(source)),
            memory_restore_mode: Some((*memory).into()),
            resume: Some(*start == Start::Running),
            prefault: None,
            devices: moved_devices(sockets),
            serial: serial.as_ref().map(Console::from),
        }
    }
}

impl From<After> for snapshot::After {
    fn from(after: After) -> Self {
        match after {
            After::Resume => snapshot::After::Resume,
            After::Stop => snapshot::After::Stop,
            After::Pause => snapshot::After::Pause,
        }
    }
}

impl From<MemoryMode> for snapshot::MemoryMode {
    fn from(mode: MemoryMode) -> Self {
        match mode {
            MemoryMode::Copy => snapshot::MemoryMode::Copy,
            MemoryMode::OnDemand => snapshot::MemoryMode::OnDemand,
            MemoryMode::Adopt => snapshot::MemoryMode::Adopt,
        }
    }
}

impl From<snapshot::MemoryMode> for MemoryMode {
    fn from(mode: snapshot::MemoryMode) -> Self {
        match mode {
            snapshot::MemoryMode::Copy => MemoryMode::Copy,
            snapshot::MemoryMode::OnDemand => MemoryMode::OnDemand,
            snapshot::MemoryMode::Adopt => MemoryMode::Adopt,
        }
    }
}

/// The sockets that are named.
pub(super) fn sockets(devices: Option<Devices>) -> BTreeMap<String, PathBuf> {
    let devices = devices.unwrap_or_default().into_iter();
    devices
        .filter_map(|(id, device)| Some((id, device?.socket?.into())))
        .collect()
}

/// And back.
pub(super) fn moved_devices(sockets: &BTreeMap<String, PathBuf>) -> Option<Devices> {
    let device = |socket: &Path| RestoreDevice {
        socket: Some(socket.to_string_lossy().into_owned()),
    };
    let devices = sockets
        .iter()
        .map(|(id, socket)| (id.clone(), Some(device(socket))));
    (!sockets.is_empty()).then(|| devices.collect())
}

fn directory(field: &'static str, url: Option<String>) -> Result<PathBuf, Fault> {
    let url = url.ok_or(Fault::Missing(field))?;
    url::path(&url).map_err(|wrong| Fault::value(field, &url, wrong.to_string()))
}
