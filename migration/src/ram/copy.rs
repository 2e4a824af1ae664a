//! Saving, loading and verifying, block by block.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::blocks::{BlockSums, checksum, count};
use super::workers::{Block, Worker, for_each_block};
use super::{BLOCK, Error, PAGE, RamPart, Watch};
use crate::sys;

/// Copies RAM into `file`, a new and empty one, and gives it the region's size. The guest and its back-ends must be
/// stopped. Nothing is flushed to disk.
///
/// # Errors
/// RAM cannot be read, the file not be written; or it was cancelled. The file is of no use then.
pub fn save(ram: RamPart<'_>, file: &File, watch: &dyn Watch) -> Result<BlockSums, Error> {
    file.set_len(ram.bytes)
        .map_err(|source| Error::Write { offset: 0, source })?;
    whole(ram)?;
    let sums: Vec<AtomicU64> = (0..count(ram.bytes)).map(|_| AtomicU64::new(0)).collect();
    for_each_block(ram.bytes, watch, |worker, block| {
        let Some(data) = read_block(ram, worker, block)? else {
            return Ok(());
        };
        let mut empty = true;
        for run in runs(data) {
            empty = false;
            let offset = block.offset + run.start as u64;
            file.write_all_at(&data[run], offset)
                .map_err(|source| Error::Write { offset, source })?;
        }
        if !empty {
            sums[block.index].store(checksum(data), Ordering::Relaxed);
        }
        Ok(())
    })?;
    Ok(BlockSums {
        bytes: ram.bytes,
        sums: sums.into_iter().map(AtomicU64::into_inner).collect(),
    })
}

/// Copies a region from `file` into `ram`, checking each block. `ram` must be new: where the region has zeros, nothing
/// is written.
///
/// # Errors
/// The file cannot be read, is too short or damaged, RAM not be written; or it was cancelled. RAM is of no use then.
pub fn load(
    file: &File,
    sums: &BlockSums,
    ram: RamPart<'_>,
    watch: &dyn Watch,
) -> Result<(), Error> {
    if sums.bytes != ram.bytes {
        return Err(Error::Size {
            found: sums.bytes,
            expected: ram.bytes,
        });
    }
    whole(file_part(file, sums))?;
    let target = Target::new(ram).map_err(|source| Error::Write { offset: 0, source })?;
    for_each_block(ram.bytes, watch, |worker, block| {
        let Some(data) = checked_block(file, sums, worker, block)? else {
            return Ok(());
        };
        for run in runs(data) {
            let offset = block.offset + run.start as u64;
            target
                .write(offset, &data[run])
                .map_err(|source| Error::Write { offset, source })?;
        }
        Ok(())
    })
}

/// The blocks that are not what was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadBlocks {
    /// How many there are.
    pub count: u64,
    /// Where the first few begin, in bytes from the beginning of the region.
    pub first: Vec<u64>,
}

impl BadBlocks {
    const LISTED: usize = 16;

    fn add(&mut self, offset: u64) {
        self.count += 1;
        self.first.push(offset);
        self.first.sort_unstable();
        self.first.truncate(Self::LISTED);
    }
}

/// Checks each block of a region in `file`.
///
/// # Errors
/// The file cannot be read or is too short; or it was cancelled. Damage is not an error but an answer.
pub fn verify(file: &File, sums: &BlockSums, watch: &dyn Watch) -> Result<BadBlocks, Error> {
    whole(file_part(file, sums))?;
    let bad = Mutex::new(BadBlocks::default());
    for_each_block(sums.bytes, watch, |worker, block| {
        match checked_block(file, sums, worker, block) {
            Err(Error::Damaged { offset }) => {
                if let Ok(mut bad) = bad.lock() {
                    bad.add(offset);
                }
                Ok(())
            }
            other => other.map(drop),
        }
    })?;
    Ok(bad.into_inner().unwrap_or_default())
}

fn file_part<'a>(file: &'a File, sums: &BlockSums) -> RamPart<'a> {
    RamPart {
        file,
        offset: 0,
        bytes: sums.bytes,
    }
}

/// That the file reaches to the region's end: behind its own end it looks like a hole.
fn whole(ram: RamPart<'_>) -> Result<(), Error> {
    let metadata = ram.file.metadata();
    let end = metadata
        .map_err(|source| Error::Read { offset: 0, source })?
        .len();
    match end.checked_sub(ram.offset) {
        Some(there) if there >= ram.bytes => Ok(()),
        there => Err(Error::Truncated {
            offset: there.unwrap_or(0),
        }),
    }
}

/// The data of a block that is as it was saved; `None` for zeros.
fn checked_block<'a>(
    file: &File,
    sums: &BlockSums,
    worker: &'a mut Worker,
    block: Block,
) -> Result<Option<&'a [u8]>, Error> {
    let data = read_block(file_part(file, sums), worker, block)?;
    let found = match data {
        Some(data) if runs(data).next().is_some() => checksum(data),
        _ => 0,
    };
    match found == sums.sums[block.index] {
        true => Ok(data.filter(|_| found != 0)),
        false => Err(Error::Damaged {
            offset: block.offset,
        }),
    }
}

/// The data of a block; `None` for a hole.
fn read_block<'a>(
    ram: RamPart<'_>,
    worker: &'a mut Worker,
    block: Block,
) -> Result<Option<&'a [u8]>, Error> {
    let Block { offset, bytes, .. } = block;
    let failed = |source| Error::Read { offset, source };
    let start = ram.offset + offset;
    let end = start + bytes as u64;
    if end <= worker.hole_until {
        return Ok(None);
    }
    match sys::seek_data(ram.file, start).map_err(failed)? {
        Some(data) if data < end => {}
        behind => {
            worker.hole_until = behind.unwrap_or(u64::MAX);
            return Ok(None);
        }
    }
    let buffer = &mut worker.buffer[..bytes];
    match ram.file.read_exact_at(buffer, start) {
        Ok(()) => Ok(Some(buffer)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Error::Truncated { offset })
        }
        Err(error) => Err(failed(error)),
    }
}

/// The stretches of a block that have pages with anything but zeros.
fn runs(block: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let pages = || block[at..].chunks(PAGE);
        let start = at + PAGE * pages().position(|page| !is_zero(page))?;
        let rest = block[start..].chunks(PAGE);
        let pages = rest.take_while(|page| !is_zero(page)).count();
        at = block.len().min(start + PAGE * pages);
        Some(start..at)
    })
}

pub(crate) fn is_zero(page: &[u8]) -> bool {
    page.chunks(64)
        .all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Where RAM is loaded to.
struct Target<'a> {
    ram: RamPart<'a>,
    /// Huge pages cannot be written to as a file.
    mapping: Option<sys::Mapping>,
}

impl<'a> Target<'a> {
    fn new(ram: RamPart<'a>) -> io::Result<Self> {
        let mapping = match sys::is_hugetlb(ram.file)? {
            true => Some(sys::Mapping::new(ram.file, ram.offset + ram.bytes)?),
            false => None,
        };
        Ok(Target { ram, mapping })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = self.ram.offset + offset;
        match &self.mapping {
            Some(mapping) => mapping.write(at, data),
            None => self.ram.file.write_all_at(data, at),
        }
    }
}

const _: () = assert!(BLOCK.is_multiple_of(PAGE as u64));
