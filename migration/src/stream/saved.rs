//! State structs: what a section of the form *value* holds.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state struct, plain data apart from the types that run.
///
/// It is filled by exhaustive destructuring of what runs, so that a new field cannot be forgotten, and its fields never
/// change once released: a change is a new struct with the next version, and [`Saved::read`] then also takes the
/// version before:
///
/// ```
/// # use vm_migration::stream::{decode, DecodeError, Saved};
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct ClockStateV1 { ticks: u64 }
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct ClockState { ticks: u64, hertz: u32 }
///
/// impl Saved for ClockState {
///     const SCHEMA: &'static str = "clock";
///     const VERSION: u16 = 2;
///
///     fn read(version: u16, bytes: &[u8]) -> Result<Self, DecodeError> {
///         match version {
///             2 => decode(bytes),
///             1 => decode(bytes).map(|old: ClockStateV1| ClockState { ticks: old.ticks, hertz: 1000 }),
///             _ => Err(DecodeError::Version { found: version, newest: Self::VERSION }),
///         }
///     }
/// }
/// ```
///
/// Values are encoded by postcard. No recursive types, and no lists of elements without a size.
pub trait Saved: Serialize + DeserializeOwned {
    /// The name of this kind of state, the same in all its versions.
    const SCHEMA: &'static str;
    /// The version of this struct.
    const VERSION: u16;
    /// The most bytes that an encoded value has.
    const MOST: usize = 1 << 20;

    /// Reads a value that was saved as `version`. As given here, only [`Saved::VERSION`] itself is taken.
    ///
    /// # Errors
    /// The version is unknown, or the bytes are not such a value.
    fn read(version: u16, bytes: &[u8]) -> Result<Self, DecodeError> {
        match version == Self::VERSION {
            true => decode(bytes),
            false => Err(DecodeError::Version {
                found: version,
                newest: Self::VERSION,
            }),
        }
    }
}

/// Why bytes are not a value.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// They were written by a Ferry too old or too new.
    #[error(
        "it is of version {found} and this Ferry knows {newest} as the newest; use the Ferry that wrote it"
    )]
    Version {
        /// The version of the section.
        found: u16,
        /// The newest version that is known.
        newest: u16,
    },
    /// They do not fit the type.
    #[error("the bytes are not such a value")]
    Value(#[source] postcard::Error),
    /// They go on behind the value.
    #[error("{0} bytes are left over behind the value")]
    LeftOver(usize),
    /// The value is of the right type but cannot be, for the reason given: for implementations of [`Saved::read`].
    #[error("{0}")]
    Impossible(String),
}

/// Decodes exactly one value.
///
/// # Errors
/// The bytes are not such a value, or go on behind it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(DecodeError::LeftOver(rest.len())),
        Err(error) => Err(DecodeError::Value(error)),
    }
}

/// Encodes one value, the opposite of [`decode`].
///
/// # Errors
/// The type has no fixed encoding (a list of unknown length).
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, DecodeError> {
    postcard::to_allocvec(value).map_err(DecodeError::Value)
}
