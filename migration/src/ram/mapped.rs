//! RAM files that become guest RAM themselves.
//!
//! A guest that touches a hole of its RAM file needs a block of the file system. If there is none left, what it gets is a
//! SIGBUS, and so space is set aside first.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::sys;

/// The unit of `st_blocks`.
const SECTOR: u64 = 512;

/// Why a RAM file cannot be guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum MappedError {
    /// The file system has no clones, or the directory is on another one.
    #[error(
        "RAM cannot be cloned into {}: clones need one file system that has reflinks (XFS, btrfs) for both; restore with \
         memory mode `copy`, or with `adopt` if the snapshot may be used up",
        directory.display()
    )]
    CannotClone {
        /// Where the clone was to be.
        directory: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// There is not enough room for the guest to write to all of its RAM.
    #[error("the guest could write {needed} bytes of RAM, and the file system has {free} left")]
    NoSpace {
        /// What is needed, in bytes.
        needed: u64,
        /// What there is, in bytes.
        free: u64,
    },
    /// The RAM file has another size than the region.
    #[error("the RAM file has {found} bytes, and the region {expected}")]
    Size {
        /// The size of the file.
        found: u64,
        /// The size of the region.
        expected: u64,
    },
    /// A step failed.
    #[error("cannot {step}")]
    Io {
        /// The step, as in "cannot …".
        step: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Makes a clone of a RAM file of `bytes` bytes that can be guest RAM: it shares the blocks of `source` until one of them
/// is written to, has no name, and is gone with its last user. `directory` must be on the file system of `source`.
///
/// Holes are set aside. For blocks that are shared this is not possible: there must be room for a copy of all of them now,
/// but others may use it up.
///
/// # Errors
/// The file system cannot clone, or has too little room.
pub fn clone_for_guest(source: &File, directory: &Path, bytes: u64) -> Result<File, MappedError> {
    let io = |step| move |source| MappedError::Io { step, source };
    let cannot_clone = |source: io::Error| MappedError::CannotClone {
        directory: directory.to_owned(),
        source,
    };
    check_size(source, bytes)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => cannot_clone(error),
            _ => io("make a file for the clone of the RAM")(error),
        })?;
    sys::clone_file(&file, source).map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EXDEV | libc::EINVAL) => cannot_clone(error),
        _ => io("clone the RAM")(error),
    })?;
    check_size(&file, bytes)?;
    let shared = allocated(source)?;
    reserve(&file, bytes)?;
    let free = sys::free_bytes(&file).map_err(io("ask for free space"))?;
    match free < shared {
        true => Err(MappedError::NoSpace {
            needed: shared,
            free,
        }),
        false => Ok(file),
    }
}

/// Sets space aside for the holes of a RAM file of `bytes` bytes, so that it can be guest RAM.
///
/// Not on a tmpfs. There this would fill memory with zeros that the guest may never ask for, and even to find the holes
/// means to walk through all pages, which takes longer than all the rest of a restore. So there has to be room for all of
/// them now, but others may use it up, as for any RAM.
///
/// # Errors
/// There is too little, or the file is of another size.
pub fn reserve(file: &File, bytes: u64) -> Result<(), MappedError> {
    check_size(file, bytes)?;
    // Without holes there is nothing to do.
    let missing = bytes.saturating_sub(allocated(file)?);
    if missing == 0 {
        return Ok(());
    }
    let io = |step| move |source| MappedError::Io { step, source };
    if sys::is_tmpfs(file).map_err(io("ask for the file system"))? {
        let free = sys::free_bytes(file).map_err(io("ask for free space"))?;
        return match free < missing {
            true => Err(MappedError::NoSpace {
                needed: missing,
                free,
            }),
            false => Ok(()),
        };
    }
    reserve_holes(file, bytes).map_err(|source| {
        let free = sys::free_bytes(file);
        match (source.raw_os_error(), free, allocated(file)) {
            (Some(libc::ENOSPC), Ok(free), Ok(allocated)) => MappedError::NoSpace {
                needed: bytes.saturating_sub(allocated),
                free,
            },
            _ => MappedError::Io {
                step: "set space aside for the RAM",
                source,
            },
        }
    })
}

fn reserve_holes(file: &File, bytes: u64) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let hole = sys::seek_hole(file, at)?;
        if hole >= bytes {
            break;
        }
        let data = sys::seek_data(file, hole)?.unwrap_or(bytes).min(bytes);
        sys::allocate(file, hole, data - hole)?;
        at = data;
    }
    Ok(())
}

fn allocated(file: &File) -> Result<u64, MappedError> {
    let metadata = metadata(file)?;
    Ok(metadata.blocks().saturating_mul(SECTOR))
}

fn check_size(file: &File, bytes: u64) -> Result<(), MappedError> {
    let found = metadata(file)?.len();
    match found == bytes {
        true => Ok(()),
        false => Err(MappedError::Size {
            found,
            expected: bytes,
        }),
    }
}

fn metadata(file: &File) -> Result<std::fs::Metadata, MappedError> {
    file.metadata().map_err(|source| MappedError::Io {
        step: "look at the RAM file",
        source,
    })
}
