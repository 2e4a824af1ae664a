//! Guest RAM as the front-end tells it: mapped, and reached by guest-physical or user address.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

/// What one message says of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// The address by which ring addresses are given.
    pub user: u64,
    /// Bytes from the file's beginning.
    pub offset: u64,
}

#[derive(Debug)]
struct Region {
    info: RegionInfo,
    /// The beginning of the file's mapping, which is `info.offset + info.size` long.
    mapping: *mut u8,
}

// SAFETY: a region is moved to the back-end's thread as a whole, and only used there.
unsafe impl Send for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `Memory::add`, and nobody holds pointers into it.
        unsafe {
            libc::munmap(
                self.mapping.cast(),
                (self.info.offset + self.info.size) as usize,
            )
        };
    }
}

/// All regions that are known.
#[derive(Debug, Default)]
pub struct Memory {
    regions: Vec<Region>,
}

impl Memory {
    /// Forgets all regions.
    pub fn clear(&mut self) {
        self.regions.clear();
    }

    /// Whether no region is known.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Maps one more region.
    pub fn add(&mut self, info: RegionInfo, file: &OwnedFd) -> io::Result<()> {
        let length = (info.offset + info.size) as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of a file at an address that the kernel chooses.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.regions.push(Region {
            info,
            mapping: mapping.cast(),
        });
        Ok(())
    }

    /// The guest-physical address that a user address stands for.
    pub fn resolve(&self, user: u64) -> Option<u64> {
        let inside = |region: &&Region| {
            user >= region.info.user && user - region.info.user < region.info.size
        };
        let region = self.regions.iter().find(inside)?;
        Some(region.info.guest + (user - region.info.user))
    }

    fn at(&self, guest: u64, length: usize) -> Option<*mut u8> {
        let region = self.regions.iter().find(|region| {
            guest >= region.info.guest
                && guest - region.info.guest + length as u64 <= region.info.size
        })?;
        let offset = region.info.offset + (guest - region.info.guest);
        Some(region.mapping.wrapping_add(offset as usize))
    }

    /// Copies guest memory out; zeros where there is none.
    pub fn read(&self, guest: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(source) = self.at(guest, data.len()) {
            // SAFETY: `at` has checked that this many bytes lie in the mapping; the guest may change them meanwhile,
            // and whatever is read is only looked at as bytes.
            unsafe { ptr::copy_nonoverlapping(source, data.as_mut_ptr(), data.len()) };
        }
    }

    /// Copies into guest memory; nothing where there is none.
    pub fn write(&self, guest: u64, data: &[u8]) {
        if let Some(target) = self.at(guest, data.len()) {
            // SAFETY: `at` has checked that this many bytes lie in the mapping.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
        }
    }

    /// Reads a little-endian number at once.
    pub fn read_u16(&self, guest: u64) -> u16 {
        let Some(at) = self.at(guest, 2) else {
            return 0;
        };
        // SAFETY: in the mapping, and rings are aligned to at least two bytes.
        u16::from_le(unsafe { at.cast::<u16>().read_volatile() })
    }

    /// Writes a little-endian number at once.
    pub fn write_u16(&self, guest: u64, value: u16) {
        if let Some(at) = self.at(guest, 2) {
            // SAFETY: in the mapping, and rings are aligned to at least two bytes.
            unsafe { at.cast::<u16>().write_volatile(value.to_le()) };
        }
    }

    /// Reads a little-endian number.
    pub fn read_u32(&self, guest: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(guest, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Reads a little-endian number.
    pub fn read_u64(&self, guest: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(guest, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}
