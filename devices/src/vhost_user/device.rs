//! The handle to a vhost-user device, and what it shares with the device's worker.
//!
//! Nothing here waits: the transport calls from vCPU threads. What the back-end has to do is posted to the worker,
//! whose inbox is bounded: the transport has at most one activation and one reset pending, and of the guest's
//! writes to the configuration space the oldest are dropped when there are too many.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use vm_migration::Saveability;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::{Error, chain};
use super::memory::RamRegion;
use super::negotiated::Negotiated;
use super::profile::StateTransfer;
use super::worker::Worker;
use super::{BackendSpec, Limits};
use crate::virtio::{Activation, TransportEvents, VirtioDevice};

/// The most queues of a device: those of 256 CPUs, and a few for the device itself.
pub(super) const MAX_QUEUES: u32 = 1024;

/// Bytes of stack of a device's worker.
const STACK: usize = 128 << 10;

/// Commands of the transport that may wait in the inbox. Two are legal; the rest is for a transport
/// that takes the place of another.
const MAX_COMMANDS: usize = 16;

/// Writes to the configuration space that may wait in the inbox, and the largest of them in bytes.
const MAX_WRITES: usize = 16;
const MAX_WRITE: usize = 256;

/// Who is told about a device, from the device's own thread.
pub trait DeviceObserver: Send + Sync {
    /// The device has come up, or could not be started. Called once, unless the start is cancelled.
    fn ready(&self, id: &str, outcome: Result<Arc<VhostUserDevice>, Error>);

    /// A device that had come up has failed; it has been logged. Called once at most.
    fn failed(&self, id: &str, error: &Error);
}

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeviceState {
    /// Not ready yet.
    Starting,
    /// The back-end is there; its rings are stopped.
    Idle,
    /// An activation or a reset is under way.
    Changing,
    /// The rings are running.
    Active,
    /// The back-end is of no use any more.
    Failed,
}

/// A device that is being started. Dropping it changes nothing.
#[derive(Debug)]
pub struct Starting {
    shared: Arc<Shared>,
}

impl Starting {
    /// Gives the start up: the worker ends, and the observer is not told. Nothing happens if the
    /// start has ended by then.
    pub fn cancel(&self) {
        if self.shared.end_start(DeviceState::Failed) {
            signal(&self.shared.stop);
        }
    }
}

/// A virtio device whose back-end is another process. When it is dropped, its worker ends and the
/// connection is closed.
#[derive(Debug)]
pub struct VhostUserDevice {
    shared: Arc<Shared>,
    /// The largest size of each queue.
    queue_sizes: Vec<u16>,
    negotiated: Negotiated,
}

/// What the handle and the worker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub spec: BackendSpec,
    /// Guest RAM, for the next activation.
    ram: Mutex<Arc<[RamRegion]>>,
    /// Signalled when something has been posted.
    pub wake: EventFd,
    /// Signalled, and never reset, when the worker is to end.
    pub stop: Arc<EventFd>,
    inbox: Mutex<Inbox>,
    /// The configuration space as the guest sees it now.
    config: Mutex<Vec<u8>>,
    state: AtomicU8,
    error: Mutex<Option<Error>>,
}

/// What has been posted to the worker.
#[derive(Default)]
struct Inbox {
    transport: Option<Arc<dyn TransportEvents>>,
    commands: VecDeque<Command>,
    writes: VecDeque<ConfigWrite>,
    writes_dropped: u64,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("commands", &self.commands.len())
            .field("writes", &self.writes.len())
            .finish_non_exhaustive()
    }
}

/// What the transport wants done, and who is told how it ended.
pub(super) struct Command {
    pub action: Action,
    pub transport: Arc<dyn TransportEvents>,
}

pub(super) enum Action {
    Activate(Activation),
    Reset,
}

/// A guest's write to the configuration space.
#[derive(Debug)]
pub(super) struct ConfigWrite {
    pub offset: u32,
    pub data: Vec<u8>,
}

