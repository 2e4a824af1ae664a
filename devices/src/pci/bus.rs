//! Routes the guest's accesses to the functions of bus 0.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vm_migration::stream::Saved;

use super::config::CONFIG_SIZE;
use super::{ConfigSpace, Identity, PciFunction};

/// Device numbers on a bus.
const SLOTS: usize = 32;

/// All device numbers are taken.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the PCI bus is full: it has room for 31 devices")]
pub struct PciBusFull;

/// Bus 0 with single-function devices. Device 0 is the host bridge.
pub struct PciBus {
    functions: Vec<Arc<dyn PciFunction>>,
    /// The address register at port 0xCF8.
    address: AtomicU32,
}

impl Default for PciBus {
    fn default() -> Self {
        PciBus {
            functions: vec![Arc::new(HostBridge::default())],
            address: AtomicU32::new(0),
        }
    }
}

impl PciBus {
    /// A bus without devices, whose address register is as saved.
    pub fn from_state(state: &PciBusStateV1) -> Self {
        let PciBusStateV1 { address } = *state;
        PciBus {
            address: AtomicU32::new(address),
            ..PciBus::default()
        }
    }

    /// The bus's own registers. Each function saves itself.
    pub fn save(&self) -> PciBusStateV1 {
        let PciBus {
            functions: _,
            address,
        } = self;
        PciBusStateV1 {
            address: address.load(Ordering::Relaxed),
        }
    }

    /// Puts `function` at the lowest free device number, which is returned.
    pub fn add(&mut self, function: Arc<dyn PciFunction>) -> Result<u8, PciBusFull> {
        if self.functions.len() == SLOTS {
            return Err(PciBusFull);
        }
        self.functions.push(function);
        Ok((self.functions.len() - 1) as u8)
    }

    /// Reads at `offset` bytes from port 0xCF8.
    pub fn read_port(&self, offset: u16, data: &mut [u8]) {
        let address = self.address.load(Ordering::Relaxed);
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&address.to_le_bytes()),
            (4..8, _) => match Self::target(address) {
                Some((device, register)) => self.read_config(device, register + offset - 4, data),
                None => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
    }

    /// Writes at `offset` bytes from port 0xCF8.
    pub fn write_port(&self, offset: u16, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => {
                self.address
                    .store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed);
            }
            (4..8, _) => {
                let address = self.address.load(Ordering::Relaxed);
                if let Some((device, register)) = Self::target(address) {
                    self.write_config(device, register + offset - 4, data);
                }
            }
            _ => {}
        }
    }

    /// Reads configuration space at `offset` bytes from the base of ECAM.
    pub fn read_ecam(&self, offset: u64, data: &mut [u8]) {
        match Self::ecam_target(offset) {
            // Extended registers exist and read as zeros: no extended capability.
            Some((_, register)) if usize::from(register) >= CONFIG_SIZE => data.fill(0),
            Some((device, register)) => self.read_config(device, register, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration space at `offset` bytes from the base of ECAM.
    pub fn write_ecam(&self, offset: u64, data: &[u8]) {
        if let Some((device, register)) = Self::ecam_target(offset) {
            self.write_config(device, register, data);
        }
    }

    /// Reads guest-physical memory at `address`; ones where no BAR decodes it.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        match self.function_at(address, data.len()) {
            Some((function, base)) => function.read_bar(address - base, data),
            None => data.fill(0xff),
        }
    }

    /// Writes guest-physical memory at `address`, if a BAR decodes it.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((function, base)) = self.function_at(address, data.len()) {
            function.write_bar(address - base, data);
        }
    }

    fn function_at(&self, address: u64, length: usize) -> Option<(&Arc<dyn PciFunction>, u64)> {
        self.functions.iter().find_map(|function| {
            let Range { start, end } = function.decoded()?;
            (start..end).contains(&address).then_some(())?;
            (address + length as u64 <= end).then_some((function, start))
        })
    }

    fn read_config(&self, device: usize, register: u16, data: &mut [u8]) {
        match self.functions.get(device) {
            Some(function) if fits(register, data.len()) => function.read_config(register, data),
            _ => data.fill(0xff),
        }
    }

    fn write_config(&self, device: usize, register: u16, data: &[u8]) {
        if let Some(function) = self.functions.get(device)
            && fits(register, data.len())
        {
            function.write_config(register, data);
        }
    }

    /// Device and register that an address register names, if it names bus 0, function 0.
    fn target(address: u32) -> Option<(usize, u16)> {
        let enabled = address & (1 << 31) != 0;
        let bus_and_function = address & 0x00ff_0700;
        (enabled && bus_and_function == 0)
            .then_some(((address >> 11 & 0x1f) as usize, (address & 0xfc) as u16))
    }

    /// Device and register at an offset into ECAM, if it names bus 0, function 0.
    fn ecam_target(offset: u64) -> Option<(usize, u16)> {
        let function = offset >> 12 & 0x7;
        let bus = offset >> 20;
        (bus == 0 && function == 0)
            .then_some(((offset >> 15 & 0x1f) as usize, (offset & 0xfff) as u16))
    }
}

