//! The manifest of a snapshot: what is in it, in JSON that can be read without Ferry.
//!
//! It is the last file of a snapshot to get its name, and the first to be read. Its last line holds the checksum (XXH3-64)
//! of all bytes before the comma in front of it, so that no change to it goes unseen.

mod difference;
mod file;
mod types;

pub use difference::{Difference, Present, differences};
pub use file::{Error, MANIFEST_MOST};
pub use types::{
    After, Bits, Cpu, Description, Device, DeviceState, Hex, Manifest, Region, Section, State,
    rfc3339,
};

#[cfg(test)]
mod tests;