impl VhostUserDevice {
    /// Starts a device: its worker connects to the back-end, agrees with it, and tells `observer` the outcome.
    /// `ram` is all of guest RAM.
    pub fn start(
        spec: BackendSpec,
        limits: Limits,
        ram: Arc<[RamRegion]>,
        observer: Arc<dyn DeviceObserver>,
    ) -> io::Result<Starting> {
        let shared = Arc::new(Shared {
            spec,
            ram: Mutex::new(ram),
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            stop: Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?),
            inbox: Mutex::default(),
            config: Mutex::default(),
            state: AtomicU8::new(DeviceState::Starting as u8),
            error: Mutex::default(),
        });
        let starting = Starting {
            shared: Arc::clone(&shared),
        };
        // The kernel keeps 15 bytes of a thread's name.
        let name: String = shared.spec.id.chars().take(15).collect();
        thread::Builder::new()
            .name(name)
            .stack_size(STACK)
            .spawn(move || Worker::run(shared, limits, &*observer))?;
        Ok(starting)
    }

    pub(super) fn new(shared: Arc<Shared>, negotiated: Negotiated) -> Self {
        let spec = &shared.spec;
        let count = spec.profile.rules().queue_count(spec.num_queues) as usize;
        *lock(&shared.config) = negotiated.config.clone();
        VhostUserDevice {
            queue_sizes: vec![spec.queue_size; count],
            negotiated,
            shared,
        }
    }

    /// What was agreed on with the back-end.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Where the device stands.
    pub fn state(&self) -> DeviceState {
        self.shared.state()
    }

    /// Why the device has failed, if it has.
    pub fn error(&self) -> Option<Error> {
        lock(&self.shared.error).clone()
    }

    /// Whether the device can be saved, and how.
    pub fn saveability(&self) -> Saveability {
        if let Some(error) = self.error() {
            return Saveability::Unsupported(format!("it has failed: {}", chain(&error)));
        }
        let offer = match self.negotiated.offers_device_state() {
            true => StateTransfer::Offered,
            false => StateTransfer::Absent,
        };
        self.shared.spec.profile.rules().saveability(offer)
    }

    /// Names all of guest RAM, which the back-end is told of at the next activation in place of what it knows.
    pub fn set_ram(&self, ram: Arc<[RamRegion]>) {
        *lock(&self.shared.ram) = ram;
    }

    fn post(&self, action: Action) {
        let mut inbox = lock(&self.shared.inbox);
        let Some(transport) = inbox.transport.clone() else {
            tracing::error!(
                device = self.id(),
                "a device without a transport was asked to do something"
            );
            return;
        };
        if inbox.commands.len() >= MAX_COMMANDS {
            tracing::error!(
                device = self.id(),
                "the transport does not wait for answers; dropped what it asked for"
            );
            return;
        }
        inbox.commands.push_back(Command { action, transport });
        drop(inbox);
        signal(&self.shared.wake);
    }
}

impl VirtioDevice for VhostUserDevice {
    fn id(&self) -> &str {
        &self.shared.spec.id
    }

    fn device_type(&self) -> u32 {
        self.shared.spec.profile.rules().device_type()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.negotiated.guest_features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let config = lock(&self.shared.config);
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(config.len());
        let available = &config[start..];
        let length = available.len().min(data.len());
        data[..length].copy_from_slice(&available[..length]);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let rules = self.shared.spec.profile.rules();
        let mut config = lock(&self.shared.config);
        let writable = rules.writable(self.negotiated.guest_features, config.len());
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(data.len())?))
            .filter(|range| writable.start <= range.start && range.end <= writable.end);
        let (Some(range), Ok(offset)) = (range, u32::try_from(offset)) else {
            return;
        };
        if data.is_empty() || data.len() > MAX_WRITE {
            return;
        }
        if let Some(target) = config.get_mut(range) {
            target.copy_from_slice(data);
        }
        drop(config);
        let mut inbox = lock(&self.shared.inbox);
        if inbox.writes.len() >= MAX_WRITES {
            inbox.writes.pop_front();
            inbox.writes_dropped += 1;
        }
        inbox.writes.push_back(ConfigWrite {
            offset,
            data: data.to_vec(),
        });
        drop(inbox);
        signal(&self.shared.wake);
    }

    fn attach(&self, events: Arc<dyn TransportEvents>) {
        lock(&self.shared.inbox).transport = Some(events);
    }

    fn activate(&self, activation: Activation) {
        self.post(Action::Activate(activation));
    }

    fn reset(&self) {
        self.post(Action::Reset);
    }
}

impl Drop for VhostUserDevice {
    fn drop(&mut self) {
        signal(&self.shared.stop);
    }
}

impl Shared {
    pub fn ram(&self) -> Arc<[RamRegion]> {
        Arc::clone(&lock(&self.ram))
    }

    pub fn state(&self) -> DeviceState {
        let value = self.state.load(Ordering::Acquire);
        [
            DeviceState::Starting,
            DeviceState::Idle,
            DeviceState::Changing,
            DeviceState::Active,
            DeviceState::Failed,
        ]
        .into_iter()
        .find(|state| *state as u8 == value)
        .unwrap_or(DeviceState::Failed)
    }

    pub fn set_state(&self, state: DeviceState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Ends the start with `state`; returns whether it had not ended yet.
    pub fn end_start(&self, state: DeviceState) -> bool {
        let starting = DeviceState::Starting as u8;
        self.state
            .compare_exchange(starting, state as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    pub fn set_error(&self, error: Error) {
        *lock(&self.error) = Some(error);
        self.set_state(DeviceState::Failed);
    }

    /// Replaces the configuration space; returns whether it is another one now.
    pub fn set_config(&self, config: Vec<u8>) -> bool {
        let mut current = lock(&self.config);
        let differs = *current != config;
        *current = config;
        differs
    }

    pub fn transport(&self) -> Option<Arc<dyn TransportEvents>> {
        lock(&self.inbox).transport.clone()
    }

    pub fn next_command(&self) -> Option<Command> {
        lock(&self.inbox).commands.pop_front()
    }

    pub fn next_write(&self) -> Option<ConfigWrite> {
        lock(&self.inbox).writes.pop_front()
    }

    /// Whether the transport has already asked for the next thing.
    pub fn has_command(&self) -> bool {
        !lock(&self.inbox).commands.is_empty()
    }

    /// Forgets the writes that are waiting.
    pub fn clear_writes(&self) {
        lock(&self.inbox).writes.clear();
    }
}

/// Locks; what a panicking thread left behind is whole, as each of these holds one value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An eventfd refuses a signal only when it has 2^64 - 2 pending, and then it is signalled already.
fn signal(event: &EventFd) {
    let _ = event.write(1);
}