/// The saved state of a bus apart from its functions. The host bridge has nothing to save.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBusStateV1 {
    /// The address register at port 0xCF8: a guest writes it and reads port 0xCFC by two instructions.
    pub address: u32,
}

impl Saved for PciBusStateV1 {
    const SCHEMA: &'static str = "pci-bus";
    const VERSION: u16 = 1;
}

fn fits(register: u16, length: usize) -> bool {
    usize::from(register) + length <= CONFIG_SIZE
}

/// Device 0: what makes a guest believe in the bus.
struct HostBridge(ConfigSpace);

impl Default for HostBridge {
    fn default() -> Self {
        HostBridge(ConfigSpace::new(Identity {
            // Intel 82G33 host bridge, a plain PCI Express root that no driver binds to.
            vendor: 0x8086,
            device: 0x29c0,
            subsystem_vendor: 0,
            subsystem: 0,
            class: 0x06_00_00,
            revision: 0,
        }))
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    // Nothing on a bridge without BARs is worth changing.
    fn write_config(&self, _offset: u16, _data: &[u8]) {}

    fn decoded(&self) -> Option<Range<u64>> {
        None
    }

    fn read_bar(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_into_configuration_space_meet_the_same_registers() {
        let bus = PciBus::default();
        let mut by_port = [0; 4];
        bus.write_port(0, &(1u32 << 31).to_le_bytes());
        bus.read_port(4, &mut by_port);
        let mut by_ecam = [0; 4];
        bus.read_ecam(0, &mut by_ecam);
        assert_eq!(by_port, by_ecam);
        assert_eq!(u32::from_le_bytes(by_port), 0x29c0_8086);
    }

    #[test]
    fn what_is_not_there_reads_as_ones() {
        let bus = PciBus::default();
        for offset in [1 << 15, 1 << 12, 1 << 20, u64::MAX] {
            let mut data = [0; 4];
            bus.read_ecam(offset, &mut data);
            assert_eq!(data, [0xff; 4], "at {offset:#x}");
        }
        let mut data = [0; 4];
        bus.write_port(0, &(1u32 << 31 | 5 << 11).to_le_bytes());
        bus.read_port(4, &mut data);
        assert_eq!(data, [0xff; 4]);
        data = [0; 4];
        bus.read_memory(0xc000_0000, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn a_guest_saved_between_address_and_data_reads_what_it_meant() {
        let bus = PciBus::default();
        bus.write_port(0, &(1u32 << 31).to_le_bytes());
        let restored = PciBus::from_state(&bus.save());
        let mut id = [0; 4];
        restored.read_port(4, &mut id);
        assert_eq!(u32::from_le_bytes(id), 0x29c0_8086);
        assert_eq!(restored.save(), bus.save());
    }

    #[test]
    fn extended_registers_are_empty() {
        let mut data = [1; 4];
        PciBus::default().read_ecam(0x100, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn a_bus_takes_31_devices_beside_the_bridge() {
        let mut bus = PciBus::default();
        for number in 1..32 {
            assert_eq!(bus.add(Arc::new(HostBridge::default())).unwrap(), number);
        }
        assert!(bus.add(Arc::new(HostBridge::default())).is_err());
    }
}
