//! A vhost-user back-end that does what a test tells it to.
//!
//! By default it is a correct virtio-blk device on a disk in memory, and complains of every message
//! that a strict back-end would not take ([`Running::complaints`]). A script makes it misbehave at
//! given messages:
//!
//! ```no_run
//! # use ferry_tests::backend::{Backend, Misbehaviour, When, message::FrontendReq};
//! let backend = Backend::blk("1M")
//!     .on(When::Each(FrontendReq::SET_VRING_KICK), Misbehaviour::Close)
//!     .start();
//! ```
//!
//! It runs in a thread of the test's process and ends when it is dropped.

mod blk;
mod control;
mod memory;
mod ring;
mod script;
mod session;
mod state;
#[cfg(test)]
mod tests;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tempfile::TempDir;

pub use script::{Misbehaviour, When};
pub use state::{Direction, Done, Fault, Outcome, State as DeviceState};
pub use vhost::vhost_user::message;

use control::{Command, Remote};
use message::FrontendReq;
use script::{Rule, Script};

/// Virtio feature bits.
pub mod feature {
    /// VIRTIO_BLK_F_SEG_MAX.
    pub const BLK_SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO.
    pub const BLK_RO: u64 = 1 << 5;
    /// VIRTIO_BLK_F_BLK_SIZE.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// VIRTIO_BLK_F_FLUSH.
    pub const BLK_FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_MQ.
    pub const BLK_MQ: u64 = 1 << 12;
    /// VHOST_F_LOG_ALL.
    pub const LOG_ALL: u64 = 1 << 26;
    /// VIRTIO_RING_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_RING_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VHOST_USER_F_PROTOCOL_FEATURES.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
    /// Those that Ferry must never show to a guest: ACCESS_PLATFORM, RING_PACKED, IN_ORDER, NOTIFICATION_DATA,
    /// RING_RESET, ADMIN_VQ.
    pub const FORBIDDEN: u64 = 1 << 33 | 1 << 34 | 1 << 35 | 1 << 38 | 1 << 40 | 1 << 41;
}

/// Protocol feature bits.
pub mod protocol {
    /// Several queues.
    pub const MQ: u64 = 1;
    /// What makes LOG_ALL a feature that may be accepted.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// Acknowledgements.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The back-end channel.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// GET_CONFIG and SET_CONFIG.
    pub const CONFIG: u64 = 1 << 9;
    /// RESET_DEVICE.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE.
    pub const DEVICE_STATE: u64 = 1 << 19;
}

/// The name of a front-end request.
pub fn request_name(code: u32) -> String {
    match FrontendReq::try_from(code) {
        Ok(request) => format!("{request:?}"),
        Err(_) => format!("request {code}"),
    }
}

/// A message from the front-end.
#[derive(Clone, Debug)]
pub struct Received {
    /// The request's number.
    pub code: u32,
    /// Header flags.
    pub flags: u32,
    /// What followed the header.
    pub payload: Vec<u8>,
    /// How many file descriptors came with it.
    pub fds: usize,
}

/// What a back-end offers.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    features: u64,
    protocol: u64,
    /// How many rings there really are.
    rings: u16,
    /// The answer to GET_QUEUE_NUM.
    queue_num: u64,
    /// Bytes of configuration space.
    config_size: usize,
}

/// A back-end that is yet to be started.
#[derive(Debug)]
pub struct Backend {
    options: Options,
    script: Script,
    disk: Disk,
    store: state::Store,
}

/// The contents of a disk, which several back-ends may have open, as they do an image.
type Disk = Arc<Mutex<Vec<u8>>>;

