//! The receiving side.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::memory::{MANY, Memory};
use super::{BLOCK, Filler, PAGE, Piece, Region};
use crate::link::{Arrived, Error, Kind, Link, Message, Violation};
use crate::sys;
use crate::watch::Watch;

/// Where RAM is received. As long as it lives, nothing else in this process touches pages that are missing, as with a [`Filler`].
pub struct RamTarget<'a> {
    regions: Vec<Target<'a>>,
    connections: u64,
}

struct Target<'a> {
    gpa: u64,
    bytes: u64,
    offset: u64,
    file: File,
    /// Huge pages cannot be written to as a file.
    mapping: Option<sys::Mapping>,
    memory: Option<Memory<'a>>,
    filler: Option<Filler<'a>>,
}

impl<'a> RamTarget<'a> {
    /// RAM that is new and zero, and is to come over so many connections.
    ///
    /// # Errors
    /// A file cannot be used, or does not hold its region; a region is not of whole pages.
    pub fn new(regions: &[Region<'a>], connections: u16) -> io::Result<Self> {
        let regions = regions.iter().map(Target::new);
        Ok(RamTarget {
            regions: regions.collect::<io::Result<_>>()?,
            connections: connections.max(1).into(),
        })
    }

    /// Where pages that are about to come over connection `index` can be received at once; nowhere, if they are to be written
    /// when they are there.
    fn present(&self, index: u16, gpa: u64, bytes: u64) -> Result<Option<Piece<'_>>, Violation> {
        let (target, at) = self.find(Kind::Pages, index, gpa, bytes)?;
        let memory = target.memory.as_ref();
        Ok(memory.and_then(|memory| memory.present(at - target.offset, bytes)))
    }

    /// Writes pages that came over connection `index`, and says how many bytes they are. The inner error is the other
    /// side's.
    fn write(&self, index: u16, gpa: u64, data: &[u8]) -> Result<Result<u64, Violation>, Error> {
        let bytes = data.len() as u64;
        let (target, at) = match self.find(Kind::Pages, index, gpa, bytes) {
            Ok(found) => found,
            Err(violation) => return Ok(Err(violation)),
        };
        let written = target.write(at, data);
        written.map_err(|source| Error::Ram { gpa, source })?;
        Ok(Ok(bytes))
    }

    /// Makes pages zero, as [`RamTarget::write`].
    fn clear(&self, index: u16, gpa: u64, bytes: u64) -> Result<Result<u64, Violation>, Error> {
        let (target, at) = match self.find(Kind::Zeros, index, gpa, bytes) {
            Ok(found) => found,
            Err(violation) => return Ok(Err(violation)),
        };
        let cleared = target.clear(at, bytes);
        cleared.map_err(|source| Error::Ram { gpa, source })?;
        Ok(Ok(bytes))
    }

    /// Where so many bytes at `gpa` are, which come over connection `index`.
    fn find(
        &self,
        kind: Kind,
        index: u16,
        gpa: u64,
        bytes: u64,
    ) -> Result<(&Target<'a>, u64), Violation> {
        let wrong = |reason| Err(Violation::content(kind, reason));
        if gpa / BLOCK % self.connections != u64::from(index) {
            return wrong("its block belongs on another connection");
        }
        let inside = |target: &&Target<'_>| {
            let at = gpa.checked_sub(target.gpa);
            at.is_some_and(|at| at < target.bytes && bytes <= target.bytes - at)
        };
        match self.regions.iter().find(inside) {
            Some(target) => Ok((target, target.offset + (gpa - target.gpa))),
            None => wrong("it is outside of guest RAM"),
        }
    }
}

impl<'a> Target<'a> {
    fn new(region: &Region<'a>) -> io::Result<Self> {
        let Region { gpa, part, memory } = *region;
        let end = part.offset.checked_add(part.bytes);
        let whole = [gpa, part.offset, part.bytes]
            .iter()
            .all(|number| number.is_multiple_of(PAGE));
        if !whole || gpa.checked_add(part.bytes).is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match end {
            Some(end) if end <= part.file.metadata()?.len() => Ok(Target {
                gpa,
                bytes: part.bytes,
                offset: part.offset,
                file: part.file.try_clone()?,
                mapping: match sys::is_hugetlb(part.file)? {
                    true => Some(sys::Mapping::new(part.file, end)?),
                    false => None,
                },
                memory,
                filler: Filler::new(region),
            }),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let write = |at, data: &[u8]| self.file.write_all_at(data, at);
        match (&self.mapping, &self.filler) {
            (Some(mapping), _) => mapping.write(at, data),
            (None, Some(filler)) if data.len() as u64 >= MANY => {
                let inside = at - self.offset;
                filler.copy(inside, data, |at, data| write(self.offset + at, data))
            }
            (None, _) => write(at, data),
        }
    }

    fn clear(&self, at: u64, bytes: u64) -> io::Result<()> {
        match &self.mapping {
            // A hole in a huge page need not be one: older kernels leave what is in it.
            Some(mapping) => (at..at + bytes)
                .step_by(PAGE as usize)
                .try_for_each(|at| mapping.write(at, &[0; PAGE as usize])),
            None => sys::punch_hole(&self.file, at, bytes),
        }
    }
}

impl Link {
    /// Receives RAM, up to the first message about something else, which is returned. `watch` hears of every byte of it.
    ///
    /// # Errors
    /// As [`Link::receive`]; or what arrives is not about this RAM, or RAM cannot be written. RAM is of no use then.
    pub fn receive_into(
        &mut self,
        ram: &RamTarget<'_>,
        watch: &dyn Watch,
    ) -> Result<Message<'_>, Error> {
        let index = self.purpose().index();
        loop {
            if let Arrived::Pages { gpa, bytes } = self.next_arrived(watch)? {
                // Before anything of it is anywhere.
                let piece = ram.present(index, gpa, bytes);
                if let Some(piece) = piece.map_err(|violation| self.reject(violation))? {
                    self.receive_pages(&piece, watch)?;
                    watch.done(bytes);
                    continue;
                }
            }
            let kind = self.next_kind(watch)?;
            if !matches!(kind, Kind::Pages | Kind::Zeros | Kind::Sync) {
                return self.take_message(kind);
            }
            let placed = match self.take_message(kind)? {
                Message::Pages { gpa, data } => ram.write(index, gpa, data)?,
                Message::Zeros { gpa, bytes } => ram.clear(index, gpa, bytes)?,
                _ => {
                    self.send(&Message::Synced, watch)?;
                    continue;
                }
            };
            match placed {
                Ok(bytes) => watch.done(bytes),
                Err(violation) => return Err(self.reject(violation)),
            }
        }
    }
}
