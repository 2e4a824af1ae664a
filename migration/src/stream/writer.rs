//! The writing side of a stream.

use std::io::{self, IoSlice, Write};

use super::error::{Cause, Error, Place};
use super::format::{self, Digest, FRAME_MOST, Form, Open, SECTIONS_MOST, StreamId};
use super::saved::{Saved, encode};
use super::{Label, SectionSummary, StreamSummary};
use crate::chunk::{ChunkWriter, Totals};

/// Writes are gathered up to this size; larger ones go out as they are.
const GATHER: usize = 64 << 10;

/// Writes a stream, section by section.
///
/// After an error, and after a section that was not finished, it writes nothing more: what is out has no end, and no reader
/// takes it for whole.
pub struct StreamWriter<W> {
    output: W,
    id: StreamId,
    position: u64,
    digest: Digest,
    sections: Vec<SectionSummary>,
    /// Set while a section is under way, and left set by one that fails.
    broken: bool,
    gathered: Vec<u8>,
}

impl<W: Write> StreamWriter<W> {
    /// Writes the header. An `output` that is slow with small pieces is best behind a [`std::io::BufWriter`].
    ///
    /// # Errors
    /// The output failed.
    pub fn new(output: W, id: StreamId) -> Result<Self, Error> {
        let header = format::header(id);
        let mut writer = StreamWriter {
            output,
            id,
            position: 0,
            digest: Digest::new(&header),
            sections: Vec::new(),
            broken: false,
            gathered: Vec::with_capacity(GATHER),
        };
        writer
            .put(&[&header])
            .map_err(|cause| Error::new(Place::Header, cause))?;
        Ok(writer)
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Begins a section, which has to be [finished](SectionWriter::finish).
    ///
    /// # Errors
    /// There is one of this name, or too many; the name is not one; the output failed, or did so before.
    pub fn begin(&mut self, label: Label) -> Result<SectionWriter<'_, W>, Error> {
        let place = Place::Section(label.name.clone());
        let open = self.open(label).map_err(|cause| Error::new(place, cause))?;
        Ok(SectionWriter {
            stream: self,
            open,
            failed: false,
        })
    }

    /// Writes `state` as a section of its own.
    ///
    /// # Errors
    /// As [`StreamWriter::begin`]; or the value cannot be encoded, or is larger than its kind may be.
    pub fn save<T: Saved>(&mut self, name: &str, state: &T) -> Result<(), Error> {
        let error = |cause| Error::new(Place::Section(name.to_owned()), cause);
        let bytes = encode(state).map_err(|source| error(Cause::Decode(source)))?;
        if bytes.len() > T::MOST {
            return Err(error(Cause::TooLong {
                most: T::MOST as u64,
            }));
        }
        let mut section = self.begin(Label {
            name: name.to_owned(),
            form: Form::Value,
            schema: T::SCHEMA.to_owned(),
            version: T::VERSION,
        })?;
        section.append(&bytes)?;
        section.finish()
    }