impl Backend {
    /// A disk of `size` bytes ("1M", "64K").
    pub fn blk(size: &str) -> Self {
        Backend {
            options: Options {
                features: feature::VERSION_1
                    | feature::PROTOCOL_FEATURES
                    | feature::INDIRECT_DESC
                    | feature::EVENT_IDX
                    | feature::BLK_SEG_MAX
                    | feature::BLK_SIZE
                    | feature::BLK_FLUSH
                    | feature::BLK_MQ,
                protocol: protocol::MQ
                    | protocol::REPLY_ACK
                    | protocol::BACKEND_REQ
                    | protocol::CONFIG
                    | protocol::RESET_DEVICE,
                rings: 4,
                queue_num: 4,
                config_size: blk::CONFIG_SIZE,
            },
            script: Script::default(),
            disk: Arc::new(Mutex::new(vec![0; crate::units::bytes(size) as usize])),
            store: state::Store::default(),
        }
    }

    /// Offers these virtio features too, sensible or not.
    pub fn offers(mut self, features: u64) -> Self {
        self.options.features |= features;
        self
    }

    /// Does not offer these virtio features.
    pub fn withholds(mut self, features: u64) -> Self {
        self.options.features &= !features;
        self
    }

    /// Offers these protocol features too.
    pub fn offers_protocol(mut self, features: u64) -> Self {
        self.options.protocol |= features;
        self
    }

    /// Does not offer these protocol features.
    pub fn withholds_protocol(mut self, features: u64) -> Self {
        self.options.protocol &= !features;
        self
    }

    /// Claims to have so many queues.
    pub fn claims_queues(mut self, count: u64) -> Self {
        self.options.queue_num = count;
        self
    }

    /// Has so many bytes of configuration space; refuses to be asked for more.
    pub fn config_size(mut self, bytes: usize) -> Self {
        self.options.config_size = bytes;
        self
    }

    /// Misbehaves at a given moment. The first rule that applies counts.
    pub fn on(mut self, when: When, then: Misbehaviour) -> Self {
        self.script.rules.push(Rule { when, then });
        self
    }

    /// The disk has these contents, and their size.
    pub fn with_contents(mut self, contents: Vec<u8>) -> Self {
        self.disk = Arc::new(Mutex::new(contents));
        self
    }

    /// The disk is the one of another back-end: what one of them writes the other one reads.
    pub fn sharing(mut self, other: &Running) -> Self {
        self.disk = Arc::clone(&other.shared.disk);
        self
    }

    /// Has a state to save, and offers LOG_ALL as back-ends with state do. What is loaded has to be the same.
    pub fn with_state(self, state: DeviceState) -> Self {
        self.store.hold(state);
        self.offers(feature::LOG_ALL)
            .offers_protocol(protocol::DEVICE_STATE | protocol::LOG_SHMFD)
    }

    /// Has no state yet: this one has to be loaded before a ring starts. Once it is, it can be saved, too.
    pub fn awaits_state(self, state: DeviceState) -> Self {
        self.store.await_load(state);
        self.offers(feature::LOG_ALL)
            .offers_protocol(protocol::DEVICE_STATE | protocol::LOG_SHMFD)
    }

    /// Does this in the given attempt to save or load its state; the first one is number 1.
    pub fn in_transfer(self, direction: Direction, attempt: usize, fault: Fault) -> Self {
        self.store.rule(direction, attempt, fault);
        self
    }

    /// Listens on a socket in a directory of its own.
    pub fn start(self) -> Running {
        let directory = TempDir::new().expect("a temporary directory");
        let socket = directory.path().join("backend.sock");
        let shared = Arc::new(Shared::new(self.disk, self.store));
        let (remote, thread) =
            control::start(&socket, self.options, self.script, Arc::clone(&shared));
        Running {
            socket,
            shared,
            remote,
            thread: Some(thread),
            _directory: directory,
        }
    }
}

