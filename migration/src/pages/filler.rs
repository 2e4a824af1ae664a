//! Pages of guest RAM where there are none yet.
//!
//! To write to such a page where it is mapped costs a fault, and the kernel clears it first. To write it as a part of the file takes the
//! file's lock, for which several connections would wait, and leaves it to be mapped later. `userfaultfd(2)` does without: it makes a
//! page, fills it and maps it at once, in half the time that it takes to ask for it (`MADV_POPULATE_WRITE`).

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

/// Makes the pages that are missing from a region of guest RAM.
///
/// As long as it lives, a page that is missing is not made by being touched in this process: that raises SIGBUS. The other processes that
/// have the RAM mapped do not notice.
pub struct Filler<'a> {
    calls: OwnedFd,
    memory: Memory<'a>,
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
    /// For a region that is mapped; none where the kernel does not do it, for this kind of file or for this user.
    pub fn new(region: &Region<'a>) -> Option<Self> {
        let memory = region.memory?;
        let piece = memory.piece(0, region.part.bytes)?;
        Self::register(memory, &piece).ok().flatten()
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
        Ok((register.ioctls & needed == needed).then_some(Filler { calls, memory }))
    }

    /// Copies whole pages to `at` in the region. Those that are there already, and what the kernel does not do, are left to `write`,
    /// which is given where in `data` and in the region they begin.
    ///
    /// # Errors
    /// Those of `write`; what is not in the region.
    pub fn copy(
        &self,
        at: u64,
        data: &[u8],
        mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = at + done as u64;
            let made = self.make_of(self.piece(at, rest.len())?, rest);
            done += made.bytes;
            let (at, rest) = (at + made.bytes as u64, &rest[made.bytes..]);
            match made.end {
                End::Whole => (),
                End::There => {
                    let page = &rest[..rest.len().min(PAGE as usize)];
                    write(at, page)?;
                    done += page.len();
                }
                End::Failed(_) => return write(at, rest),
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
