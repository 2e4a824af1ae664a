//! Requests and answers over the main socket, each within a deadline.
//!
//! ```text
//!              send                    all sent                 answer in time
//!   Quiet ───────────────▶ Sending ───────────────▶ Awaiting ───────────────────▶ Quiet
//!     ▲                       │ Late                   │ Late
//!     │                       ▼                        ▼
//!     └─────────────────── rest unsent ──────────▶ answer owed
//!         settled before the next request    (no answer within `dead`: the end)
//! ```
//!
//! An answer that is late is no violation: the caller's attempt ends with [`Cause::Late`], and what is still
//! to be sent or received is remembered. The next request first completes that and throws the late answer away.
//! A back-end that owes an answer for longer than [`Limits::dead`] is given up.
//!
//! Several requests may be sent before the first of them is answered ([`Connection::ask_all`]): the back-end reads them one
//! after the other, and answers in that order. How long it may take for an answer counts from the one before.
//!
//! Anything that is not what the protocol allows poisons the connection: the error says what it was, and
//! every later request fails.

mod idle;
mod lending;
mod waiting;

pub use self::lending::Lent;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::Limits;
use super::backend_channel::BackendChannel;
use super::counters::Counters;
use super::error::{Cause, During};
use super::incoming::{Incoming, Progress, ReadError};
use super::message::{Acknowledge, Header, ReplyShape, RequestCode};
use super::socket::Socket;
use crate::sys::poll::Interest;

/// How many answers may be awaited at a time. The back-end, which may have to wait until they are taken before it reads on,
/// must have room for as many in the socket: some hundred small messages have.
const MOST_OWED: usize = 32;

/// A request to the back-end.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its number.
    pub code: RequestCode,
    /// What follows the header.
    pub payload: &'a [u8],
    /// File descriptors that go with it.
    pub fds: &'a [BorrowedFd<'a>],
}

/// A request with what its answer is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// What is asked.
    pub request: Request<'a>,
    /// Why it is answered.
    pub acknowledge: Acknowledge,
    /// What the answer has to look like.
    pub shape: ReplyShape,
}

/// An answer, its shape checked.
#[derive(Debug)]
pub struct Reply {
    /// What followed the header.
    pub payload: Vec<u8>,
    /// File descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a back-end.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    /// The device's name, for the log.
    device: Arc<str>,
    limits: Limits,
    /// Signalled, and never reset, when the device is to be given up.
    stop: Arc<EventFd>,
    unsent: Option<Unsent>,
    /// In the order in which they come.
    owed: VecDeque<Owed>,
    incoming: Incoming,
    channel: Option<BackendChannel>,
    counters: Arc<Counters>,
    /// Whether the back-end has announced a change of the configuration space.
    config_changed: bool,
    poisoned: bool,
}

/// The rest of a request that has been sent in part.
#[derive(Debug)]
struct Unsent {
    request: RequestCode,
    bytes: Vec<u8>,
    since: Instant,
}

/// An answer that is yet to come.
#[derive(Clone, Copy, Debug)]
struct Owed {
    request: RequestCode,
    shape: ReplyShape,
    since: Instant,
    /// Whether the log has been told that it takes long.
    noted: bool,
    /// Whether it has been counted as late.
    counted: bool,
}

enum Flushed {
    All,
    Part,
}

impl Connection {
    /// A connection over a socket on which everything asked so far has been answered.
    pub fn new(socket: Socket, device: Arc<str>, limits: Limits, stop: Arc<EventFd>) -> Self {
        Connection {
            socket,
            device,
            limits,
            stop,
            unsent: None,
            owed: VecDeque::new(),
            incoming: Incoming::default(),
            channel: None,
            counters: Arc::default(),
            config_changed: false,
            poisoned: false,
        }
    }

    /// Counts there from now on.
    pub(super) fn count_in(&mut self, counters: Arc<Counters>) {
        self.counters = counters;
    }

    /// Serves `channel` from now on, also while an answer is awaited on the main socket.
    pub fn set_channel(&mut self, channel: BackendChannel) {
        self.channel = Some(channel);
    }

