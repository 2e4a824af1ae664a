//! What a device's handle and its worker share: small values, each behind a lock of its own that is never held
//! while something is waited for or called.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::BackendSpec;
use super::counters::{Counters, RunningRings};
use super::device::DeviceState;
use super::error::{Cause, Error};
use super::inbox::{ConfigWrite, Inbox, Order, Refused};
use super::memory::RamRegion;
use super::moving::RingStateV1;
use crate::virtio::TransportEvents;

/// The configuration space as the guest sees it now.
#[derive(Debug, Default)]
pub(super) struct GuestConfig {
    pub bytes: Vec<u8>,
    /// Another one for every change that the guest did not make.
    pub generation: u8,
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
    config: Mutex<GuestConfig>,
    state: AtomicU8,
    error: Mutex<Option<Error>>,
    pub counters: Arc<Counters>,
    /// The rings of the running session.
    rings: Mutex<RunningRings>,
    /// Why the back-end has not noted all that it wrote, although it was to.
    unlogged: Mutex<Option<Error>>,
    /// Where the rings of the session that is suspended are to go on.
    stopped: Mutex<Vec<RingStateV1>>,
}

impl Shared {
    pub fn new(spec: BackendSpec, ram: Arc<[RamRegion]>) -> io::Result<Self> {
        Ok(Shared {
            spec,
            ram: Mutex::new(ram),
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            stop: Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?),
            inbox: Mutex::default(),
            config: Mutex::default(),
            state: AtomicU8::new(DeviceState::Starting as u8),
            error: Mutex::default(),
            counters: Arc::default(),
            rings: Mutex::default(),
            unlogged: Mutex::default(),
            stopped: Mutex::default(),
        })
    }

    pub fn ram(&self) -> Arc<[RamRegion]> {
        Arc::clone(&lock(&self.ram))
    }

    pub fn set_ram(&self, ram: Arc<[RamRegion]>) {
        *lock(&self.ram) = ram;
    }

    pub fn state(&self) -> DeviceState {
        let value = self.state.load(Ordering::Acquire);
        DeviceState::ALL
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

    /// An error of this device.
    pub fn error_from(&self, cause: Cause) -> Error {
        Error {
            device: self.spec.id.clone(),
            socket: self.spec.socket.clone(),
            cause: Arc::new(cause),
        }
    }

    pub fn error(&self) -> Option<Error> {
        lock(&self.error).clone()
    }

    pub fn set_error(&self, error: Error) {
        *lock(&self.error) = Some(error);
        self.set_state(DeviceState::Failed);
    }

    pub fn rings(&self) -> RunningRings {
        lock(&self.rings).clone()
    }

    pub fn set_rings(&self, rings: RunningRings) {
        *lock(&self.rings) = rings;
    }

    pub fn unlogged(&self) -> Option<Error> {
        lock(&self.unlogged).clone()
    }

    pub fn set_unlogged(&self, error: Option<Error>) {
        *lock(&self.unlogged) = error;
    }

    pub fn stopped(&self) -> Vec<RingStateV1> {
        lock(&self.stopped).clone()
    }

    pub fn set_stopped(&self, stopped: Vec<RingStateV1>) {
        *lock(&self.stopped) = stopped;
    }

    /// Works on the configuration space.
    pub fn with_config<T>(&self, work: impl FnOnce(&mut GuestConfig) -> T) -> T {
        work(&mut lock(&self.config))
    }

    /// Replaces the configuration space; returns whether it is another one now.
    pub fn set_config(&self, config: Vec<u8>) -> bool {
        self.with_config(|current| {
            let differs = current.bytes != config;
            if differs {
                current.bytes = config;
                current.generation = current.generation.wrapping_add(1);
            }
            differs
        })
    }

    pub fn transport(&self) -> Option<Arc<dyn TransportEvents>> {
        lock(&self.inbox).transport.clone()
    }

    pub fn set_transport(&self, transport: Arc<dyn TransportEvents>) {
        let old = lock(&self.inbox).transport.replace(transport);
        // What goes with it may have much to clear up.
        drop(old);
    }

    /// Hands an order of the transport to the worker.
    pub fn post(&self, order: impl FnOnce(Arc<dyn TransportEvents>) -> Order) {
        let Some(transport) = self.transport() else {
            tracing::error!(
                device = self.spec.id,
                "a device without a transport was asked to do something"
            );
            return;
        };
        self.post_order(order(transport));
    }

    /// Hands an order to the worker. One that is not taken is dropped, and answered by that if it is the owner's or a job's.
    pub fn post_order(&self, order: Order) {
        self.post_quietly(order);
        signal(&self.wake);
    }

    /// The same, and does not wake the worker.
    pub fn post_quietly(&self, order: Order) {
        let posted = lock(&self.inbox).post(order);
        let refused = match posted {
            Ok(moot) => {
                let given_up = self.error_from(Cause::GivenUp);
                return moot.into_iter().for_each(|it| it.refuse(&given_up));
            }
            Err(Refused::Closed(order)) => order,
            Err(Refused::Full(order)) => {
                tracing::error!(
                    device = self.spec.id,
                    "whoever gives orders does not wait for answers; dropped one"
                );
                order
            }
        };
        // Not while the inbox is locked: it may have much to clear up, and somebody to tell.
        drop(refused);
    }

    pub fn post_write(&self, write: ConfigWrite) {
        let dropped = lock(&self.inbox).post_write(write);
        if dropped {
            self.counters.config_writes_dropped.add();
        }
        signal(&self.wake);
    }

    pub fn next_order(&self) -> Option<Order> {
        lock(&self.inbox).next_order()
    }

    pub fn next_write(&self) -> Option<ConfigWrite> {
        lock(&self.inbox).next_write()
    }

    /// Whether an order waits for which `matches` holds.
    pub fn has_order(&self, matches: impl Fn(&Order) -> bool) -> bool {
        lock(&self.inbox).has_order(matches)
    }

    /// Forgets the writes that are waiting.
    pub fn clear_writes(&self) {
        lock(&self.inbox).clear_writes();
    }

    /// Takes no more orders. The owner's that wait are answered, the transport's not: there is no device any more.
    pub fn close_inbox(&self) {
        let left = lock(&self.inbox).close();
        drop(left);
    }
}

