//! Guest RAM on its way over the [connections](crate::link) of a live migration, and which of its pages have changed.
//!
//! The sender [sends all](send_all) of it once, and then [what has changed](send_dirty), again and again. Holes of the RAM
//! file and pages of zeros are not sent in the first round, because RAM is new and zero on the other side; in later rounds
//! zeros are named and not sent. A page is copied out of RAM first, and the copy is looked at, summed up and sent: the guest
//! may write to the page meanwhile, and what is sent must be what was summed up.
//!
//! The receiver checks where the pages of a frame belong before it [writes](RamTarget) any of them. Where RAM is mapped and its pages are
//! there they are received into RAM itself, and their checksum is known when they are there. If it is wrong the attempt has failed, and
//! this RAM is never a guest's. Elsewhere [new pages](Filler) are made of what has come.

mod bitmap;
mod filler;
mod lanes;
mod memory;
mod receive;
mod send;
mod staging;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

pub use bitmap::{Bitmap, Run};
pub use filler::{Filler, make_missing};
pub(crate) use memory::Piece;
pub use receive::RamTarget;
pub use send::{Sent, catch_up, end_extra, end_main, send_all, send_dirty};
pub(crate) use staging::{Staged, Staging};

use crate::link::{BLOCK, PAGE};
use crate::ram::RamPart;
use memory::Memory;

/// A region of guest RAM. Its address and size are multiples of 4096.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Where the guest sees it.
    pub gpa: u64,
    /// Where it is.
    pub part: RamPart<'a>,
    /// Where this process has it mapped, if it was said.
    memory: Option<Memory<'a>>,
}

impl<'a> Region<'a> {
    /// A region that is read and written as a file.
    pub fn new(gpa: u64, part: RamPart<'a>) -> Self {
        Region {
            gpa,
            part,
            memory: None,
        }
    }

    /// The same, which is read and written where it is mapped, as far as its pages are there; [new ones](Filler) are made there.
    ///
    /// # Safety
    /// As long as `'a` lasts, `part.bytes` bytes from `start` on are a shared mapping, readable and writable, of just this
    /// part of the file. This process holds no references into it; others may write to it at any time.
    pub unsafe fn mapped_at(mut self, start: NonNull<u8>) -> Self {
        // SAFETY: as is demanded above.
        self.memory = Some(unsafe { Memory::new(start, self.part.bytes) });
        self
    }
}

/// How far RAM is sent, for others to look at meanwhile; it adds up over all rounds.
#[derive(Debug, Default)]
pub struct Progress {
    data: AtomicU64,
    zeros: AtomicU64,
}

impl Progress {
    /// Bytes of pages that were sent.
    pub fn data(&self) -> u64 {
        self.data.load(Ordering::Relaxed)
    }

    /// Bytes of pages that are zero, and were named or left out.
    pub fn zeros(&self) -> u64 {
        self.zeros.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
