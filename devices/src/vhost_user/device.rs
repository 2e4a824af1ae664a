//! The handle to a vhost-user device.
//!
//! Nothing here waits: the transport calls from vCPU threads. What the back-end has to do is posted to the worker's
//! [inbox](super::inbox), and what can be said at once is read from what the worker [shares](super::shared).

mod live;
mod logging;
mod moving;

use std::io;
use std::sync::Arc;
use std::thread;

use vm_migration::Saveability;

use super::counters::{DeviceCounters, RingCounters};
use super::error::Error;
use super::inbox::{ConfigWrite, Done, Order};
use super::memory::RamRegion;
use super::negotiated::Negotiated;
use super::profile::StateTransfer;
use super::shared::{Shared, signal};
use super::worker::Worker;
use super::{BackendSpec, Limits};
use crate::chain;
use crate::virtio::{Activation, TransportEvents, VirtioDevice};

/// The most queues of a device: those of 256 CPUs, and a few for the device itself.
pub(super) const MAX_QUEUES: u32 = 1024;

/// Bytes of stack of a device's worker.
const STACK: usize = 128 << 10;

/// The largest write to the configuration space, in bytes.
pub(super) const MAX_WRITE: usize = 256;

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
    /// An activation, a reset, a suspension or its opposite is under way; or the device is being restored, and the state inside
    /// its back-end is not there yet.
    Changing,
    /// The rings are running.
    Active,
    /// The rings are stopped, and remembered.
    Suspended,
    /// The back-end is of no use any more.
    Failed,
}

impl DeviceState {
    pub(super) const ALL: [DeviceState; 6] = [
        DeviceState::Starting,
        DeviceState::Idle,
        DeviceState::Changing,
        DeviceState::Active,
        DeviceState::Suspended,
        DeviceState::Failed,
    ];
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

impl VhostUserDevice {
    /// Starts a device: its worker connects to the back-end, agrees with it, and tells `observer` the outcome.
    /// `ram` is all of guest RAM.
    pub fn start(
        spec: BackendSpec,
        limits: Limits,
        ram: Arc<[RamRegion]>,
        observer: Arc<dyn DeviceObserver>,
    ) -> io::Result<Starting> {
        let shared = Arc::new(Shared::new(spec, ram)?);
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
        shared.set_config(negotiated.config.clone());
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
        self.shared.error()
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

    /// What has happened to the device since it was started.
    pub fn counters(&self) -> DeviceCounters {
        self.shared.counters.sample()
    }

    /// The rings that the back-end has been given, as they are in guest RAM now; none while the device is idle. Nothing is
    /// waited for and nobody is disturbed, so the numbers of a running ring are of about the same moment only.
    pub fn rings(&self) -> Vec<RingCounters> {
        self.shared.rings().sample()
    }

    /// The features that the guest's driver has accepted; `None` while the device is idle.
    pub fn accepted_features(&self) -> Option<u64> {
        let rings = self.shared.rings();
        (!rings.places.is_empty()).then_some(rings.features)
    }

    /// Names all of guest RAM, which the back-end is told of at the next activation in place of what it knows.
    pub fn set_ram(&self, ram: Arc<[RamRegion]>) {
        self.shared.set_ram(ram);
    }

    /// Stops the device without the guest's noticing: what the back-end has been given is completed, and every ring
    /// is stopped.
    ///
    /// *Who calls, and when*: the owner of the machine, after all vCPUs have stopped, so that the guest can neither
    /// add requests nor write to the device. Only when all that the owner has asked of this device before is answered. Carried out behind
    /// whatever the guest has asked for before.
    ///
    /// *Afterwards*, if `done` is told `Ok`: the back-end touches neither guest memory nor the rings' eventfds until
    /// [`VhostUserDevice::resume`]; all requests of queues that carry requests are completed. A device
    /// without rings, and one that has failed, has nothing to stop: `Ok` at once.
    ///
    /// *An error* says that the device did not come to rest. Whether it lives on is said by [`VhostUserDevice::state`]; if it does,
    /// `resume` must follow.
    ///
    /// *How long*: the worker waits for its back-end as long as it would for a reset. An owner with less
    /// patience gives its attempt up by calling `resume`, and lets the guest go on at once. That ends a suspension that has not come
    /// further than waiting for requests; an answer that the back-end owes by then is waited for, because it
    /// says where the ring is to go on.
    ///
    /// `done` is called exactly once, from the worker's thread; from this one if the worker has ended. It may not block.
    pub fn suspend(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::Suspend(done));
    }

    /// Lets the device go on where [`VhostUserDevice::suspend`] stopped it.
    ///
    /// *Who calls, and when*: the owner, before it lets the vCPUs run, or after a suspension that it has given up; once. Need
    /// not be waited for: what the guest asks of the device meanwhile is done when it runs again. So the worker need not begin before
    /// the vCPUs, and compete with them: it does when what is returned is dropped.
    ///
    /// *Afterwards*, if `done` is told `Ok`: every ring that had been stopped runs again from where it was, has
    /// been looked at by the back-end once, and has raised one interrupt. (Of rings that
    /// [`VhostUserDevice::set_up_rings`] has set up, the back-end is told their kicks and to enable them, and nothing else.) A
    /// dirty log stays as it is. For a device without rings, with
    /// rings that were not stopped, or that has failed, there is nothing to do: `Ok`.
    ///
    /// *An error* says that the device has failed, which the transport and the observer have been told, too.
    ///
    /// `done` is called as for `suspend`.
    pub fn resume(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) -> Rouse {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_quietly(Order::Resume(done));
        Rouse(Arc::clone(&self.shared))
    }
}

/// Wakes the worker of a device that has been told something, when it is dropped.
#[must_use = "the worker need not begin before it is dropped"]
pub struct Rouse(Arc<Shared>);

impl Drop for Rouse {
    fn drop(&mut self) {
        signal(&self.0.wake);
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
        self.shared.with_config(|config| {
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(config.bytes.len());
            let available = &config.bytes[start..];
            let length = available.len().min(data.len());
            data[..length].copy_from_slice(&available[..length]);
        });
    }

    fn config_generation(&self) -> u8 {
        self.shared.with_config(|config| config.generation)
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if data.is_empty() || data.len() > MAX_WRITE {
            return;
        }
        let (Ok(start), Ok(offset)) = (usize::try_from(offset), u32::try_from(offset)) else {
            return;
        };
        let Some(end) = start.checked_add(data.len()) else {
            return;
        };
        let rules = self.shared.spec.profile.rules();
        let taken = self.shared.with_config(|config| {
            let writable = rules.writable(self.negotiated.guest_features, config.bytes.len());
            if start < writable.start || end > writable.end {
                return false;
            }
            if let Some(target) = config.bytes.get_mut(start..end) {
                target.copy_from_slice(data);
            }
            true
        });
        if taken {
            let data = data.to_vec();
            self.shared.post_write(ConfigWrite { offset, data });
        }
    }

    fn attach(&self, events: Arc<dyn TransportEvents>) {
        self.shared.set_transport(events);
    }

    fn activate(&self, activation: Activation) {
        self.shared
            .post(|transport| Order::Activate(activation, transport));
    }

    fn reset(&self) {
        self.shared.post(Order::Reset);
    }
}

impl Drop for VhostUserDevice {
    fn drop(&mut self) {
        signal(&self.shared.stop);
    }
}
