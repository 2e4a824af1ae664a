//! The bytes of the records, built and taken apart by hand.

use std::fmt;
use std::str::FromStr;

use crate::xxh3::{Xxh3, xxh3_64};

use super::Label;
use super::error::Cause;

/// The version of the container that is written, and read.
pub const FORMAT_VERSION: u16 = 1;
/// The most data in one frame, in bytes.
pub const FRAME_MOST: usize = 1 << 20;
/// The most sections in one stream.
pub const SECTIONS_MOST: usize = 2048;
/// The longest name of a section, and of a schema, in bytes.
pub const NAME_MOST: usize = 128;

pub(super) const HEADER: usize = 40;
/// Where the first section begins.
pub(crate) const HEADER_BYTES: u64 = HEADER as u64;
pub(super) const SECTION_FIXED: usize = 12;
pub(super) const CHECKSUM: usize = 8;
pub(super) const FRAME_HEADER: usize = 12;
pub(super) const TAG: usize = 4;
pub(super) const SECTION_TAG: [u8; TAG] = *b"SECT";
pub(super) const END_TAG: [u8; TAG] = *b"DONE";
/// Tag, number, length, digest.
pub(crate) const END: usize = TAG + 4 + 8 + 8;
/// What stands behind the last section, in bytes.
pub(crate) const END_BYTES: u64 = END as u64;
/// Length zero, bytes, digest.
pub(super) const SECTION_END: usize = 4 + 8 + 8;

const MAGIC: [u8; 8] = *b"\x89FERRY\r\n";

/// Says which snapshot or which attempt at a migration a stream belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(pub [u8; 16]);

impl StreamId {
    /// A random one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn draw() -> std::io::Result<Self> {
        crate::sys::random().map(StreamId)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not 32 lower-case hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("an id has 32 lower-case hexadecimal digits")]
pub struct NotAnId;

impl FromStr for StreamId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let valid = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.bytes().all(valid) {
            return Err(NotAnId);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| NotAnId)?;
        Ok(StreamId(number.to_be_bytes()))
    }
}

/// How the data of a section is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// One state struct.
    Value,
    /// A back-end's state, as [chunks](crate::chunk).
    Chunks,
    /// The checksums of a region of RAM.
    Blocks,
}

impl Form {
    fn code(self) -> u8 {
        match self {
            Form::Value => 1,
            Form::Chunks => 2,
            Form::Blocks => 3,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Form::Value, Form::Chunks, Form::Blocks]
            .into_iter()
            .find(|form| form.code() == code)
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Value => "a value",
            Form::Chunks => "chunks",
            Form::Blocks => "checksums",
        })
    }
}

/// Whether a section or a schema can have this name.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'/');
    (1..=NAME_MOST).contains(&text.len()) && text.bytes().all(allowed)
}

pub(super) fn header(id: StreamId) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
    bytes[16..32].copy_from_slice(&id.0);
    let checksum = xxh3_64(&bytes[..32]);
    bytes[32..].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// The version comes before the checksum: another version may sum up differently.
pub(super) fn read_header(bytes: &[u8; HEADER]) -> Result<StreamId, Cause> {
    if bytes[..8] != MAGIC {
        return Err(Cause::Damaged("it does not begin as Ferry's streams do"));
    }
    let found = be_u16(&bytes[8..]);
    let sound = be_u64(&bytes[32..]) == xxh3_64(&bytes[..32]);
    match found {
        FORMAT_VERSION if !sound => Err(Cause::Damaged("its checksum is wrong")),
        FORMAT_VERSION if bytes[10..16] != [0; 6] => Err(Cause::Damaged("it has unknown flags")),
        FORMAT_VERSION => {
            let mut id = [0; 16];
            id.copy_from_slice(&bytes[16..32]);
            Ok(StreamId(id))
        }
        _ => Err(Cause::Format { found }),
    }
}

