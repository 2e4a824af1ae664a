//! The back-end's own state, as it goes through a pipe (vhost-user specification, "Migrating back-end state").
//!
//! ```text
//!            SET_DEVICE_STATE_FD            all bytes           CHECK_DEVICE_STATE
//!  no transfer ───────────────▶ under way ───────────▶ finished ─────────────────▶ no transfer
//!                                   └── a fault, or the other end is gone ──▶ broken: CHECK says so
//! ```
//!
//! The state is so many bytes of a stream that is computed, so that a state of any size takes no memory; a back-end
//! that loads one knows which it has to be. The bytes move on a thread of their own.

mod transfer;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::control::Remote;
pub(super) use transfer::Transfer;

/// So many bytes of the stream of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Bytes.
    pub bytes: u64,
    /// Which stream it is ([`crate::pattern::stream`]).
    pub seed: u32,
}

impl State {
    /// `size` is "0", "1", "512M".
    pub fn new(size: &str, seed: u32) -> Self {
        State {
            bytes: crate::units::bytes(size),
            seed,
        }
    }
}

/// Where the state goes, as SET_DEVICE_STATE_FD names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the back-end to the front-end.
    Save,
    /// From the front-end to the back-end.
    Load,
}

/// What the back-end does with a transfer, right or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is right to do so: answers with a descriptor of its own, which the front-end has to use.
    ReturnFd,
    /// Answers with an error.
    Refuse,
    /// Answers with an error, and with a descriptor.
    RefuseWithFd,
    /// Says that a descriptor comes, and sends none.
    NoFd,
    /// Says that no descriptor comes, and sends one.
    UnannouncedFd,
    /// Sends two descriptors.
    TwoFds,
    /// Moves nothing any more after so many bytes, and keeps its end open.
    HangAt(u64),
    /// Is gone, like a process that is killed, after so many bytes.
    DieAt(u64),
    /// Closes its end after so many bytes; CHECK reports an error.
    StopAt(u64),
    /// Waits so long before every 64 KiB.
    Trickle(Duration),
}

impl Fault {
    /// At which byte something happens, and what.
    fn ending(self) -> Option<(u64, Ending)> {
        match self {
            Fault::HangAt(at) => Some((at, Ending::Hang)),
            Fault::DieAt(at) => Some((at, Ending::Die)),
            Fault::StopAt(at) => Some((at, Ending::Stop)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
enum Ending {
    Hang,
    Die,
    Stop,
}

/// The fault of one attempt.
#[derive(Clone, Copy, Debug)]
struct Rule {
    direction: Direction,
    attempt: usize,
    fault: Fault,
}

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All bytes went, or came and were the right ones.
    Good,
    /// Why not.
    Bad(String),
}

/// What was asked and done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub direction: Direction,
    /// Bytes that went or came.
    pub bytes: u64,
    pub outcome: Outcome,
}

/// What a back-end has as its state, and what it is to do when it is asked for it. Outlives connections.
#[derive(Debug, Default)]
pub(super) struct Store {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What it would save; none if it has to be loaded first.
    holds: Option<State>,
    /// What a load has to bring.
    expects: Option<State>,
    /// No ring may start: a load is due, or has failed.
    incomplete: bool,
    rules: Vec<Rule>,
    saves: usize,
    loads: usize,
    done: Vec<Done>,
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn hold(&self, state: State) {
        let mut inner = self.lock();
        (inner.holds, inner.expects) = (Some(state), Some(state));
        inner.incomplete = false;
    }

    pub fn await_load(&self, state: State) {
        let mut inner = self.lock();
        (inner.holds, inner.expects) = (None, Some(state));
        inner.incomplete = true;
    }

    pub fn rule(&self, direction: Direction, attempt: usize, fault: Fault) {
        self.lock().rules.push(Rule {
            direction,
            attempt,
            fault,
        });
    }

    pub fn done(&self) -> Vec<Done> {
        self.lock().done.clone()
    }

    pub fn holds(&self) -> Option<State> {
        self.lock().holds
    }

    /// Whether a ring that starts now starts too early.
    pub fn is_incomplete(&self) -> bool {
        self.lock().incomplete
    }

    fn next_fault(&self, direction: Direction) -> Option<Fault> {
        let mut inner = self.lock();
        let attempt = match direction {
            Direction::Save => &mut inner.saves,
            Direction::Load => &mut inner.loads,
        };
        *attempt += 1;
        let attempt = *attempt;
        let rule = inner
            .rules
            .iter()
            .find(|rule| rule.direction == direction && rule.attempt == attempt);
        rule.map(|rule| rule.fault)
    }

    /// Notes how a transfer ended, at its CHECK.
    fn note(&self, done: Done) {
        let mut inner = self.lock();
        if done.direction == Direction::Load && done.outcome == Outcome::Good {
            inner.incomplete = false;
            inner.holds = inner.expects;
        }
        inner.done.push(done);
    }
}

/// The answer to SET_DEVICE_STATE_FD.
#[derive(Debug)]
pub(super) struct Begun {
    pub number: u64,
    pub fds: Vec<OwnedFd>,
    /// None if nothing is moved.
    pub transfer: Option<Transfer>,
}

/// The answer's bit for "no descriptor comes back".
const NO_FD: u64 = 1 << 8;

/// Begins a transfer through the front-end's descriptor, or through one of our own.
pub(super) fn begin(
    store: &Arc<Store>,
    direction: Direction,
    fd: OwnedFd,
    remote: &Remote,
) -> io::Result<Begun> {
    if direction == Direction::Load {
        store.lock().incomplete = true;
    }
    let fault = store.next_fault(direction);
    let begun = |number, fds, transfer| Begun {
        number,
        fds,
        transfer,
    };
    let null = || File::open("/dev/null").map(OwnedFd::from);
    Ok(match fault {
        Some(Fault::Refuse) => begun(1 | NO_FD, vec![], None),
        Some(Fault::RefuseWithFd) => begun(1, vec![null()?], None),
        Some(Fault::NoFd) => begun(0, vec![], None),
        Some(Fault::UnannouncedFd) => begun(NO_FD, vec![null()?], None),
        Some(Fault::TwoFds) => begun(0, vec![null()?, null()?], None),
        Some(Fault::ReturnFd) => {
            let (read, write) = io::pipe()?;
            let (ours, theirs) = match direction {
                Direction::Save => (OwnedFd::from(write), OwnedFd::from(read)),
                Direction::Load => (OwnedFd::from(read), OwnedFd::from(write)),
            };
            let transfer = Transfer::start(store, direction, ours, fault, remote.clone());
            begun(0, vec![theirs], Some(transfer))
        }
        _ => {
            let transfer = Transfer::start(store, direction, fd, fault, remote.clone());
            begun(NO_FD, vec![], Some(transfer))
        }
    })
}

/// Whether a descriptor is the end that the back-end needs: one to write to for a save, to read from for a load.
pub(super) fn takes(fd: &OwnedFd, direction: u32) -> bool {
    // SAFETY: this only asks for the flags of an open descriptor.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    let wanted = if direction == 0 {
        libc::O_WRONLY
    } else {
        libc::O_RDONLY
    };
    flags & libc::O_ACCMODE == wanted || flags & libc::O_ACCMODE == libc::O_RDWR
}
