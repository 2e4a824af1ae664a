//! What of a transport is saved.
//!
//! All that its driver sees and has set up, and signals that no one has taken yet. Nothing of the device behind it, which
//! is asked for its own state; and nothing that follows from these: doorbells and interrupts are wired anew.

use serde::{Deserialize, Serialize};
use vm_migration::stream::Saved;

use crate::pci::{ConfigSpaceStateV1, MsiXStateV1};

/// A transport cannot be saved at this moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct SaveError {
    /// The device's name.
    pub device: String,
    /// A clause.
    pub reason: &'static str,
}

impl SaveError {
    pub(super) fn starting(device: &str) -> Self {
        SaveError {
            device: device.into(),
            reason: "its driver has started it, and it has not answered yet",
        }
    }

    pub(super) fn resetting(device: &str) -> Self {
        SaveError {
            device: device.into(),
            reason: "its driver resets it, and it has not answered yet",
        }
    }
}

/// Saved state of a virtio device's PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciStateV1 {
    /// The type of the device behind it (Virtual I/O Device 1.2, 5).
    pub device_type: u32,
    /// Configuration registers: command, BAR, message control.
    pub config: ConfigSpaceStateV1,
    /// Vectors, and what is pending.
    pub msix: MsiXStateV1,
    /// What the driver has negotiated and set up.
    pub registers: RegistersStateV1,
    /// For each queue whether its driver has rung its bell and no one has looked yet.
    pub kicked: Vec<bool>,
}

impl Saved for VirtioPciStateV1 {
    const SCHEMA: &'static str = "virtio-pci";
    const VERSION: u16 = 1;
}

/// Saved common configuration registers (Virtual I/O Device 1.2, 4.1.4.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersStateV1 {
    /// Where the device is in its life.
    pub phase: PhaseStateV1,
    /// Device status.
    pub status: u8,
    /// Which half of the device's features is shown.
    pub device_feature_select: u32,
    /// Which half of the driver's features is shown.
    pub driver_feature_select: u32,
    /// The features that the driver has accepted.
    pub driver_features: u64,
    /// Which queue is shown.
    pub queue_select: u16,
    /// All queues of the device.
    pub queues: Vec<QueueStateV1>,
    /// ISR status.
    pub isr: u8,
}

/// Where a saved device is in its life. One that is being started or reset is waited for, and not saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PhaseStateV1 {
    /// It holds nothing of a driver.
    Idle,
    /// It has been started, perhaps without success.
    Started,
}

/// A saved queue's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStateV1 {
    /// Number of descriptors.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub enabled: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}