/// A section's header, with tag and checksum.
pub(super) fn section_header(label: &Label) -> Result<Vec<u8>, Cause> {
    for text in [&label.name, &label.schema] {
        if !is_name(text) {
            return Err(Cause::Name(text.clone()));
        }
    }
    let mut bytes = Vec::with_capacity(SECTION_FIXED + 2 * NAME_MOST + CHECKSUM);
    bytes.extend(SECTION_TAG);
    bytes.push(label.form.code());
    bytes.push(label.name.len() as u8);
    bytes.push(label.schema.len() as u8);
    bytes.push(0);
    bytes.extend(label.version.to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(label.name.as_bytes());
    bytes.extend(label.schema.as_bytes());
    bytes.extend(xxh3_64(&bytes).to_be_bytes());
    Ok(bytes)
}

/// How many bytes follow the fixed part of a section's header.
pub(super) fn section_rest(fixed: &[u8; SECTION_FIXED]) -> usize {
    usize::from(fixed[5]) + usize::from(fixed[6]) + CHECKSUM
}

/// Takes a section's header apart, which has the length that [`section_rest`] says.
pub(super) fn read_section_header(bytes: &[u8]) -> Result<Label, Cause> {
    let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
    if be_u64(checksum) != xxh3_64(content) {
        return Err(Cause::Damaged("the checksum of its header is wrong"));
    }
    let (fixed, texts) = content.split_at(SECTION_FIXED);
    let Some(form) = Form::of(fixed[4]) else {
        return Err(Cause::Damaged("its form is unknown"));
    };
    if fixed[7] != 0 || fixed[10..12] != [0; 2] {
        return Err(Cause::Damaged("it has unknown flags"));
    }
    let (name, schema) = texts.split_at(usize::from(fixed[5]));
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) if is_name(text) => Ok(text.to_owned()),
        _ => Err(Cause::Name(String::from_utf8_lossy(bytes).into_owned())),
    };
    Ok(Label {
        name: text(name)?,
        form,
        schema: text(schema)?,
        version: be_u16(&fixed[8..]),
    })
}

/// The header of a frame whose data is in two parts.
pub(super) fn frame_header(first: &[u8], second: &[u8]) -> [u8; FRAME_HEADER] {
    let checksum = match (first, second) {
        (one, []) | ([], one) => xxh3_64(one),
        _ => {
            let mut hash = Xxh3::new();
            hash.update(first);
            hash.update(second);
            hash.digest()
        }
    };
    let mut bytes = [0; FRAME_HEADER];
    bytes[..4].copy_from_slice(&((first.len() + second.len()) as u32).to_be_bytes());
    bytes[4..].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

pub(super) fn section_end(bytes: u64, digest: u64) -> [u8; SECTION_END] {
    let mut record = [0; SECTION_END];
    record[4..12].copy_from_slice(&bytes.to_be_bytes());
    record[12..].copy_from_slice(&digest.to_be_bytes());
    record
}

pub(super) fn end(sections: usize, before: u64, digest: u64) -> [u8; END] {
    let mut record = [0; END];
    record[..4].copy_from_slice(&END_TAG);
    record[4..8].copy_from_slice(&(sections as u32).to_be_bytes());
    record[8..16].copy_from_slice(&before.to_be_bytes());
    record[16..].copy_from_slice(&digest.to_be_bytes());
    record
}

pub(super) fn be_u16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

pub(super) fn be_u32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

pub(super) fn be_u64(bytes: &[u8]) -> u64 {
    u64::from(be_u32(bytes)) << 32 | u64::from(be_u32(&bytes[4..]))
}

/// The digest of everything, as it grows.
pub(super) struct Digest(Xxh3);

impl Digest {
    pub(super) fn new(header: &[u8]) -> Self {
        let mut hash = Xxh3::new();
        hash.update(header);
        Digest(hash)
    }

    pub(super) fn add(&mut self, digest: u64) {
        self.0.update(&digest.to_be_bytes());
    }

    pub(super) fn finish(mut self, sections: usize, before: u64) -> u64 {
        self.0.update(&(sections as u32).to_be_bytes());
        self.0.update(&before.to_be_bytes());
        self.0.digest()
    }
}

/// What stands at the end of a stream with sections of these digests, which are `before` bytes with all headers: its digest,
/// and the record.
pub(crate) fn expected_end(
    id: StreamId,
    digests: impl ExactSizeIterator<Item = u64>,
    before: u64,
) -> (u64, [u8; END]) {
    let sections = digests.len();
    let mut digest = Digest::new(&header(id));
    digests.for_each(|section| digest.add(section));
    let digest = digest.finish(sections, before);
    (digest, end(sections, before, digest))
}

/// A section as it is being written or read.
pub(super) struct Open {
    pub(super) label: Label,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    digest: Xxh3,
}

impl Open {
    pub(super) fn new(label: Label, header: &[u8], offset: u64) -> Self {
        let mut digest = Xxh3::new();
        digest.update(header);
        Open {
            label,
            offset,
            bytes: 0,
            digest,
        }
    }

    pub(super) fn add_frame(&mut self, header: &[u8; FRAME_HEADER]) {
        self.digest.update(header);
        self.bytes += u64::from(be_u32(header));
    }

    pub(super) fn digest(&self) -> u64 {
        let mut digest = self.digest.clone();
        digest.update(&self.bytes.to_be_bytes());
        digest.digest()
    }

    pub(super) fn summary(self) -> super::SectionSummary {
        super::SectionSummary {
            digest: self.digest(),
            label: self.label,
            offset: self.offset,
            bytes: self.bytes,
        }
    }
}
