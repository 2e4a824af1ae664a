//! The PCI function: decodes accesses to its registers and wires doorbells and interrupts.

mod saving;

pub use saving::Events;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::EventFd;

use super::BAR_SIZE;
use super::layout::{
    self, COMMON, DEVICE, DOORBELL_STRIDE, DOORBELLS, ISR, MSIX_PENDING, MSIX_TABLE, Offsets,
};
use super::registers::{Notify, QueueEvents, Registers, Request};
use crate::interrupt::{Doorbells, MsiRouter};
use crate::pci::{ConfigSpace, MsiX, PciFunction, Wiring};
use crate::virtio::{Activation, ActivationFailed, ActiveQueue, TransportEvents, VirtioDevice};

/// As many queues as have a vector each in the table, beside the configuration's.
const MAX_QUEUES: usize = 1023;

/// What the guest can change, behind one short lock.
struct State {
    config: ConfigSpace,
    msix: MsiX,
    registers: Registers,
    /// Where the doorbells are wired at present.
    wired: Option<u64>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    device: Arc<dyn VirtioDevice>,
    doorbells: Arc<dyn Doorbells>,
    queues: Arc<[QueueEvents]>,
    config_change: Arc<EventFd>,
    doorbell_exits: AtomicU64,
    /// Whether the log has been told of a driver that misuses the device: once, because a guest could fill it.
    complained: AtomicBool,
    offsets: Offsets,
    state: Mutex<State>,
}

/// What a function is made of, whether it is new or was saved.
struct Skeleton {
    queues: Arc<[QueueEvents]>,
    config_change: Arc<EventFd>,
    config: ConfigSpace,
    offsets: Offsets,
}

impl Skeleton {
    /// Queues in `shared` have the eventfds from there.
    fn new(device: &dyn VirtioDevice, bar: u32, shared: &[ActiveQueue]) -> io::Result<Self> {
        let count = device.queue_sizes().len();
        if count > MAX_QUEUES {
            return Err(io::Error::other(format!(
                "{count} queues, of which {MAX_QUEUES} fit"
            )));
        }
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let queues = (0..count)
            .map(|index| {
                let mut shared = shared.iter();
                Ok(match shared.find(|it| usize::from(it.index) == index) {
                    Some(queue) => QueueEvents {
                        kick: queue.kick.clone(),
                        call: queue.call.clone(),
                    },
                    None => QueueEvents {
                        kick: event()?,
                        call: event()?,
                    },
                })
            })
            .collect::<io::Result<Arc<[_]>>>()?;
        let mut config = ConfigSpace::new(layout::identity(device.device_type()));
        config.set_bar(bar, BAR_SIZE);
        let offsets = layout::add_capabilities(&mut config, count as u16 + 1);
        Ok(Skeleton {
            queues,
            config_change: event()?,
            config,
            offsets,
        })
    }

    /// One vector for each source of interrupts.
    fn vectors(&self) -> u16 {
        self.queues.len() as u16 + 1
    }

    /// The sources of interrupts, in the order that `registers` binds them by.
    fn sources(&self) -> Vec<Arc<EventFd>> {
        let calls = self.queues.iter().map(|queue| queue.call.clone());
        std::iter::once(self.config_change.clone())
            .chain(calls)
            .collect()
    }
}

