//! What clients say of migrations: where a guest is to be sent or received from, and how far that is.

mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::SerialConfig;
pub use crate::snapshot::DeviceProgress;
use crate::snapshot::SnapshotRequest;
pub use url::WrongMigrationUrl;

/// Where the two sides of a migration meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationUrl {
    /// `unix:/path`.
    Unix(PathBuf),
    /// `tcp:host:port`.
    Tcp {
        /// A name or an address; of IPv6 without its brackets.
        host: String,
        /// The port, not 0.
        port: u16,
    },
}

impl fmt::Display for MigrationUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MigrationUrl::Unix(path) => write!(f, "unix:{}", path.display()),
            MigrationUrl::Tcp { host, port } if host.contains(':') => {
                write!(f, "tcp:[{host}]:{port}")
            }
            MigrationUrl::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// How a guest is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendRequest {
    /// Where the receiver listens.
    pub destination: MigrationUrl,
    /// What travels.
    pub carrier: Carrier,
    /// How long the guest may stand still while the last of its RAM is sent, as it is estimated beforehand.
    pub downtime: Duration,
    /// How long RAM may be sent while the guest runs.
    pub timeout: Duration,
    /// What is done when that time has passed.
    pub timeout_strategy: TimeoutStrategy,
    /// How many connections RAM travels over.
    pub connections: u16,
    /// The directory of the certificates and of the key; without encryption if `None`.
    pub tls: Option<PathBuf>,
    /// What is done about back-ends that cannot say which RAM they write.
    pub unlogged: Unlogged,
    /// Whether vCPUs are slowed down if the guest dirties RAM faster than it can be sent.
    pub throttle: Throttle,
    /// The most bytes of state that one back-end may have.
    pub state_most: u64,
    /// What becomes of this Ferry when the guest is gone.
    pub after: AfterSend,
}

impl SendRequest {
    /// The downtime that is aimed at.
    pub const DOWNTIME: Duration = Duration::from_millis(300);
    /// An hour.
    pub const TIMEOUT: Duration = Duration::from_secs(3600);
    /// Connections, unless it was said: one alone keeps one processor busy on each side, and the other ones idle.
    pub const CONNECTIONS: u16 = 2;
    /// The most connections.
    pub const CONNECTIONS_MOST: u16 = 16;

    /// One that names no more than the receiver.
    pub fn to(destination: MigrationUrl) -> Self {
        SendRequest {
            carrier: Carrier::Contents,
            destination,
            downtime: Self::DOWNTIME,
            timeout: Self::TIMEOUT,
            timeout_strategy: TimeoutStrategy::default(),
            connections: Self::CONNECTIONS,
            tls: None,
            unlogged: Unlogged::default(),
            throttle: Throttle::default(),
            state_most: SnapshotRequest::STATE_MOST,
            after: AfterSend::Exit,
        }
    }
}

/// What travels when a guest is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// The contents of RAM, and what back-ends have in them. The receiver has back-ends of its own.
    #[default]
    Contents,
    /// RAM itself and the connections to back-ends, which do not notice: a hand-over within a host.
    Descriptors,
    /// As [`Carrier::Descriptors`], and the API's socket and the event monitor: the receiver takes this Ferry's place.
    Process,
}

impl Carrier {
    /// Whether the guest stays within this host.
    pub fn is_local(self) -> bool {
        match self {
            Carrier::Contents => false,
            Carrier::Descriptors | Carrier::Process => true,
        }
    }
}

/// What is done when a guest's RAM has not been sent in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeoutStrategy {
    /// The migration fails, and the guest goes on where it is.
    #[default]
    Cancel,
    /// The guest is moved all the same, however long it stands still.
    Ignore,
}

/// What is done about a device whose back-end cannot log what it writes to RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unlogged {
    /// The migration is refused before anything is done.
    #[default]
    Refuse,
    /// All RAM is sent again while the guest stands still.
    Resend,
}

/// Whether vCPUs may be slowed down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Throttle {
    /// They run at full speed.
    #[default]
    Off,
    /// More and more, as long as it takes.
    On,
}

/// What becomes of a Ferry whose guest has gone elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterSend {
    /// It ends.
    #[default]
    Exit,
    /// It stays, without a virtual machine.
    Stay,
}