/// A back-end at work.
#[derive(Debug)]
pub struct Running {
    socket: PathBuf,
    shared: Arc<Shared>,
    remote: Remote,
    thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl Running {
    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Every message so far, of all connections.
    pub fn received(&self) -> Vec<Received> {
        self.shared.state().received.clone()
    }

    /// How often a message has come so far.
    pub fn count(&self, request: FrontendReq) -> usize {
        let code = u32::from(request);
        self.shared
            .state()
            .received
            .iter()
            .filter(|received| received.code == code)
            .count()
    }

    /// What a strict back-end has to complain of.
    pub fn complaints(&self) -> Vec<String> {
        self.shared.state().complaints.clone()
    }

    /// The virtio features that were accepted last.
    pub fn accepted_features(&self) -> u64 {
        self.accepted_so_far().pop().unwrap_or(0)
    }

    /// The virtio features of each SET_FEATURES so far, of all connections.
    pub fn accepted_so_far(&self) -> Vec<u64> {
        self.shared.state().accepted.clone()
    }

    /// The transfers of state that were checked, and how they ended.
    pub fn transfers(&self) -> Vec<Done> {
        self.shared.store.done()
    }

    /// The state that it would save.
    pub fn holds_state(&self) -> Option<DeviceState> {
        self.shared.store.holds()
    }

    /// How many requests it has completed.
    pub fn requests(&self) -> usize {
        self.shared.state().requests
    }

    /// How many front-ends are connected.
    pub fn connected(&self) -> usize {
        let state = self.shared.state();
        state.connections - state.closed
    }

    /// How often a front-end has connected.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// The disk's contents.
    pub fn disk(&self) -> Vec<u8> {
        self.shared.disk().clone()
    }

    /// Closes everything, as a process that is killed does.
    pub fn die(&self) {
        self.remote.tell(Command::Die);
    }

    /// Does nothing any more, neither messages nor requests, until [`Running::wake`].
    pub fn hang(&self) {
        self.remote.tell(Command::Hang);
    }

    /// Goes on after [`Running::hang`].
    pub fn wake(&self) {
        self.remote.tell(Command::Wake);
    }

    /// Stops taking requests from the rings; messages are answered.
    pub fn hold_requests(&self) {
        self.remote.tell(Command::Hold);
    }

    /// Takes requests again.
    pub fn release_requests(&self) {
        self.remote.tell(Command::Release);
    }

    /// Gives the disk another size and says so on the back-end channel.
    pub fn resize(&self, size: &str) {
        self.shared
            .disk()
            .resize(crate::units::bytes(size) as usize, 0);
        self.remote.tell(Command::AnnounceConfig);
    }

    /// Sends bytes on the back-end channel, with so many file descriptors.
    pub fn send_on_channel(&self, bytes: &[u8], fds: usize) {
        self.remote
            .tell(Command::SendOnChannel(bytes.to_vec(), fds));
    }

    /// Sends bytes on the main socket although nothing was asked.
    pub fn send_unasked(&self, bytes: &[u8]) {
        self.remote.tell(Command::SendUnasked(bytes.to_vec()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.remote.tell(Command::Die);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the back-end's thread and the test share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    disk: Disk,
    store: Arc<state::Store>,
}

#[derive(Debug, Default)]
struct State {
    received: Vec<Received>,
    complaints: Vec<String>,
    accepted: Vec<u64>,
    requests: usize,
    connections: usize,
    closed: usize,
}

impl Shared {
    fn new(disk: Disk, store: state::Store) -> Self {
        Shared {
            state: Mutex::default(),
            disk,
            store: Arc::new(store),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> MutexGuard<'_, Vec<u8>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, received: Received) {
        self.state().received.push(received);
    }

    fn complain(&self, complaint: String) {
        self.state().complaints.push(complaint);
    }

    fn accepted(&self, features: u64) {
        self.state().accepted.push(features);
    }

    fn count_requests(&self, more: usize) {
        self.state().requests += more;
    }

    fn connected(&self) {
        self.state().connections += 1;
    }

    fn closed(&self) {
        self.state().closed += 1;
    }

    /// The configuration space now.
    fn config(&self, options: &Options) -> Vec<u8> {
        let sectors = self.disk().len() as u64 / blk::SECTOR;
        let mut config = blk::config(sectors, options.rings).to_vec();
        config.resize(options.config_size, 0);
        config
    }
}
