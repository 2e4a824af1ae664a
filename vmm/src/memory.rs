//! Guest RAM: files that back-ends map as well. Most often they are sealed memfds; a restored guest may live in the RAM
//! files of its snapshot, or in clones of them.

pub mod loss;
mod prefault;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_api::config::MemoryConfig;
use ferry_devices::vhost_user::RamRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use vm_migration::pages::Region;
use vm_migration::ram::RamPart;

use crate::layout;
use loss::Watched;

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
    #[error("there are {found} RAM files, and {expected} regions of guest RAM")]
    Files { found: usize, expected: usize },
    #[error(
        "the RAM file of the region at {region:#x} has {found} bytes, and the region {expected}"
    )]
    Size {
        region: u64,
        found: u64,
        expected: u64,
    },
    #[error("cannot look at the RAM file of the region at {region:#x}")]
    Look { region: u64, source: io::Error },
    #[error(
        "RAM files cannot be the RAM of a guest with --memory hugepages=on: restore it with memory mode copy"
    )]
    HugePageFiles,
}

const HUGE_PAGE_HINT: &str =
    ": --memory hugepages=on needs that many free huge pages (see /proc/sys/vm/nr_hugepages)";

/// The RAM of one guest, from its boot to its reset or end. A clone is another handle to the same RAM.
#[derive(Clone)]
pub struct GuestRam {
    mapping: GuestMemoryMmap,
    origin: Origin,
    common: Arc<Common>,
}

/// What all handles to the same RAM have in common.
struct Common {
    /// Whether another process's guest lives in it.
    is_anothers: AtomicBool,
    _watched: Watched,
}

/// Where RAM has come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// New memfds, which nobody can resize.
    Memfds,
    /// Files with what a guest had in its RAM. Whoever may write to them can also cut them off.
    Files,
}

/// A region of guest RAM, as what moves RAM takes it.
pub struct Part<'a> {
    /// Where the region begins.
    pub guest: GuestAddress,
    /// The file that it is, or a piece of it.
    pub ram: RamPart<'a>,
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
        GuestRam::arrange(regions, Origin::Memfds)
    }

    /// Makes `files` into guest RAM itself, one for each region, in ascending order.
    ///
    /// # Errors
    /// They are not what `config` asks for, or cannot be mapped.
    pub fn from_files(config: &MemoryConfig, files: Vec<File>) -> Result<Self, Error> {
        if config.hugepages {
            return Err(Error::HugePageFiles);
        }
        let regions = map_files(config, files)?;
        GuestRam::arrange(regions, Origin::Files)
    }

    /// The RAM of a guest that another process of this host has, one file for each region, in ascending order. Both see what the guest
    /// writes. It is the other one's until [`GuestRam::own`].
    ///
    /// # Errors
    /// They are not what `config` asks for, or cannot be mapped.
    pub fn of_another_process(config: &MemoryConfig, files: Vec<File>) -> Result<Self, Error> {
        let origin = match files.iter().all(is_sealed) {
            true => Origin::Memfds,
            false => Origin::Files,
        };
        let regions = map_files(config, files)?;
        let ram = GuestRam::arrange(regions, origin)?;
        ram.disown();
        Ok(ram)
    }

    /// It is this process's.
    pub fn own(&self) {
        self.common.is_anothers.store(false, Ordering::SeqCst);
    }

    /// It is another process's: nothing of it is given back here.
    pub fn disown(&self) {
        self.common.is_anothers.store(true, Ordering::SeqCst);
    }

    fn arrange(regions: Vec<GuestRegionMmap>, origin: Origin) -> Result<Self, Error> {
        let mapping = GuestMemoryMmap::from_regions(regions).map_err(Error::Arrange)?;
        let common = Arc::new(Common {
            is_anothers: AtomicBool::new(false),
            _watched: Watched::new(&mapping),
        });
        Ok(GuestRam {
            mapping,
            origin,
            common,
        })
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

    /// RAM as it is saved to files and loaded from them, in ascending order.
    pub fn parts(&self) -> Vec<Part<'_>> {
        self.mapping.iter().filter_map(part).collect()
    }

    /// RAM as it is moved while a guest may write to it, in ascending order.
    pub fn regions(&self) -> Vec<Region<'_>> {
        self.mapping.iter().filter_map(region).collect()
    }

    /// Gives all pages back, unless another process has them, also those that back-ends have mapped; these see zeros from now on. Of files only as far as
    /// their file system can do it: what is left is theirs and not in memory.
    ///
    /// # Errors
    /// Memfds keep their pages.
    pub fn discard(&self) -> io::Result<()> {
        if self.common.is_anothers.load(Ordering::SeqCst) {
            return Ok(());
        }
        match (self.punch(), self.origin) {
            (Err(error), Origin::Files) => {
                tracing::debug!("the guest's RAM files keep their blocks: {error}");
                Ok(())
            }
            (result, _) => result,
        }
    }

    fn punch(&self) -> io::Result<()> {
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

fn part(region: &GuestRegionMmap) -> Option<Part<'_>> {
    let file = region.file_offset()?;
    Some(Part {
        guest: region.start_addr(),
        ram: RamPart {
            file: file.file(),
            offset: file.start(),
            bytes: region.len(),
        },
    })
}