impl VirtioPci {
    /// Puts `device` behind a function whose BAR starts at `bar`, a multiple of [`BAR_SIZE`], and
    /// attaches to the device's events.
    ///
    /// # Errors
    /// No more file descriptors, or a device with more queues than the doorbells have room for.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        bar: u32,
        router: Arc<dyn MsiRouter>,
        doorbells: Arc<dyn Doorbells>,
    ) -> io::Result<Arc<Self>> {
        let skeleton = Skeleton::new(&*device, bar, &[])?;
        let msix = MsiX::new(router, skeleton.vectors(), skeleton.sources());
        let registers = Registers::new(device.clone(), skeleton.queues.clone());
        Ok(Self::assemble(device, doorbells, skeleton, msix, registers))
    }

    fn assemble(
        device: Arc<dyn VirtioDevice>,
        doorbells: Arc<dyn Doorbells>,
        skeleton: Skeleton,
        msix: MsiX,
        registers: Registers,
    ) -> Arc<Self> {
        let Skeleton {
            queues,
            config_change,
            config,
            offsets,
        } = skeleton;
        let function = Arc::new(VirtioPci {
            device,
            doorbells,
            queues,
            config_change,
            doorbell_exits: AtomicU64::new(0),
            complained: AtomicBool::new(false),
            offsets,
            state: Mutex::new(State {
                config,
                msix,
                registers,
                wired: None,
            }),
        });
        let listener = Listener {
            function: Arc::downgrade(&function),
        };
        function.device.attach(Arc::new(listener));
        function
    }

    /// The name of the device behind the function.
    pub fn id(&self) -> &str {
        self.device.id()
    }

    /// With what the driver has started the device; none if it has not, and while the device has not answered.
    pub fn activation(&self) -> Option<Activation> {
        self.state().registers.activation()
    }

    /// Has interrupts go to this machine, or not. While they do not, they wait in their eventfds.
    ///
    /// # Errors
    /// The interrupt controller refuses; `EBUSY` says that another machine has one of the eventfds. It may be tried again.
    pub fn set_wiring(&self, wiring: Wiring) -> io::Result<()> {
        self.state().msix.set_wiring(wiring)
    }

    /// How many queue notifications have reached Ferry instead of an ioeventfd.
    pub fn doorbell_exits(&self) -> u64 {
        self.doorbell_exits.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code behind this lock leaves the registers half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, what: std::fmt::Arguments<'_>) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            tracing::error!(device = self.device.id(), "{what}");
        }
    }

    /// Wires the doorbells to where the guest has put the BAR.
    fn wire_doorbells(&self, state: &mut State) {
        let base = state
            .config
            .decoded()
            .map(|bar| bar.start + u64::from(DOORBELLS));
        if base == state.wired {
            return;
        }
        let bells = |base: u64| {
            (base..)
                .step_by(DOORBELL_STRIDE as usize)
                .zip(&*self.queues)
        };
        if let Some(old) = state.wired.take() {
            for (address, queue) in bells(old) {
                if let Err(error) = self.doorbells.detach(address, &queue.kick) {
                    self.complain(format_args!("cannot unwire a doorbell: {error}"));
                }
            }
        }
        let Some(base) = base else { return };
        for (address, queue) in bells(base) {
            // Without the ioeventfd the write comes here, slower and no less right.
            if let Err(error) = self.doorbells.attach(address, &queue.kick) {
                self.complain(format_args!("cannot wire a doorbell: {error}"));
            }
        }
        state.wired = Some(base);
    }

    fn write_common(&self, state: &mut State, offset: u64, data: &[u8]) {
        let request = state.registers.write(&mut state.msix, offset, data);
        match request {
            None => {}
            // Both calls only post to the device, so that the lock is held for no longer than it takes.
            Some(Request::Reset) => self.device.reset(),
            Some(Request::Activate(activation)) => self.device.activate(activation),
        }
    }

    fn notify(&self, notify: Notify) {
        if notify == Notify::Yes {
            // Fails only when 2^64 - 2 signals are pending already.
            let _ = self.config_change.write(1);
        }
    }

    /// The part of the BAR that the window in configuration space shows, if the guest has set it up well.
    fn window(&self, state: &State) -> Option<(u64, usize)> {
        let at = self.offsets.window;
        let bar = state.config.u32_at(at + 4) & 0xff;
        let offset = u64::from(state.config.u32_at(at + 8));
        let length = state.config.u32_at(at + 12) as usize;
        let fits = bar == 0
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length as u64)
            && offset + length as u64 <= u64::from(BAR_SIZE);
        fits.then_some((offset, length))
    }

    fn window_data(&self) -> Range<usize> {
        self.offsets.window + 16..self.offsets.window + 20
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let state = self.state();
        let window = self
            .window(&state)
            .filter(|_| usize::from(offset) == self.window_data().start);
        state.config.read(offset, data);
        drop(state);
        if let Some((at, length)) = window {
            let length = length.min(data.len());
            self.read_bar(at, &mut data[..length]);
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut state = self.state();
        state.config.write(offset, data);
        let control = state.config.u16_at(self.offsets.msix + 2);
        state.msix.set_control(control);
        self.wire_doorbells(&mut state);
        let window = self
            .window(&state)
            .filter(|_| usize::from(offset) == self.window_data().start);
        drop(state);
        if let Some((at, length)) = window {
            self.write_bar(at, &data[..length.min(data.len())]);
        }
    }

    fn decoded(&self) -> Option<Range<u64>> {
        self.state().config.decoded()
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let mut state = self.state();
        match offset as u32 {
            at @ COMMON..ISR => {
                let image = state.registers.image(&state.msix);
                let from = image.get(at as usize..).unwrap_or_default();
                let length = data.len().min(from.len());
                data[..length].copy_from_slice(&from[..length]);
            }
            ISR if data.len() == 1 => data[0] = state.registers.take_isr(),
            at @ DEVICE..DOORBELLS => {
                drop(state);
                self.device.read_config(u64::from(at - DEVICE), data);
            }
            at @ MSIX_TABLE..MSIX_PENDING => {
                state.msix.read_table(u64::from(at - MSIX_TABLE), data)
            }
            at @ MSIX_PENDING.. => state.msix.read_pending(u64::from(at - MSIX_PENDING), data),
            _ => {}
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        match offset as u32 {
            COMMON..ISR => self.write_common(&mut self.state(), offset, data),
            at @ DEVICE..DOORBELLS => self.device.write_config(u64::from(at - DEVICE), data),
            at @ DOORBELLS..MSIX_TABLE => {
                self.doorbell_exits.fetch_add(1, Ordering::Relaxed);
                let queue = ((at - DOORBELLS) / DOORBELL_STRIDE) as usize;
                if let Some(queue) = self.queues.get(queue) {
                    let _ = queue.kick.write(1);
                }
            }
            at @ MSIX_TABLE..MSIX_PENDING => {
                self.state()
                    .msix
                    .write_table(u64::from(at - MSIX_TABLE), data);
            }
            _ => {}
        }
    }
}

/// What the device tells its transport. The device outlives the function in a reboot, and must not keep it alive.
struct Listener {
    function: Weak<VirtioPci>,
}

impl TransportEvents for Listener {
    fn activated(&self, outcome: Result<(), ActivationFailed>) {
        if let Some(function) = self.function.upgrade() {
            function.activated(outcome);
        }
    }

    fn reset_done(&self) {
        if let Some(function) = self.function.upgrade() {
            function.reset_done();
        }
    }

    fn config_changed(&self) {
        if let Some(function) = self.function.upgrade() {
            function.config_changed();
        }
    }

    fn failed(&self) {
        if let Some(function) = self.function.upgrade() {
            function.failed();
        }
    }
}

impl VirtioPci {
    fn activated(&self, outcome: Result<(), ActivationFailed>) {
        let notify = self.state().registers.activated(outcome);
        self.notify(notify);
    }

    fn reset_done(&self) {
        let state = &mut *self.state();
        for queue in &*self.queues {
            // A kick for the driver that has left is not for the next one.
            let _ = queue.kick.read();
        }
        state.registers.reset_done(&mut state.msix);
    }

    fn config_changed(&self) {
        let notify = self.state().registers.config_changed();
        self.notify(notify);
    }

    fn failed(&self) {
        let notify = self.state().registers.needs_reset();
        self.notify(notify);
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        let Some(base) = self.state().wired.take() else {
            return;
        };
        for (address, queue) in (base..)
            .step_by(DOORBELL_STRIDE as usize)
            .zip(&*self.queues)
        {
            let _ = self.doorbells.detach(address, &queue.kick);
        }
    }
}
