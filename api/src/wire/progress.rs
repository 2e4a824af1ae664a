//! How a snapshot or a restore stands, as clients get to see it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::millis;
use crate::snapshot;

/// How a snapshot or restore stands, or how the last one has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// What is or was done.
    pub operation: Operation,
    /// Whether it goes on.
    pub status: Status,
    /// The step that is under way, or the last one.
    pub step: Step,
    /// The steps so far, in their order.
    #[serde(default)]
    pub steps: Vec<StepReport>,
    /// Milliseconds since it was asked for, until its end.
    pub elapsed_ms: u64,
    /// Milliseconds for which a snapshot has paused the guest, so far.
    pub paused_ms: u64,
    /// The snapshot's directory, as a path.
    pub directory: String,
    /// The guest's RAM.
    pub ram: RamProgress,
    /// The devices whose back-ends have state, by name.
    #[serde(default)]
    pub devices: BTreeMap<String, DeviceProgress>,
    /// Why it has failed, outermost first; absent unless it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub error: Vec<String>,
}

/// What is done to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// It is saved.
    Snapshot,
    /// It is brought back.
    Restore,
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It goes on.
    UnderWay,
    /// It has succeeded.
    Done,
    /// It has failed, or was given up.
    Failed,
}

/// A part of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Everything is looked at that may stand in the way.
    Check,
    /// Back-ends get ready while the guest runs.
    Prepare,
    /// The guest and its devices come to rest.
    Pause,
    /// The machine's own state is written or loaded.
    Machine,
    /// RAM is.
    Ram,
    /// The back-ends' state is.
    Devices,
    /// The guest is held, until vm.snapshot-release.
    Hold,
    /// Back-ends are connected to.
    Connect,
    /// The guest and its devices go on.
    Resume,
    /// Files are brought to disk, and the manifest gets its name.
    Publish,
}

/// A step, and what it has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepReport {
    /// The step.
    pub step: Step,
    /// Milliseconds, so far if it goes on.
    pub ms: u64,
}

/// How much of the guest's RAM is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RamProgress {
    /// Bytes that are done, holes included.
    pub done_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
    /// The average rate; 0 as long as none is known.
    pub bytes_per_second: u64,
}

/// How far the state of one back-end is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceProgress {
    /// Bytes of state so far.
    pub bytes: u64,
    /// Milliseconds so far.
    pub ms: u64,
    /// Whether the back-end has said that it was all, and that it is right.
    pub checked: bool,
}

impl From<&snapshot::Progress> for Progress {
    fn from(progress: &snapshot::Progress) -> Self {
        let snapshot::Progress {
            operation,
            directory,
            status,
            step,
            steps,
            elapsed,
            paused,
            ram_done,
            ram_total,
            ram_rate,
            devices,
            error,
        } = progress;
        let step_report = |(step, time): &(snapshot::Step, _)| StepReport {
            step: (*step).into(),
            ms: millis(*time),
        };
        let device = |device: &snapshot::DeviceProgress| {
            let report = DeviceProgress {
                bytes: device.bytes,
                ms: millis(device.elapsed),
                checked: device.checked,
            };
            (device.id.clone(), report)
        };
        Progress {
            operation: match operation {
                snapshot::Operation::Snapshot => Operation::Snapshot,
                snapshot::Operation::Restore => Operation::Restore,
            },
            status: match status {
                snapshot::Status::UnderWay => Status::UnderWay,
                snapshot::Status::Done => Status::Done,
                snapshot::Status::Failed => Status::Failed,
            },
            step: (*step).into(),
            steps: steps.iter().map(step_report).collect(),
            elapsed_ms: millis(*elapsed),
            paused_ms: millis(*paused),
            directory: directory.to_string_lossy().into_owned(),
            ram: RamProgress {
                done_bytes: *ram_done,
                total_bytes: *ram_total,
                bytes_per_second: *ram_rate,
            },
            devices: devices.iter().map(device).collect(),
            error: error.clone(),
        }
    }
}

impl From<snapshot::Step> for Step {
    fn from(step: snapshot::Step) -> Self {
        match step {
            snapshot::Step::Check => Step::Check,
            snapshot::Step::Prepare => Step::Prepare,
            snapshot::Step::Pause => Step::Pause,
            snapshot::Step::Machine => Step::Machine,
            snapshot::Step::Ram => Step::Ram,
            snapshot::Step::Devices => Step::Devices,
            snapshot::Step::Hold => Step::Hold,
            snapshot::Step::Connect => Step::Connect,
            snapshot::Step::Resume => Step::Resume,
            snapshot::Step::Publish => Step::Publish,
        }
    }
}
