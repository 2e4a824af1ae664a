//! Routes the guest's port and memory accesses to what answers them.
//!
//! Runs on vCPU threads. Nothing here waits: devices answer from their registers, and whatever takes longer they do
//! elsewhere.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferry_devices::pci::PciBus;
use ferry_devices::power::{self, PowerRequest};
use ferry_devices::serial::SerialPort;

use crate::layout;

/// Everything outside of RAM and the in-kernel interrupt controllers.
pub struct IoSpace {
    pub pci: PciBus,
    pub serial: Option<Arc<SerialPort>>,
    pub exits: ExitCounters,
}

/// How often vCPUs have left KVM for Ferry.
#[derive(Debug, Default)]
pub struct ExitCounters {
    pub pio: AtomicU64,
    pub mmio: AtomicU64,
    pub other: AtomicU64,
}

impl ExitCounters {
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

const COM1_LAST: u16 = layout::COM1_PORT + layout::COM1_PORTS - 1;
const PCI_LAST: u16 = layout::PCI_CONFIG_DATA_PORT + 3;

impl IoSpace {
    /// Reads ports from `port` on; ones where there is nothing.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match port {
            layout::COM1_PORT..=COM1_LAST => {
                if let Some(serial) = &self.serial {
                    // More than one byte is a string instruction, which reads the same port again and again.
                    data.fill_with(|| serial.read((port - layout::COM1_PORT) as u8));
                }
            }
            layout::PCI_CONFIG_ADDRESS_PORT..=PCI_LAST => {
                self.pci
                    .read_port(port - layout::PCI_CONFIG_ADDRESS_PORT, data);
            }
            // A keyboard controller with empty buffers, and a sleep status without a wake event.
            layout::I8042_COMMAND_PORT | layout::SLEEP_STATUS_PORT => data.fill(0),
            _ => {}
        }
    }

    /// Writes ports from `port` on. Breaks with what the guest asks of the machine as a whole.
    pub fn write_port(&self, port: u16, data: &[u8]) -> ControlFlow<PowerRequest> {
        let request = match (port, data) {
            (layout::COM1_PORT..=COM1_LAST, _) => {
                if let Some(serial) = &self.serial {
                    for &byte in data {
                        serial.write((port - layout::COM1_PORT) as u8, byte);
                    }
                }
                None
            }
            // A single byte to the second port of the configuration address is the chip set's reset register.
            (layout::RESET_CONTROL_PORT, &[value]) => power::reset_control(value),
            (layout::PCI_CONFIG_ADDRESS_PORT..=PCI_LAST, _) => {
                self.pci
                    .write_port(port - layout::PCI_CONFIG_ADDRESS_PORT, data);
                None
            }
            (layout::I8042_COMMAND_PORT, &[value]) => power::i8042_command(value),
            (layout::SLEEP_CONTROL_PORT, &[value]) => power::sleep_control(value),
            (layout::ACPI_RESET_PORT, &[value]) => power::acpi_reset(value),
            _ => None,
        };
        request.map_or(ControlFlow::Continue(()), ControlFlow::Break)
    }

    /// Reads guest-physical memory that is not RAM; ones where there is nothing.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if layout::ECAM.contains(&address) {
            self.pci.read_ecam(address - layout::ECAM.start, data);
        } else {
            self.pci.read_memory(address, data);
        }
    }

    /// Writes guest-physical memory that is not RAM.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if layout::ECAM.contains(&address) {
            self.pci.write_ecam(address - layout::ECAM.start, data);
        } else {
            self.pci.write_memory(address, data);
        }
    }
}
