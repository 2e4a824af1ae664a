//! One connection, and the answer to its preamble.

use std::io;
use std::time::{Duration, Instant};

use super::error::{Error, Violation};
use super::incoming::Incoming;
use super::message::Tally;
use super::order::{Order, Side};
use super::socket::Transport;
use super::wire::{Answer, Direction, REASON_MOST};
use super::{Address, Patience, Purpose, StreamId};
use crate::pages::Staging;
use crate::watch::Unwatched;

/// How long the last words may take.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// A connection between a sender and a receiver, after its preamble.
pub struct Link {
    pub(super) transport: Transport,
    pub(super) peer: Address,
    pub(super) side: Side,
    pub(super) attempt: StreamId,
    pub(super) purpose: Purpose,
    pub(super) version: u16,
    pub(super) silence: Duration,
    pub(super) order: Order,
    pub(super) outgoing: Direction,
    pub(super) incoming: Incoming,
    /// Small frames that are to go with what follows, or what is left of them.
    pub(super) unsent: Vec<u8>,
    /// Pages that may be lent to the kernel, between one round of copying and the next.
    pub(crate) staging: Option<Staging>,
    pub(super) sent_last: Instant,
    /// For how long the other side may say no more than that it is there.
    idle: Duration,
    /// Since when it is waited for; none once it has said more.
    pub(super) waiting: Option<Instant>,
    /// When the other side last said that it is there, while something was written.
    pub(super) heard: Instant,
    pub(super) input: Condition,
    pub(super) output: Condition,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Whole,
    /// A frame did not come to its end, or was wrong: nothing can follow.
    Broken,
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
        let mut transport = transport;
        if purpose == Purpose::HandOver {
            transport.expect_handles();
        }
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
            staging: None,
            sent_last: Instant::now(),
            idle: Duration::MAX,
            waiting: None,
            heard: Instant::now(),
            input: Condition::Whole,
            output: Condition::Whole,
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

    /// Bounds for how long the other side may say no more than that it is there while it is waited for. At first it may for ever.
    pub fn set_idle(&mut self, limit: Duration) {
        self.idle = limit;
        self.waiting = None;
    }

    /// It is waited for. That it is there is not enough for ever.
    pub(super) fn note_waiting(&mut self) -> Result<(), Error> {
        let since = *self.waiting.get_or_insert_with(Instant::now);
        match since.elapsed() < self.idle {
            true => Ok(()),
            false => Err(Error::Idle {
                peer: self.peer.clone(),
                step: self.step(),
                limit: self.idle,
            }),
        }
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

    fn step(&self) -> &'static str {
        self.order.stage().step()
    }

    pub(super) fn cancelled(&self) -> Error {
        Error::Cancelled {
            peer: self.peer.clone(),
            step: self.step(),
        }
    }

    pub(super) fn silent(&self) -> Error {
        Error::Silent {
            peer: self.peer.clone(),
            step: self.step(),
            limit: self.silence,
        }
    }

    pub(super) fn closed(&self) -> Error {
        Error::Closed {
            peer: self.peer.clone(),
            step: self.step(),
        }
    }

    pub(super) fn broken(&self) -> Error {
        Error::Broken {
            peer: self.peer.clone(),
        }
    }

    pub(super) fn io(&self, error: io::Error) -> Error {
        Error::from_io(error, &self.peer, self.step())
    }

    pub(crate) fn violated(&self, violation: Violation) -> Error {
        Error::Protocol {
            peer: self.peer.clone(),
            violation,
        }
    }
}