    /// Whether the back-end has announced a change of the configuration space since the last call.
    pub fn take_config_changed(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    /// The back-end channel while it is open, to be polled for input.
    pub fn channel(&self) -> Option<&BackendChannel> {
        self.channel.as_ref()
    }

    /// Sends a request that has no answer.
    pub fn tell(&mut self, request: Request<'_>, patience: Duration) -> Result<(), Cause> {
        let deadline = Instant::now() + patience;
        let result = self
            .settle(deadline, request.code)
            .and_then(|()| self.send(request, Acknowledge::Natural, None, deadline));
        self.poison_if_fatal(result)
    }

    /// Sends a request and awaits its answer.
    pub fn ask(&mut self, question: Question<'_>, patience: Duration) -> Result<Reply, Cause> {
        let deadline = Instant::now() + patience;
        let result = self
            .begin(question, deadline)
            .and_then(|()| self.receive_owed(deadline));
        self.poison_if_fatal(result)
    }

    /// Sends all requests, and hands each with its answer to `take`, in their order. `patience` says for how long the next answer
    /// is waited for. After an error, also one of `take`, the answers that are still to come are for nobody.
    pub fn ask_all(
        &mut self,
        questions: &[Question<'_>],
        patience: impl Fn() -> Duration,
        mut take: impl FnMut(RequestCode, Reply) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let result = questions
            .chunks(MOST_OWED)
            .try_for_each(|some| self.ask_some(some, &patience, &mut take));
        self.poison_if_fatal(result)
    }

    fn ask_some(
        &mut self,
        questions: &[Question<'_>],
        patience: &impl Fn() -> Duration,
        take: &mut impl FnMut(RequestCode, Reply) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let Some((first, others)) = questions.split_first() else {
            return Ok(());
        };
        self.begin(*first, Instant::now() + patience())?;
        let mut others = others.iter();
        let sent = others.try_for_each(|it| self.send_question(*it, Instant::now() + patience()));
        if !matches!(sent, Ok(()) | Err(Cause::Closed { .. })) {
            return sent;
        }
        // One that has closed may have said before what it did not like.
        while let Some(request) = self.owed.front().map(|owed| owed.request) {
            let reply = self.receive_owed(Instant::now() + patience())?;
            take(request, reply)?;
        }
        sent
    }

    /// Sends a request with a descriptor that is closed here as soon as it has been sent, and awaits the answer.
    pub fn ask_giving(
        &mut self,
        question: Question<'_>,
        gift: OwnedFd,
        patience: Duration,
    ) -> Result<Reply, Cause> {
        let deadline = Instant::now() + patience;
        let fds = [gift.as_fd()];
        let request = Request {
            fds: &fds,
            ..question.request
        };
        let sent = self.begin(
            Question {
                request,
                ..question
            },
            deadline,
        );
        drop(gift);
        let result = sent.and_then(|()| self.receive_owed(deadline));
        self.poison_if_fatal(result)
    }

    fn poison_if_fatal<T>(&mut self, result: Result<T, Cause>) -> Result<T, Cause> {
        if let Err(cause) = &result {
            self.poisoned |= cause.is_fatal();
        }
        result
    }

    /// Settles what is pending, then asks: from then on, the answer is owed.
    fn begin(&mut self, question: Question<'_>, deadline: Instant) -> Result<(), Cause> {
        self.settle(deadline, question.request.code)?;
        self.send_question(question, deadline)
    }

    /// Completes what is still to be sent and received, before `request` is sent.
    fn settle(&mut self, deadline: Instant, request: RequestCode) -> Result<(), Cause> {
        self.settle_owed(deadline)?;
        self.check_quiet(During::Request(request))
    }

    fn settle_owed(&mut self, deadline: Instant) -> Result<(), Cause> {
        if self.poisoned {
            return Err(Cause::Poisoned);
        }
        self.flush(deadline)?;
        while !self.owed.is_empty() {
            let late = self.receive_owed(deadline)?;
            tracing::debug!(device = %self.device, bytes = late.payload.len(), "a late answer has come");
        }
        Ok(())
    }

    fn send_question(&mut self, question: Question<'_>, deadline: Instant) -> Result<(), Cause> {
        let Question {
            request,
            acknowledge,
            shape,
        } = question;
        self.send(request, acknowledge, Some(shape), deadline)
    }

    fn send(
        &mut self,
        request: Request<'_>,
        acknowledge: Acknowledge,
        shape: Option<ReplyShape>,
        deadline: Instant,
    ) -> Result<(), Cause> {
        self.send_first(request, acknowledge, deadline)?;
        if let Some(shape) = shape {
            self.owed.push_back(Owed {
                request: request.code,
                shape,
                since: Instant::now(),
                noted: false,
                counted: false,
            });
        }
        self.flush(deadline)
    }

    /// Sends the beginning of a request with its file descriptors; the rest becomes `unsent`.
    fn send_first(
        &mut self,
        request: Request<'_>,
        acknowledge: Acknowledge,
        deadline: Instant,
    ) -> Result<(), Cause> {
        let size = request.payload.len() as u32;
        let mut bytes = Header::request(request.code, acknowledge, size)
            .encode()
            .to_vec();
        bytes.extend_from_slice(request.payload);
        let began = Instant::now();
        loop {
            match self.socket.try_send(&bytes, request.fds) {
                Ok(sent) => {
                    bytes.drain(..sent);
                    if !bytes.is_empty() {
                        self.unsent = Some(Unsent {
                            request: request.code,
                            bytes,
                            since: began,
                        });
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Interest::Write, deadline, request.code, began)?;
                }
                Err(error) => return Err(send_failed(error, request.code)),
            }
        }
    }

    /// Sends the rest of a request that has been sent in part.
    fn flush(&mut self, deadline: Instant) -> Result<(), Cause> {
        while let Flushed::Part = self.try_flush()? {
            if let Some(unsent) = &self.unsent {
                let (request, since) = (unsent.request, unsent.since);
                self.wait(Interest::Write, deadline, request, since)?;
            }
        }
        Ok(())
    }

    fn try_flush(&mut self) -> Result<Flushed, Cause> {
        while let Some(unsent) = &mut self.unsent {
            match self.socket.try_send(&unsent.bytes, &[]) {
                Ok(sent) => {
                    unsent.bytes.drain(..sent);
                    if unsent.bytes.is_empty() {
                        self.unsent = None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Flushed::Part);
                }
                Err(error) => return Err(send_failed(error, unsent.request)),
            }
        }
        Ok(Flushed::All)
    }

    /// The answer that has been owed the longest.
    fn receive_owed(&mut self, deadline: Instant) -> Result<Reply, Cause> {
        loop {
            let Some(owed) = self.owed.front().copied() else {
                // Callers make sure that an answer is owed.
                return Err(Cause::Poisoned);
            };
            if let Some(reply) = self.advance(owed)? {
                return Ok(reply);
            }
            self.wait(Interest::Read, deadline, owed.request, owed.since)?;
        }
    }

    /// Reads on at the answer that has been owed the longest, without waiting.
    fn advance(&mut self, owed: Owed) -> Result<Option<Reply>, Cause> {
        let during = During::Request(owed.request);
        let violation = |reason| Cause::Violation { during, reason };
        let progress = self
            .incoming
            .advance(&self.socket, |header| {
                header.check_reply(owed.request, owed.shape)
            })
            .map_err(|error| match error {
                ReadError::Violation(reason) => violation(reason),
                ReadError::Io(source) => Cause::Io {
                    step: "receive from the back-end",
                    source,
                },
            })?;
        match progress {
            Progress::Waiting => Ok(None),
            Progress::Closed => Err(Cause::Closed { during }),
            Progress::Complete(message) => {
                owed.shape.check_fds(message.fds.len()).map_err(violation)?;
                self.owed.pop_front();
                if let Some(next) = self.owed.front_mut() {
                    // What it was asked in the meantime it could not begin with before.
                    next.since = Instant::now();
                }
                Ok(Some(Reply {
                    payload: message.payload,
                    fds: message.fds,
                }))
            }
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn send_failed(error: io::Error, request: RequestCode) -> Cause {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Cause::Closed {
            during: During::Request(request),
        },
        _ => Cause::Io {
            step: "send to the back-end",
            source: error,
        },
    }
}
