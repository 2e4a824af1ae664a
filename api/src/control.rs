//! What the API asks of the virtual machine's owner, and what it answers.
//!
//! The server's thread turns each HTTP request into one [`Request`] and hands it, with a [`Reply`], to a [`Control`].
//! The owner may answer at once or much later; the server serves others meanwhile, so that no request waits for
//! another.

use std::collections::BTreeMap;

use crate::config::{DiskConfig, FsConfig, VmConfig};
use crate::migration::{MigrationProgress, ReceiveRequest, SendRequest};
use crate::snapshot::{Progress, RestoreRequest, SnapshotRequest};

/// Why a request has no other answer.
pub(crate) const ENDED: &str = "Ferry ended before the request was answered";

/// The owner of the virtual machine, as the server sees it.
pub trait Control: Send + Sync + 'static {
    /// Hands a request over. Returns at once; the answer comes through `reply`, from any thread.
    fn submit(&self, request: Request, reply: Reply);
}

/// Something that a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Define a virtual machine. Nothing is connected or started.
    Create(Box<VmConfig>),
    /// Start the guest that is defined. Answered when it runs.
    Boot,
    /// Describe the virtual machine.
    Info,
    /// Report the counters.
    Counters,
    /// Stop the guest where it stands, and suspend its devices.
    Pause,
    /// Let a paused guest go on.
    Resume,
    /// End the guest; the definition and the back-ends' connections stay.
    Shutdown,
    /// End the guest and start it again.
    Reboot,
    /// Press the guest's power button.
    PowerButton,
    /// End the guest, if any, close the back-ends' connections and forget the definition.
    Delete,
    /// Add a disk to a definition that does not run. Its id may be empty: then one is made up.
    AddDisk(Box<DiskConfig>),
    /// Add a share to a definition that does not run. Its id may be empty: then one is made up.
    AddFs(Box<FsConfig>),
    /// Remove the device of this id from a definition that does not run.
    RemoveDevice(String),
    /// Save the guest and what its back-ends hold.
    Snapshot(Box<SnapshotRequest>),
    /// Bring a saved guest back. There is no virtual machine yet.
    Restore(Box<RestoreRequest>),
    /// How the snapshot or restore that is under way stands, or how the last one has ended.
    Progress,
    /// Give the snapshot or restore up that is under way. The guest goes on.
    Cancel,
    /// Go on with a snapshot that holds the guest: what was to be done meanwhile is done.
    ReleaseHold,
    /// Send the guest to another Ferry. Answered when that has begun.
    SendMigration(Box<SendRequest>),
    /// Receive a guest from another Ferry. There is no virtual machine yet. Answered when it has been received.
    ReceiveMigration(Box<ReceiveRequest>),
    /// How the migration that is under way stands, or how the last one has ended.
    Migration,
    /// Give the migration up that is under way, on either side. A guest that was to be sent goes on.
    CancelMigration,
    /// Take a guest back that has been handed over and of which nobody says that it runs elsewhere. Whoever asks for it
    /// has made sure that it does not.
    ReclaimMigration,
    /// End the guest, if any, and then Ferry. Answered before Ferry ends.
    ShutdownVmm,
}

/// When the owner answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promptness {
    /// As soon as it gets to it: the request waits for nobody else.
    AtOnce,
    /// When what is asked for has ended, which may be up to back-ends, or up to the guest.
    WhenDone,
}

impl Request {
    /// When it is answered.
    pub fn promptness(&self) -> Promptness {
        match self {
            Request::Create(_)
            | Request::Info
            | Request::Counters
            | Request::PowerButton
            | Request::AddDisk(_)
            | Request::AddFs(_)
            | Request::RemoveDevice(_)
            | Request::Progress
            | Request::Cancel
            | Request::ReleaseHold
            | Request::SendMigration(_)
            | Request::Migration
            | Request::CancelMigration
            | Request::ShutdownVmm => Promptness::AtOnce,
            Request::Boot
            | Request::ReceiveMigration(_)
            | Request::ReclaimMigration
            | Request::Snapshot(_)
            | Request::Restore(_)
            | Request::Pause
            | Request::Resume
            | Request::Shutdown
            | Request::Reboot
            | Request::Delete => Promptness::WhenDone,
        }
    }
}

