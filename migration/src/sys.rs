//! The system calls that the standard library does not offer, each in a function of its own.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// Repeats a call that a signal interrupted; a negative result is the error in `errno`.
fn checked<T: Into<i64> + Copy>(mut call: impl FnMut() -> T) -> io::Result<T> {
    loop {
        let result = call();
        if result.into() >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn offset(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Where data begins at `from` or behind it; `None` if only a hole follows. A file system that does not know has data
/// everywhere.
pub(crate) fn seek_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    let start = offset(from)?;
    // SAFETY: the call works on an open file and has no memory arguments.
    let found = checked(|| unsafe { libc::lseek(file.as_raw_fd(), start, libc::SEEK_DATA) });
    match found {
        Ok(at) => Ok(Some(at as u64)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENXIO) => Ok(None),
            Some(libc::EINVAL) => Ok(Some(from)),
            _ => Err(error),
        },
    }
}

/// Where a hole begins at `from` or behind it, which must be inside the file; its end counts as one.
pub(crate) fn seek_hole(file: &File, from: u64) -> io::Result<u64> {
    let start = offset(from)?;
    // SAFETY: the call works on an open file and has no memory arguments.
    let found = checked(|| unsafe { libc::lseek(file.as_raw_fd(), start, libc::SEEK_HOLE) })?;
    Ok(found as u64)
}

/// Sets space aside for a part of a file, without changing what it holds.
pub(crate) fn allocate(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    let (from, bytes) = (offset(from)?, offset(bytes)?);
    // SAFETY: the call works on an open file and has no memory arguments.
    checked(|| unsafe { libc::fallocate(file.as_raw_fd(), 0, from, bytes) }).map(drop)
}

/// Makes a part of a file a hole, which reads as zeros; of huge pages, too.
pub(crate) fn punch_hole(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    let (from, bytes) = (offset(from)?, offset(bytes)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the call works on an open file and has no memory arguments.
    checked(|| unsafe { libc::fallocate(file.as_raw_fd(), mode, from, bytes) }).map(drop)
}

/// Makes `file` a clone of `source` that shares its blocks (`FICLONE`).
pub(crate) fn clone_file(file: &File, source: &File) -> io::Result<()> {
    // SAFETY: the call works on two open files and has no memory arguments.
    checked(|| unsafe { libc::ioctl(file.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) })
        .map(drop)
}

/// Bytes that the file's file system still has for this user.
pub(crate) fn free_bytes(file: &File) -> io::Result<u64> {
    let mut status = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `status` is large enough for what the call writes.
    checked(|| unsafe { libc::fstatvfs(file.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: the call has succeeded, and so has filled it.
    let status = unsafe { status.assume_init() };
    match status.f_blocks {
        // A tmpfs without a limit.
        0 => Ok(u64::MAX),
        _ => Ok(status.f_bavail.saturating_mul(status.f_frsize)),
    }
}

/// Whether the file is of huge pages, which can be mapped but not written to.
pub(crate) fn is_hugetlb(file: &File) -> io::Result<bool> {
    Ok(file_system(file)?.f_type == libc::HUGETLBFS_MAGIC)
}

/// Whether the file is in memory.
pub(crate) fn is_tmpfs(file: &File) -> io::Result<bool> {
    Ok(file_system(file)?.f_type == libc::TMPFS_MAGIC)
}

fn file_system(file: &File) -> io::Result<libc::statfs> {
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `status` is large enough for what the call writes.
    checked(|| unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: the call has succeeded, and so has filled it.
    Ok(unsafe { status.assume_init() })
}

/// Opens or makes a file in a directory, never through a symbolic link, and without waiting for the other end of a FIFO.
pub(crate) fn open_at(directory: &File, name: &CStr, flags: libc::c_int) -> io::Result<File> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mode: libc::mode_t = 0o600;
    let directory = directory.as_raw_fd();
    // SAFETY: the name is a C string, and the call has no other memory arguments.
    let fd = checked(|| unsafe { libc::openat(directory, name.as_ptr(), flags, mode) })?;
    // SAFETY: `fd` was just opened and belongs to no one else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Renames a file within a directory.
pub(crate) fn rename_at(directory: &File, from: &CStr, to: &CStr) -> io::Result<()> {
    let fd = directory.as_raw_fd();
    // SAFETY: both names are C strings, and the call has no other memory arguments.
    checked(|| unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) }).map(drop)
}

/// Removes a file from a directory.
pub(crate) fn unlink_at(directory: &File, name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a C string, and the call has no other memory arguments.
    checked(|| unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Receives into memory by its address.
///
/// # Safety
/// So many bytes from `to` on may be written to, and nobody has references to them.
pub(crate) unsafe fn receive(
    socket: impl AsFd,
    to: NonNull<u8>,
    bytes: usize,
) -> io::Result<usize> {
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: as is demanded above; the socket is open.
    let received = unsafe { libc::recv(socket, to.as_ptr().cast(), bytes, 0) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Whether this process has all these pages of a mapping mapped to memory. Where the kernel does not tell, they are not. The kernel looks
/// at all pages around to answer, so that this is worth it for many of them only.
pub(crate) fn is_present(address: usize, bytes: usize) -> bool {
    const PAGE: usize = 4096;
    /// So many are asked for at a time.
    const PAGES_MOST: usize = 64;
    /// Eight bytes for each page, of which the highest bit says so.
    const ENTRY: usize = 8;
    static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
    let Some(pagemap) = PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok()) else {
        return false;
    };
    let (first, end) = (address / PAGE, (address + bytes).div_ceil(PAGE));
    (first..end).step_by(PAGES_MOST).all(|at| {
        let mut entries = [0; ENTRY * PAGES_MOST];
        let entries = &mut entries[..ENTRY * PAGES_MOST.min(end - at)];
        let read = pagemap.read_exact_at(entries, (ENTRY * at) as u64);
        let (entries, _) = entries.as_chunks::<ENTRY>();
        read.is_ok() && entries.iter().all(|it| u64::from_ne_bytes(*it) >> 63 == 1)
    })
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the buffer is as long as is said.
    let got = checked(|| unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) } as i64)?;
    match got as usize == N {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A shared, writable mapping of the beginning of a file. It lives as long as this value.
pub(crate) struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread, and is written to here only through raw copies of plain bytes. Who makes references into it
// sees to it that nobody else writes there.
unsafe impl Send for Mapping {}
// SAFETY: as above; who writes to the same bytes at once gets some mixture of plain bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(file: &File, bytes: u64) -> io::Result<Self> {
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address) {
            Some(start) if address != libc::MAP_FAILED => Ok(Mapping {
                address: start.cast(),
                bytes: length,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where it begins.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.address
    }

    /// Copies `data` to `at`, or refuses what is not inside.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let inside = usize::try_from(at).ok().filter(|at| {
            at.checked_add(data.len())
                .is_some_and(|end| end <= self.bytes)
        });
        let Some(at) = inside else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: source and target have `data.len()` bytes, which was just checked, and cannot overlap.
        unsafe {
            self.address
                .add(at)
                .as_ptr()
                .copy_from_nonoverlapping(data.as_ptr(), data.len())
        };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `new`, and nobody has references into it.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}
