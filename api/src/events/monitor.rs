//! The event monitor: a file, a FIFO or a descriptor that gets each event as a line of JSON.
//!
//! A thread of its own writes, and it alone ever waits for the reader. What it has not written yet is bounded; events
//! beyond that are counted instead, and one `events-lost` stands where they are missing. The same holds for events that
//! find the disk full: each event is another try, and the first one for which there is room is preceded by the loss.

mod lines;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Event;
use crate::config::text::{self, SyntaxError};
use lines::Lines;

/// How many events may wait to be written.
const WAITING: usize = 1024;
/// How long the end waits for the reader.
const FLUSH: Duration = Duration::from_millis(500);
/// How much longer it waits for the thread: for its turn on a machine that is busy, and for the system to take what needs no reader.
const TURN: Duration = Duration::from_secs(5);
/// How long one look at the reader takes at most, so that the end is noticed.
const LOOK: Duration = Duration::from_millis(50);
/// How long a process before this one may take to write its last event.
const PREDECESSOR: Duration = Duration::from_secs(10);

/// Where events are written: `path=P` or `fd=N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// A file, created for the user alone and appended to, or a FIFO that is there.
    Path(PathBuf),
    /// A descriptor that this process was given.
    Fd(RawFd),
}

/// A text that names no event monitor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongMonitor {
    /// It is not of the form `key=value`.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// It is neither of the two forms.
    #[error("there is no `{0}`; write path=PATH or fd=NUMBER")]
    Other(String),
}

impl FromStr for Monitor {
    type Err = WrongMonitor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut items = text::split(text)?;
        let item = items.pop().unwrap_or_default();
        let place = match (item.key.as_str(), item.value.as_deref()) {
            _ if !items.is_empty() => None,
            ("path", Some(path)) if !path.is_empty() => Some(Monitor::Path(path.into())),
            ("fd", Some(number)) => text::whole_number(number)
                .and_then(|number| RawFd::try_from(number).ok())
                .map(Monitor::Fd),
            _ => None,
        };
        place.ok_or_else(|| WrongMonitor::Other(text.to_owned()))
    }
}

impl Monitor {
    /// Opens it.
    pub fn open(&self) -> io::Result<File> {
        match self {
            Monitor::Path(path) => open_path(path),
            Monitor::Fd(fd) => take_fd(*fd),
        }
    }
}

fn open_path(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    match path.metadata() {
        // Open for reading too, so that it opens before there is a reader, and writing after the reader has left is no
        // SIGPIPE.
        Ok(metadata) if metadata.file_type().is_fifo() => options.read(true).write(true).open(path),
        _ => options.append(true).create(true).mode(0o600).open(path),
    }
}

fn take_fd(fd: RawFd) -> io::Result<File> {
    // SAFETY: fcntl with these commands takes any number for a descriptor and touches no memory.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        return Err(io::Error::other("the descriptor is open for reading only"));
    }
    // A duplicate, so that the descriptor stays the property of whoever named it: it may be standard error.
    // SAFETY: as above.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and belongs to no one else.
    Ok(unsafe { File::from_raw_fd(copy) })
}

/// The writing thread, from outside.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    file: File,
    /// At its end once the thread has ended, whose the other side is.
    over: OwnedFd,
    /// Gone once the thread has ended.
    ended: Mutex<Receiver<()>>,
}

/// An event monitor, for another process of this host.
#[derive(Debug)]
pub struct LentMonitor {
    /// Where the lines go.
    pub file: File,
    /// A pipe, at its end once this process writes no more. As long as it is not, a line may be only half there.
    pub before: OwnedFd,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Arc<Event>>,
    /// Events that found no room since the last one that did.
    lost: u64,
    /// When the thread has to end, written or not; set when there will be no more events.
    end: Option<Instant>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Starts the thread, which begins when `before` is at its end.
    pub fn start(file: File, before: Option<OwnedFd>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (over, writing) = io::pipe()?;
        let theirs_file = file.try_clone()?;
        let (alive, ended) = mpsc::channel();
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("event-monitor".into())
            .spawn(move || {
                if let Some(before) = before {
                    wait_for_end(&theirs, &before);
                }
                if let Err(error) = run(&theirs, theirs_file) {
                    tracing::warn!("the event monitor takes no more events: {error}");
                }
                drop(writing);
                drop(alive);
            })?;
        Ok(Writer {
            shared,
            file,
            over: over.into(),
            ended: Mutex::new(ended),
        })
    }

    /// For another process, which is to begin when this one has ended.
    pub fn lend(&self) -> io::Result<LentMonitor> {
        Ok(LentMonitor {
            file: self.file.try_clone()?,
            before: self.over.try_clone()?,
        })
    }

    /// Hands over an event, or counts it as lost.
    pub fn hand(&self, event: Arc<Event>) {
        let mut queue = self.shared.queue();
        if queue.events.len() < WAITING && queue.lost == 0 {
            queue.events.push_back(event);
        } else {
            queue.lost += 1;
        }
        drop(queue);
        self.shared.changed.notify_one();
    }
}

#[cfg(test)]
impl Writer {
    /// Events that are not in the thread's hands yet, and losses that it does not know of.
    pub fn waiting(&self) -> u64 {
        let queue = self.shared.queue();
        queue.events.len() as u64 + queue.lost
    }
}

impl Drop for Writer {
    /// Gives the thread a bounded time to write what there is. One that hangs in the system is left behind.
    fn drop(&mut self) {
        self.shared.queue().end = Some(Instant::now() + FLUSH);
        self.shared.changed.notify_one();
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(FLUSH + TURN);
    }
}

/// What the thread has to do next.
enum Work {
    Events(VecDeque<Arc<Event>>),
    Lost(u64),
    End,
}

/// Waits until the process before has written all that it had to. One that hangs is not waited for for ever.
fn wait_for_end(shared: &Shared, before: &OwnedFd) {
    let deadline = Instant::now() + PREDECESSOR;
    let ending = || shared.queue().end.is_some_and(|end| end <= Instant::now());
    while Instant::now() < deadline && !ending() {
        let mut poll = libc::pollfd {
            fd: before.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: `poll` is one valid pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, LOOK.as_millis() as libc::c_int) } > 0 {
            return;
        }
    }
}

fn run(shared: &Shared, file: File) -> io::Result<()> {
    let mut lines = Lines::new(file);
    loop {
        match next(shared) {
            Work::Events(events) => {
                for event in events {
                    lines.take(shared, &event)?;
                }
            }
            Work::Lost(number) => {
                lines.lose(shared, number)?;
            }
            Work::End => return lines.end(shared),
        }
    }
}

fn next(shared: &Shared) -> Work {
    let mut queue = shared.queue();
    loop {
        if !queue.events.is_empty() {
            return Work::Events(std::mem::take(&mut queue.events));
        }
        if queue.lost > 0 {
            return Work::Lost(std::mem::take(&mut queue.lost));
        }
        if queue.end.is_some() {
            return Work::End;
        }
        queue = shared
            .changed
            .wait(queue)
            .unwrap_or_else(PoisonError::into_inner);
    }
}
