//! The dirty log: which pages of guest RAM back-ends have written to (vhost-user specification, "Migration").
//!
//! A bitmap in shared memory, one bit for each 4 KiB of guest-physical address space: page `n` is bit `n % 8` of byte `n / 8`. One
//! serves all devices of a guest. Back-ends set bits, from other processes and at any moment; Ferry takes them away. No bit
//! is lost between the two, because both do it atomically.
//!
//! Back-ends may set any bit of it and, as the file's size is sealed, do no more than that. What they claim of pages that are not
//! RAM is not handed on.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::Address;

use super::memory::RamRegion;

/// Bytes of guest RAM that one bit stands for, whatever the size of the host's pages.
pub const LOG_PAGE: u64 = 4096;

/// Pages that a word of the log stands for.
const WORD: u64 = u64::BITS as u64;

/// The largest log, in bytes: 16 TiB of guest-physical addresses.
const MOST: u64 = 512 << 20;

/// A bitmap of the pages that back-ends have written to since it was last looked at.
#[derive(Debug)]
pub struct DirtyLog {
    file: File,
    words: NonNull<AtomicU64>,
    count: usize,
    /// The pages that are RAM.
    ram: Vec<Range<u64>>,
}

// SAFETY: the mapping belongs to this value alone, and is used through atomic words only.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// An empty log, as large as the highest address of `ram` demands.
    ///
    /// # Errors
    /// `ram` is nothing, or lies too high; or there is no memory.
    pub fn new(ram: &[RamRegion]) -> io::Result<DirtyLog> {
        let ram: Vec<_> = ram.iter().filter_map(pages).collect();
        let end = ram.iter().map(|pages| pages.end).max().unwrap_or(0);
        let words = end.div_ceil(WORD);
        if ram.is_empty() || words * 8 > MOST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = memory_file(c"dirty-log")?;
        file.set_len(words * 8)?;
        seal(&file)?;
        let count = words as usize;
        let words = map(&file, count * 8)?.cast();
        Ok(DirtyLog {
            file,
            words,
            count,
            ram,
        })
    }

    /// Takes what has been noted, and leaves the log empty: `each` is given the number of every word that has something, and its
    /// bits. Bit `b` of word `w` stands for the page at `(64 * w + b) * 4096`.
    ///
    /// What is written while this goes on is found here or by the next call.
    pub fn take(&self, mut each: impl FnMut(usize, u64)) {
        for (index, word) in self.as_words().iter().enumerate() {
            // Most of them are empty: looking does not take the line away from the other processors.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let bits = u64::from_le(word.swap(0, Ordering::AcqRel)) & self.mask(index);
            if bits != 0 {
                each(index, bits);
            }
        }
    }

    /// How many words there are.
    pub fn words(&self) -> usize {
        self.count
    }

    /// How many bytes back-ends map.
    pub fn bytes(&self) -> u64 {
        self.count as u64 * 8
    }

    /// Whether each page of `ram` has a bit that counts.
    pub(super) fn covers(&self, ram: &[RamRegion]) -> bool {
        let known = |part: Range<u64>| {
            self.ram
                .iter()
                .any(|pages| pages.start <= part.start && part.end <= pages.end)
        };
        ram.iter().filter_map(pages).all(known)
    }

    /// What back-ends are to map.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn as_words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `count` words, is aligned to pages and lives as long as `self`; other processes change
        // it atomically, as does whoever has this.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }

    /// The bits of a word that stand for RAM.
    fn mask(&self, index: usize) -> u64 {
        let first = index as u64 * WORD;
        let below = |end: u64| match end.saturating_sub(first) {
            count if count >= WORD => u64::MAX,
            count => (1 << count) - 1,
        };
        let parts = self.ram.iter();
        parts.fold(0, |mask, part| {
            mask | (below(part.end) & !below(part.start))
        })
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` has made, and nobody holds a reference into it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.count * 8) };
    }
}

/// The pages of a region; none if it is empty.
fn pages(region: &RamRegion) -> Option<Range<u64>> {
    let first = region.guest.raw_value() / LOG_PAGE;
    let end = region.guest.checked_add(region.size)?;
    let end = end.raw_value().div_ceil(LOG_PAGE);
    (first < end).then_some(first..end)
}

fn memory_file(name: &CStr) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let raw = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and belongs to nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(raw) }))
}

/// Fixes the file's size: a back-end that cut it off would end whoever looks at the log.
fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl() on a descriptor that is open; no pointers.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn map(file: &File, length: usize) -> io::Result<NonNull<libc::c_void>> {
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
    match NonNull::new(mapping) {
        Some(mapping) if mapping.as_ptr() != libc::MAP_FAILED => Ok(mapping),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use std::thread;

    use vm_memory::GuestAddress;

    use super::*;

    fn ram(parts: &[[u64; 2]]) -> Vec<RamRegion> {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let region = |[guest, size]: &[u64; 2]| RamRegion {
            guest: GuestAddress(*guest),
            size: *size,
            file: Arc::clone(&file),
            offset: 0,
        };
        parts.iter().map(region).collect()
    }

    fn taken(log: &DirtyLog) -> Vec<(usize, u64)> {
        let mut taken = Vec::new();
        log.take(|index, bits| taken.push((index, bits)));
        taken
    }

    #[test]
    fn it_is_as_large_as_the_highest_address_demands() {
        for (end, words) in [
            (1, 1),
            (64 * 4096, 1),
            (64 * 4096 + 1, 2),
            (1 << 32, 1 << 14),
        ] {
            let log = DirtyLog::new(&ram(&[[0, end]])).unwrap();
            assert_eq!((log.words(), log.bytes()), (words, words as u64 * 8));
            assert_eq!(log.file.metadata().unwrap().len(), log.bytes());
        }
        for bad in [&[][..], &[[0, 0]], &[[1 << 51, 4096]], &[[u64::MAX, 2]]] {
            assert!(DirtyLog::new(&ram(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bits_are_taken_once_and_only_those_of_ram() {
        let log = DirtyLog::new(&ram(&[[0x3000, 0x2000], [65 * 4096, 4096]])).unwrap();
        // All bits, as a back-end sees the file.
        log.file.write_all_at(&[0xff; 16], 0).unwrap();
        assert_eq!(taken(&log), [(0, 0b11000), (1, 0b10)]);
        assert_eq!(taken(&log), []);
        log.file.write_all_at(&[1 << 4], 0).unwrap();
        assert_eq!(taken(&log), [(0, 1 << 4)]);
        let mut bytes = [1; 16];
        log.file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 16]);
    }

    #[test]
    fn a_back_end_cannot_change_its_size() {
        let log = DirtyLog::new(&ram(&[[0, 4096]])).unwrap();
        assert!(log.file.set_len(0).is_err());
        assert!(log.file.set_len(1 << 20).is_err());
    }

    #[test]
    fn it_covers_what_it_was_made_for() {
        let log = DirtyLog::new(&ram(&[[0x1000, 0x4000], [0x10_0000, 0x1000]])).unwrap();
        assert!(log.covers(&ram(&[[0x1000, 0x4000], [0x10_0000, 0x1000]])));
        assert!(log.covers(&ram(&[[0x2000, 0x1000]])));
        for beyond in [[0x1000, 0x4001], [0, 0x2000], [0x4000, 0x10_0000]] {
            assert!(!log.covers(&ram(&[beyond])), "{beyond:?}");
        }
    }

    #[test]
    fn no_bit_is_lost_between_two_who_set_and_one_who_takes() {
        const ROUNDS: u64 = 2000;
        let log = DirtyLog::new(&ram(&[[0, 64 * 4096]])).unwrap();
        let words = log.as_words();
        thread::scope(|scope| {
            let setters = [0, 32].map(|first| {
                scope.spawn(move || {
                    let mut set = 0;
                    for round in 0..ROUNDS {
                        let bit = 1 << (first + round % 32);
                        set += u64::from(words[0].fetch_or(bit, Ordering::AcqRel) & bit == 0);
                    }
                    set
                })
            });
            let mut taken = 0;
            while !setters.iter().all(|setter| setter.is_finished()) {
                log.take(|_, bits| taken += u64::from(bits.count_ones()));
            }
            log.take(|_, bits| taken += u64::from(bits.count_ones()));
            let set: u64 = setters.map(|setter| setter.join().unwrap()).iter().sum();
            assert_eq!(taken, set);
        });
    }
}