/// What a request has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// It is done, and there is nothing to say: status 204.
    Done,
    /// The answer to [`Request::Info`].
    Info(Box<VmInfo>),
    /// The answer to [`Request::Counters`].
    Counters(Counters),
    /// The answer to [`Request::Progress`].
    Progress(Box<Progress>),
    /// The answer to [`Request::Migration`].
    Migration(Box<MigrationProgress>),
}

/// Why a request has led to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of error it is.
    pub kind: RefusalKind,
    /// The reason and its causes, outermost first; never empty.
    pub chain: Vec<String>,
}

/// The kinds of refusals, which clients see as HTTP statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request's content is wrong: 400.
    Invalid,
    /// There is no virtual machine, or no such device: 404.
    NotFound,
    /// The name is taken: 409.
    Duplicate,
    /// Wrong state, or a failure: 500.
    Failed,
}

impl Refusal {
    /// A refusal with one reason.
    pub fn new(kind: RefusalKind, reason: impl Into<String>) -> Self {
        Refusal {
            kind,
            chain: vec![reason.into()],
        }
    }

    /// A failure with all its causes.
    pub fn failed(error: &dyn std::error::Error) -> Self {
        Refusal {
            kind: RefusalKind::Failed,
            chain: crate::chain(error),
        }
    }
}

/// What comes back for a request.
pub type Answer = Result<Response, Refusal>;

/// Takes the answer to one request. Dropped without an answer, it answers that Ferry is ending.
pub struct Reply(Option<Box<dyn FnOnce(Answer) + Send>>);

impl Reply {
    /// `take` is called exactly once, from any thread, and must not wait.
    pub fn new(take: impl FnOnce(Answer) + Send + 'static) -> Self {
        Reply(Some(Box::new(take)))
    }

    /// Answers the request.
    pub fn answer(mut self, answer: Answer) {
        if let Some(take) = self.0.take() {
            take(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            take(Err(Refusal::new(RefusalKind::Failed, ENDED)));
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

/// Where a virtual machine stands.
///
/// Between these there are transitions, during which the state is the one left; a request that does not fit is
/// refused with the transition's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// Defined, and never booted since.
    Created,
    /// The guest runs.
    Running,
    /// The guest and its devices stand still.
    Paused,
    /// The guest has ended; the definition and the back-ends' connections are there.
    Shutdown,
}

/// The virtual machine, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmInfo {
    /// Its definition.
    pub config: VmConfig,
    /// Where it stands.
    pub state: VmState,
    /// What is under way, as a clause: `being paused`.
    pub transition: Option<&'static str>,
    /// Bytes of guest RAM.
    pub memory_actual_size: u64,
    /// Its devices, in the order of the bus.
    pub devices: Vec<DeviceInfo>,
}

/// A device, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub id: String,
    /// Its virtio device type (Virtual I/O Device 1.2, 5).
    pub device_type: u32,
    /// Where it is on the PCI bus, `0000:00:01.0`, while there is a machine.
    pub pci_bdf: Option<String>,
    /// Where it and its back-end stand.
    pub state: DeviceState,
    /// Why it has failed, outermost first; empty if it has not.
    pub error: Vec<String>,
    /// The features agreed on with the back-end, once there is a connection (Virtual I/O Device 1.2, 2.2).
    pub features: Option<u64>,
}

/// Where a device and its back-end stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// No connection has been made yet.
    Disconnected,
    /// The back-end is there; the guest does not drive the device.
    Idle,
    /// The device is being activated, reset, suspended or resumed.
    Changing,
    /// The guest drives the device.
    Active,
    /// Suspended with the guest.
    Suspended,
    /// The back-end is of no use any more.
    Failed,
}

/// Numbers by the name of a device (or `__vm`, `__vcpus`, which are no device's name), then by their own names, of
/// which `docs/counters.md` is the list.
pub type Counters = BTreeMap<String, BTreeMap<String, u64>>;
