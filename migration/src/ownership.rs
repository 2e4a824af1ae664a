//! Whose a guest is while two processes of one host hold its RAM.
//!
//! A link can be lost at any moment, and then neither side knows how far the other one has come. So the answer is not on the link: it
//! is a word of memory that both sides map. Whoever changes it first has the guest, and the other one finds out by trying.
//!
//! ```text
//!              start (receiver, before the first instruction)
//!   open ──┬──────────────────────────────────────────────────▶ started
//!          └── keep (sender, before it lets the guest go on) ──▶ kept
//! ```
//!
//! A process that has died does not change it any more ([`Process::is_dead`]).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

const OPEN: u32 = 0;
const STARTED: u32 = 1;
const KEPT: u32 = 2;
/// Bytes of the memory that is shared: a page.
const BYTES: usize = 4096;

/// How long a process that has closed its connections may take to be gone.
pub const DEATH: Duration = Duration::from_secs(2);

/// The word of one attempt.
#[derive(Debug)]
pub struct Ownership {
    file: File,
    word: *const AtomicU32,
}

// SAFETY: the mapping belongs to this value alone, and all that is done with it is atomic.
unsafe impl Send for Ownership {}
// SAFETY: as above.
unsafe impl Sync for Ownership {}

/// The other side has the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest is the other process's")]
pub struct Taken;

impl Ownership {
    /// A new word, open.
    ///
    /// # Errors
    /// The system has no more memory or descriptors.
    pub fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("ferry-ownership", flags)?);
        file.set_len(BYTES as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ownership::from_file(file)
    }

    /// The word of an attempt that the other side has made.
    ///
    /// # Errors
    /// The file is not one of [`Ownership::new`], or cannot be mapped.
    pub fn from_file(file: File) -> io::Result<Self> {
        // One that could be cut off would end this process with a signal.
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        if !seals.contains(SealFlags::SHRINK) || file.metadata()?.len() < BYTES as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the memory that says whose the guest is may be cut off",
            ));
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever there is room, of a file that cannot become shorter.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), BYTES, access, MapFlags::SHARED, &file, 0)
        }?;
        Ok(Ownership {
            file,
            word: start.cast(),
        })
    }

    /// The memory, for the other side.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The receiver is about to let the guest run.
    ///
    /// # Errors
    /// The sender has kept it.
    pub fn start(&self) -> Result<(), Taken> {
        self.change(OPEN, STARTED)
    }

    /// The sender is about to let the guest go on. It may be said again.
    ///
    /// # Errors
    /// It runs, or has run, on the other side.
    pub fn keep(&self) -> Result<(), Taken> {
        match self.change(OPEN, KEPT) {
            Err(Taken) if self.word().load(Ordering::SeqCst) == KEPT => Ok(()),
            outcome => outcome,
        }
    }

    fn change(&self, from: u32, to: u32) -> Result<(), Taken> {
        let order = Ordering::SeqCst;
        let changed = self.word().compare_exchange(from, to, order, order);
        changed.map(drop).map_err(|_| Taken)
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping begins with it, is aligned to a page, and lives as long as this value. The other process, too, only
        // changes it atomically; one that does not can make it any number, which an atomic may be.
        unsafe { &*self.word }
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by this value, and nothing borrows from it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.word.cast_mut().cast(), BYTES) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// A process, which may have ended.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// This one, for the other side.
    ///
    /// # Errors
    /// The system has no more descriptors, or is older than Linux 5.3.
    pub fn this() -> io::Result<Self> {
        Ok(Process(pidfd_open(getpid(), PidfdFlags::empty())?))
    }

    /// The other side, as it has said itself.
    pub fn new(fd: OwnedFd) -> Self {
        Process(fd)
    }

    /// Its descriptor.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether it has ended, or does so within `limit`. Then all that it had open is closed.
    pub fn is_dead(&self, limit: Duration) -> bool {
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut entries = [PollFd::new(&self.0, PollFlags::IN)];
        // Interrupted, it says that the process lives, which may be wrong at any time.
        let _ = poll(&mut entries, Some(&limit));
        entries[0].revents().contains(PollFlags::IN)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn both() -> (Ownership, Ownership) {
        let sender = Ownership::new().unwrap();
        let file = sender.handle().try_clone_to_owned().unwrap();
        let receiver = Ownership::from_file(file.into()).unwrap();
        (sender, receiver)
    }

    #[test]
    fn the_first_one_has_the_guest() {
        let (sender, receiver) = both();
        assert_eq!(receiver.start(), Ok(()));
        assert_eq!(sender.keep(), Err(Taken));
        assert_eq!(receiver.start(), Err(Taken));
        let (sender, receiver) = both();
        assert_eq!(sender.keep(), Ok(()));
        assert_eq!(sender.keep(), Ok(()));
        assert_eq!(receiver.start(), Err(Taken));
    }

    #[test]
    fn of_two_at_once_one_has_it() {
        for _ in 0..1000 {
            let (sender, receiver) = both();
            let started = std::thread::spawn(move || receiver.start().is_ok());
            let kept = sender.keep().is_ok();
            assert_ne!(started.join().unwrap(), kept);
        }
    }

    #[test]
    fn what_could_be_cut_off_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES as u64).unwrap();
        assert!(Ownership::from_file(file).is_err());
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let short = File::from(rustix::fs::memfd_create("test", flags).unwrap());
        assert!(Ownership::from_file(short.try_clone().unwrap()).is_err());
        rustix::fs::fcntl_add_seals(&short, SealFlags::SHRINK).unwrap();
        assert!(Ownership::from_file(short).is_err());
    }

    #[test]
    fn a_process_dies_once() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let process = Process::new(pidfd_open(pid, PidfdFlags::empty()).unwrap());
        assert!(!process.is_dead(Duration::ZERO));
        assert!(!Process::this().unwrap().is_dead(Duration::ZERO));
        drop(child.stdin.take());
        assert!(process.is_dead(Duration::from_secs(60)));
        child.wait().unwrap();
        assert!(process.is_dead(Duration::ZERO));
    }
}
