//! The common configuration registers (Virtual I/O Device 1.2, 4.1.4.3) and the device's life cycle.

use std::sync::Arc;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::state::{PhaseStateV1, QueueStateV1, RegistersStateV1, SaveError};
use crate::pci::{MsiX, NotThisFunction, Source};
use crate::virtio::{Activation, ActivationFailed, ActiveQueue, VirtioDevice, status};

/// Bytes of common configuration, up to and including `queue_reset`.
pub const COMMON_SIZE: usize = 60;

/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;

/// Where the device is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The back-end holds nothing of this driver.
    Idle,
    /// DRIVER_OK was written and the device has not answered yet.
    Activating,
    /// The device was started, perhaps without success.
    Started,
    /// A reset was asked for. Until it has ended, the status reads as before and no write counts.
    Resetting,
}

/// What the driver's write asks of the device.
pub enum Request {
    /// Start with these queues.
    Activate(Activation),
    /// Stop.
    Reset,
}

struct QueueRegisters {
    size: u16,
    enabled: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        QueueRegisters {
            size: max_size,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    fn from_state(index: u16, state: &QueueStateV1, most: u16) -> Result<Self, NotThisFunction> {
        let QueueStateV1 {
            size,
            enabled,
            descriptors,
            available,
            used,
        } = *state;
        if !size.is_power_of_two() || size > most {
            return Err(NotThisFunction(format!(
                "its queue {index} had {size} entries and can have {most}"
            )));
        }
        Ok(QueueRegisters {
            size,
            enabled,
            descriptors,
            available,
            used,
        })
    }

    fn save(&self) -> QueueStateV1 {
        let QueueRegisters {
            size,
            enabled,
            descriptors,
            available,
            used,
        } = *self;
        QueueStateV1 {
            size,
            enabled,
            descriptors,
            available,
            used,
        }
    }
}

/// A queue's event file descriptors; they live as long as the transport.
pub struct QueueEvents {
    pub kick: Arc<EventFd>,
    pub call: Arc<EventFd>,
}

/// The registers of one device.
pub struct Registers {
    device: Arc<dyn VirtioDevice>,
    events: Arc<[QueueEvents]>,
    phase: Phase,
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    isr: u8,
}

impl Registers {
    pub fn new(device: Arc<dyn VirtioDevice>, events: Arc<[QueueEvents]>) -> Self {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|&size| QueueRegisters::new(size))
            .collect();
        Registers {
            device,
            events,
            phase: Phase::Idle,
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            isr: 0,
        }
    }

    /// The registers as they were saved. The device is not told: it gets its own state and, if it was started, what
    /// [`Registers::activation`] says.
    pub fn from_state(
        device: Arc<dyn VirtioDevice>,
        events: Arc<[QueueEvents]>,
        state: &RegistersStateV1,
    ) -> Result<Self, NotThisFunction> {
        let RegistersStateV1 {
            phase,
            status,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            isr,
        } = state;
        let offered = device.features();
        let lacking = driver_features & !offered;
        if status & status::FEATURES_OK != 0 && lacking != 0 {
            return Err(NotThisFunction(format!(
                "its driver uses features {lacking:#x} that the device does not offer"
            )));
        }
        let most = device.queue_sizes();
        if queues.len() != most.len() {
            return Err(NotThisFunction(format!(
                "it had {} queues and has {}",
                queues.len(),
                most.len()
            )));
        }
        let queues = (0..)
            .zip(queues)
            .zip(most)
            .map(|((index, queue), &most)| QueueRegisters::from_state(index, queue, most))
            .collect::<Result<_, _>>()?;
        Ok(Registers {
            device,
            events,
            phase: match phase {
                PhaseStateV1::Idle => Phase::Idle,
                PhaseStateV1::Started => Phase::Started,
            },
            status: *status,
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            driver_features: *driver_features,
            queue_select: *queue_select,
            queues,
            isr: *isr,
        })
    }