fn region(mapping: &GuestRegionMmap) -> Option<Region<'_>> {
    let Part { guest, ram } = part(mapping)?;
    let region = Region::new(guest.0, ram);
    let start = NonNull::new(mapping.as_ptr())?;
    // SAFETY: this is a shared mapping of just that part of the file, and lives as long as the reference. Ferry reads and writes it by
    // address only.
    Some(unsafe { region.mapped_at(start) })
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

fn check_size(file: &File, region: u64, expected: u64) -> Result<(), Error> {
    let metadata = file
        .metadata()
        .map_err(|source| Error::Look { region, source })?;
    match metadata.len() {
        found if found == expected => Ok(()),
        found => Err(Error::Size {
            region,
            found,
            expected,
        }),
    }
}

/// Files as regions of guest RAM, in ascending order.
fn map_files(config: &MemoryConfig, files: Vec<File>) -> Result<Vec<GuestRegionMmap>, Error> {
    let ranges = layout::ram_regions(config.size);
    if files.len() != ranges.len() {
        return Err(Error::Files {
            found: files.len(),
            expected: ranges.len(),
        });
    }
    let regions = ranges.into_iter().zip(files).map(|(range, file)| {
        let bytes = range.end - range.start;
        check_size(&file, range.start, bytes)?;
        map_region(GuestAddress(range.start), bytes, Arc::new(file), config)
    });
    regions.collect()
}

/// Whether nobody can make the file shorter.
fn is_sealed(file: &File) -> bool {
    // SAFETY: the call works on an open file descriptor and has no memory arguments.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_SHRINK != 0
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
    use std::os::unix::fs::FileExt;

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

    fn files(sizes: &[u64]) -> Vec<File> {
        let sized = |size: &u64| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(*size).unwrap();
            file
        };
        sizes.iter().map(sized).collect()
    }

    #[test]
    fn files_are_ram_and_keep_what_a_guest_writes() {
        let files = files(&[3 << 30, 64 << 20]);
        let seen: Vec<_> = files.iter().map(|file| file.try_clone().unwrap()).collect();
        let ram = GuestRam::from_files(&config((3 << 30) + (64 << 20)), files).unwrap();
        let (low, high) = (GuestAddress(0x1234), GuestAddress((4 << 30) + 0x5678));
        for (at, file, offset) in [(low, &seen[0], 0x1234), (high, &seen[1], 0x5678)] {
            file.write_all_at(&7u64.to_le_bytes(), offset).unwrap();
            assert_eq!(ram.mapping().read_obj::<u64>(at).unwrap(), 7);
            ram.mapping().write_obj(8u64, at).unwrap();
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, offset).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), 8);
        }
        let parts: Vec<_> = ram
            .parts()
            .iter()
            .map(|part| (part.guest.0, part.ram.offset, part.ram.bytes))
            .collect();
        assert_eq!(parts, [(0, 0, 3 << 30), (4 << 30, 0, 64 << 20)]);
        let other = ram.clone();
        assert_eq!(other.mapping().read_obj::<u64>(high).unwrap(), 8);
        other.discard().unwrap();
        assert_eq!(ram.mapping().read_obj::<u64>(high).unwrap(), 0);
    }

    #[test]
    fn files_that_keep_their_blocks_do_not_hinder_a_discard() {
        // SAFETY: the name is a C string, and what was opened belongs to no one else.
        let file = unsafe {
            let flags = libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC;
            File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), flags))
        };
        file.set_len(64 << 20).unwrap();
        let other = file.try_clone().unwrap();
        let ram = GuestRam::from_files(&config(64 << 20), vec![file]).unwrap();
        // SAFETY: the call works on an open file and has no memory arguments.
        let sealed = unsafe {
            libc::fcntl(
                other.as_raw_fd(),
                libc::F_ADD_SEALS,
                libc::F_SEAL_FUTURE_WRITE,
            )
        };
        assert_eq!(sealed, 0);
        assert!(ram.punch().is_err());
        ram.discard().unwrap();
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let refusal = |config: &MemoryConfig, sizes: &[u64]| {
            let error = GuestRam::from_files(config, files(sizes)).err().unwrap();
            error.to_string()
        };
        let one = config(64 << 20);
        let huge = MemoryConfig {
            hugepages: true,
            ..config(64 << 20)
        };
        assert!(refusal(&one, &[64 << 20, 4096]).contains("2 RAM files"));
        assert!(refusal(&one, &[]).contains("0 RAM files"));
        assert!(refusal(&one, &[(64 << 20) - 1]).contains("67108863 bytes"));
        assert!(refusal(&one, &[(64 << 20) + 1]).contains("67108865 bytes"));
        assert!(refusal(&huge, &[64 << 20]).contains("hugepages=on"));
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
