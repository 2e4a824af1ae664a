//! A back-end's state as it travels: chunks, each a big-endian `u32` length and that many bytes, at most 1 MiB; a length
//! of 0 ends them. This is the encoding that the vhost-user specification recommends ("Migrating back-end state").
//!
//! The size is not known in advance and chunk boundaries mean nothing. Two rules keep half a state from being taken for a
//! whole one:
//!
//! - only [`ChunkWriter::finish`] writes the end, so a state whose source failed has none;
//! - for [`ChunkReader`] only a length of 0 is the end. An error, and the end of the input without that length, are
//!   errors, and stay errors however often one asks again.
//!
//! Neither holds any of the data: memory is the caller's buffer. Interrupted calls are repeated, partial ones continued;
//! deadlines are those of the input and the output.

use std::io::{self, BufRead, ErrorKind, Read, Write};

use crate::xxh3::Xxh3;

/// The most that one chunk holds, in bytes.
pub const CHUNK_MOST: usize = 1 << 20;

/// Why a state cannot be written or read on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The output took no more.
    #[error("the state could not be written after {after} bytes of it")]
    Write {
        /// Bytes of state written before.
        after: u64,
        /// The output's reason.
        #[source]
        source: io::Error,
    },
    /// The input gave no more.
    #[error("the state could not be read after {after} bytes of it")]
    Read {
        /// Bytes of state read before.
        after: u64,
        /// The input's reason.
        #[source]
        source: io::Error,
    },
    /// The input ended where the state did not.
    #[error("the state is cut off after {after} bytes")]
    Truncated {
        /// Bytes of state read before.
        after: u64,
    },
    /// A chunk claims to be larger than chunks are.
    #[error("a chunk of {length} bytes is announced, the most is {CHUNK_MOST}")]
    ChunkTooLong {
        /// The length that was read.
        length: u32,
    },
    /// The state is larger than was allowed for it.
    #[error("the state is larger than the {most} bytes that are allowed")]
    TooMuch {
        /// The cap, in bytes.
        most: u64,
    },
    /// The state was given up before its end was read.
    #[error("the state was read to {after} bytes, and not to its end")]
    NotAtEnd {
        /// Bytes of state read before.
        after: u64,
    },
    /// An earlier error has ended this state.
    #[error("the state failed earlier")]
    Failed,
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Write { source, .. } | Error::Read { source, .. } => source.kind(),
            Error::Truncated { .. } => ErrorKind::UnexpectedEof,
            _ => ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// What went through a whole state: equal on both sides, or it is not the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of state, without lengths.
    pub bytes: u64,
    /// XXH3-64 of these bytes.
    pub checksum: u64,
}

/// Counts, sums up and limits.
struct Tally {
    bytes: u64,
    most: u64,
    hash: Xxh3,
    failed: bool,
}

impl Tally {
    fn new(most: u64) -> Self {
        Tally {
            bytes: 0,
            most,
            hash: Xxh3::new(),
            failed: false,
        }
    }

    fn admit(&self, more: usize) -> Result<(), Error> {
        match self.bytes.checked_add(more as u64) {
            Some(sum) if sum <= self.most => Ok(()),
            _ => Err(Error::TooMuch { most: self.most }),
        }
    }

    fn add(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.hash.update(data);
    }

    fn totals(&self) -> Totals {
        Totals {
            bytes: self.bytes,
            checksum: self.hash.digest(),
        }
    }

    /// Runs one step; once one has failed, there are no others.
    fn guard<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.failed {
            return Err(Error::Failed);
        }
        self.failed = true;
        let result = step(self)?;
        self.failed = false;
        Ok(result)
    }
}

/// Writes a state as chunks. Dropped unfinished, it leaves a state without an end, which no reader takes for whole.
pub struct ChunkWriter<W> {
    output: W,
    tally: Tally,
}

impl<W: Write> ChunkWriter<W> {
    /// A state of at most `most` bytes goes to `output`.
    pub fn new(output: W, most: u64) -> Self {
        ChunkWriter {
            output,
            tally: Tally::new(most),
        }
    }

    /// Appends `data`, as as many chunks as it takes; no data is no chunk.
    ///
    /// # Errors
    /// The output failed, or the state is larger than its cap. The state cannot be ended afterwards.
    pub fn append(&mut self, data: &[u8]) -> Result<(), Error> {
        let output = &mut self.output;
        self.tally.guard(|tally| {
            tally.admit(data.len())?;
            for chunk in data.chunks(CHUNK_MOST) {
                let after = tally.bytes;
                let failed = |source| Error::Write { after, source };
                output
                    .write_all(&(chunk.len() as u32).to_be_bytes())
                    .map_err(failed)?;
                output.write_all(chunk).map_err(failed)?;
                tally.add(chunk);
            }
            Ok(())
        })
    }

    /// Bytes of state written so far.
    pub fn bytes(&self) -> u64 {
        self.tally.bytes
    }

