//! Where everything lies in the BAR, and how a driver is told in configuration space (Virtual I/O Device 1.2, 4.1.2
//! and 4.1.4).

use super::registers::COMMON_SIZE;
use crate::pci::{CapabilityId, ConfigSpace, Identity, MsiX};

/// Bytes of the memory BAR.
pub const BAR_SIZE: u32 = 0x1_0000;

pub const COMMON: u32 = 0x0000;
pub const ISR: u32 = 0x1000;
pub const DEVICE: u32 = 0x2000;
const DEVICE_SIZE: u32 = 0x1000;
pub const DOORBELLS: u32 = 0x4000;
const DOORBELLS_SIZE: u32 = 0x4000;
pub const DOORBELL_STRIDE: u32 = 4;
pub const MSIX_TABLE: u32 = 0x8000;
pub const MSIX_PENDING: u32 = 0xc000;

/// Types of virtio PCI capabilities (Virtual I/O Device 1.2, 4.1.4).
#[derive(Clone, Copy)]
#[repr(u8)]
enum Block {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    Window = 5,
}

/// Where in configuration space the capabilities with a function of their own are.
pub struct Offsets {
    pub msix: usize,
    /// VIRTIO_PCI_CAP_PCI_CFG: a window through which firmware reaches the BAR.
    pub window: usize,
}

/// The ids of a modern device (Virtual I/O Device 1.2, 4.1.2).
pub fn identity(device_type: u32) -> Identity {
    const VENDOR: u16 = 0x1af4;
    let device = 0x1040 + device_type as u16;
    let class = match device_type {
        1 => 0x02_00_00,  // network controller
        2 => 0x01_80_00,  // mass storage, other
        3 => 0x07_80_00,  // communication, other
        26 => 0x01_80_00, // file system: mass storage, other
        _ => 0xff_00_00,
    };
    Identity {
        vendor: VENDOR,
        device,
        subsystem_vendor: VENDOR,
        subsystem: device,
        class,
        revision: 1,
    }
}

/// Tells the driver in `config` where everything is, and that there are so many vectors.
pub fn add_capabilities(config: &mut ConfigSpace, vectors: u16) -> Offsets {
    let block = |kind: Block, offset: u32, length: u32, more: &[u8]| {
        let mut body = vec![(16 + more.len()) as u8, kind as u8, 0, 0, 0, 0];
        body.extend(offset.to_le_bytes());
        body.extend(length.to_le_bytes());
        body.extend(more);
        body
    };
    let stride = DOORBELL_STRIDE.to_le_bytes();
    for body in [
        block(Block::Common, COMMON, COMMON_SIZE as u32, &[]),
        block(Block::Isr, ISR, 1, &[]),
        block(Block::Device, DEVICE, DEVICE_SIZE, &[]),
        block(Block::Notify, DOORBELLS, DOORBELLS_SIZE, &stride),
    ] {
        config.add_capability(CapabilityId::Vendor, &body);
    }
    let window = config.add_capability(CapabilityId::Vendor, &block(Block::Window, 0, 0, &[0; 4]));
    // The guest chooses BAR, offset and length.
    config.allow_writes(window + 4, &[0xff, 0, 0, 0]);
    config.allow_writes(window + 8, &[0xff; 8]);

    let at = config.add_capability(
        CapabilityId::MsiX,
        &MsiX::capability(vectors, MSIX_TABLE, MSIX_PENDING),
    );
    config.allow_writes(at + 2, &MsiX::WRITABLE);
    Offsets { msix: at, window }
}
