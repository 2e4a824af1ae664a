//! What can be wrong with a stream, and where.

use std::fmt;
use std::io;

use super::DecodeError;
use super::format::{FORMAT_VERSION, FRAME_MOST, SECTIONS_MOST};
use crate::chunk;

/// A stream cannot be written or read on.
#[derive(Debug, thiserror::Error)]
#[error("{place}")]
pub struct Error {
    /// Where.
    pub place: Place,
    /// Why.
    #[source]
    pub cause: Cause,
}

/// A place in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its first bytes.
    Header,
    /// The section of this name.
    Section(String),
    /// Behind the section of this name, or behind the header.
    Behind(Option<String>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("the header of the saved state"),
            Place::Section(name) => write!(f, "section {name} of the saved state"),
            Place::Behind(Some(name)) => write!(f, "the saved state behind section {name}"),
            Place::Behind(None) => f.write_str("the saved state behind its header"),
        }
    }
}

/// Why a stream cannot be written or read on.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The output took no more.
    #[error("it cannot be written")]
    Write(#[source] io::Error),
    /// The input gave no more.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// The input ends within it.
    #[error("it is cut off")]
    Truncated,
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It is of a version that this Ferry does not know.
    #[error(
        "it has format version {found}, and this Ferry reads version {FORMAT_VERSION}; use the Ferry that wrote it"
    )]
    Format {
        /// The version that was read.
        found: u16,
    },
    /// More data than its kind can have.
    #[error("it is larger than the {most} bytes that it may have")]
    TooLong {
        /// The bound, in bytes.
        most: u64,
    },
    /// There are too many sections.
    #[error("there are more than {SECTIONS_MOST} sections")]
    TooManySections,
    /// Its name or its schema is not of the form that they have.
    #[error("{0:?} cannot name a section or a schema")]
    Name(String),
    /// It is not there.
    #[error("it is missing")]
    Missing,
    /// It is there twice.
    #[error("there is a second one of this name")]
    Duplicate,
    /// Nobody knows what it is.
    #[error("nothing here has such a section")]
    Unknown,
    /// Another one is there.
    #[error("section {found} is in its place")]
    OutOfOrder {
        /// The name of the other one.
        found: String,
    },
    /// It holds another kind of state.
    #[error("it holds {found}, and {expected} was expected")]
    Schema {
        /// The kind and schema that are there.
        found: String,
        /// The kind and schema that are due.
        expected: String,
    },
    /// Its data is not what its schema says.
    #[error("its data cannot be understood")]
    Decode(#[source] DecodeError),
    /// The chunks in it are not right.
    #[error("its chunks are wrong")]
    Chunks(#[source] chunk::Error),
    /// There is data in it that nobody read.
    #[error("it holds more than was expected")]
    LeftOver,
    /// It differs from what the manifest says of it.
    #[error("it is not the section that the manifest describes")]
    NotOfManifest,
    /// [`Watch::cancelled`](crate::Watch::cancelled) said so.
    #[error("reading it was given up")]
    Cancelled,
    /// It was begun and not finished, or an earlier error has ended the stream.
    #[error("it was given up before")]
    Failed,
}

impl Error {
    pub(super) fn new(place: Place, cause: Cause) -> Self {
        Error { place, cause }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error.cause {
            Cause::Write(source) | Cause::Read(source) => source.kind(),
            Cause::Truncated => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// What a failed read means.
pub(super) fn from_read(error: io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Cause::Truncated,
        _ => Cause::Read(error),
    }
}

/// That a frame's length is out of bounds.
pub(super) const FRAME_TOO_LONG: Cause = Cause::TooLong {
    most: FRAME_MOST as u64,
};
