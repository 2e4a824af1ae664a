//! What can be wrong with a kernel, an initramfs or a command line.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::GuestMemoryError;

/// Why a guest cannot be booted. All but [`Error::Ram`] and [`Error::Read`] are found before anything is started.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be opened, or is not a regular file.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read, or has become shorter than it was.
    #[error("cannot read {what} of {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The part of it.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is something else than a kernel that Ferry boots.
    #[error("{} is {is}, not a kernel that Ferry can boot: it takes an ELF kernel with a PVH note (vmlinux), or a 64-bit bzImage (vmlinuz)", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is.
        is: &'static str,
    },
    /// The file looks like a kernel, but contradicts itself.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Guest RAM lacks the addresses that the file has to be at.
    #[error("{what} of {} does not fit into guest RAM: it needs {:#x}-{:#x} ({} MiB), and RAM for it is {:#x}-{:#x}; give the guest more memory", path.display(), need.start, need.end - 1, size_mib(need), room.start, room.end.saturating_sub(1))]
    DoesNotFit {
        /// The file.
        path: PathBuf,
        /// The part of it.
        what: &'static str,
        /// Guest-physical addresses it needs.
        need: std::ops::Range<u64>,
        /// Those that there are.
        room: std::ops::Range<u64>,
    },
    /// The initramfs does not fit beside the kernel.
    #[error("initramfs {} has {size} bytes, but beside the kernel there is room for {room} in guest RAM; give the guest more memory", path.display())]
    InitramfsTooLarge {
        /// The initramfs.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Bytes between the kernel's end and the highest address allowed.
        room: u64,
    },
    /// There is nothing in the initramfs.
    #[error("initramfs {} is empty", path.display())]
    InitramfsEmpty {
        /// The initramfs.
        path: PathBuf,
    },
    /// The kernel would cut the command line off.
    #[error("the command line has {len} bytes, and {} takes at most {limit}", path.display())]
    CmdlineTooLong {
        /// The kernel.
        path: PathBuf,
        /// Bytes given.
        len: usize,
        /// Bytes the kernel takes.
        limit: usize,
    },
    /// The command line would end at this character.
    #[error("the command line contains a NUL character")]
    CmdlineNul,
    /// Guest RAM cannot be written where it should be.
    #[error("cannot write {what} to guest RAM")]
    Ram {
        /// What was to be written.
        what: &'static str,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// Size in MiB, rounded up.
fn size_mib(range: &std::ops::Range<u64>) -> u64 {
    (range.end - range.start).div_ceil(1 << 20)
}
