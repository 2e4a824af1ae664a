//! Where a sender copies pages to before it sends them.
//!
//! It is a file in memory, so that a unix socket can be lent its pages, which takes less than half as long as to copy them. Until they
//! are in the receiver's RAM, nothing may change them: not even what the receiver has taken off the socket can be known to be
//! copied. So each part of the file is used again only once the receiver [has answered](crate::link::Message::Sync) for it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::slice;

use rustix::fs::MemfdFlags;

use crate::link::{Error, Link, Message};
use crate::sys::Mapping;
use crate::watch::Watch;

/// The parts, of which all may be lent at a time: enough for a socket to hold as much as it can, and for the receiver to be busy with
/// another one.
const PARTS: u32 = 4;
/// The size of each, in bytes.
pub(super) const PART: usize = 256 << 10;

/// A few pages on their way.
pub(crate) struct Staging {
    file: File,
    mapping: Mapping,
    part: u32,
    /// How much of the part is in use, in bytes.
    used: usize,
}

/// Bytes of it.
#[derive(Clone, Copy)]
pub(crate) struct Staged<'a> {
    pub(crate) bytes: &'a [u8],
    /// Where they are, too.
    pub(crate) file: &'a File,
    /// Where in it.
    pub(crate) at: u64,
}

impl Staged<'_> {
    /// All but the first so many.
    pub(crate) fn rest(&self, bytes: usize) -> Self {
        self.range(bytes..self.bytes.len())
    }

    /// A part of them, as far as they go.
    pub(super) fn range(&self, range: Range<usize>) -> Self {
        Staged {
            bytes: self.bytes.get(range.clone()).unwrap_or_default(),
            file: self.file,
            at: self.at + range.start as u64,
        }
    }
}

impl Staging {
    pub(super) fn new() -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create(
            "ferry-pages",
            MemfdFlags::CLOEXEC,
        )?);
        let bytes = u64::from(PARTS) * PART as u64;
        file.set_len(bytes)?;
        let mapping = Mapping::new(&file, bytes)?;
        Ok(Staging {
            file,
            mapping,
            part: 0,
            used: 0,
        })
    }

    /// Makes room for so many bytes, at most [`PART`], which are to be sent over `link`.
    ///
    /// # Errors
    /// The connection fails, or it was cancelled.
    pub(super) fn make_room(
        &mut self,
        bytes: usize,
        link: &mut Link,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        if self.used + bytes <= PART {
            return Ok(());
        }
        self.used = 0;
        if link.borrows(PART) {
            link.send(&Message::Sync, watch)?;
            link.wait_synced(PARTS - 1, watch)?;
            self.part = (self.part + 1) % PARTS;
        }
        Ok(())
    }

    /// Room for so many bytes, which has been made.
    pub(super) fn room(&mut self, bytes: usize) -> &mut [u8] {
        let at = self.at();
        let bytes = bytes.min(PART - self.used);
        // SAFETY: the range lies within the mapping, which is this value's own, as its file is. Others have it only to read.
        unsafe { slice::from_raw_parts_mut(self.mapping.start().add(at).as_ptr(), bytes) }
    }

    /// What was just copied there.
    pub(super) fn staged(&self, bytes: usize) -> Staged<'_> {
        let at = self.at();
        let bytes = bytes.min(PART - self.used);
        // SAFETY: as above; as long as this reference lasts, nothing is copied there.
        let bytes = unsafe { slice::from_raw_parts(self.mapping.start().add(at).as_ptr(), bytes) };
        Staged {
            bytes,
            file: &self.file,
            at: at as u64,
        }
    }

    /// Keeps so many bytes as they are: they were sent.
    pub(super) fn keep(&mut self, bytes: usize) {
        self.used += bytes;
    }

    fn at(&self) -> usize {
        self.part as usize * PART + self.used
    }
}
