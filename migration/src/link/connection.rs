//! One connection: sending and receiving messages.

use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use super::error::{Error, Violation};
use super::failure::Failure;
use super::incoming::{Advance, Incoming, Wrong};
use super::message::{self, Message, Tally};
use super::order::{Kind, Order, Side};
use super::socket::{Transport, Waited, Want};
use super::wire::{Answer, Direction, FRAME_HEADER, REASON_MOST};
use super::{Address, Patience, Purpose, StreamId};
use crate::watch::{Unwatched, Watch};

/// How long a frame that was begun may take to end after a cancel, so that the connection stays of use for `Failed`.
const CANCEL_GRACE: Duration = Duration::from_millis(100);
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection between a sender and a receiver, after its preamble.
pub struct Link {
    transport: Transport,
    peer: Address,
    side: Side,
    attempt: StreamId,
    purpose: Purpose,
    version: u16,
    silence: Duration,
    order: Order,
    outgoing: Direction,
    incoming: Incoming,
    /// What is left of a small frame that was sent without waiting.
    unsent: Vec<u8>,
    sent_last: Instant,
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    Whole,
    /// A frame was not sent to its end: nothing can follow.
    Broken,
}

/// Whether a message came in time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Message(Kind),
    Late,
}

/// What both ends know of a connection when its preamble was read.
pub(super) struct Introduction {
    pub(super) peer: Address,
    pub(super) side: Side,
    pub(super) attempt: StreamId,
    pub(super) purpose: Purpose,
    pub(super) version: u16,
}

impl Link {
    pub(super) fn new(
        transport: Transport,
        introduction: Introduction,
        patience: Patience,
    ) -> Self {
        let Introduction {
            peer,
            side,
            attempt,
            purpose,
            version,
        } = introduction;
        Link {
            transport,
            peer,
            side,
            attempt,
            purpose,
            version,
            silence: patience.silence,
            order: Order::new(),
            outgoing: Direction::new(attempt, purpose.index(), side),
            incoming: Incoming::new(attempt, purpose, side.other()),
            unsent: Vec::new(),
            sent_last: Instant::now(),
            output: Output::Whole,
        }
    }

    /// The attempt that it belongs to.
    pub fn attempt(&self) -> StreamId {
        self.attempt
    }

    /// What it is for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The version of the protocol that both speak.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// The other side.
    pub fn peer(&self) -> &Address {
        &self.peer
    }

    /// Bounds how long nothing may come or go.
    pub fn set_silence(&mut self, limit: Duration) {
        self.silence = limit;
    }

    /// What was sent, without `End`.
    pub fn sent(&self) -> Tally {
        self.outgoing.tally()
    }

    /// What was received, without `End`.
    pub fn received(&self) -> Tally {
        self.incoming.tally()
    }

