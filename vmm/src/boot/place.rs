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
/// that grows as it unpacks itself. If there is no room above the kernel, as in small guests, it goes below.
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
    let above = pages(kernel.end, room.end.min(limit));
    let below = pages(room.start, kernel.start.min(limit));
    let fits = |gap: &&Range<u64>| gap.end - gap.start >= size;
    match [&above, &below].into_iter().find(fits) {
        Some(gap) => {
            let start = gap.end - size;
            let start = start - start % layout::PAGE_SIZE;
            Ok(Placement {
                initramfs: Some(start..start + size),
            })
        }
        None => Err(Error::InitramfsTooLarge {
            path: initramfs.path().to_owned(),
            size,
            room: (above.end - above.start).max(below.end - below.start),
        }),
    }
}

/// A gap that begins on a page; empty if `end` comes first.
fn pages(start: u64, end: u64) -> Range<u64> {
    let start = start.next_multiple_of(layout::PAGE_SIZE);
    start..end.max(start)
}
