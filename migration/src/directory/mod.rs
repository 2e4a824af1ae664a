//! A snapshot as a directory.
//!
//! ```text
//! state           the stream of all sections
//! ram0, ram1, …   a region of RAM each, sparse
//! manifest.json   what there is
//! ```
//!
//! The manifest gets its name last, when everything else is on disk: a directory without one is no snapshot. Once the RAM
//! files have become the RAM of a guest, it is called `consumed.json`.
//!
//! ```text
//!   [empty] ──Writer──▶ [no manifest] ──publish──▶ [manifest.json] ──Adoption::consume──▶ [consumed.json]
//!      ▲                     │ dropped
//!      └─────────────────────┘
//! ```
//!
//! Who writes or adopts has an exclusive lock on the directory, who reads a shared one. Where the file system has no locks,
//! files that are only made if they do not exist keep two writers apart.

mod adopt;
mod error;
mod inspect;
mod reader;
mod verify;
mod writer;

use std::ffi::CStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub use adopt::Adoption;
pub use error::Error;
pub use inspect::{Inspection, inspect};
pub use reader::{Reader, StateSection};
pub use verify::{Damage, Verification, verify};
pub use writer::{StateWriter, Writer};

const MANIFEST: &CStr = c"manifest.json";
const NEW_MANIFEST: &CStr = c"manifest.new";
const CONSUMED: &CStr = c"consumed.json";
const STATE: &CStr = c"state";

/// What a lock keeps others from.
#[derive(Clone, Copy)]
enum Use {
    Reading,
    Changing,
}

fn open_directory(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
        .map_err(|source| Error::step("open the directory", path, source))
}

fn lock(directory: &File, path: &Path, r#use: Use) -> Result<(), Error> {
    let result = match r#use {
        Use::Reading => directory.try_lock_shared(),
        Use::Changing => directory.try_lock(),
    };
    match result {
        Err(TryLockError::WouldBlock) => Err(Error::InUse {
            path: path.to_owned(),
        }),
        // Some network file systems cannot lock directories.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
