//! The reading side of a stream.

use std::io::{ErrorKind, Read};

use crate::xxh3::xxh3_64;

use super::error::{Cause, Error, FRAME_TOO_LONG, Place, from_read};
use super::format::{self, Digest, FRAME_MOST, Form, Open, SECTIONS_MOST, StreamId};
use super::saved::Saved;
use super::section::SectionReader;
use super::{Label, SectionSummary, StreamSummary};

/// The room for a frame begins with so many bytes.
const ROOM_LEAST: usize = 16 << 10;

/// Reads a stream, section by section.
///
/// After an error, and after a section that was not read to its end, it reads nothing more.
pub struct StreamReader<R> {
    input: R,
    id: StreamId,
    position: u64,
    pub(super) digest: Digest,
    pub(super) sections: Vec<SectionSummary>,
    /// The label and the header of a section that was looked at, and not yet read.
    next: Option<Next>,
    /// What the one section must turn out to be.
    pub(super) expected: Option<SectionSummary>,
    /// Set while a step is under way, and left set by one that fails.
    pub(super) broken: bool,
    /// Room for a frame, of which so much is filled.
    pub(super) room: Vec<u8>,
    pub(super) filled: usize,
}

/// What stands behind a section.
enum Next {
    Section { open: Box<Open> },
    End { summary: Box<StreamSummary> },
}

impl<R: Read> StreamReader<R> {
    /// Reads the header. An `input` that is slow with small pieces is best behind a [`std::io::BufReader`].
    ///
    /// # Errors
    /// The input failed, or it is no stream, a damaged one, or one of another version.
    pub fn new(mut input: R) -> Result<Self, Error> {
        let mut header = [0; format::HEADER];
        let id = input
            .read_exact(&mut header)
            .map_err(from_read)
            .and_then(|()| format::read_header(&header))
            .map_err(|cause| Error::new(Place::Header, cause))?;
        Ok(Self::at(input, id, &header))
    }

    /// Reads one section, which begins where `input` stands. Such a reader sees nothing else of the stream.
    pub(crate) fn one_section(input: R, id: StreamId, section: SectionSummary) -> Self {
        let mut reader = Self::at(input, id, &[]);
        reader.position = section.offset;
        reader.expected = Some(section);
        reader
    }

    fn at(input: R, id: StreamId, header: &[u8]) -> Self {
        StreamReader {
            input,
            id,
            position: header.len() as u64,
            digest: Digest::new(header),
            sections: Vec::new(),
            next: None,
            expected: None,
            broken: false,
            room: Vec::new(),
            filled: 0,
        }
    }

    /// The id of the snapshot or migration that the stream belongs to.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The head of the section that comes next; `None` at the end of the stream.
    ///
    /// # Errors
    /// The input failed or is damaged, or a section of this name was there before.
    pub fn peek(&mut self) -> Result<Option<&Label>, Error> {
        if self.next.is_none() {
            let place = self.behind();
            if std::mem::replace(&mut self.broken, true) {
                return Err(Error::new(place, Cause::Failed));
            }
            self.next = Some(self.read_next()?);
            self.broken = false;
        }
        match &self.next {
            Some(Next::Section { open }) => Ok(Some(&open.label)),
            _ => Ok(None),
        }
    }

