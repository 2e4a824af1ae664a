//! Guest RAM where this process has it mapped: as fast a way to its pages as there is, if the kernel has mapped them already.
//!
//! Pages that are not mapped are read as parts of the file, and [made](super::Filler) or written as such. To touch them would cost more
//! than it saves: a fault for each of them, and a page that is not there would become one by being looked at.
//!
//! The guest writes to its RAM whenever it likes, and so may back-ends. So bytes are copied in and out by address, and
//! nothing depends on what they are: who reads a page while it is written gets some mixture. On the sender's side that is no
//! harm, because whoever wrote has also logged it, and the page is sent again.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::slice;

use crate::sys;

const PAGE: usize = super::PAGE as usize;
/// For fewer bytes it takes longer to find out whether they are mapped than to read or write them as a part of the file.
pub(super) const MANY: u64 = match cfg!(fuzzing) {
    // Made-up frames are small.
    true => super::PAGE,
    false => 64 << 10,
};

/// Where a region of guest RAM is mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory<'a> {
    start: NonNull<u8>,
    bytes: u64,
    mapping: PhantomData<&'a [u8]>,
}

// SAFETY: the mapping belongs to no thread; its bytes are copied by address, and belong to others as well.
unsafe impl Send for Memory<'_> {}
// SAFETY: as above.
unsafe impl Sync for Memory<'_> {}

impl<'a> Memory<'a> {
    /// # Safety
    /// So many bytes from `start` on are mapped, readable and writable, as long as `'a` lasts.
    pub(super) unsafe fn new(start: NonNull<u8>, bytes: u64) -> Self {
        Memory {
            start,
            bytes,
            mapping: PhantomData,
        }
    }

    /// So many bytes at `at`, if they are in it, and all their pages are mapped to memory; of a few pages that is not known.
    pub(super) fn present(&self, at: u64, bytes: u64) -> Option<Piece<'a>> {
        let piece = self.piece(at, bytes).filter(|_| bytes >= MANY)?;
        sys::is_present(piece.address(), piece.bytes).then_some(piece)
    }

    /// So many bytes at `at`, if they are in it.
    pub(super) fn piece(&self, at: u64, bytes: u64) -> Option<Piece<'a>> {
        let end = at.checked_add(bytes)?;
        if bytes == 0 || end > self.bytes {
            return None;
        }
        let (at, bytes) = (usize::try_from(at).ok()?, usize::try_from(bytes).ok()?);
        // SAFETY: `at` lies within the mapping, as was just checked.
        let start = unsafe { self.start.add(at) };
        Some(Piece {
            start,
            bytes,
            mapping: PhantomData,
        })
    }
}

/// Some bytes of guest RAM that are mapped.
#[derive(Clone, Copy)]
pub(crate) struct Piece<'a> {
    start: NonNull<u8>,
    bytes: usize,
    mapping: PhantomData<&'a [u8]>,
}

impl Piece<'_> {
    /// How many they are.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where they are, for the kernel.
    pub(super) fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    /// Copies them out, as many as there is room for.
    pub(super) fn copy_to(&self, buffer: &mut [u8]) {
        let bytes = self.bytes.min(buffer.len());
        // Page by page: for more than a page the C library takes an instruction that is slow on some processors, and very slow on emulated ones.
        for (at, page) in (0..bytes).step_by(PAGE).zip(buffer.chunks_mut(PAGE)) {
            let bytes = page.len().min(bytes - at);
            // SAFETY: source and target have so many bytes there. They cannot overlap, because the buffer is this process's own. The
            // guest may write to the source meanwhile: what is copied then is of no use, but bytes it is.
            unsafe {
                page.as_mut_ptr()
                    .copy_from_nonoverlapping(self.start.as_ptr().add(at), bytes)
            };
        }
    }

    /// Receives from a socket what belongs behind the first `there` bytes; returns how many have come.
    ///
    /// # Errors
    /// As those of recv.
    pub(crate) fn receive(&self, socket: impl AsFd, there: usize) -> io::Result<usize> {
        let socket = socket.as_fd();
        match self.receive_once(socket, there) {
            // A back-end has made a hole meanwhile, which only the kernel finds missing. Nothing was taken off the socket.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                self.touch();
                self.receive_once(socket, there)
            }
            result => result,
        }
    }

    /// Reads a byte of each page, by which pages that are missing are made.
    fn touch(&self) {
        for at in (0..self.bytes).step_by(PAGE) {
            // SAFETY: the byte lies within the mapping, and any value is one.
            unsafe { self.start.add(at).read_volatile() };
        }
    }

    fn receive_once(&self, socket: BorrowedFd<'_>, there: usize) -> io::Result<usize> {
        let there = there.min(self.bytes);
        // SAFETY: what is left lies within the mapping, and is guest RAM, of which nobody here holds references.
        unsafe {
            let rest = self.start.add(there);
            sys::receive(socket, rest, self.bytes - there)
        }
    }

    /// What `sum` makes of them, on the receiver's side: nobody who keeps to the protocol writes to RAM before the commit.
    pub(crate) fn summed<T>(&self, sum: impl FnOnce(&[u8]) -> T) -> T {
        // SAFETY: the bytes are mapped, and this reference to them does not last. No guest runs yet. A back-end that writes all
        // the same only changes what the sum is; one that makes a hole, too, after a SIGBUS that is handled.
        sum(unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) })
    }
}
