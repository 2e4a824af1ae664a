//! The reading side of one section.

use std::io::{self, BufRead, Read};

use super::error::{Cause, Error, Place};
use super::format::{Form, Open};
use super::{Label, SectionSummary, StreamReader};
use crate::chunk::{ChunkReader, Totals};
use crate::{Unwatched, Watch};

/// Where a section's reader is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Frames,
    Ended,
    Failed,
}

/// Reads one section.
///
/// As a [`Read`] it ends (with `Ok(0)`) only where the section's length and digest were found right, and carries the
/// [`Error`] inside the `io::Error`.
#[must_use = "a section that is not read to its end ends the stream"]
pub struct SectionReader<'a, R> {
    stream: &'a mut StreamReader<R>,
    open: Open,
    /// Bytes of the frame that were handed on.
    used: usize,
    state: Reading,
}

impl<'a, R: Read> SectionReader<'a, R> {
    pub(super) fn new(stream: &'a mut StreamReader<R>, open: Open) -> Self {
        SectionReader {
            stream,
            open,
            used: 0,
            state: Reading::Frames,
        }
    }

    /// What stands at its head.
    pub fn label(&self) -> &Label {
        &self.open.label
    }

    /// Refuses a section that does not hold what is due.
    ///
    /// # Errors
    /// It has another form or schema.
    pub fn must_hold(&self, form: Form, schema: &str) -> Result<(), Error> {
        let label = &self.open.label;
        if label.form == form && label.schema == schema {
            return Ok(());
        }
        Err(self.error(Cause::Schema {
            found: format!("{} of schema {}", label.form, label.schema),
            expected: format!("{form} of schema {schema}"),
        }))
    }

    /// Data that was not yet [consumed](SectionReader::consume), checked; empty at the section's end.
    ///
    /// # Errors
    /// The input failed or is damaged, now or earlier.
    pub fn data(&mut self) -> Result<&[u8], Error> {
        if self.used == self.stream.filled && self.state != Reading::Ended {
            if self.state == Reading::Failed {
                return Err(self.error(Cause::Failed));
            }
            self.state = Reading::Failed;
            self.used = 0;
            let more = self.stream.read_frame(&mut self.open);
            if more.is_err() {
                self.stream.filled = 0;
            }
            self.state = match more.map_err(|cause| self.error(cause))? {
                true => Reading::Frames,
                false => Reading::Ended,
            };
        }
        Ok(&self.stream.frame()[self.used..])
    }

    /// Marks the first `bytes` of [`SectionReader::data`] as used.
    pub fn consume(&mut self, bytes: usize) {
        self.used = (self.used + bytes).min(self.stream.filled);
    }

    /// All the data, at most `most` bytes of it.
    ///
    /// # Errors
    /// The input failed or is damaged; there is more.
    pub fn read_all(&mut self, most: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        loop {
            let data = self.data()?;
            if data.is_empty() {
                return Ok(bytes);
            }
            if bytes.len() + data.len() > most {
                return Err(self.error(Cause::TooLong { most: most as u64 }));
            }
            bytes.extend_from_slice(data);
            let used = data.len();
            self.consume(used);
        }
    }

    /// Hands the state of a back-end that is in it to `out`, piece by piece, and ends the section. The state is whole only
    /// if this succeeds: a back-end that was given some of it must not start otherwise.
    ///
    /// # Errors
    /// The section holds something else, is damaged, or has more than `most` bytes of state; or `out` failed.
    pub fn load_chunks<E: From<Error>>(
        mut self,
        schema: &str,
        most: u64,
        mut out: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Totals, E> {
        self.must_hold(Form::Chunks, schema)?;
        let totals = self.each_chunk(most, &mut out)?;
        self.finish()?;
        Ok(totals)
    }

    fn each_chunk<E: From<Error>>(
        &mut self,
        most: u64,
        out: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Totals, E> {
        let place = Place::Section(self.open.label.name.clone());
        let wrong = |error| E::from(Error::new(place.clone(), Cause::Chunks(error)));
        let mut chunks = ChunkReader::new(self, most);
        while chunks
            .pass_on(&mut *out)
            .map_err(wrong)?
            .transpose()?
            .is_some()
        {}
        Ok(chunks.finish().map_err(wrong)?.totals)
    }

    /// Ends the section, of which all data must have been used.
    ///
    /// # Errors
    /// There is more data; the input failed or is damaged, now or earlier.
    pub fn finish(mut self) -> Result<SectionSummary, Error> {
        if !self.data()?.is_empty() {
            return Err(self.error(Cause::LeftOver));
        }
        let summary = self.open.summary();
        if let Some(expected) = self.stream.expected.take()
            && expected != summary
        {
            let place = Place::Section(expected.label.name);
            return Err(Error::new(place, Cause::NotOfManifest));
        }
        self.stream.digest.add(summary.digest);
        self.stream.sections.push(summary.clone());
        self.stream.broken = false;
        Ok(summary)
    }

    /// Reads what is left of the section, checks it, and ends it. Chunks are checked too.
    ///
    /// # Errors
    /// The input failed or is damaged, now or earlier.
    pub fn skip(self) -> Result<SectionSummary, Error> {
        self.skip_watched(&Unwatched)
    }

    /// As [`SectionReader::skip`], for a section that may be long: it can be given up.
    ///
    /// # Errors
    /// As of [`SectionReader::skip`]; or it was given up.
    pub fn skip_watched(mut self, watch: &dyn Watch) -> Result<SectionSummary, Error> {
        let place = Place::Section(self.open.label.name.clone());
        let mut go_on = |_: &[u8]| match watch.cancelled() {
            true => Err(Error::new(place.clone(), Cause::Cancelled)),
            false => Ok(()),
        };
        if self.open.label.form == Form::Chunks && self.open.bytes == 0 {
            self.each_chunk(u64::MAX, &mut go_on)?;
        }
        while !self.data()?.is_empty() {
            go_on(&[])?;
            self.used = self.stream.filled;
        }
        self.finish()
    }

    pub(crate) fn error(&self, cause: Cause) -> Error {
        Error::new(Place::Section(self.open.label.name.clone()), cause)
    }
}

impl<R: Read> Read for SectionReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let data = self.data()?;
        let length = data.len().min(buffer.len());
        buffer[..length].copy_from_slice(&data[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<R: Read> BufRead for SectionReader<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.data()?)
    }

    fn consume(&mut self, bytes: usize) {
        SectionReader::consume(self, bytes);
    }
}