    /// The receiver's answer to the preamble: go on.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn accept_it(&mut self) -> Result<(), Error> {
        let answer = Answer {
            version: self.version,
            reason: 0,
            attempt: self.attempt,
        };
        self.write(&answer.encode(), &[], &Unwatched)?;
        self.order.accepted(self.purpose);
        Ok(())
    }

    pub(super) fn was_accepted(&mut self) {
        self.order.accepted(self.purpose);
    }

    /// The receiver's answer to the preamble: no, for a reason of at most 1 KiB.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn refuse(mut self, reason: &str) -> Result<(), Error> {
        let reason = match reason {
            "" => "no reason was given",
            reason => &reason[..reason.floor_char_boundary(REASON_MOST)],
        };
        let answer = Answer {
            version: 0,
            reason: reason.len() as u16,
            attempt: self.attempt,
        };
        self.silence = self.silence.min(FAREWELL);
        self.write(&answer.encode(), reason.as_bytes(), &Unwatched)?;
        // A client says nothing until it is accepted, so nothing unread throws the answer away.
        self.transport.shut();
        Ok(())
    }

    /// Sends a message, whole. While the other side takes nothing, it is heard: if it failed, that is the error.
    ///
    /// # Errors
    /// The message cannot come here; the other side failed, is gone, or takes nothing for too long; or it was cancelled. A
    /// frame that was begun is given a moment to end after a cancel; if it does not, nothing can be sent any more.
    pub fn send(&mut self, message: &Message<'_>, watch: &dyn Watch) -> Result<(), Error> {
        if watch.cancelled() {
            return Err(self.cancelled());
        }
        let body = message.body(self.attempt);
        let kind = message.kind();
        let head = &body.head[..message::head_bytes(kind)];
        let length = u32::try_from(head.len() + body.data.len()).unwrap_or(u32::MAX);
        message::check_length(kind, length)
            .and_then(|_| match message {
                Message::Pages { gpa, data } => message::check_pages(kind, *gpa, data.len() as u64),
                Message::Zeros { gpa, bytes } => message::check_pages(kind, *gpa, *bytes),
                _ => Ok(()),
            })
            .and_then(|()| self.order.follow(self.side, message.event()))
            .map_err(|violation| self.violated(violation))?;
        let mut fixed = [0; FRAME_HEADER + 8];
        fixed[..FRAME_HEADER].copy_from_slice(&self.outgoing.header(kind, head, &body.data));
        fixed[FRAME_HEADER..][..head.len()].copy_from_slice(head);
        self.write(&fixed[..FRAME_HEADER + head.len()], &body.data, watch)
    }

    /// Sends `Alive` if nothing was sent for a quarter of the silence limit. Never waits.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn keep_alive_if_due(&mut self) -> Result<(), Error> {
        let due = self.sent_last.elapsed() >= self.silence / 4;
        let idle = self.unsent.is_empty() && !self.transport.has_pending();
        if !due || !idle || self.output == Output::Broken {
            return Ok(());
        }
        let follow = self.order.follow(self.side, Message::Alive.event());
        follow.map_err(|violation| self.violated(violation))?;
        let header = self.outgoing.header(Kind::Alive, &[], &[]);
        match self.transport.write(&[IoSlice::new(&header)]) {
            Ok(sent) => {
                self.unsent.extend(&header[sent..]);
                self.sent_last = Instant::now();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.unsent.extend(header);
                Ok(())
            }
            Err(error) => Err(self.write_failed(error)),
        }
    }

    /// Tells the other side why this one gives up, if it can still be told within a second, and ends the connection.
    pub fn give_up(mut self, failure: &Failure) {
        self.silence = self.silence.min(FAREWELL);
        let message = Message::Failed(failure.clone());
        if self.send(&message, &Unwatched).is_ok() {
            self.linger();
        }
    }

    /// Lets the other side read what was sent: to close with something unread would throw it away.
    fn linger(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        let mut waste = vec![0; 64 << 10];
        self.transport.shut();
        while Instant::now() < deadline {
            match self.transport.read(&mut waste) {
                Ok(1..) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let wait = self.transport.wait(Want::Read, &Unwatched, deadline);
                    if !matches!(wait, Ok(Waited::Ready)) {
                        return;
                    }
                }
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Whether something has arrived, which may be only a part of a message, or the end.
    pub fn has_input(&self) -> bool {
        self.incoming.is_begun() || self.transport.is_readable()
    }

    /// Waits for the next message. `Alive` is not one, but shows that the other side is there.
    ///
    /// # Errors
    /// The other side failed ([`Error::PeerFailed`]), is gone or silent, or breaks the protocol; or it was cancelled.
    pub fn receive(&mut self, watch: &dyn Watch) -> Result<Message<'_>, Error> {
        let kind = self.next_kind(watch)?;
        self.take_message(kind)
    }

    /// Waits for the next message, which is to be taken then.
    pub(crate) fn next_kind(&mut self, watch: &dyn Watch) -> Result<Kind, Error> {
        match self.arrival(watch, None)? {
            Arrival::Message(kind) => Ok(kind),
            // Without a deadline nothing is late.
            Arrival::Late => Err(self.silent()),
        }
    }

    /// Waits for the next message until `deadline`; `None` if it has not come, or only in part.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn receive_for(
        &mut self,
        watch: &dyn Watch,
        deadline: Instant,
    ) -> Result<Option<Message<'_>>, Error> {
        match self.arrival(watch, Some(deadline))? {
            Arrival::Message(kind) => self.take_message(kind).map(Some),
            Arrival::Late => Ok(None),
        }
    }

    fn arrival(&mut self, watch: &dyn Watch, deadline: Option<Instant>) -> Result<Arrival, Error> {
        let mut heard = Instant::now();
        loop {
            if watch.cancelled() {
                return Err(self.cancelled());
            }
            match self.advance()? {
                Advance::Whole(Kind::Alive) => {
                    self.take_message(Kind::Alive)?;
                    heard = Instant::now();
                }
                Advance::Whole(kind) => return Ok(Arrival::Message(kind)),
                Advance::Some => heard = Instant::now(),
                Advance::End => return Err(self.closed()),
                Advance::None => {
                    let silent = heard + self.silence;
                    let until = deadline.map_or(silent, |deadline| deadline.min(silent));
                    let waited = self.transport.wait(Want::Read, watch, until);
                    match waited.map_err(|error| self.io(error))? {
                        Waited::Ready => (),
                        Waited::Cancelled => return Err(self.cancelled()),
                        Waited::Late if until < silent => return Ok(Arrival::Late),
                        Waited::Late => return Err(self.silent()),
                    }
                }
            }
        }
    }

    fn advance(&mut self) -> Result<Advance, Error> {
        let order = &self.order;
        let from = self.side.other();
        let advance = self
            .incoming
            .advance(&mut self.transport, |kind| order.admits(from, kind));
        advance.map_err(|wrong| match wrong {
            Wrong::Io(error) => self.io(error),
            Wrong::Stream(violation) => self.violated(violation),
        })
    }

    /// Takes the message that is there.
    pub(crate) fn take_message(&mut self, kind: Kind) -> Result<Message<'_>, Error> {
        let received = self.incoming.tally();
        let peer = &self.peer;
        let violated = |violation| Error::Protocol {
            peer: peer.clone(),
            violation,
        };
        let body = self.incoming.take();
        let message = message::decode(kind, body, self.attempt).map_err(violated)?;
        let order = self.order.follow(self.side.other(), message.event());
        order.map_err(violated)?;
        match message {
            Message::Failed(failure) => Err(Error::PeerFailed {
                peer: self.peer.clone(),
                failure,
            }),
            Message::End { tallies } => {
                check_tallies(self.purpose, &tallies, received).map_err(violated)?;
                Ok(Message::End { tallies })
            }
            message => Ok(message),
        }
    }

    /// Writes a frame, or something else that must not be cut.
    fn write(&mut self, first: &[u8], second: &[u8], watch: &dyn Watch) -> Result<(), Error> {
        if self.output == Output::Broken {
            return Err(Error::Broken {
                peer: self.peer.clone(),
            });
        }
        // Until this is whole, it is not.
        self.output = Output::Broken;
        let unsent = std::mem::take(&mut self.unsent);
        let mut slices = [&unsent[..], first, second].map(IoSlice::new);
        let mut slices = &mut slices[..];
        let mut pace = Pace {
            moved: Instant::now(),
            cancelled: None,
        };
        IoSlice::advance_slices(&mut slices, 0);
        loop {
            let written = match slices.is_empty() {
                true if !self.transport.has_pending() => break,
                true => self.transport.flush().map(|()| 0),
                false => self.transport.write(slices),
            };
            match written {
                Ok(bytes) => {
                    IoSlice::advance_slices(&mut slices, bytes);
                    pace.moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_to_write(&mut pace, watch)?;
                }
                Err(error) => return Err(self.write_failed(error)),
            }
        }
        self.sent_last = Instant::now();
        self.output = Output::Whole;
        Ok(())
    }

    fn wait_to_write(&mut self, pace: &mut Pace, watch: &dyn Watch) -> Result<(), Error> {
        let want = match self.listen()? {
            Listening::On => Want::Both,
            Listening::Off => Want::Write,
        };
        let silent = pace.moved + self.silence;
        let (watch, until) = match pace.cancelled {
            None => (watch, silent),
            Some(since) => (&Unwatched as &dyn Watch, silent.min(since + CANCEL_GRACE)),
        };
        let waited = self.transport.wait(want, watch, until);
        match waited.map_err(|error| self.io(error))? {
            Waited::Ready => Ok(()),
            Waited::Cancelled => {
                pace.cancelled = Some(Instant::now());
                Ok(())
            }
            Waited::Late if pace.cancelled.is_some() => Err(self.cancelled()),
            Waited::Late => Err(self.silent()),
        }
    }

    /// Looks for a `Failed`, as far as that is possible without taking what is for [`Link::receive`].
    fn listen(&mut self) -> Result<Listening, Error> {
        loop {
            if let Some(kind) = self.incoming.kind()
                && !matches!(kind, Kind::Alive | Kind::Failed)
            {
                return Ok(Listening::Off);
            }
            match self.advance()? {
                Advance::Whole(kind @ (Kind::Alive | Kind::Failed)) => {
                    self.take_message(kind)?;
                }
                Advance::Whole(_) => return Ok(Listening::Off),
                Advance::Some => (),
                Advance::None => return Ok(Listening::On),
                Advance::End => return Err(self.closed()),
            }
        }
    }

    /// A write failed: the other side may have said why.
    fn write_failed(&mut self, error: io::Error) -> Error {
        self.output = Output::Broken;
        match self.listen() {
            Err(failed @ Error::PeerFailed { .. }) => failed,
            _ if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
            {
                self.closed()
            }
            _ => self.io(error),
        }
    }

    fn step(&self) -> &'static str {
        self.order.stage().step()
    }

    fn cancelled(&self) -> Error {
        Error::Cancelled {
            peer: self.peer.clone(),
            step: self.step(),
        }
    }

    fn silent(&self) -> Error {
        Error::Silent {
            peer: self.peer.clone(),
            step: self.step(),
            limit: self.silence,
        }
    }

    fn closed(&self) -> Error {
        Error::Closed {
            peer: self.peer.clone(),
            step: self.step(),
        }
    }

    fn io(&self, error: io::Error) -> Error {
        Error::from_io(error, &self.peer, self.step())
    }

    pub(crate) fn violated(&self, violation: Violation) -> Error {
        Error::Protocol {
            peer: self.peer.clone(),
            violation,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Listening {
    On,
    /// Something else is there, for [`Link::receive`].
    Off,
}

/// How a write gets on.
struct Pace {
    moved: Instant,
    cancelled: Option<Instant>,
}

fn check_tallies(purpose: Purpose, tallies: &[Tally], received: Tally) -> Result<(), Violation> {
    let expected = match purpose {
        Purpose::Migrate { connections } => usize::from(connections),
        Purpose::Join { .. } | Purpose::Ask => 1,
    };
    let wrong = |reason| Err(Violation::content(Kind::End, reason));
    match tallies {
        _ if tallies.len() != expected => wrong("it is not about all connections"),
        [own, ..] if *own == received => Ok(()),
        _ => wrong("not all that was sent has arrived"),
    }
}
