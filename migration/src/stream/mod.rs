//! The container of saved state: sections behind a fixed header, each framed, versioned and checksummed.
//!
//! It is written and read strictly from its beginning to its end, so that the same bytes go into a file or over a socket.
//! All numbers are big-endian; every checksum and digest is XXH3-64. They find damage, not forgery: who may write a
//! snapshot is a question of file modes.
//!
//! ```text
//! header       magic 89 "FERRY" 0d 0a, u16 format version, 6 zero bytes, 16-byte id, u64 checksum of all that
//! section      "SECT", u8 form, u8 length of the name, u8 length of the schema, u8 zero, u16 schema version,
//!              u16 zero, name, schema, u64 checksum of all that
//!   frame      u32 length, 1 byte to 1 MiB; u64 checksum of the data; data
//!   …
//!   end        u32 zero, u64 bytes of data, u64 digest: of the section's header, of the first 12 bytes of each
//!              frame, of the bytes of data
//! section      …
//! end          "DONE", u32 number of sections, u64 length of all before, u64 digest: of the header, of the digest
//!              of each section, of number and length
//! ```
//!
//! A frame's data is handed on only after its checksum was found right. A length is checked before memory is set aside
//! for it, and memory grows only with bytes that are really there.
//!
//! ```text
//!               begin                     finish
//!   between ────────────▶ in a section ────────────▶ between ──finish──▶ ended
//!      │                      │ dropped, or an error
//!      └──────── error ───────┴───────▶ failed: every later call is an error
//! ```
//!
//! A section is of one [`Form`]: a *value*, one state struct that implements [`Saved`]; or *chunks*, the state of a
//! back-end in the encoding of [`chunk`](crate::chunk), of any length and never held as a whole; or *blocks*, the
//! checksums of a region of RAM.

mod error;
mod format;
mod reader;
mod saved;
mod section;
mod writer;

pub use error::{Cause, Error, Place};
pub(crate) use format::{END_BYTES, HEADER_BYTES, expected_end};
pub use format::{FORMAT_VERSION, FRAME_MOST, Form, NAME_MOST, NotAnId, SECTIONS_MOST, StreamId};
pub use reader::StreamReader;
pub use saved::{DecodeError, Saved, decode, encode};
pub use section::SectionReader;
pub use writer::{SectionWriter, StreamWriter};

/// A section as it was written or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionSummary {
    /// What it is about, and how it is encoded.
    pub label: Label,
    /// Where its header begins, in bytes from the beginning of the stream.
    pub offset: u64,
    /// Bytes of its data.
    pub bytes: u64,
    /// Digest of its header and data.
    pub digest: u64,
}

/// What stands at the head of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Which instance it is about: `fs0`, `fs0/back-end`, `__vcpu3`.
    pub name: String,
    /// How its data is to be understood.
    pub form: Form,
    /// The kind of state.
    pub schema: String,
    /// The version of this schema.
    pub version: u16,
}

/// A whole stream as it was written or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSummary {
    /// The id of the snapshot or migration that it belongs to.
    pub id: StreamId,
    /// Its sections, in their order.
    pub sections: Vec<SectionSummary>,
    /// Its length.
    pub bytes: u64,
    /// The digest of everything.
    pub digest: u64,
}

#[cfg(test)]
mod tests;