    /// Writes the state of a back-end, at most `most` bytes of it, as a section of its own. `fill` reads the back-end and
    /// appends what it reads; it returns an error if the back-end failed, which ends the whole stream.
    ///
    /// # Errors
    /// As [`StreamWriter::begin`]; or `fill` failed, or appended too much.
    pub fn save_chunks<E: From<Error>>(
        &mut self,
        label: Label,
        most: u64,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), E>,
    ) -> Result<Totals, E> {
        let place = Place::Section(label.name.clone());
        let wrong = |error| Error::new(place.clone(), Cause::Chunks(error));
        let mut section = self.begin(Label {
            form: Form::Chunks,
            ..label
        })?;
        let mut chunks = ChunkWriter::new(&mut section, most);
        fill(&mut |data| chunks.append(data).map_err(wrong))?;
        let totals = chunks.finish().map_err(wrong)?.totals;
        section.finish()?;
        Ok(totals)
    }

    /// Writes the end, and hands the output back.
    ///
    /// # Errors
    /// The output failed, or something failed or was given up before.
    pub fn finish(mut self) -> Result<(W, StreamSummary), Error> {
        let place = Place::Behind(
            self.sections
                .last()
                .map(|section| section.label.name.clone()),
        );
        let before = self.position;
        let digest = self.digest.finish(self.sections.len(), before);
        self.digest = Digest::new(&[]);
        let end = format::end(self.sections.len(), before, digest);
        if self.broken {
            return Err(Error::new(place, Cause::Failed));
        }
        self.put(&[&end])
            .and_then(|()| self.output.flush().map_err(Cause::Write))
            .map_err(|cause| Error::new(place, cause))?;
        let summary = StreamSummary {
            id: self.id,
            sections: self.sections,
            bytes: self.position,
            digest,
        };
        Ok((self.output, summary))
    }

    fn open(&mut self, label: Label) -> Result<Open, Cause> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(Cause::Failed);
        }
        if self.sections.len() == SECTIONS_MOST {
            return Err(Cause::TooManySections);
        }
        if self.sections.iter().any(|old| old.label.name == label.name) {
            return Err(Cause::Duplicate);
        }
        let header = format::section_header(&label)?;
        let offset = self.position;
        self.put(&[&header])?;
        self.gathered.clear();
        Ok(Open::new(label, &header, offset))
    }

    fn put(&mut self, parts: &[&[u8]]) -> Result<(), Cause> {
        write_parts(&mut self.output, parts).map_err(Cause::Write)?;
        self.position += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
    }
}

/// Writes one section.
///
/// As a [`Write`] it carries the [`Error`] inside the `io::Error`.
#[must_use = "a section that is not finished ends the stream"]
pub struct SectionWriter<'a, W> {
    stream: &'a mut StreamWriter<W>,
    open: Open,
    failed: bool,
}

impl<W: Write> SectionWriter<'_, W> {
    /// Appends `data`, of any length.
    ///
    /// # Errors
    /// The output failed, now or earlier.
    pub fn append(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while self.stream.gathered.len() + data.len() > GATHER {
            let room = FRAME_MOST - self.stream.gathered.len();
            let (now, later) = data.split_at(data.len().min(room));
            self.frame(now)?;
            data = later;
        }
        self.stream.gathered.extend_from_slice(data);
        Ok(())
    }

    /// Ends the section.
    ///
    /// # Errors
    /// The output failed, now or earlier.
    pub fn finish(mut self) -> Result<(), Error> {
        self.frame(&[])?;
        let end = format::section_end(self.open.bytes, self.open.digest());
        let place = Place::Section(self.open.label.name.clone());
        self.stream
            .put(&[&end])
            .map_err(|cause| Error::new(place, cause))?;
        let summary = self.open.summary();
        self.stream.digest.add(summary.digest);
        self.stream.sections.push(summary);
        self.stream.broken = false;
        Ok(())
    }

    /// Writes what was gathered, and `data`, as one frame.
    fn frame(&mut self, data: &[u8]) -> Result<(), Error> {
        let place = || Place::Section(self.open.label.name.clone());
        if std::mem::replace(&mut self.failed, true) {
            return Err(Error::new(place(), Cause::Failed));
        }
        let gathered = std::mem::take(&mut self.stream.gathered);
        if !gathered.is_empty() || !data.is_empty() {
            let header = format::frame_header(&gathered, data);
            self.stream
                .put(&[&header, &gathered, data])
                .map_err(|cause| Error::new(place(), cause))?;
            self.open.add_frame(&header);
        }
        self.stream.gathered = gathered;
        self.stream.gathered.clear();
        self.failed = false;
        Ok(())
    }
}

impl<W: Write> Write for SectionWriter<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.append(data)?;
        Ok(data.len())
    }

    /// Does nothing: frames go out when they are full, or with the section's end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All parts, in as few calls as the output allows.
fn write_parts(output: &mut impl Write, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match output.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
