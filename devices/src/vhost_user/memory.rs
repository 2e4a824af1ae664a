//! Guest RAM as a back-end sees it.
//!
//! A back-end is told, for each region of RAM, its guest-physical address, a "user address" and a file to map; ring
//! addresses are then user addresses. Nothing requires these to be addresses of Ferry's, and they are not:
//! they are *tokens*, a guest-physical address plus [`TOKEN_BASE`]. So they tell nothing about Ferry, stay
//! the same when another process takes the connection over, and whoever confuses them with a
//! guest-physical address or a pointer fails at once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Address, GuestAddress};

/// Added to a guest-physical address to make a user address. Page-aligned, for back-ends
/// that check; canonical nowhere on x86_64, so that it never is a pointer.
pub const TOKEN_BASE: u64 = 0x0a5e_7e44_19b5_7000;

/// A region of guest RAM.
#[derive(Clone, Debug)]
pub struct RamRegion {
    /// Where it begins for the guest.
    pub guest: GuestAddress,
    /// Bytes.
    pub size: u64,
    /// The file that holds it.
    pub file: Arc<File>,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
}

impl RamRegion {
    /// Whether `length` bytes from `address` lie in this region as a whole.
    fn contains(&self, address: GuestAddress, length: u64) -> bool {
        address
            .checked_offset_from(self.guest)
            .and_then(|start| start.checked_add(length))
            .is_some_and(|end| end <= self.size)
    }
}

/// The user address that stands for a guest-physical one.
///
/// Guest-physical addresses have at most 52 bits, so this does not overflow for an address in RAM.
pub fn token(address: GuestAddress) -> u64 {
    address.0.wrapping_add(TOKEN_BASE)
}

/// Whether `length` bytes from `address` lie in one region of `ram`.
pub fn is_ram(ram: &[RamRegion], address: GuestAddress, length: u64) -> bool {
    ram.iter().any(|region| region.contains(address, length))
}

/// Reads a little-endian `u16` from guest RAM, through the region's file: no mapping is needed for it.
pub fn read_u16(ram: &[RamRegion], address: GuestAddress) -> io::Result<u16> {
    let region = ram
        .iter()
        .find(|region| region.contains(address, 2))
        .ok_or(io::ErrorKind::InvalidInput)?;
    let mut bytes = [0; 2];
    region
        .file
        .read_exact_at(&mut bytes, region.offset + (address.0 - region.guest.0))?;
    Ok(u16::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guest: u64, size: u64, offset: u64) -> RamRegion {
        RamRegion {
            guest: GuestAddress(guest),
            size,
            file: Arc::new(tempfile::tempfile().unwrap()),
            offset,
        }
    }

    #[test]
    fn tokens_are_neither_guest_addresses_nor_pointers() {
        let address = GuestAddress(0x1234_5000);
        assert_ne!(token(address), address.0);
        assert_eq!(token(address) % 4096, 0);
        // Canonical user addresses have 47 bits here, 56 with five-level paging.
        assert!(token(address) >= 1 << 56);
        assert!(token(GuestAddress((1 << 52) - 1)) > TOKEN_BASE);
    }

    #[test]
    fn ranges_are_in_one_region_as_a_whole() {
        let ram = [region(0x1000, 0x1000, 0), region(0x2000, 0x1000, 0)];
        assert!(is_ram(&ram, GuestAddress(0x1000), 0x1000));
        assert!(!is_ram(&ram, GuestAddress(0x1000), 0x1001));
        assert!(!is_ram(&ram, GuestAddress(0xfff), 2));
        assert!(!is_ram(&ram, GuestAddress(u64::MAX), 2));
        assert!(!is_ram(&ram, GuestAddress(0x2fff), u64::MAX));
    }

    #[test]
    fn a_word_is_read_where_the_guest_put_it() {
        let ram = [region(0x1000, 0x1000, 0), region(0x8000, 0x1000, 0x4000)];
        ram[1].file.write_all_at(&[0x34, 0x12], 0x4010).unwrap();
        assert_eq!(read_u16(&ram, GuestAddress(0x8010)).unwrap(), 0x1234);
        assert!(read_u16(&ram, GuestAddress(0x8fff)).is_err());
        assert!(read_u16(&ram, GuestAddress(0)).is_err());
    }
}
