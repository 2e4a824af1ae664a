//! Guest RAM on its way into a file and back.
//!
//! RAM lives in memfds, and so is moved from file to file: what was never touched is a hole there and stays one, without
//! being looked at. Pages that hold only zeros become holes as well. Work is done block by block, 1 MiB each, by a few
//! threads with one buffer each; every block with something in it has a checksum, kept in a section of the stream
//! ([`BlockSums`]).
//!
//! Three ways back: [`load`] copies into new RAM and checks each block; [`clone_for_guest`] and [`reserve`] make a RAM file
//! into guest RAM itself, page by page as the guest asks for it, and so check nothing.

mod blocks;
mod copy;
mod mapped;
mod workers;

use std::fs::File;
use std::io;

pub use blocks::BlockSums;
pub(crate) use copy::is_zero;
pub use copy::{BadBlocks, load, save, verify};
pub use mapped::{MappedError, clone_for_guest, reserve};

pub use crate::watch::{Unwatched, Watch};

/// The size of a block, in bytes; the last one of a region may be shorter.
pub const BLOCK: u64 = 1 << 20;

/// Zeros are looked for in pieces of this size.
const PAGE: usize = 4096;

/// A piece of a file that holds RAM.
#[derive(Clone, Copy, Debug)]
pub struct RamPart<'a> {
    /// The file: a memfd, of huge pages too.
    pub file: &'a File,
    /// Where the region begins in it, in bytes.
    pub offset: u64,
    /// The size of the region, in bytes.
    pub bytes: u64,
}

/// Why RAM could not be moved. Offsets are bytes from the beginning of the region.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read.
    #[error("cannot read the RAM at {offset:#x}")]
    Read {
        /// Where.
        offset: u64,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It could not be written.
    #[error("cannot write the RAM at {offset:#x}")]
    Write {
        /// Where.
        offset: u64,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The file ends before the region does.
    #[error("the RAM is cut off at {offset:#x}")]
    Truncated {
        /// Where.
        offset: u64,
    },
    /// A block is not what was saved.
    #[error("the RAM is damaged between {offset:#x} and {:#x}", offset + BLOCK)]
    Damaged {
        /// Where the block begins.
        offset: u64,
    },
    /// The checksums are of a region of another size.
    #[error("the checksums are of a region of {found} bytes, and this one has {expected}")]
    Size {
        /// The size of the region that was saved.
        found: u64,
        /// The size of this region.
        expected: u64,
    },
    /// [`Watch::cancelled`] said so.
    #[error("cancelled")]
    Cancelled,
}

#[cfg(test)]
mod tests;