    /// Ends the state. Only for a state whose source has reached its own end without an error.
    ///
    /// # Errors
    /// The output failed, now or earlier.
    pub fn finish(mut self) -> Result<Finished<W>, Error> {
        let output = &mut self.output;
        self.tally.guard(|tally| {
            let failed = |source| Error::Write {
                after: tally.bytes,
                source,
            };
            output.write_all(&0u32.to_be_bytes()).map_err(failed)?;
            output.flush().map_err(failed)
        })?;
        Ok(Finished {
            totals: self.tally.totals(),
            inner: self.output,
        })
    }
}

/// A state that was written or read to its end.
#[derive(Debug)]
pub struct Finished<T> {
    /// Its size and checksum.
    pub totals: Totals,
    /// Where it was written to or read from, just behind it.
    pub inner: T,
}

/// Reads a state from its chunks.
///
/// As a [`Read`] it ends (with `Ok(0)`) only at the state's own end; an [`Error`] is inside the `io::Error`.
pub struct ChunkReader<R> {
    input: R,
    tally: Tally,
    /// What is left of the current chunk.
    left: u32,
    ended: bool,
}

impl<R: Read> ChunkReader<R> {
    /// A state of at most `most` bytes is expected from `input`.
    pub fn new(input: R, most: u64) -> Self {
        ChunkReader {
            input,
            tally: Tally::new(most),
            left: 0,
            ended: false,
        }
    }

    /// Fills some of `buffer`; `None` is the end of the state, and so never the answer to an error.
    ///
    /// # Errors
    /// The input failed, ended too early, or does not hold chunks; the state is larger than its cap.
    pub fn next<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>, Error> {
        let ChunkReader {
            input,
            tally,
            left,
            ended,
        } = self;
        if *ended || buffer.is_empty() {
            return Ok((!*ended).then_some(&[]));
        }
        tally.guard(|tally| {
            if *left == 0 {
                *left = read_length(input, tally)?;
                *ended = *left == 0;
            }
            if *ended {
                return Ok(None);
            }
            let most = buffer.len().min(*left as usize);
            let got = read_some(input, &mut buffer[..most], tally.bytes)?;
            let data = &buffer[..got];
            *left -= got as u32;
            tally.add(data);
            Ok(Some(data))
        })
    }

    /// Bytes of state read so far.
    pub fn bytes(&self) -> u64 {
        self.tally.bytes
    }

    /// Size and checksum, once the end was read.
    ///
    /// # Errors
    /// The end was not read: there is more, or an error came before it.
    pub fn finish(mut self) -> Result<Finished<R>, Error> {
        if !self.ended {
            self.tally
                .guard(|tally| Err::<(), _>(Error::NotAtEnd { after: tally.bytes }))?;
        }
        Ok(Finished {
            totals: self.tally.totals(),
            inner: self.input,
        })
    }
}

impl<R: BufRead> ChunkReader<R> {
    /// Hands what the input has buffered to `out`, without a copy; `None` is the end of the state.
    ///
    /// # Errors
    /// As [`ChunkReader::next`]. What `out` returns is the inner result.
    pub fn pass_on<T>(&mut self, out: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, Error> {
        let ChunkReader {
            input,
            tally,
            left,
            ended,
        } = self;
        if *ended {
            return Ok(None);
        }
        tally.guard(|tally| {
            if *left == 0 {
                *left = read_length(input, tally)?;
                *ended = *left == 0;
            }
            if *ended {
                return Ok(None);
            }
            let after = tally.bytes;
            let failed = |source| Error::Read { after, source };
            let data = loop {
                match input.fill_buf() {
                    Ok([]) => return Err(Error::Truncated { after }),
                    Ok(data) => break data.len(),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(failed(error)),
                }
            };
            let data = data.min(*left as usize);
            let result = {
                let data = &input.fill_buf().map_err(failed)?[..data];
                tally.add(data);
                out(data)
            };
            input.consume(data);
            *left -= data as u32;
            Ok(Some(result))
        })
    }
}

impl<R: Read> Read for ChunkReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.next(buffer)?.map_or(0, <[u8]>::len))
    }
}

fn read_length(input: &mut impl Read, tally: &Tally) -> Result<u32, Error> {
    let mut bytes = [0; 4];
    let mut got = 0;
    while got < bytes.len() {
        got += read_some(input, &mut bytes[got..], tally.bytes)?;
    }
    let length = u32::from_be_bytes(bytes);
    if length as usize > CHUNK_MOST {
        return Err(Error::ChunkTooLong { length });
    }
    tally.admit(length as usize)?;
    Ok(length)
}

/// At least one byte.
fn read_some(input: &mut impl Read, buffer: &mut [u8], after: u64) -> Result<usize, Error> {
    loop {
        match input.read(buffer) {
            Ok(0) => return Err(Error::Truncated { after }),
            Ok(got) => return Ok(got),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Read { after, source }),
        }
    }
}

#[cfg(test)]
mod tests;
