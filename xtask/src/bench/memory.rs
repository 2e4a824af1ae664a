//! Memory that is there when it is asked for.
//!
//! Where this machine is a virtual one itself, what is freed may be given back to the host within seconds, and to ask for it again takes
//! several times as long as whatever is measured (free page reporting: whole blocks of at least 2 MiB).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::MIB;
use crate::machine;

/// One page in so many bytes is kept, so that no block is free as a whole.
const KEPT_IN_EACH: u64 = 512 << 10;
const PAGE: u64 = 4096;

/// So much free memory stays with this machine as long as this is there. Whoever asks for memory gets it from there first, because
/// the kernel takes small blocks before it breaks large ones.
pub struct Reserve {
    _kept: File,
}

impl Reserve {
    /// One of `mib` MiB, or of half of the memory that is free.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(mib: u64) -> Result<Self> {
        let available =
            machine::available_mib().context("the kernel does not tell what is free")?;
        let most = available / 2;
        if mib > most {
            println!(
                "Only {most} of {mib} MiB of memory are kept at hand, half of what is free: the figures may be the host's."
            );
        }
        let mib = mib.min(most);
        let file = memfd()?;
        fill(&file, mib, 0)?;
        for at in (0..mib * MIB).step_by(KEPT_IN_EACH as usize) {
            let hole = [at + PAGE, KEPT_IN_EACH - PAGE];
            punch(&file, hole).context("cannot free a part of a memory file")?;
        }
        Ok(Self { _kept: file })
    }
}

/// Writes so many MiB of this byte.
///
/// # Errors
/// There is not enough memory.
pub fn fill(file: &File, mib: u64, byte: u8) -> Result<()> {
    let block = vec![byte; MIB as usize];
    for number in 0..mib {
        file.write_all_at(&block, number * MIB)
            .context("cannot fill a memory file")?;
    }
    Ok(())
}

/// A file in memory.
///
/// # Errors
/// There is none to be had.
pub fn memfd() -> Result<File> {
    // SAFETY: the name is a string with its end; the call has no other memory arguments.
    let fd = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("cannot make a memory file");
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn punch(file: &File, [from, bytes]: [u64; 2]) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let [from, bytes] = [from, bytes].map(|number| number as libc::off_t);
    // SAFETY: the descriptor is open; the call has no memory arguments.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, from, bytes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