    /// The registers as they are now.
    pub fn save(&self) -> Result<RegistersStateV1, SaveError> {
        let Registers {
            device,
            events: _,
            phase,
            status,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            isr,
        } = self;
        let phase = match phase {
            Phase::Idle => PhaseStateV1::Idle,
            Phase::Started => PhaseStateV1::Started,
            Phase::Activating => return Err(SaveError::starting(device.id())),
            Phase::Resetting => return Err(SaveError::resetting(device.id())),
        };
        Ok(RegistersStateV1 {
            phase,
            status: *status,
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            driver_features: *driver_features,
            queue_select: *queue_select,
            queues: queues.iter().map(QueueRegisters::save).collect(),
            isr: *isr,
        })
    }

    /// With what the device was started; none while it is idle.
    pub fn activation(&self) -> Option<Activation> {
        (self.phase == Phase::Started).then(|| Activation {
            features: self.driver_features,
            queues: self.enabled_queues(),
        })
    }

    /// The interrupt source of a queue; source 0 is the configuration change.
    fn source(queue: usize) -> Source {
        Source(queue + 1)
    }

    /// The interrupt source of configuration changes.
    pub const CONFIG_SOURCE: Source = Source(0);

    /// All registers as the driver reads them.
    pub fn image(&self, msix: &MsiX) -> [u8; COMMON_SIZE] {
        let mut image = [0; COMMON_SIZE];
        let mut put = |offset: usize, value: &[u8]| {
            image[offset..offset + value.len()].copy_from_slice(value);
        };
        put(0, &self.device_feature_select.to_le_bytes());
        put(
            4,
            &half(self.device.features(), self.device_feature_select).to_le_bytes(),
        );
        put(8, &self.driver_feature_select.to_le_bytes());
        put(
            12,
            &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
        );
        put(16, &msix.vector(Self::CONFIG_SOURCE).to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(20, &[self.status, self.device.config_generation()]);
        put(22, &self.queue_select.to_le_bytes());
        // A queue that does not exist reads as zeros: size 0 means "not available".
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            let source = Self::source(usize::from(self.queue_select));
            put(24, &queue.size.to_le_bytes());
            put(26, &msix.vector(source).to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(30, &self.queue_select.to_le_bytes());
            put(32, &queue.descriptors.to_le_bytes());
            put(40, &queue.available.to_le_bytes());
            put(48, &queue.used.to_le_bytes());
        }
        image
    }

    /// Carries out the driver's write of a register, in the register's own width (64-bit registers also by
    /// halves); anything else is ignored.
    pub fn write(&mut self, msix: &mut MsiX, offset: u64, data: &[u8]) -> Option<Request> {
        if self.phase == Phase::Resetting {
            return None;
        }
        match *data {
            [value] if offset == 20 => return self.write_status(msix, value),
            [a, b] => self.write_u16(msix, offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if matches!(offset, 32 | 40 | 48) => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        None
    }

    fn write_u16(&mut self, msix: &mut MsiX, offset: u64, value: u16) {
        let selected = usize::from(self.queue_select);
        match offset {
            16 => {
                msix.bind(Self::CONFIG_SOURCE, value);
            }
            22 => self.queue_select = value,
            26 if selected < self.queues.len() => {
                msix.bind(Self::source(selected), value);
            }
            24 | 28 => {
                let max_size = self
                    .device
                    .queue_sizes()
                    .get(selected)
                    .copied()
                    .unwrap_or(0);
                let Some(queue) = self.queue_being_set_up() else {
                    return;
                };
                match offset {
                    24 if value.is_power_of_two() && value <= max_size => queue.size = value,
                    28 if value == 1 => queue.enabled = true,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn write_u32(&mut self, offset: u64, value: u32) {
        match offset {
            0 => self.device_feature_select = value,
            8 => self.driver_feature_select = value,
            12 if self.status & status::FEATURES_OK == 0 && self.driver_feature_select < 2 => {
                set_half(&mut self.driver_features, self.driver_feature_select, value);
            }
            32..=52 => {
                let Some(queue) = self.queue_being_set_up() else {
                    return;
                };
                let half = u32::from(offset % 8 == 4);
                match offset & !7 {
                    32 => set_half(&mut queue.descriptors, half, value),
                    40 => set_half(&mut queue.available, half, value),
                    _ => set_half(&mut queue.used, half, value),
                }
            }
            _ => {}
        }
    }

    /// The selected queue, while the driver may still change it.
    fn queue_being_set_up(&mut self) -> Option<&mut QueueRegisters> {
        if self.phase != Phase::Idle {
            return None;
        }
        self.queues
            .get_mut(usize::from(self.queue_select))
            .filter(|queue| !queue.enabled)
    }

    fn write_status(&mut self, msix: &mut MsiX, value: u8) -> Option<Request> {
        if value == 0 {
            if self.phase == Phase::Idle {
                self.clear(msix);
                return None;
            }
            self.phase = Phase::Resetting;
            return Some(Request::Reset);
        }
        let mut set = value & !self.status & !status::NEEDS_RESET;
        if set & status::FEATURES_OK != 0 && !self.features_acceptable() {
            set &= !status::FEATURES_OK;
        }
        let driver_ok = set & status::DRIVER_OK != 0;
        if driver_ok && (self.status | set) & status::FEATURES_OK == 0 {
            set &= !status::DRIVER_OK;
        }
        self.status |= set;
        (set & status::DRIVER_OK != 0 && self.phase == Phase::Idle).then_some(())?;
        self.phase = Phase::Activating;
        Some(Request::Activate(Activation {
            features: self.driver_features,
            queues: self.enabled_queues(),
        }))
    }

    fn features_acceptable(&self) -> bool {
        let offered = self.device.features();
        self.driver_features & !offered == 0 && self.driver_features & VERSION_1 != 0
    }

    /// The queues that the driver enabled.
    fn enabled_queues(&self) -> Vec<ActiveQueue> {
        let queues = (0u16..).zip(&self.queues).zip(&*self.events);
        queues
            .filter(|((_, queue), _)| queue.enabled)
            .map(|((index, queue), events)| ActiveQueue {
                index,
                size: queue.size,
                descriptors: GuestAddress(queue.descriptors),
                available: GuestAddress(queue.available),
                used: GuestAddress(queue.used),
                kick: events.kick.clone(),
                call: events.call.clone(),
            })
            .collect()
    }

    /// The device has answered an activation. Returns whether the driver is to be told of a failure.
    pub fn activated(&mut self, outcome: Result<(), ActivationFailed>) -> Notify {
        // A reset that was asked for meanwhile has the last word.
        if self.phase == Phase::Activating {
            self.phase = Phase::Started;
        }
        match outcome {
            Ok(()) => Notify::No,
            Err(ActivationFailed) => self.needs_reset(),
        }
    }

    /// The device has stopped.
    pub fn reset_done(&mut self, msix: &mut MsiX) {
        self.clear(msix);
    }

    /// The configuration space or the status has changed.
    pub fn config_changed(&mut self) -> Notify {
        self.isr |= ISR_CONFIG;
        Notify::Yes
    }

    /// The device cannot go on. Returns whether the driver is there to be told.
    pub fn needs_reset(&mut self) -> Notify {
        self.status |= status::NEEDS_RESET;
        if self.status & status::DRIVER_OK == 0 {
            return Notify::No;
        }
        self.config_changed()
    }

    /// Reads and clears the ISR status.
    pub fn take_isr(&mut self) -> u8 {
        std::mem::take(&mut self.isr)
    }

    fn clear(&mut self, msix: &mut MsiX) {
        msix.unbind_all();
        *self = Registers::new(self.device.clone(), self.events.clone());
    }
}

/// The ISR status bit of a configuration change; without INTx the one for queues is never needed.
const ISR_CONFIG: u8 = 1 << 1;

/// Whether a configuration change interrupt is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    Yes,
    No,
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    let shift = 32 * select;
    *value = *value & !(0xffff_ffff << shift) | u64::from(half) << shift;
}