/// How a guest is to be received. There is no virtual machine yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveRequest {
    /// Where the sender is waited for.
    pub receiver: MigrationUrl,
    /// The sockets of the devices' back-ends on this side, by the devices' names; of the others it is what the sender has.
    pub sockets: BTreeMap<String, PathBuf>,
    /// Where the serial port leads now, if it is not to lead where it did. A guest without one gets none by that.
    pub serial: Option<SerialConfig>,
    /// The directory of the certificates and of the key; without encryption if `None`.
    pub tls: Option<PathBuf>,
    /// Whether anybody who reaches a TCP address that is not of the loopback may send, without encryption.
    pub openness: Openness,
    /// The most bytes of state that one back-end may have.
    pub state_most: u64,
}

/// Who may send a guest over TCP without encryption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Openness {
    /// Only this host.
    #[default]
    Loopback,
    /// Anybody who gets through.
    Insecure,
}

/// How a migration stands, or how the last one has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationProgress {
    /// Which side this is.
    pub role: Role,
    /// Where the other side is, or is waited for.
    pub url: MigrationUrl,
    /// The attempt, 32 hexadecimal digits; empty as long as there is none.
    pub attempt: String,
    /// How it stands.
    pub state: MigrationState,
    /// The phase that is under way, or the last one.
    pub phase: Phase,
    /// The phases so far, in their order, each with its time; the last one may go on.
    pub phases: Vec<(Phase, Duration)>,
    /// What the other side has done while the guest stood still, as it says.
    pub peer_phases: Vec<(String, Duration)>,
    /// Since it was asked for, until its end.
    pub elapsed: Duration,
    /// How often RAM has been gone through, from 1.
    pub round: u32,
    /// Bytes of guest RAM.
    pub ram_total: u64,
    /// Bytes of RAM that have travelled, some of them more than once.
    pub ram_sent: u64,
    /// Bytes of RAM that are still to be sent, as far as it is known.
    pub ram_remaining: u64,
    /// Bytes of RAM in a second, lately; 0 as long as none is known.
    pub ram_rate: u64,
    /// Bytes of RAM that the guest has dirtied in a second, lately.
    pub dirty_rate: u64,
    /// How much of their time vCPUs are held back, in percent.
    pub throttle: u8,
    /// How long the guest is to stand still, by the last estimate.
    pub downtime_estimate: Option<Duration>,
    /// How long the guest has stood still, so far.
    pub downtime: Option<Duration>,
    /// The devices whose back-ends have state, in the order of the bus.
    pub devices: Vec<DeviceProgress>,
    /// Why it has failed, outermost first; empty unless it has.
    pub error: Vec<String>,
}

/// A side of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The guest is there before.
    Send,
    /// The guest is there afterwards.
    Receive,
}

/// How a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationState {
    /// It goes on.
    UnderWay,
    /// The guest has been handed over, and nobody has said yet that it runs there. It does not run here.
    Unconfirmed,
    /// It has succeeded, and nothing of the guest is left on the side that it has left.
    Done,
    /// It has failed, or was given up.
    Failed,
}

/// A part of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The receiver waits for a sender.
    Listen,
    /// Everything is looked at that may stand in the way, and the receiver is connected to.
    Connect,
    /// The receiver connects to its back-ends and sets RAM aside; the sender's back-ends begin to log.
    Prepare,
    /// RAM travels while the guest runs.
    Precopy,
    /// vCPUs stop, and devices come to rest.
    Pause,
    /// The last of RAM travels.
    Ram,
    /// The machine's own state does.
    Machine,
    /// The back-ends' state does.
    Devices,
    /// The receiver says that it has everything, and that everything is right.
    Ready,
    /// The guest is handed over: the sender gives it up, and the receiver lets it go on.
    Commit,
    /// The guest has been handed over, and nobody has said yet that it runs there.
    Unconfirmed,
    /// Devices and vCPUs go on.
    Resume,
    /// The guest runs there. The receiver says so, and the sender releases what it had.
    Release,
}

impl Phase {
    /// As clients see it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Listen => "listen",
            Phase::Connect => "connect",
            Phase::Prepare => "prepare",
            Phase::Precopy => "precopy",
            Phase::Pause => "pause",
            Phase::Ram => "ram",
            Phase::Machine => "machine",
            Phase::Devices => "devices",
            Phase::Ready => "ready",
            Phase::Commit => "commit",
            Phase::Unconfirmed => "unconfirmed",
            Phase::Resume => "resume",
            Phase::Release => "release",
        }
    }
}
