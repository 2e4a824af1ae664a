//! The contract between a virtio transport and the device behind it.
//!
//! The transport ([`pci`]) holds what the guest's driver sees: status, features,
//! queue addresses, interrupts. The device holds what the back-end does. Between them everything
//! is asynchronous, because the transport runs on vCPU threads, which never wait for a back-end:
//!
//! ```text
//!            activate()                     activated(Ok)
//!   Idle ───────────────▶ Activating ───────────────────────▶ Active
//!    ▲                        │ activated(Err): NEEDS_RESET      │
//!    │      reset_done()      ▼              reset()             │
//!    └───────────────────  Resetting ◀───────────────────────────┘
//! ```
//!
//! The transport calls [`VirtioDevice::activate`] and [`VirtioDevice::reset`] in turn, and each
//! call is answered exactly once, whatever the back-end does, in the order of the calls. A reset may be asked for while
//! an activation is still pending; no other call overlaps with another.

pub mod pci;

use std::sync::Arc;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

/// Bits of the device status field (Virtual I/O Device 1.2, 2.1).
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive the device.
    pub const DRIVER: u8 = 2;
    /// The driver is set up and ready.
    pub const DRIVER_OK: u8 = 4;
    /// The driver has acknowledged the features it understands.
    pub const FEATURES_OK: u8 = 8;
    /// The device has met an error from which only a reset leads out.
    pub const NEEDS_RESET: u8 = 64;
    /// The guest has given up on the device.
    pub const FAILED: u8 = 128;
}

/// A split virtqueue as the driver set it up, with its two event file descriptors.
///
/// The eventfds belong to the queue for the whole life of the transport: masking a vector or moving a
/// queue to another one is not the back-end's business.
#[derive(Clone, Debug)]
pub struct ActiveQueue {
    /// Index within the device.
    pub index: u16,
    /// Number of descriptors, a power of two of at most 32768.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: GuestAddress,
    /// Guest-physical address of the available ring.
    pub available: GuestAddress,
    /// Guest-physical address of the used ring.
    pub used: GuestAddress,
    /// Signalled by the guest when buffers are available.
    pub kick: Arc<EventFd>,
    /// Signalled by the back-end when buffers have been used.
    pub call: Arc<EventFd>,
}

/// Everything a device needs in order to start.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The features that the driver accepted, a subset of [`VirtioDevice::features`].
    pub features: u64,
    /// The queues that the driver enabled, by ascending index. Whether their addresses are aligned and lie in guest
    /// RAM is for the device to check, which knows what RAM its back-end has been told of.
    pub queues: Vec<ActiveQueue>,
}

/// A device behind a virtio transport.
///
/// Every method returns at once and may be called from a vCPU thread.
pub trait VirtioDevice: Send + Sync {
    /// The name by which the user knows this device, `disk0`.
    fn id(&self) -> &str;

    /// The virtio device type (Virtual I/O Device 1.2, 5).
    fn device_type(&self) -> u32;

    /// The largest size of each queue; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The features offered to the driver, VERSION_1 among them.
    fn features(&self) -> u64;

    /// Fills `data` from the configuration space at `offset` (bytes); zeros beyond its end.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// What a driver reads before and after several reads of the configuration space: equal numbers say that it read one
    /// configuration, not parts of two (Virtual I/O Device 1.2, 2.5.1). So it changes at the moment
    /// at which the configuration does, and before [`TransportEvents::config_changed`] says so.
    fn config_generation(&self) -> u8;

    /// Writes `data` into the configuration space at `offset` (bytes). What the device does not take it ignores.
    fn write_config(&self, offset: u64, data: &[u8]);

    /// Names who is to be told of this device's progress from now on. Called once per transport, before anything
    /// else; after a reboot a new transport takes the old one's place. The transport holds the device, so that what
    /// is named here must not hold the transport.
    fn attach(&self, events: Arc<dyn TransportEvents>);

    /// Starts the device; answered by [`TransportEvents::activated`].
    fn activate(&self, activation: Activation);

    /// Stops all queues: afterwards the back-end touches neither guest memory nor the eventfds of the last
    /// activation. Answered by [`TransportEvents::reset_done`]. Legal in every state, also when not active.
    fn reset(&self);
}

/// What a device tells its transport, from the device's own thread.
pub trait TransportEvents: Send + Sync {
    /// The activation has ended: the queues are running, or the device could not be started (the device has logged the reason) and
    /// the transport sets [`status::NEEDS_RESET`].
    fn activated(&self, outcome: Result<(), ActivationFailed>);

    /// The reset has ended.
    fn reset_done(&self);

    /// The configuration space has changed, and its generation with it.
    fn config_changed(&self);

    /// The device has failed while it ran (the device has logged the reason): the transport sets [`status::NEEDS_RESET`].
    fn failed(&self);
}

/// The device could not be started; the reason is in the log and in the device's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationFailed;
