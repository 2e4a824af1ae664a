//! Guest RAM of which every page is there before the guest is.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ferry_api::config::MemoryConfig;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};
use vm_migration::pages::Filler;

use super::{GuestRam, Origin, region};
use crate::layout;

impl GuestRam {
    /// Makes all pages of RAM, if `config` asks for it, until it is done or `cancel` says so. It belongs to no guest yet, and
    /// holds nothing but zeros. RAM from files is left alone: whoever maps them does not want all of it to be read first.
    pub fn prefault(&self, config: &MemoryConfig, cancel: &AtomicBool) {
        if !config.prefault || self.origin == Origin::Files {
            return;
        }
        for mapping in self.mapping.iter() {
            let bytes = mapping.len();
            let filler = region(mapping).and_then(|region| Filler::new(&region));
            // As long as there is a filler, nothing else can make them.
            let is_filled = filler.is_some_and(|filler| {
                in_pieces(bytes, cancel, |at, bytes| filler.clear(at, bytes).is_ok())
            });
            if !is_filled {
                in_pieces(bytes, cancel, |at, bytes| {
                    populate(mapping, at, bytes);
                    true
                });
            }
        }
    }
}

/// Does `work` for pieces of so many bytes, on several threads, until `cancel` says otherwise. Says whether all of it has succeeded.
fn in_pieces(bytes: u64, cancel: &AtomicBool, work: impl Fn(u64, u64) -> bool + Sync) -> bool {
    /// Bytes between two looks at `cancel`: some hundredths of a second.
    const PIECE: u64 = 64 << 20;
    /// The most threads: more of them wait for memory, and for each other.
    const THREADS: u64 = 8;
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        while !cancel.load(Ordering::Relaxed) && !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(PIECE, Ordering::Relaxed);
            if at >= bytes {
                return;
            }
            if !work(at, PIECE.min(bytes - at)) {
                failed.store(true, Ordering::Relaxed);
            }
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let threads = processors.min(THREADS).min(bytes.div_ceil(PIECE));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // If there is no thread for it, the others do its share.
            let builder = std::thread::Builder::new().name("prefault".into());
            let _ = builder.stack_size(64 << 10).spawn_scoped(scope, work);
        }
        work();
    });
    !failed.into_inner()
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    /// Not a whole number of pieces.
    const BYTES: u64 = 100 << 20;

    fn config(prefault: bool) -> MemoryConfig {
        MemoryConfig {
            size: BYTES,
            shared: true,
            hugepages: false,
            hugepage_size: None,
            prefault,
        }
    }

    /// Bytes that are there after this, of a page that was written before.
    fn there(prefault: bool, cancel: bool) -> u64 {
        let config = config(prefault);
        let ram = GuestRam::new(&config).unwrap();
        let at = GuestAddress(0x1234);
        ram.mapping().write_obj(7u64, at).unwrap();
        ram.prefault(&config, &AtomicBool::new(cancel));
        assert_eq!(ram.mapping().read_obj::<u64>(at).unwrap(), 7);
        // What is not there comes by being touched.
        ram.mapping()
            .write_obj(8u8, GuestAddress(BYTES - 1))
            .unwrap();
        let region = ram.mapping().iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn all_pages_are_made_if_that_is_asked_for() {
        assert!(there(true, false) >= BYTES);
        // Two pages, which may be huge ones.
        assert!(there(false, false) < BYTES / 2);
        assert!(there(true, true) < BYTES / 2);
    }

    #[test]
    fn pages_are_made_without_a_filler_too() {
        let ram = GuestRam::new(&config(true)).unwrap();
        let region = ram.mapping().iter().next().unwrap();
        populate(region, 0, BYTES);
        let file = region.file_offset().unwrap().file();
        assert!(file.metadata().unwrap().blocks() * 512 >= BYTES);
    }

    #[test]
    fn a_page_that_somebody_took_away_is_made_anew() {
        let ram = GuestRam::new(&config(false)).unwrap();
        let regions = ram.regions();
        // Where there are none there is nothing to be seen.
        let fillers: Vec<_> = regions.iter().map(Filler::new).collect();
        let at = GuestAddress(0x1234);
        // Several threads find it missing at once.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(ram.mapping().read_obj::<u64>(at).unwrap(), 0));
            }
        });
        drop(fillers);
        ram.mapping().write_obj(7u64, at).unwrap();
    }
}
