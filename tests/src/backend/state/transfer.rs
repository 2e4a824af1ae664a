//! One transfer: the thread that moves the bytes, and what CHECK_DEVICE_STATE finds of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::{Direction, Done, Ending, Fault, Outcome, State, Store};
use crate::backend::control::{Command, Remote};

/// How long CHECK waits for the thread to see the end, which is there already.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// State on its way.
#[derive(Debug)]
pub struct Transfer {
    direction: Direction,
    progress: Arc<Progress>,
    /// Our end, as long as the thread has it.
    end: Weak<File>,
    store: Arc<Store>,
}

#[derive(Debug, Default)]
struct Progress {
    finished: Mutex<Option<Done>>,
    changed: Condvar,
    /// The connection is gone, and a thread that hangs may end.
    abandoned: AtomicBool,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.progress.abandoned.store(true, Ordering::Relaxed);
    }
}

impl Transfer {
    pub(super) fn start(
        store: &Arc<Store>,
        direction: Direction,
        fd: OwnedFd,
        fault: Option<Fault>,
        remote: Remote,
    ) -> Self {
        let progress = Arc::new(Progress::default());
        let state = match direction {
            Direction::Save => store.lock().holds,
            Direction::Load => store.lock().expects,
        };
        let file = Arc::new(File::from(fd));
        let end = Arc::downgrade(&file);
        let mover = Mover {
            direction,
            state,
            file,
            at: 0,
            fault,
            remote,
            progress: Arc::clone(&progress),
        };
        thread::spawn(move || mover.run());
        Transfer {
            direction,
            progress,
            end,
            store: Arc::clone(store),
        }
    }

    /// CHECK_DEVICE_STATE: 0 if all is well, and what a strict back-end has to complain of.
    pub fn check(self) -> (u64, Option<String>) {
        let finished = || {
            self.progress
                .finished
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let mut early = None;
        if finished().is_none() && self.is_open() {
            early = Some("comes before the end of the state".to_owned());
        }
        // A reader that has been shown the end needs a moment to come to it.
        let deadline = Instant::now() + CHECK_LIMIT;
        let mut done = finished();
        while done.is_none() && Instant::now() < deadline && early.is_none() {
            let wait = self.progress.changed.wait_timeout(done, CHECK_LIMIT);
            done = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        let done = done.take().unwrap_or(Done {
            direction: self.direction,
            bytes: 0,
            outcome: Outcome::Bad("it has not ended".to_owned()),
        });
        let number = u64::from(done.outcome != Outcome::Good);
        self.store.note(done);
        (number, early)
    }

    /// Whether the other side may still send, or has not been told that all was sent.
    fn is_open(&self) -> bool {
        match (self.direction, self.end.upgrade()) {
            // What is saved has ended when its thread has.
            (Direction::Save, _) => true,
            (Direction::Load, Some(end)) => poll(&*end, 0) & libc::POLLHUP == 0,
            (Direction::Load, None) => false,
        }
    }
}

/// Moves the bytes.
struct Mover {
    direction: Direction,
    state: Option<State>,
    file: Arc<File>,
    at: u64,
    fault: Option<Fault>,
    remote: Remote,
    progress: Arc<Progress>,
}

/// Bytes that are moved at once.
const PIECE: usize = 64 << 10;

impl Mover {
    fn run(mut self) {
        let outcome = match self.move_all() {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Bad(format!("after {} bytes: {error}", self.at)),
        };
        let done = Done {
            direction: self.direction,
            bytes: self.at,
            outcome,
        };
        *self
            .progress
            .finished
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(done);
        self.progress.changed.notify_all();
        // The end is closed only now, so that a CHECK that comes after the end of the state finds it finished.
    }

    fn move_all(&mut self) -> io::Result<Outcome> {
        let Some(state) = self.state else {
            return Ok(Outcome::Bad("there is no state here".to_owned()));
        };
        let ending = self.fault.and_then(Fault::ending);
        let mut piece = vec![0; PIECE];
        loop {
            if let Some(Fault::Trickle(pause)) = self.fault {
                thread::sleep(pause);
            }
            // A load goes on beyond the bytes that are expected, to see the end.
            let limit = match (ending, self.direction) {
                (Some((at, ending)), _) if self.at >= at => return Ok(self.end_early(ending)),
                (Some((at, _)), Direction::Load) => at - self.at,
                (Some((at, _)), Direction::Save) => at.min(state.bytes) - self.at,
                (None, Direction::Load) => u64::MAX,
                (None, Direction::Save) => state.bytes - self.at,
            };
            let length = limit.min(PIECE as u64) as usize;
            let part = &mut piece[..length];
            match self.direction {
                Direction::Save if length == 0 => return Ok(Outcome::Good),
                Direction::Save => {
                    crate::pattern::stream(state.seed, self.at, part);
                    (&*self.file).write_all(part)?;
                    self.at += length as u64;
                }
                Direction::Load => match (&*self.file).read(part)? {
                    0 if self.at == state.bytes => return Ok(Outcome::Good),
                    0 => {
                        return Ok(Outcome::Bad(format!(
                            "{} bytes instead of {}",
                            self.at, state.bytes
                        )));
                    }
                    count => {
                        let mut expected = vec![0; count];
                        crate::pattern::stream(state.seed, self.at, &mut expected);
                        if part[..count] != expected {
                            return Ok(Outcome::Bad(format!(
                                "other bytes after {} of them: {count} {:x?} instead of {:x?}",
                                self.at,
                                &part[..count.min(32)],
                                &expected[..count.min(32)]
                            )));
                        }
                        self.at += count as u64;
                    }
                },
            }
        }
    }

    fn end_early(&self, ending: Ending) -> Outcome {
        match ending {
            Ending::Stop => {}
            Ending::Die => self.remote.tell(Command::Die),
            Ending::Hang => {
                let gone = libc::POLLHUP | libc::POLLERR;
                let mut goes_on = true;
                while goes_on {
                    let abandoned = self.progress.abandoned.load(Ordering::Relaxed);
                    goes_on = !abandoned && poll(&*self.file, 20) & gone == 0;
                }
            }
        }
        Outcome::Bad(format!("ended after {} bytes, as it was told", self.at))
    }
}

/// What of hang-up and error there is on a descriptor, within so many milliseconds.
fn poll(fd: &impl AsRawFd, milliseconds: i32) -> i16 {
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: `entry` is one element and lives until after the call.
    unsafe { libc::poll(&raw mut entry, 1, milliseconds) };
    entry.revents
}
