//! Guest RAM as the front-end tells it: mapped, and reached by guest-physical or user address; and the log of what is written to it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

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

/// Bytes of guest memory that a bit of the log stands for.
const LOG_PAGE: u64 = 4096;

/// Where written pages are noted.
#[derive(Debug)]
struct Log {
    mapping: *mut u8,
    size: usize,
}

// SAFETY: as with a region; its bytes are changed atomically.
unsafe impl Send for Log {}

impl Drop for Log {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `Memory::set_log`, and nobody holds pointers into it.
        unsafe { libc::munmap(self.mapping.cast(), self.size) };
    }
}

/// Whether written pages are noted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Logging {
    /// They are not.
    #[default]
    Off,
    /// They are, if there is a log.
    On,
}

/// All regions that are known.
#[derive(Debug, Default)]
pub struct Memory {
    regions: Vec<Region>,
    log: Option<Log>,
    /// LOG_ALL.
    pub logging: Logging,
}

impl Memory {
    /// Forgets all regions, and the log with them: there are back-ends that log only what they knew when they were given it.
    pub fn clear(&mut self) {
        self.regions.clear();
        self.log = None;
    }

    /// Notes written pages in the first `size` bytes of `file` from now on, or says why not.
    pub fn set_log(&mut self, size: u64, file: &OwnedFd) -> io::Result<()> {
        let ends = self
            .regions
            .iter()
            .map(|region| region.info.guest + region.info.size);
        let pages = ends.max().unwrap_or(0).div_ceil(LOG_PAGE);
        if size * 8 < pages {
            return Err(io::Error::other("it does not cover all memory"));
        }
        let mapping = map(file, size as usize)?;
        self.log = Some(Log {
            mapping,
            size: size as usize,
        });
        Ok(())
    }

    /// Notes that guest memory has been written to.
    fn note_written(&self, guest: u64, length: usize) {
        let Some(log) = &self.log else { return };
        if self.logging == Logging::Off || length == 0 {
            return;
        }
        for page in guest / LOG_PAGE..=(guest + length as u64 - 1) / LOG_PAGE {
            let at = (page / 8) as usize;
            assert!(at < log.size, "page {page:#x} has no bit");
            // SAFETY: inside of the mapping, which lives as long as `log`; whoever shares it changes it atomically, too.
            let byte = unsafe { AtomicU8::from_ptr(log.mapping.add(at)) };
            byte.fetch_or(1 << (page % 8), Ordering::AcqRel);
        }
    }

    /// Whether no region is known.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Maps one more region.
    pub fn add(&mut self, info: RegionInfo, file: &OwnedFd) -> io::Result<()> {
        let mapping = map(file, (info.offset + info.size) as usize)?;
        self.regions.push(Region { info, mapping });
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
            self.note_written(guest, data.len());
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
            self.note_written(guest, 2);
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

/// Maps the beginning of a file.
fn map(file: &OwnedFd, length: usize) -> io::Result<*mut u8> {
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
    match mapping == libc::MAP_FAILED {
        true => Err(io::Error::last_os_error()),
        false => Ok(mapping.cast()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_written_is_noted_while_that_is_wanted() {
        let ram = tempfile::tempfile().unwrap();
        ram.set_len(0x4000).unwrap();
        let log = tempfile::tempfile().unwrap();
        log.set_len(8).unwrap();
        let noted = || {
            let mut bits = [0; 1];
            log.read_exact_at(&mut bits, 0).unwrap();
            bits[0]
        };
        let mut memory = Memory::default();
        let info = RegionInfo {
            guest: 0x1000,
            size: 0x4000,
            user: 0,
            offset: 0,
        };
        let file = ram.try_clone().unwrap().into();
        memory.add(info, &file).unwrap();
        let fd = log.try_clone().unwrap().into();
        assert!(memory.set_log(0, &fd).is_err());
        memory.set_log(8, &fd).unwrap();
        memory.write(0x1000, &[1]);
        assert_eq!(noted(), 0);
        memory.logging = Logging::On;
        memory.write(0x1fff, &[1, 2]);
        memory.write_u16(0x4000, 3);
        // Nothing is there.
        memory.write(0x5000, &[1]);
        assert_eq!(noted(), 0b10110);
        // Another memory has no log.
        memory.clear();
        memory.add(info, &file).unwrap();
        memory.write(0x3000, &[1]);
        assert_eq!(noted(), 0b10110);
    }
}
