//! What a manifest says of processors and devices, and what is compared with it at a restore.

use std::collections::BTreeMap;

use ferry_devices::vhost_user::VhostUserStateV1;
use ferry_devices::virtio::VirtioDevice;
use vm_migration::manifest::{
    Bits, Cpu, Device, DeviceState, Difference, Hex, Present, differences,
};

use crate::cpu::state::features;
use crate::lifecycle::Ready;
use crate::machine::saving::MachineState;

/// The virtio device type of a disk (Virtual I/O Device 1.2, 5).
const BLK: u32 = 2;
/// What a disk's capacity is counted in, in bytes (Virtual I/O Device 1.2, 5.2.4).
const SECTOR: u64 = 512;

/// The processors of a saved machine.
pub fn cpu(machine: &MachineState) -> Cpu {
    let Some(first) = machine.vcpus.first() else {
        return Cpu::default();
    };
    let (vendor, features) = features::describe(first);
    Cpu {
        count: machine.vcpus.len() as u32,
        tsc_khz: first.tsc_khz.unwrap_or(0),
        features,
        details: BTreeMap::from([("vendor".to_owned(), vendor)]),
    }
}

/// The devices of a saved machine. All lists are in the order of the bus.
pub fn devices(
    devices: &[Ready],
    rests: &[VhostUserStateV1],
    machine: &MachineState,
    states: &[DeviceState],
) -> Vec<Device> {
    let parts = devices
        .iter()
        .zip(rests)
        .zip(&machine.functions)
        .zip(states);
    parts
        .map(|(((device, rest), function), state)| {
            let registers = &function.state.registers;
            Device {
                id: device.id().to_owned(),
                virtio_type: device.device_type(),
                capacity: capacity(device.device_type(), &rest.config),
                config: Hex(rest.config.clone()),
                queues: device.queue_sizes().len() as u16,
                queue_sizes: registers.queues.iter().map(|queue| queue.size).collect(),
                features: Bits(registers.driver_features),
                protocol_features: Bits(device.negotiated().protocol.bits()),
                state: *state,
            }
        })
        .collect()
}

/// In what devices differ from the saved ones, as the guest would notice.
pub fn differing(saved: &[Device], devices: &[Ready]) -> Vec<Difference> {
    let present: Vec<_> = devices
        .iter()
        .map(|device| {
            let saved = saved.iter().find(|saved| saved.id == device.id());
            present(device, saved)
        })
        .collect();
    differences(saved, &present)
}

/// A device as it is here, next to its saved form.
fn present(device: &Ready, saved: Option<&Device>) -> Present {
    let mut config = device.negotiated().config.clone();
    if let Some(Hex(saved)) = saved.map(|saved| &saved.config)
        && saved.len() == config.len()
    {
        // What the driver may write, it may have written.
        for index in device.writable_config() {
            config[index] = saved[index];
        }
    }
    Present {
        id: device.id().to_owned(),
        virtio_type: device.device_type(),
        capacity: capacity(device.device_type(), &config),
        config,
        queues: device.queue_sizes().len() as u16,
        features: device.features(),
        protocol_features: device.negotiated().protocol.bits(),
    }
}

/// What a disk holds, in bytes, as its configuration space says.
pub fn capacity(virtio_type: u32, config: &[u8]) -> Option<u64> {
    let sectors = config.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    sectors
        .filter(|_| virtio_type == BLK)
        .map(|sectors| sectors.saturating_mul(SECTOR))
}
