//! A function's configuration registers (PCI Local Bus Specification 3.0, 6.1).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::state::NotThisFunction;

/// Bytes of configuration registers. PCI Express has 4096, of which those beyond 256 hold extended
/// capabilities; a function here has none.
pub const CONFIG_SIZE: usize = 256;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// What a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Class code: base class, subclass and programming interface in the lower 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// Capability ids that Ferry's functions use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CapabilityId {
    /// Vendor specific: virtio's register blocks.
    Vendor = 0x09,
    /// MSI-X.
    MsiX = 0x11,
}

/// The registers of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SIZE],
    /// Bits that the guest may change.
    writable: [u8; CONFIG_SIZE],
    bar_size: u32,
    last_capability: Option<usize>,
    next_free: usize,
}

impl ConfigSpace {
    /// A function with neither a BAR nor a capability.
    pub fn new(identity: Identity) -> Self {
        let mut space = ConfigSpace {
            bytes: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            bar_size: 0,
            last_capability: None,
            next_free: FIRST_CAPABILITY,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        let class = (identity.class << 8) | u32::from(identity.revision);
        space.put(0x08, &class.to_le_bytes());
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        // Memory decoding, bus mastering and INTx disable. I/O decoding stays off: there is no I/O BAR.
        space.writable[COMMAND] = 0b0000_0110;
        space.writable[COMMAND + 1] = 0b0000_0100;
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    /// Gives the function a 32-bit memory BAR 0 of `size` bytes, a power of two, at `base`.
    pub fn set_bar(&mut self, base: u32, size: u32) {
        debug_assert!(size.is_power_of_two() && size >= 4096 && base.is_multiple_of(size));
        self.bar_size = size;
        self.put(BAR0, &base.to_le_bytes());
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability with the given body (what follows id and next pointer) and returns its offset.
    ///
    /// # Panics
    /// If the registers are full: the functions' capabilities are fixed in the code, not input.
    pub fn add_capability(&mut self, id: CapabilityId, body: &[u8]) -> usize {
        let offset = self.next_free;
        let end = offset + 2 + body.len();
        assert!(end <= CONFIG_SIZE, "capabilities fit their registers");
        self.put(offset, &[id as u8, 0]);
        self.put(offset + 2, body);
        let pointer = self
            .last_capability
            .map_or(CAPABILITIES_POINTER, |last| last + 1);
        self.bytes[pointer] = offset as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.last_capability = Some(offset);
        self.next_free = end.next_multiple_of(4);
        offset
    }

    /// Lets the guest change the bits of `mask` from `offset` on.
    pub fn allow_writes(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Reads registers; all ones where there are none.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let start = usize::from(offset);
        match self.bytes.get(start..start + data.len()) {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0xff),
        }
    }

    /// Writes the writable bits of registers.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, &value) in (usize::from(offset)..CONFIG_SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (value & mask);
        }
    }

    /// The addresses that BAR 0 decodes at present.
    pub fn decoded(&self) -> Option<Range<u64>> {
        if self.bar_size == 0 || self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return None;
        }
        let base = u64::from(self.u32_at(BAR0) & !(self.bar_size - 1));
        Some(base..base + u64::from(self.bar_size))
    }

    /// The 16-bit register at `offset`, which lies inside.
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The 32-bit register at `offset`, which lies inside.
    pub fn u32_at(&self, offset: usize) -> u32 {
        u32::from(self.u16_at(offset)) | u32::from(self.u16_at(offset + 2)) << 16
    }

    /// The registers as they are now.
    pub fn save(&self) -> ConfigSpaceStateV1 {
        let ConfigSpace {
            bytes,
            // What the function is made of, and nothing that a guest could have changed.
            writable: _,
            bar_size: _,
            last_capability: _,
            next_free: _,
        } = self;
        ConfigSpaceStateV1 {
            bytes: bytes.to_vec(),
        }
    }

    /// The registers of this function as another one had them when it was saved.
    ///
    /// # Errors
    /// They differ in bits that no guest can change: it was another function.
    pub fn with_state(mut self, state: &ConfigSpaceStateV1) -> Result<Self, NotThisFunction> {
        let ConfigSpaceStateV1 { bytes } = state;
        let bytes: [u8; CONFIG_SIZE] = bytes.as_slice().try_into().map_err(|_| {
            NotThisFunction(format!(
                "it has {} bytes of configuration registers, not {CONFIG_SIZE}",
                bytes.len()
            ))
        })?;
        for (at, (saved, own)) in bytes.iter().zip(self.bytes).enumerate() {
            if (saved ^ own) & !self.writable[at] != 0 {
                return Err(NotThisFunction(format!(
                    "the configuration register at {at:#x} was {saved:#04x} and is {own:#04x}"
                )));
            }
        }
        self.bytes = bytes;
        Ok(self)
    }

    fn put(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }
}

/// Saved configuration registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpaceStateV1 {
    /// All 256 bytes, those that never change too: they say which function it was.
    pub bytes: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1042,
            class: 0x01_80_00,
            revision: 1,
        })
    }

    #[test]
    fn a_guest_sizes_a_bar_by_writing_ones() {
        let mut space = space();
        space.set_bar(0xc000_0000, 0x1_0000);
        space.write(0x10, &[0xff; 4]);
        let mut size = [0; 4];
        space.read(0x10, &mut size);
        assert_eq!(u32::from_le_bytes(size), 0xffff_0000);
    }

    #[test]
    fn a_bar_is_decoded_only_while_memory_decoding_is_on() {
        let mut space = space();
        space.set_bar(0xc000_0000, 0x1_0000);
        assert_eq!(space.decoded(), None);
        space.write(4, &[0b10, 0]);
        assert_eq!(space.decoded(), Some(0xc000_0000..0xc001_0000));
    }

    #[test]
    fn identity_is_read_only_and_capabilities_are_chained() {
        let mut space = space();
        let first = space.add_capability(CapabilityId::MsiX, &[0; 10]);
        let second = space.add_capability(CapabilityId::Vendor, &[0; 14]);
        space.write(0, &[0; 4]);
        space.write(first as u16, &[0; 2]);
        assert_eq!(space.u16_at(0), 0x1af4);
        assert_eq!(space.bytes[CAPABILITIES_POINTER] as usize, first);
        assert_eq!(space.bytes[first], 0x11);
        assert_eq!(space.bytes[first + 1] as usize, second);
        assert_eq!(space.bytes[second + 1], 0);
    }

    #[test]
    fn what_a_guest_has_written_is_saved_and_another_function_does_not_take_it() {
        let fresh = || {
            let mut space = space();
            space.set_bar(0xc000_0000, 0x1_0000);
            space
        };
        let mut used = fresh();
        used.write(4, &[0b10, 0]);
        used.write(0x10, &0xd000_0000u32.to_le_bytes());
        let state = used.save();
        let restored = fresh().with_state(&state).unwrap();
        assert_eq!(restored.decoded(), used.decoded());
        assert_eq!(restored.save(), state);

        let mut other = fresh();
        other.add_capability(CapabilityId::MsiX, &[0; 10]);
        let refused = other.with_state(&state).unwrap_err();
        assert!(refused.to_string().contains("0x6"), "{refused}");
        let short = ConfigSpaceStateV1 {
            bytes: state.bytes[..255].to_vec(),
        };
        assert!(fresh().with_state(&short).is_err());
    }

    #[test]
    fn accesses_beyond_the_end_read_ones_and_change_nothing() {
        let mut space = space();
        let mut data = [0; 4];
        space.read(254, &mut data);
        assert_eq!(data, [0xff; 4]);
        space.write(254, &[0; 4]);
    }
}
