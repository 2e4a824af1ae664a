//! The job's half of moving state: what saving and loading have in common.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq;
use vm_migration::Watch;

use super::error::{StateCause, StateError, StateStep, TransferError};
use super::pace::{Pace, TooSlow};
use super::{StateLimits, Stream};
use crate::sys::poll::Interest;
use crate::vhost_user::error::{Cause, Error};
use crate::vhost_user::frontend::Direction;
use crate::vhost_user::inbox::{Done, Order};
use crate::vhost_user::shared::Shared;

/// How often a wait looks whether it has been cancelled.
const LOOK: Duration = Duration::from_millis(25);

/// How much longer than its limit an answer is waited for here: the device's worker knows better why it is late.
const GRACE: Duration = Duration::from_millis(250);

/// The order to ask the back-end whether it is willing.
pub struct Begin {
    pub direction: Direction,
    /// The back-end's end of the pipe.
    pub theirs: OwnedFd,
    /// When the answer is due.
    pub until: Instant,
    /// Set when nobody is interested any more.
    pub given_up: Arc<AtomicBool>,
    pub done: Done<Begun>,
}

/// A back-end that is willing.
pub struct Begun {
    /// What it wants to be used in place of the pipe.
    pub returned: Option<Stream>,
    /// Which of the device's moves this is.
    pub ticket: u64,
}

/// The order to ask the back-end how it went.
pub struct Check {
    pub ticket: u64,
    /// When the answer is due.
    pub until: Instant,
    /// Set when nobody is interested any more.
    pub given_up: Arc<AtomicBool>,
    pub done: Done,
}

/// What a job has of a move.
pub struct Half {
    pub shared: Arc<Shared>,
    pub limits: StateLimits,
    /// How fast the state goes by.
    pub pace: Pace,
    /// Ferry's end of the pipe, and who says whether it is used.
    begun: io::Result<Waiting>,
    given_up: Arc<AtomicBool>,
}

struct Waiting {
    ours: Stream,
    answer: Receiver<Result<Begun, Error>>,
    due: Instant,
}

/// A move that is under way.
pub struct Open {
    pub stream: Stream,
    pub ticket: u64,
}

impl Half {
    /// Has the back-end asked whether it is willing.
    pub fn begin(shared: &Arc<Shared>, limits: &StateLimits, direction: Direction) -> Self {
        let given_up = Arc::new(AtomicBool::new(false));
        let begun = Stream::pipe(direction).map(|pipe| {
            let (teller, answer) = channel();
            let due = from_now(limits.reply);
            shared.post_order(Order::BeginState(Begin {
                direction,
                theirs: pipe.theirs,
                until: due,
                given_up: Arc::clone(&given_up),
                done: Done::new(&shared.spec, move |outcome| {
                    // Who does not wait any more does not need it.
                    let _ = teller.send(outcome);
                }),
            }));
            Waiting {
                ours: pipe.ours,
                answer,
                due,
            }
        });
        Half {
            shared: Arc::clone(shared),
            limits: *limits,
            pace: Pace::default(),
            begun,
            given_up,
        }
    }

    /// Waits until the back-end has said that it is willing. Once.
    pub fn open(&mut self, watch: &dyn Watch) -> Result<Open, StateError> {
        let gone = Err(io::ErrorKind::NotFound.into());
        let waiting = std::mem::replace(&mut self.begun, gone).map_err(|source| {
            let step = "make a pipe";
            self.error(StateStep::Begin, StateCause::Io { step, source })
        })?;
        let request = FrontendReq::SET_DEVICE_STATE_FD;
        let begun = self.answer(&waiting.answer, waiting.due, request, watch)?;
        Ok(Open {
            stream: begun.returned.unwrap_or(waiting.ours),
            ticket: begun.ticket,
        })
    }

    /// Asks the back-end how it went, and waits for the answer.
    pub fn check(&self, ticket: u64, watch: &dyn Watch) -> Result<(), StateError> {
        let (teller, answer) = channel();
        let due = from_now(self.limits.reply);
        self.shared.post_order(Order::CheckState(Check {
            ticket,
            until: due,
            given_up: Arc::clone(&self.given_up),
            done: Done::new(&self.shared.spec, move |outcome| {
                let _ = teller.send(outcome);
            }),
        }));
        self.answer(&answer, due, FrontendReq::CHECK_DEVICE_STATE, watch)
    }

    fn answer<T>(
        &self,
        answer: &Receiver<Result<T, Error>>,
        due: Instant,
        request: FrontendReq,
        watch: &dyn Watch,
    ) -> Result<T, StateError> {
        let step = match request {
            FrontendReq::CHECK_DEVICE_STATE => StateStep::Check,
            _ => StateStep::Begin,
        };
        let worker_says = |error| Err(TransferError::from_device(error, step).into());
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => return worker_says(error),
                Err(RecvTimeoutError::Disconnected) => {
                    return worker_says(self.shared.error_from(Cause::Stopped));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if watch.cancelled() {
                return Err(StateError::Cancelled);
            }
            if Instant::now() >= due + GRACE {
                return worker_says(self.shared.error_from(Cause::Late {
                    request: request.into(),
                    waited: self.limits.reply,
                }));
            }
        }
    }

    /// Waits until the stream may be ready, not for longer than a back-end may be silent, nor for one that is too slow.
    /// `after` is how many bytes have moved.
    pub fn wait(
        &mut self,
        stream: &Stream,
        interest: Interest,
        after: u64,
        watch: &dyn Watch,
    ) -> Result<(), StateError> {
        let step = match interest {
            Interest::Write => StateStep::Write,
            _ => StateStep::Read,
        };
        let silence = self.limits.silence;
        if let Err(TooSlow { waited, moved }) = self.pace.check(silence) {
            let cause = StateCause::Slow {
                waited,
                moved,
                after: after - moved,
            };
            return Err(self.error(step, cause).into());
        }
        let began = Instant::now();
        loop {
            let ready = stream
                .wait(interest, Instant::now() + LOOK.min(silence))
                .map_err(|source| {
                    let cause = StateCause::Io {
                        step: "wait for the back-end's state",
                        source,
                    };
                    self.error(step, cause)
                })?;
            if watch.cancelled() {
                return Err(StateError::Cancelled);
            }
            if ready {
                self.pace.note_waited(began.elapsed());
                return Ok(());
            }
            if began.elapsed() >= silence {
                let waited = silence;
                let cause = StateCause::Silent { waited, after };
                return Err(self.error(step, cause).into());
            }
        }
    }

    /// An error of this device.
    pub fn error(&self, step: StateStep, cause: StateCause) -> TransferError {
        TransferError {
            device: self.shared.spec.id.clone(),
            socket: self.shared.spec.socket.clone(),
            step,
            cause: Arc::new(cause),
        }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Release);
    }
}

/// The time after `duration`; an absurd one is as good as a day.
fn from_now(duration: Duration) -> Instant {
    Instant::now() + duration.min(Duration::from_secs(86400))
}