/// Locks; what a panicking thread left behind is whole, as each of these holds one value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An eventfd refuses a signal only when it has 2^64 - 2 pending, and then it is signalled already.
pub(super) fn signal(event: &EventFd) {
    let _ = event.write(1);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;
    use crate::vhost_user::{Access, Blk, Profile};

    #[test]
    fn a_driver_that_reads_two_configurations_can_see_it() {
        const CHANGES: u8 = 200;
        const ROUNDS: u32 = 20;
        let spec = BackendSpec {
            id: "disk0".into(),
            socket: "none".into(),
            num_queues: 1,
            queue_size: 16,
            profile: Profile::Blk(Blk {
                access: Access::ReadWrite,
            }),
        };
        let shared = Shared::new(spec, Arc::new([])).unwrap();
        shared.set_config(vec![0; 2]);
        let looks = AtomicU64::new(0);
        let part = |index: usize| shared.with_config(|config| config.bytes[index]);
        let generation = || shared.with_config(|config| config.generation);
        thread::scope(|scope| {
            let driver = scope.spawn(|| {
                loop {
                    let before = generation();
                    let (first, second) = (part(0), part(1));
                    if generation() == before {
                        assert_eq!(first, second);
                        if first == CHANGES {
                            return;
                        }
                    }
                    looks.fetch_add(1, Ordering::Release);
                }
            });
            for round in 1..=ROUNDS {
                let last = match round {
                    ROUNDS => CHANGES,
                    _ => CHANGES - 1,
                };
                for value in 0..=last {
                    // No more than a few changes in one look: the generation has 256 values.
                    let seen = looks.load(Ordering::Acquire);
                    while looks.load(Ordering::Acquire) == seen && !driver.is_finished() {
                        thread::yield_now();
                    }
                    shared.set_config(vec![value; 2]);
                }
            }
        });
    }
}
