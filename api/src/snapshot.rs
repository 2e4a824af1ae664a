//! What clients say of snapshots: how one is to be taken, how a guest is to be brought back, and how far either is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::SerialConfig;

/// How a guest is to be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// The directory: one that does not exist, or an empty one.
    pub destination: PathBuf,
    /// Who pauses the guest.
    pub pause: PauseBy,
    /// What becomes of the guest once it is saved. A snapshot that fails leaves it as it was.
    pub after: After,
    /// How long the guest is held when it is saved, until [`Request::ReleaseHold`](crate::control::Request::ReleaseHold)
    /// comes: images can be copied meanwhile. If it does not come, the snapshot fails. `None`: the guest is not held.
    pub hold: Option<Duration>,
    /// How long back-ends have for preparing, while the guest still runs. Only with [`PauseBy::Ferry`], and only if a
    /// back-end can make use of it.
    pub prepare: Duration,
    /// The most bytes of state that one back-end may have.
    pub state_most: u64,
}

impl SnapshotRequest {
    /// As long as is enough for virtiofsd to look at some ten thousand files.
    pub const PREPARE: Duration = Duration::from_millis(500);
    /// More than any back-end known has, and little enough to be stored.
    pub const STATE_MOST: u64 = 16 << 30;
}

/// Who pauses a guest that is to be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseBy {
    /// The client has paused it.
    Client,
    /// Ferry does, if it is not paused yet, after all devices have said that they can be saved.
    Ferry,
}

/// What becomes of a guest once it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It runs if it ran before, and stays paused if it was.
    AsBefore,
    /// It is paused.
    Pause,
    /// It runs. Its disks and shares move on, so that the snapshot is worth something only with copies of them.
    Resume,
    /// It is shut down, once the snapshot is on disk.
    Stop,
}

/// How a saved guest is to be brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreRequest {
    /// The snapshot's directory.
    pub source: PathBuf,
    /// What becomes of the RAM files.
    pub memory: MemoryMode,
    /// Whether the guest runs at once.
    pub start: Start,
    /// The sockets of devices whose back-ends are not where they were, by the devices' names.
    pub sockets: BTreeMap<String, PathBuf>,
    /// Where the serial port leads now, if it is not to lead where it did. A guest without one gets none by that.
    pub serial: Option<SerialConfig>,
}

/// How guest RAM comes out of its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryMode {
    /// It is copied, and checked.
    #[default]
    Copy,
    /// A clone of the files becomes guest RAM; the file system has to know clones.
    OnDemand,
    /// The files themselves become guest RAM, and the snapshot is used up.
    Adopt,
}

/// What a restored guest does first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// It is paused, and `vm.resume` lets it go on.
    #[default]
    Paused,
    /// It runs.
    Running,
}

/// How a snapshot or restore stands, or how the last one has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is or was done.
    pub operation: Operation,
    /// The directory.
    pub directory: PathBuf,
    /// Whether it goes on.
    pub status: Status,
    /// The step that is under way, or the last one.
    pub step: Step,
    /// The steps so far, in their order, each with its time; the last one may go on.
    pub steps: Vec<(Step, Duration)>,
    /// Since it was asked for, until its end.
    pub elapsed: Duration,
    /// How long the guest has been paused by a snapshot, so far.
    pub paused: Duration,
    /// Bytes of RAM that are done, holes included …
    pub ram_done: u64,
    /// … of so many.
    pub ram_total: u64,
    /// Bytes of RAM in a second, on average; 0 as long as none is known.
    pub ram_rate: u64,
    /// The devices whose back-ends have state, in the order of the bus.
    pub devices: Vec<DeviceProgress>,
    /// Why it has failed, outermost first; empty unless it has.
    pub error: Vec<String>,
}

/// How far the state of one back-end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProgress {
    /// The device's name.
    pub id: String,
    /// Bytes of state so far.
    pub bytes: u64,
    /// How long it has taken so far.
    pub elapsed: Duration,
    /// Whether the back-end has said that it was all.
    pub checked: bool,
}

/// What is done to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is saved.
    Snapshot,
    /// It is brought back.
    Restore,
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It goes on.
    UnderWay,
    /// It has succeeded.
    Done,
    /// It has failed, or was given up.
    Failed,
}

/// A part of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everything is looked at that may stand in the way, and the directory is made or read.
    Check,
    /// Back-ends get ready while the guest runs.
    Prepare,
    /// vCPUs stop, and devices come to rest.
    Pause,
    /// The machine's own state is written or loaded.
    Machine,
    /// RAM is.
    Ram,
    /// The back-ends' state is.
    Devices,
    /// The guest is held for whoever copies images.
    Hold,
    /// A restore connects to back-ends.
    Connect,
    /// Devices and vCPUs go on.
    Resume,
    /// Files are brought to disk, and the manifest gets its name.
    Publish,
}

impl Step {
    /// As clients see it.
    pub fn name(self) -> &'static str {
        match self {
            Step::Check => "check",
            Step::Prepare => "prepare",
            Step::Pause => "pause",
            Step::Machine => "machine",
            Step::Ram => "ram",
            Step::Devices => "devices",
            Step::Hold => "hold",
            Step::Connect => "connect",
            Step::Resume => "resume",
            Step::Publish => "publish",
        }
    }
}