    /// The next section, whichever it is; `None` at the end of the stream.
    ///
    /// # Errors
    /// As [`StreamReader::peek`].
    pub fn next_section(&mut self) -> Result<Option<SectionReader<'_, R>>, Error> {
        self.peek()?;
        match self.next.take() {
            Some(Next::Section { open }) => {
                self.broken = true;
                self.filled = 0;
                Ok(Some(SectionReader::new(self, *open)))
            }
            end => {
                self.next = end;
                Ok(None)
            }
        }
    }

    /// The next section, which must be the one of this name.
    ///
    /// # Errors
    /// As [`StreamReader::peek`]; or another section is there, or none.
    pub fn section(&mut self, name: &str) -> Result<SectionReader<'_, R>, Error> {
        let error = |cause| Error::new(Place::Section(name.to_owned()), cause);
        match self.peek() {
            Ok(Some(label)) if label.name == name => {}
            Ok(Some(label)) => {
                let found = label.name.clone();
                return Err(error(Cause::OutOfOrder { found }));
            }
            Ok(None) => return Err(error(Cause::Missing)),
            // What could not be read was to be this section.
            Err(wrong) if matches!(wrong.place, Place::Behind(_)) => {
                return Err(error(wrong.cause));
            }
            Err(wrong) => return Err(wrong),
        }
        self.next_section()?.ok_or_else(|| error(Cause::Missing))
    }

    /// The value in the next section, which must be the one of this name.
    ///
    /// # Errors
    /// As [`StreamReader::section`]; or it holds something else, or more than such a value can have, or no such value.
    pub fn load<T: Saved>(&mut self, name: &str) -> Result<T, Error> {
        let mut section = self.section(name)?;
        section.must_hold(Form::Value, T::SCHEMA)?;
        let bytes = section.read_all(T::MOST)?;
        let version = section.label().version;
        section.finish()?;
        T::read(version, &bytes)
            .map_err(|source| Error::new(Place::Section(name.to_owned()), Cause::Decode(source)))
    }

    /// The end of the stream, which must come next, and the input just behind it.
    ///
    /// # Errors
    /// As [`StreamReader::peek`]; or there is a section that nobody has asked for.
    pub fn finish(mut self) -> Result<(R, StreamSummary), Error> {
        if let Some(label) = self.peek()? {
            let place = Place::Section(label.name.clone());
            return Err(Error::new(place, Cause::Unknown));
        }
        match self.next.take() {
            Some(Next::End { summary }) => Ok((self.input, *summary)),
            _ => Err(Error::new(self.behind(), Cause::Failed)),
        }
    }

    fn behind(&self) -> Place {
        let last = self.sections.last();
        Place::Behind(last.map(|section| section.label.name.clone()))
    }

    fn read_next(&mut self) -> Result<Next, Error> {
        let place = self.behind();
        let error = |cause| Error::new(place.clone(), cause);
        let before = self.position;
        let mut fixed = [0; format::SECTION_FIXED];
        let (tag, rest) = fixed.split_at_mut(format::TAG);
        self.fill(tag).map_err(error)?;
        if *tag == format::END_TAG {
            return self.read_end(before).map_err(error);
        }
        if *tag != format::SECTION_TAG {
            return Err(error(Cause::Damaged("no section and no end follows")));
        }
        self.fill(rest).map_err(error)?;
        let mut header = fixed.to_vec();
        header.resize(fixed.len() + format::section_rest(&fixed), 0);
        self.fill(&mut header[fixed.len()..]).map_err(error)?;
        let label = format::read_section_header(&header).map_err(error)?;
        let here = |cause| Error::new(Place::Section(label.name.clone()), cause);
        if self.sections.len() == SECTIONS_MOST {
            return Err(here(Cause::TooManySections));
        }
        if self.sections.iter().any(|old| old.label.name == label.name) {
            return Err(here(Cause::Duplicate));
        }
        let open = Box::new(Open::new(label, &header, before));
        Ok(Next::Section { open })
    }

    fn read_end(&mut self, before: u64) -> Result<Next, Cause> {
        let mut rest = [0; format::END - format::TAG];
        self.fill(&mut rest)?;
        let digest = std::mem::replace(&mut self.digest, Digest::new(&[]));
        let digest = digest.finish(self.sections.len(), before);
        if rest != format::end(self.sections.len(), before, digest)[format::TAG..] {
            return Err(Cause::Damaged(
                "number, length or digest at its end are wrong",
            ));
        }
        let summary = Box::new(StreamSummary {
            id: self.id,
            sections: std::mem::take(&mut self.sections),
            bytes: self.position,
            digest,
        });
        Ok(Next::End { summary })
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Cause> {
        self.input.read_exact(buffer).map_err(from_read)?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    /// Reads a frame, or the end of the section: `false`.
    pub(super) fn read_frame(&mut self, open: &mut Open) -> Result<bool, Cause> {
        let mut header = [0; format::FRAME_HEADER];
        let (length, rest) = header.split_at_mut(4);
        self.fill(length)?;
        let length = format::be_u32(length) as usize;
        self.fill(rest)?;
        if length == 0 {
            self.filled = 0;
            let mut digest = [0; format::SECTION_END - format::FRAME_HEADER];
            self.fill(&mut digest)?;
            let end = format::section_end(open.bytes, open.digest());
            return match header[..] == end[..format::FRAME_HEADER]
                && digest == end[format::FRAME_HEADER..]
            {
                true => Ok(false),
                false => Err(Cause::Damaged("its length or its digest is wrong")),
            };
        }
        if length > FRAME_MOST {
            return Err(FRAME_TOO_LONG);
        }
        self.fill_frame(length)?;
        if format::be_u64(&header[4..]) != xxh3_64(self.frame()) {
            return Err(Cause::Damaged("a checksum is wrong"));
        }
        open.add_frame(&header);
        Ok(true)
    }

    /// Reads the data of a frame. Its room grows with what is really there, and then stays.
    fn fill_frame(&mut self, length: usize) -> Result<(), Cause> {
        self.filled = 0;
        while self.filled < length {
            if self.filled == self.room.len() {
                let more = self.filled.max(ROOM_LEAST);
                self.room.resize(length.min(self.filled + more), 0);
            }
            let most = length.min(self.room.len());
            match self.input.read(&mut self.room[self.filled..most]) {
                Ok(0) => return Err(Cause::Truncated),
                Ok(got) => self.filled += got,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Cause::Read(error)),
            }
        }
        self.position += length as u64;
        Ok(())
    }

    /// The frame that was read last.
    pub(super) fn frame(&self) -> &[u8] {
        &self.room[..self.filled]
    }
}
