//! The checksums of a region's blocks, and the section that they are kept in.

use std::io::{Read, Write};

use crate::xxh3::xxh3_64;

use super::BLOCK;
use crate::stream::{Cause, Error, Form, Label, Place, SectionReader, StreamWriter};

/// The schema of the section.
const SCHEMA: &str = "ram-blocks";
const VERSION: u16 = 1;

/// One checksum for each block of a region, 8 bytes for each MiB of RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSums {
    pub(super) bytes: u64,
    /// Zero for a block of zeros.
    pub(super) sums: Vec<u64>,
}

impl BlockSums {
    /// The size of the region, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many blocks hold anything but zeros.
    pub fn blocks_with_data(&self) -> u64 {
        self.sums.iter().filter(|sum| **sum != 0).count() as u64
    }

    /// Writes them as the section `name`.
    ///
    /// # Errors
    /// As [`StreamWriter::begin`].
    pub fn write<W: Write>(&self, stream: &mut StreamWriter<W>, name: &str) -> Result<(), Error> {
        let mut section = stream.begin(Label {
            name: name.to_owned(),
            form: Form::Blocks,
            schema: SCHEMA.to_owned(),
            version: VERSION,
        })?;
        section.append(&self.bytes.to_be_bytes())?;
        for sum in &self.sums {
            section.append(&sum.to_be_bytes())?;
        }
        section.finish()
    }

    /// Reads them, of a region of `bytes` bytes, and ends the section. Memory grows with what is there, whatever `bytes` is.
    ///
    /// # Errors
    /// The section holds something else, is damaged, or is about a region of another size.
    pub fn read<R: Read>(mut section: SectionReader<'_, R>, bytes: u64) -> Result<Self, Error> {
        let place = Place::Section(section.label().name.clone());
        let error = |cause| Error {
            place: place.clone(),
            cause,
        };
        section.must_hold(Form::Blocks, SCHEMA)?;
        if section.label().version != VERSION {
            return Err(error(Cause::Damaged(
                "the version of its checksums is unknown",
            )));
        }
        let mut size = None;
        let mut sums = Vec::new();
        let mut numbers = Numbers::default();
        loop {
            let data = section.data()?;
            if data.is_empty() {
                break;
            }
            let used = data.len();
            for number in numbers.take(data) {
                match size {
                    None => size = Some(number),
                    Some(_) => sums.push(number),
                }
            }
            if sums.len() as u64 > count(bytes) {
                return Err(error(Cause::LeftOver));
            }
            section.consume(used);
        }
        if size != Some(bytes) || sums.len() as u64 != count(bytes) || numbers.has_rest() {
            return Err(error(Cause::Damaged(
                "it is not about a region of this size",
            )));
        }
        section.finish()?;
        Ok(BlockSums { bytes, sums })
    }
}

/// How many blocks a region of this size has.
pub(super) fn count(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}

/// Never zero, which stands for a block of zeros.
pub(super) fn checksum(block: &[u8]) -> u64 {
    xxh3_64(block).max(1)
}

/// Big-endian numbers, from pieces that end anywhere.
#[derive(Default)]
struct Numbers {
    rest: Vec<u8>,
}

impl Numbers {
    fn take<'a>(&'a mut self, data: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
        data.iter().filter_map(|byte| {
            self.rest.push(*byte);
            let whole: [u8; 8] = self.rest[..].try_into().ok()?;
            self.rest.clear();
            Some(u64::from_be_bytes(whole))
        })
    }

    fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }
}
