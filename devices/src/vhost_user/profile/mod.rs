//! What Ferry has to know of a device's type.
//!
//! A profile says which features may pass from the back-end to the guest, where the configuration space comes from,
//! how many queues there are and which of them carry requests, and whether the back-end has state. Everything
//! else is the back-end's business.

mod blk;
mod fs;
mod generic;

pub use blk::{Access, Blk};
pub use fs::{Fs, MAX_TAG};
pub use generic::{BackendState, Generic};

use std::ops::Range;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_migration::Saveability;

/// The ring and transport features that every device may offer, if its back-end does. Not among them: RING_PACKED,
/// IN_ORDER, NOTIFICATION_DATA, RING_RESET, ACCESS_PLATFORM, ADMIN_VQ and whatever else is not known today.
pub const COMMON_FEATURES: u64 =
    (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX);

/// A device's type, and what the user said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A disk.
    Blk(Blk),
    /// A shared directory.
    Fs(Fs),
    /// Any other type.
    Generic(Generic),
}

impl Profile {
    /// The virtio device type (Virtual I/O Device 1.2, 5).
    pub fn device_type(&self) -> u32 {
        self.rules().device_type()
    }

    pub(super) fn rules(&self) -> &dyn Rules {
        match self {
            Profile::Blk(blk) => blk,
            Profile::Fs(fs) => fs,
            Profile::Generic(generic) => generic,
        }
    }
}

/// What a profile decides.
pub(super) trait Rules {
    /// The virtio device type (Virtual I/O Device 1.2, 5).
    fn device_type(&self) -> u32;

    /// How many queues the device has when the user asked for `requested`.
    fn queue_count(&self, requested: u16) -> u32;

    /// How many queues a back-end has that cannot be asked (no MQ); `None`: as many as are wanted.
    fn queues_without_mq(&self) -> Option<u16>;

    /// The sizes in which to ask a back-end with these features for its configuration space, the first
    /// that it agrees to counts; empty if Ferry does not ask. Bytes, at most [`MAX_CONFIG`](super::frontend::MAX_CONFIG).
    fn config_sizes(&self, backend_features: u64) -> Vec<u32>;

    /// The device's own features that the guest is offered.
    fn device_features(&self, view: &BackendView<'_>) -> u64;

    /// The configuration space that the guest sees, or what is wrong with the one of the back-end.
    fn config(&self, view: &BackendView<'_>) -> Result<Vec<u8>, String>;

    /// What the user should know about the back-end before relying on it.
    fn caution(&self, view: &BackendView<'_>) -> Option<&'static str>;

    /// The bytes of the configuration space that a driver may write, if `features` were offered.
    fn writable(&self, features: u64, config_len: usize) -> Range<usize>;

    /// Whether the queue carries requests, so that it runs empty when the guest adds no more.
    fn drains(&self, queue: u16) -> bool;

    /// Whether the device can be saved.
    fn saveability(&self, transfer: StateTransfer) -> Saveability;
}

/// What the back-end has said.
pub(super) struct BackendView<'a> {
    /// Its virtio features.
    pub features: u64,
    /// Its configuration space; `None` if it has none or was not asked.
    pub config: Option<&'a [u8]>,
    /// The number of queues the user asked for.
    pub requested_queues: u16,
}

/// Whether a back-end can hand its state over (DEVICE_STATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateTransfer {
    /// It can.
    Offered,
    /// It cannot.
    Absent,
}

/// The answer for a device whose back-end has to hand its state over.
fn needs_transfer(transfer: StateTransfer) -> Saveability {
    match transfer {
        StateTransfer::Offered => Saveability::Saved,
        StateTransfer::Absent => Saveability::Unsupported(
            "its back-end does not offer DEVICE_STATE, so that the state it holds would be lost"
                .into(),
        ),
    }
}
