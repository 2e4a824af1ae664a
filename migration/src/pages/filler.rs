//! Pages of guest RAM where there are none yet.
//!
//! To write to such a page where it is mapped costs a fault, and the kernel clears it first. To write it as a part of the file takes the
//! file's lock, for which several connections would wait, and leaves it to be mapped later. `userfaultfd(2)` does without: it makes a
//! page, fills it and maps it at once, in less time than it takes to ask for one (`MADV_POPULATE_WRITE`).

mod registered;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use linux_raw_sys::general::{
    _UFFDIO_COPY, _UFFDIO_ZEROPAGE, UFFD_API, UFFD_FEATURE_SIGBUS, UFFD_USER_MODE_ONLY,
    UFFDIO_COPY_MODE_DONTWAKE, UFFDIO_REGISTER_MODE_MISSING, UFFDIO_ZEROPAGE_MODE_DONTWAKE,
    uffdio_api, uffdio_copy, uffdio_range, uffdio_register, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_ZEROPAGE};
use rustix::mm::UserfaultfdFlags;

use super::memory::{Memory, Piece};
use super::{PAGE, Region};
use registered::Registered;
pub use registered::make_missing;

/// Whether the kernel makes huge pages of files in memory, if it makes the pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Makes the pages that are missing from a region of guest RAM.
///
/// As long as it lives, a page that is missing is not made by being touched in this process: that raises SIGBUS, whose handler has
/// [`make_missing`]; a system call fails with `EFAULT`. The other processes that have the RAM mapped do not notice.
pub struct Filler<'a> {
    memory: Memory<'a>,
    /// Ends before `calls` does.
    _registered: Registered,
    calls: OwnedFd,
}

/// How far the kernel got.
struct Made {
    bytes: usize,
    /// Why no further.
    end: End,
}

enum End {
    /// All is made.
    Whole,
    /// The next page is there already.
    There,
    Failed(io::Error),
}

impl<'a> Filler<'a> {
    /// For a region that is mapped; none where the kernel does not do it, for this kind of file or for this user, or would make huge pages
    /// instead.
    pub fn new(region: &Region<'a>) -> Option<Self> {
        let memory = region.memory?;
        let piece = memory.piece(0, region.part.bytes)?;
        if makes_huge_pages() {
            return None;
        }
        let registered = Self::register(memory, &piece);
        registered.unwrap_or_else(|error| {
            tracing::debug!("no pages are made with userfaultfd(2), which is faster: {error}");
            None
        })
    }

    fn register(memory: Memory<'a>, all: &Piece<'_>) -> io::Result<Option<Self>> {
        // Who may not handle the kernel's own faults may have this.
        let flags = UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        // SAFETY: what can be done with it is done below, to memory that is guest RAM.
        let calls = unsafe { rustix::mm::userfaultfd(flags | UserfaultfdFlags::CLOEXEC)? };
        let mut api = uffdio_api {
            api: UFFD_API.into(),
            features: UFFD_FEATURE_SIGBUS.into(),
            ioctls: 0,
        };
        // SAFETY: the structure is what this request takes.
        unsafe { call(&calls, UFFDIO_API, &mut api)? };
        let mut register = uffdio_register {
            range: range(all),
            mode: UFFDIO_REGISTER_MODE_MISSING.into(),
            ioctls: 0,
        };
        // SAFETY: as above; the range is mapped, and nobody has references into it.
        unsafe { call(&calls, UFFDIO_REGISTER, &mut register)? };
        // Not all of this can be done to huge pages.
        let needed = 1 << _UFFDIO_COPY | 1 << _UFFDIO_ZEROPAGE;
        if register.ioctls & needed != needed {
            return Ok(None);
        }
        let addresses = all.address()..all.address() + all.bytes();
        let registered = Registered::note(addresses, &calls);
        Ok(registered.map(|registered| Filler {
            memory,
            _registered: registered,
            calls,
        }))
    }

    /// Copies whole pages to `at` in the region, up to the first that is there already, or that the kernel does not make. From there on they
    /// are left to `write`, which is told where in the region that is.
    ///
    /// # Errors
    /// Those of `write`; what is not in the region.
    pub fn copy(
        &self,
        at: u64,
        data: &[u8],
        write: impl FnOnce(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let from = at.saturating_add(done as u64);
            let made = self.make_of(self.piece(from, rest.len())?, rest);
            done += made.bytes;
            if !matches!(made.end, End::Whole) {
                return write(from + made.bytes as u64, &rest[made.bytes..]);
            }
        }
        Ok(())
    }

    /// Makes what is missing of so many bytes at `at` in the region, all zero.
    ///
    /// # Errors
    /// The kernel does not do it; what is not in the region. The rest is as it was.
    pub fn clear(&self, at: u64, bytes: u64) -> io::Result<()> {
        let end = at.saturating_add(bytes);
        let mut at = at;
        while at < end {
            let made = self.make_zero(self.piece(at, (end - at) as usize)?);
            at += made.bytes as u64;
            match made.end {
                End::Whole => (),
                End::There => at += PAGE,
                End::Failed(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn piece(&self, at: u64, bytes: usize) -> io::Result<Piece<'_>> {
        let piece = self.memory.piece(at, bytes as u64);
        piece.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn make_of(&self, piece: Piece<'_>, data: &[u8]) -> Made {
        let range = range(&piece);
        let mut copy = uffdio_copy {
            dst: range.start,
            src: data.as_ptr() as u64,
            len: range.len,
            mode: UFFDIO_COPY_MODE_DONTWAKE.into(),
            copy: 0,
        };
        // SAFETY: the structure is what this request takes. It reads `data`, and makes only pages of guest RAM that are missing.
        let result = unsafe { call(&self.calls, UFFDIO_COPY, &mut copy) };
        made(result, copy.copy, range.len)
    }

    fn make_zero(&self, piece: Piece<'_>) -> Made {
        let range = range(&piece);
        let mut zero = uffdio_zeropage {
            range,
            mode: UFFDIO_ZEROPAGE_MODE_DONTWAKE.into(),
            zeropage: 0,
        };
        // SAFETY: as above.
        let result = unsafe { call(&self.calls, UFFDIO_ZEROPAGE, &mut zero) };
        made(result, zero.zeropage, range.len)
    }
}

fn makes_huge_pages() -> bool {
    let chosen = fs::read_to_string(HUGE_PAGES).unwrap_or_default();
    let words = ["[always]", "[within_size]", "[force]"];
    words.into_iter().any(|word| chosen.contains(word))
}

fn range(piece: &Piece<'_>) -> uffdio_range {
    uffdio_range {
        start: piece.address() as u64,
        len: piece.bytes() as u64,
    }
}

/// What came of a request: `count` are the bytes that were made, or an error again.
fn made(result: io::Result<()>, count: i64, bytes: u64) -> Made {
    let part = usize::try_from(count).unwrap_or(0);
    let end = match result {
        Ok(()) => {
            return Made {
                bytes: bytes as usize,
                end: End::Whole,
            };
        }
        // Why it ended there is what the next request is told.
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && part > 0 => End::Whole,
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => End::There,
        Err(error) => End::Failed(error),
    };
    Made { bytes: part, end }
}

/// # Safety
/// `T` is what `request` takes, and what it makes the kernel do is safe.
unsafe fn call<T>(calls: &OwnedFd, request: u32, argument: &mut T) -> io::Result<()> {
    let argument: *mut T = argument;
    // SAFETY: as is demanded above; the descriptor is open.
    match unsafe { libc::ioctl(calls.as_raw_fd(), request.into(), argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
