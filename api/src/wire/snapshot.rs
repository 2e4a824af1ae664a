//! What clients write to save a guest, and to bring one back.

use std::collections::BTreeMap;
use std::path::Path;
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
        let devices = self.devices.unwrap_or_default().into_iter();
        let sockets = devices.filter_map(|(id, device)| Some((id, device?.socket?.into())));
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
            sockets: sockets.collect(),
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
        let device = |socket: &Path| RestoreDevice {
            socket: Some(socket.to_string_lossy().into_owned()),
        };
        let devices = sockets
            .iter()
            .map(|(id, socket)| (id.clone(), Some(device(socket))));
        Restore {
            source_url: Some(url::of(source)),
            memory_restore_mode: Some((*memory).into()),
            resume: Some(*start == Start::Running),
            prefault: None,
            devices: (!sockets.is_empty()).then(|| devices.collect()),
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

fn directory(field: &'static str, url: Option<String>) -> Result<std::path::PathBuf, Fault> {
    let url = url.ok_or(Fault::Missing(field))?;
    url::path(&url).map_err(|wrong| Fault::value(field, &url, wrong.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn save(value: &Value) -> Result<SnapshotRequest, String> {
        let wire: Snapshot =
            serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())?;
        wire.check().map_err(|fault| fault.to_string())
    }

    fn restore(value: &Value) -> Result<RestoreRequest, String> {
        let wire: Restore =
            serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())?;
        wire.check().map_err(|fault| fault.to_string())
    }

    /// What clients of others send.
    #[test]
    fn a_directory_is_enough() {
        let least = SnapshotRequest {
            destination: "/snap".into(),
            pause: PauseBy::Client,
            after: snapshot::After::AsBefore,
            hold: None,
            prepare: Duration::from_millis(500),
            state_most: 16 << 30,
        };
        assert_eq!(
            save(&json!({"destination_url": "file:///snap"})),
            Ok(least.clone())
        );
        let nulls = json!({"destination_url": "file:///snap", "pause": null, "after": null, "hold_s": null,
                           "prepare_ms": null, "state_most": null, "unknown": 1});
        assert_eq!(save(&nulls), Ok(least));
        let least = RestoreRequest {
            source: "/snap".into(),
            memory: snapshot::MemoryMode::Copy,
            start: Start::Paused,
            sockets: BTreeMap::new(),
            serial: None,
        };
        assert_eq!(
            restore(&json!({"source_url": "file:///snap"})),
            Ok(least.clone())
        );
        let nulls = json!({"source_url": "file:///snap", "memory_restore_mode": null, "resume": null,
                           "prefault": true, "net_fds": null,
                           "devices": {"fs0": null, "disk0": {"socket": null}}});
        assert_eq!(restore(&nulls), Ok(least));
    }

    #[test]
    fn everything_has_its_field() {
        let all = json!({"destination_url": "file:///a%20b", "pause": true, "after": "stop", "hold_s": 0.25,
                         "prepare_ms": 0, "state_most": 4096});
        let request = save(&all).unwrap();
        let expected = SnapshotRequest {
            destination: "/a b".into(),
            pause: PauseBy::Ferry,
            after: snapshot::After::Stop,
            hold: Some(Duration::from_millis(250)),
            prepare: Duration::ZERO,
            state_most: 4096,
        };
        assert_eq!(request, expected);
        assert_eq!(serde_json::to_value(Snapshot::from(&request)).unwrap(), all);
        let all = json!({"source_url": "file:///snap", "memory_restore_mode": "OnDemand", "resume": true,
                         "devices": {"fs0": {"socket": "/run/x"}}});
        let request = restore(&all).unwrap();
        assert_eq!(request.sockets["fs0"], Path::new("/run/x"));
        assert_eq!(serde_json::to_value(Restore::from(&request)).unwrap(), all);
        for (word, mode) in [
            ("adopt", snapshot::MemoryMode::Adopt),
            ("ondemand", snapshot::MemoryMode::OnDemand),
            ("copy", snapshot::MemoryMode::Copy),
        ] {
            let value = json!({"source_url": "file:///s", "memory_restore_mode": word});
            assert_eq!(restore(&value).unwrap().memory, mode);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let snapshot = |name: &str, value: Value| {
            let mut all = json!({"destination_url": "file:///s"});
            all[name] = value;
            save(&all).unwrap_err()
        };
        assert_eq!(save(&json!({})).unwrap_err(), "destination_url= is missing");
        assert_eq!(
            snapshot("destination_url", json!("/s")),
            "destination_url=/s is no URL; write file:///directory"
        );
        assert_eq!(
            snapshot("destination_url", json!("https://x/s")),
            "destination_url=https://x/s is not a file: URL, and snapshots are kept in directories; write file:///directory"
        );
        for seconds in [json!(0), json!(-1), json!(86401), json!(1e300)] {
            let reason = snapshot("hold_s", seconds);
            assert!(
                reason.ends_with(" is not above 0 and up to 86400"),
                "{reason}"
            );
        }
        assert_eq!(
            snapshot("prepare_ms", json!(1000)),
            "prepare_ms= needs pause=true: back-ends prepare only while the guest still runs"
        );
        assert_eq!(
            snapshot("prepare_ms", json!(600_001)),
            "prepare_ms=600001 is more than 600000"
        );
        let reason = snapshot("after", json!("sleep"));
        assert!(
            reason.contains("expected one of `resume`, `stop`, `pause`"),
            "{reason}"
        );
        let restored = |name: &str, value: Value| {
            let mut all = json!({"source_url": "file:///s"});
            all[name] = value;
            restore(&all).unwrap_err()
        };
        assert_eq!(restore(&json!({})).unwrap_err(), "source_url= is missing");
        let long = "x".repeat(108);
        assert_eq!(
            restored("devices", json!({"d": {"socket": long}})),
            format!("socket={long} is 108 bytes long; a socket's path has at most 107")
        );
        assert_eq!(
            restored(
                "devices",
                json!({"a": {"socket": "/x"}, "b": {"socket": "/x"}})
            ),
            "socket=/x is used twice: each device has its own back-end"
        );
        let many: BTreeMap<_, _> = (0..300).map(|n| (n.to_string(), json!(null))).collect();
        let reason = restored("devices", json!(many));
        assert!(reason.contains("has more than 256 entries"), "{reason}");
        let many = (0..32).map(|n| (n.to_string(), json!({"socket": format!("/{n}")})));
        let reason = restored("devices", json!(many.collect::<BTreeMap<_, _>>()));
        assert!(reason.contains("more than 31 devices"), "{reason}");
    }

    proptest! {
        #[test]
        fn what_is_taken_comes_back(
            seconds in prop::option::of(-1.0..90000.0_f64),
            pause in any::<Option<bool>>(),
            prepare_ms in prop::option::of(prop_oneof![Just(500), 0..700_000_u64]),
            state_most in any::<Option<u64>>(),
        ) {
            let wire = Snapshot {
                destination_url: Some("file:///s".into()),
                pause,
                after: None,
                hold_s: seconds,
                prepare_ms,
                state_most,
            };
            if let Ok(request) = wire.check() {
                let again = save(&serde_json::to_value(Snapshot::from(&request)).unwrap());
                prop_assert_eq!(again, Ok(request));
            }
        }
    }
}
