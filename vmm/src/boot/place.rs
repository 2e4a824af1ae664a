//! Decides where in RAM the initramfs goes, and whether everything fits.

use std::ops::Range;
use std::path::Path;

use super::{Error, Initramfs};
use crate::layout;

/// Where things go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The initramfs, if there is one. It begins on a page.
    pub initramfs: Option<Range<u64>>,
}

/// Places the initramfs as high as it may be, below `limit` and the 3 GiB hole: there it is out of the way of a kernel
/// that grows as it unpacks itself.
pub fn place(
    path: &Path,
    kernel: Range<u64>,
    limit: u64,
    ram_size: u64,
    initramfs: Option<&Initramfs>,
) -> Result<Placement, Error> {
    let low = ram_size.min(layout::HOLE_START);
    let room = layout::HIGH_MEMORY..low.max(layout::HIGH_MEMORY);
    if kernel.start < room.start || kernel.end > room.end {
        return Err(Error::DoesNotFit {
            path: path.to_owned(),
            what: "the kernel",
            need: kernel,
            room,
        });
    }
    let Some(initramfs) = initramfs else {
        return Ok(Placement { initramfs: None });
    };
    let size = initramfs.size();
    let floor = kernel.end.next_multiple_of(layout::PAGE_SIZE);
    let ceiling = low.min(limit);
    let start = ceiling
        .checked_sub(size)
        .map(|start| start - start % layout::PAGE_SIZE);
    match start.filter(|start| *start >= floor) {
        Some(start) => Ok(Placement {
            initramfs: Some(start..start + size),
        }),
        None => Err(Error::InitramfsTooLarge {
            path: initramfs.path().to_owned(),
            size,
            room: ceiling.saturating_sub(floor),
        }),
    }
}
