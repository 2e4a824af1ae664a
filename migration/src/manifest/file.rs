//! A manifest as bytes, and the checks that need no other file.

use std::collections::BTreeSet;

use crate::xxh3::xxh3_64;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::types::{Bits, Description, Manifest, Region, State};
use crate::stream::{FORMAT_VERSION, SECTIONS_MOST, StreamId};

/// The most that a manifest has, in bytes.
pub const MANIFEST_MOST: usize = 1 << 20;
/// The most regions of RAM, and devices.
const LIST_MOST: usize = 1024;
/// No guest has more address bits than 52.
const ADDRESS_MOST: u64 = 1 << 52;
/// What comes between the checksummed bytes and the checksum.
const BEFORE: &str = ",\n  \"checksum\": \"";
const AFTER: &str = "\"\n}\n";
/// `0x` and 16 digits.
const DIGITS: usize = 18;

/// Why a manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is larger than manifests are.
    #[error("the manifest is larger than {MANIFEST_MOST} bytes")]
    TooLong,
    /// It is not what was written.
    #[error("the manifest is damaged, or was changed: {0}")]
    Damaged(&'static str),
    /// It is not JSON, or not of this form.
    #[error("the manifest cannot be understood")]
    Json(#[source] serde_json::Error),
    /// It is of another format.
    #[error(
        "the snapshot has format version {found}, and this Ferry reads version {FORMAT_VERSION}; use the Ferry that wrote it"
    )]
    Format {
        /// The version that was read.
        found: u64,
    },
    /// Something in it cannot be.
    #[error("the manifest is wrong: {0}")]
    Impossible(String),
}

/// What is read of a manifest of any format.
#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

/// A manifest with its end.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    format: u16,
    id: StreamId,
    snapshot: Description,
    memory: Vec<Region>,
    state: State,
    #[serde(rename = "checksum")]
    _checksum: IgnoredAny,
}

impl Manifest {
    /// The manifest as a file.
    ///
    /// # Errors
    /// It cannot be, or is too large.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.check()?;
        let mut bytes = serde_json::to_vec_pretty(self).map_err(Error::Json)?;
        // The brace and the line's end before it.
        bytes.truncate(bytes.len().saturating_sub(2));
        let checksum = String::from(Bits(xxh3_64(&bytes)));
        bytes.extend([BEFORE, &checksum, AFTER].concat().as_bytes());
        match bytes.len() > MANIFEST_MOST {
            true => Err(Error::TooLong),
            false => Ok(bytes),
        }
    }

    /// Reads a manifest that is a file.
    ///
    /// # Errors
    /// It is too large, damaged, of another format, or cannot be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MANIFEST_MOST {
            return Err(Error::TooLong);
        }
        // Of a manifest that says to be of another format nothing else is known, not even that it has a checksum.
        if let Ok(AnyFormat { format }) = serde_json::from_slice(bytes)
            && format != u64::from(FORMAT_VERSION)
        {
            return Err(Error::Format { found: format });
        }
        let end = BEFORE.len() + DIGITS + AFTER.len();
        let Some((content, end)) = bytes.split_at_checked(bytes.len().saturating_sub(end)) else {
            return Err(Error::Damaged("it has no end"));
        };
        let checksum = String::from(Bits(xxh3_64(content)));
        if end != [BEFORE, &checksum, AFTER].concat().as_bytes() {
            return Err(Error::Damaged("the checksum at its end is wrong"));
        }
        let Sealed {
            format,
            id,
            snapshot,
            memory,
            state,
            _checksum,
        } = serde_json::from_slice(bytes).map_err(Error::Json)?;
        let manifest = Manifest {
            format,
            id,
            snapshot,
            memory,
            state,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// What a sound manifest has: names that can be files of the directory, each once, and sizes that add up.
    fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Impossible(what));
        if self.format != FORMAT_VERSION {
            return Err(Error::Format {
                found: self.format.into(),
            });
        }
        if self.state.sections.len() > SECTIONS_MOST
            || self.memory.len() > LIST_MOST
            || self.snapshot.devices.len() > LIST_MOST
        {
            return wrong("it lists too much".into());
        }
        let mut files = BTreeSet::from([self.state.file.as_str()]);
        let mut end = 0;
        for region in &self.memory {
            if !files.insert(&region.file) {
                return wrong(format!("two parts of it are in the file {:?}", region.file));
            }
            let next = region.guest_address.checked_add(region.bytes);
            match next {
                Some(next)
                    if region.guest_address >= end && region.bytes > 0 && next <= ADDRESS_MOST =>
                {
                    end = next;
                }
                _ => {
                    return wrong(format!(
                        "the RAM region in {:?} cannot be where it says",
                        region.file
                    ));
                }
            }
            if self
                .state
                .sections
                .iter()
                .all(|section| section.name != region.section)
            {
                return wrong(format!("there is no section {:?}", region.section));
            }
        }
        if let Some(file) = files.into_iter().find(|file| !is_file_name(file)) {
            return wrong(format!("{file:?} cannot be a file of a snapshot"));
        }
        let (mut names, mut end) = (BTreeSet::new(), 0);
        for section in &self.state.sections {
            let next = section.offset.checked_add(section.bytes);
            match next {
                Some(next) if section.offset >= end && names.insert(&section.name) => end = next,
                _ => {
                    return wrong(format!(
                        "the section {:?} cannot be where it says",
                        section.name
                    ));
                }
            }
        }
        let mut ids = BTreeSet::new();
        match self
            .snapshot
            .devices
            .iter()
            .find(|device| !ids.insert(&device.id))
        {
            Some(device) => wrong(format!("two devices are called {:?}", device.id)),
            None => Ok(()),
        }
    }
}

/// A plain name without surprises.
fn is_file_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}
