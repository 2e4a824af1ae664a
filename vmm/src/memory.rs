//! Guest RAM: sealed memfds that back-ends map as well.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_api::config::MemoryConfig;
use ferry_devices::vhost_user::RamRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use crate::layout;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set {bytes} bytes of guest RAM aside{hint}")]
    Allocate {
        bytes: u64,
        hint: &'static str,
        source: io::Error,
    },
    #[error("cannot map {bytes} bytes of guest RAM{hint}")]
    Map {
        bytes: u64,
        hint: &'static str,
        source: MmapRegionError,
    },
    #[error("the regions of guest RAM do not fit together")]
    Arrange(#[source] vm_memory::GuestRegionCollectionError),
}

const HUGE_PAGE_HINT: &str =
    ": --memory hugepages=on needs that many free huge pages (see /proc/sys/vm/nr_hugepages)";

/// The RAM of one guest, from its boot to its reset or end.
pub struct GuestRam {
    mapping: GuestMemoryMmap,
}

impl GuestRam {
    /// Sets RAM aside below and above the hole, one memfd each.
    pub fn new(config: &MemoryConfig) -> Result<Self, Error> {
        let regions = layout::ram_regions(config.size)
            .into_iter()
            .map(|range| {
                let file = Arc::new(sealed_memfd(range.end - range.start, config)?);
                map_region(
                    GuestAddress(range.start),
                    range.end - range.start,
                    file,
                    config,
                )
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let mapping = GuestMemoryMmap::from_regions(regions).map_err(Error::Arrange)?;
        Ok(GuestRam { mapping })
    }

    /// Touches all of RAM, if `config` asks for it, until it is done or `cancel` says so. It belongs to no guest yet.
    pub fn prefault(&self, config: &MemoryConfig, cancel: &AtomicBool) {
        /// Bytes between two looks at `cancel`: some hundredths of a second.
        const PIECE: u64 = 64 << 20;
        if !config.prefault {
            return;
        }
        for region in self.mapping.iter() {
            for at in (0..region.len()).step_by(PIECE as usize) {
                if cancel.load(Ordering::Relaxed) {
                    return;
                }
                populate(region, at, PIECE.min(region.len() - at));
            }
        }
    }

    /// RAM as Ferry itself reads and writes it. A clone is another handle to the same RAM.
    pub fn mapping(&self) -> &GuestMemoryMmap {
        &self.mapping
    }

    /// RAM as back-ends are told of it.
    pub fn shared_regions(&self) -> Arc<[RamRegion]> {
        let share = |region: &GuestRegionMmap| {
            let file = region.file_offset()?;
            Some(RamRegion {
                guest: region.start_addr(),
                size: region.len(),
                file: file.arc().clone(),
                offset: file.start(),
            })
        };
        self.mapping.iter().filter_map(share).collect()
    }

    /// Gives all pages back, also those that back-ends have mapped; these see zeros from now on.
    pub fn discard(&self) -> io::Result<()> {
        for region in self.mapping.iter() {
            let Some(file) = region.file_offset() else {
                continue;
            };
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: the call works on a file descriptor that `region` keeps open; what it zeroes is guest RAM,
            // of which Ferry holds no references.
            let result = unsafe {
                libc::fallocate(
                    file.file().as_raw_fd(),
                    mode,
                    0,
                    region.len() as libc::off_t,
                )
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// Touches `bytes` at `at` of a region.
fn populate(region: &GuestRegionMmap, at: u64, bytes: u64) {
    // SAFETY: the range lies in the region's mapping; its content stays as it is.
    let result = unsafe {
        let start = region.as_ptr().add(at as usize);
        libc::madvise(start.cast(), bytes as usize, libc::MADV_POPULATE_WRITE)
    };
    if result == 0 {
        return;
    }
    // Linux before 5.14, or no memory left, which shows soon enough.
    for page in (at..at + bytes).step_by(layout::PAGE_SIZE as usize) {
        // SAFETY: the page lies in the region's mapping, and no guest and no back-end has it yet; RAM is all zeros, and
        // stays so.
        unsafe { region.as_ptr().add(page as usize).write_volatile(0) };
    }
}

/// A memfd of fixed size: no one who holds it can shrink it under a mapping.
fn sealed_memfd(bytes: u64, config: &MemoryConfig) -> Result<File, Error> {
    const NAME: &CStr = c"ferry-guest-ram";
    let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let mut hint = "";
    if config.hugepages {
        flags |= libc::MFD_HUGETLB;
        hint = HUGE_PAGE_HINT;
        if let Some(size) = config.hugepage_size {
            flags |= size.trailing_zeros() << libc::MFD_HUGE_SHIFT;
        }
    }
    let error = |source| Error::Allocate {
        bytes,
        hint,
        source,
    };
    // SAFETY: the name is a C string, and the call has no other memory arguments.
    let fd = unsafe { libc::memfd_create(NAME.as_ptr(), flags) };
    if fd < 0 {
        return Err(error(io::Error::last_os_error()));
    }
    // SAFETY: `fd` was just opened and belongs to no one else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes).map_err(error)?;
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: the call works on an open file descriptor and has no memory arguments.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(error(io::Error::last_os_error()));
    }
    Ok(file)
}

fn map_region(
    start: GuestAddress,
    bytes: u64,
    file: Arc<File>,
    config: &MemoryConfig,
) -> Result<GuestRegionMmap, Error> {
    let mut flags = libc::MAP_SHARED;
    let mut hint = "";
    if config.hugepages {
        // Reserved at once: a huge page that is missing later would be a SIGBUS.
        hint = HUGE_PAGE_HINT;
    } else {
        flags |= libc::MAP_NORESERVE;
    }
    let region = MmapRegionBuilder::new(bytes as usize)
        .with_file_offset(FileOffset::from_arc(file, 0))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .build()
        .map_err(|source| Error::Map {
            bytes,
            hint,
            source,
        })?;
    GuestRegionMmap::new(region, start).ok_or(Error::Allocate {
        bytes,
        hint: "",
        source: io::Error::from(io::ErrorKind::InvalidInput),
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn config(size: u64) -> MemoryConfig {
        MemoryConfig {
            size,
            shared: true,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
        }
    }

    #[test]
    fn ram_crosses_the_hole_and_cannot_be_resized() {
        let ram = GuestRam::new(&config((3 << 30) + (64 << 20))).unwrap();
        let regions: Vec<_> = ram
            .mapping()
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
            .collect();
        assert_eq!(regions, [(0, 3 << 30), (4 << 30, 64 << 20)]);
        for region in ram.mapping().iter() {
            let file = region.file_offset().unwrap().file();
            assert!(file.set_len(0).is_err());
            assert!(file.set_len(4 << 30).is_err());
        }
    }

    #[test]
    fn discarded_ram_reads_as_zeros() {
        let ram = GuestRam::new(&config(64 << 20)).unwrap();
        let at = GuestAddress(0x1234);
        ram.mapping().write_obj(7u64, at).unwrap();
        ram.discard().unwrap();
        assert_eq!(ram.mapping().read_obj::<u64>(at).unwrap(), 0);
    }

    #[test]
    fn missing_huge_pages_are_explained() {
        let config = MemoryConfig {
            hugepages: true,
            hugepage_size: Some(1 << 30),
            ..config(1 << 40)
        };
        let error = GuestRam::new(&config).err().unwrap().to_string();
        assert!(error.contains("hugepages=on"), "{error}");
    }
}
