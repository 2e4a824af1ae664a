//! Receiving messages.

use std::time::{Duration, Instant};

use super::Purpose;
use super::connection::{Condition, Link};
use super::error::{Cause, Error, Violation};
use super::incoming::{Advance, Wrong, arrived};
use super::message::{self, Message, Tally, be_u64};
use super::order::{Event, Kind, Last};
use super::socket::{Waited, Want};
use crate::pages::Piece;
use crate::watch::{Unwatched, Watch};

/// How many `Alive` are taken at a time: a side that sends nothing else is not listened to for ever.
const ALIVE_AT_ONCE: u32 = 16;
/// How long the reason may take to come after an extra connection was lost.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Whether a message came in time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Message(Kind),
    /// Pages that have not been read.
    Pages {
        gpa: u64,
        bytes: u64,
    },
    Late,
}

/// Whether pages are waited for until they are there, or until it is known where they belong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    Whole,
    Announced,
}

/// What is next.
pub(crate) enum Arrived {
    /// Whole pages of one block, for [`Link::receive_pages`] or [`Link::next_kind`].
    Pages { gpa: u64, bytes: u64 },
    /// For [`Link::next_kind`].
    Other,
}

/// Whether the other side is heard while something is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Listening {
    On,
    /// Something else is there, for [`Link::receive`].
    Off,
}

impl Link {
    /// Whether something has arrived, which may be only a part of a message, or the end.
    pub fn has_input(&self) -> bool {
        self.incoming.is_whole() || self.transport.has_input()
    }

    /// Notices that the other side has given up, or is gone, without taking what is for [`Link::receive`].
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn notice(&mut self) -> Result<(), Error> {
        self.listen().map(drop)
    }

    /// Waits for the next message. `Alive` is not one, but shows that the other side is there.
    ///
    /// # Errors
    /// The other side failed ([`Error::PeerFailed`]), is gone or silent, or breaks the protocol; or it was cancelled.
    pub fn receive(&mut self, watch: &dyn Watch) -> Result<Message<'_>, Error> {
        let kind = self.next_kind(watch)?;
        self.take_message(kind)
    }

    /// The data of the [`Message::Chunk`] that came last, so that it can be looked at while the connection is used. It is not copied:
    /// the buffer that it is in changes places with `spare`. Empty if there is none, or something came behind it.
    pub fn take_chunk<'b>(&mut self, spare: &'b mut Vec<u8>) -> &'b [u8] {
        let data = self.incoming.swap_chunk(spare);
        spare.get(data).unwrap_or_default()
    }

    /// Waits for the next message, which is to be taken then.
    pub(crate) fn next_kind(&mut self, watch: &dyn Watch) -> Result<Kind, Error> {
        match self.arrival(watch, None, Pages::Whole)? {
            Arrival::Message(kind) => Ok(kind),
            // Without a deadline nothing is late.
            Arrival::Late | Arrival::Pages { .. } => Err(self.silent()),
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
        match self.arrival(watch, Some(deadline), Pages::Whole)? {
            Arrival::Message(kind) => self.take_message(kind).map(Some),
            Arrival::Late | Arrival::Pages { .. } => Ok(None),
        }
    }

    /// Waits until it is known what is next. That pages can be received anywhere is possible only where nothing changes
    /// their bytes on the way.
    pub(crate) fn next_arrived(&mut self, watch: &dyn Watch) -> Result<Arrived, Error> {
        let pages = match self.transport.is_plain() {
            true => Pages::Announced,
            false => Pages::Whole,
        };
        match self.arrival(watch, None, pages)? {
            Arrival::Pages { gpa, bytes } => Ok(Arrived::Pages { gpa, bytes }),
            Arrival::Message(_) | Arrival::Late => Ok(Arrived::Other),
        }
    }

    /// Receives announced pages, all of them, where they belong. After an error there may be bytes that were not sent, and nothing
    /// more is read.
    pub(crate) fn receive_pages(
        &mut self,
        piece: &Piece<'_>,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        self.input = Condition::Broken;
        let mut heard = Instant::now();
        let mut there = 0;
        while there < piece.bytes() {
            if watch.cancelled() {
                return Err(self.cancelled());
            }
            let read = self.transport.read_into(piece, there);
            match arrived(read, &mut there).map_err(|wrong| self.wrong(wrong))? {
                Advance::End => return Err(self.closed()),
                Advance::None => {
                    let silent = heard + self.silence;
                    let waited = self.transport.wait(Want::Read, watch, silent);
                    match waited.map_err(|error| self.io(error))? {
                        Waited::Ready => (),
                        Waited::Cancelled => return Err(self.cancelled()),
                        Waited::Late => return Err(self.silent()),
                    }
                }
                Advance::Some | Advance::Whole(_) => heard = Instant::now(),
            }
        }
        let event = Event {
            kind: Kind::Pages,
            last: Last::No,
            device: 0,
            bytes: 0,
        };
        self.incoming
            .check_elsewhere(piece)
            .and_then(|()| self.order.follow(self.side.other(), event))
            .map_err(|violation| self.violated(violation))?;
        self.input = Condition::Whole;
        Ok(())
    }

    /// Where announced pages belong, once that has come.
    fn announced(&mut self) -> Result<Option<Arrival>, Error> {
        let (Some(bytes), Some(head)) = (self.incoming.begun_pages(), self.incoming.pages_head())
        else {
            return Ok(None);
        };
        let (gpa, bytes) = (be_u64(&head), bytes as u64);
        match message::check_pages(Kind::Pages, gpa, bytes) {
            Ok(()) => Ok(Some(Arrival::Pages { gpa, bytes })),
            Err(violation) => Err(self.reject(violation)),
        }
    }

    fn arrival(
        &mut self,
        watch: &dyn Watch,
        deadline: Option<Instant>,
        pages: Pages,
    ) -> Result<Arrival, Error> {
        let mut heard = Instant::now();
        let mut late = 0;
        loop {
            if watch.cancelled() {
                return Err(self.cancelled());
            }
            self.note_waiting()?;
            if pages == Pages::Announced
                && let Some(announced) = self.announced()?
            {
                self.waiting = None;
                return Ok(announced);
            }
            match self.advance(pages)? {
                Advance::Whole(kind @ (Kind::Alive | Kind::Synced)) => {
                    self.take_message(kind)?;
                    heard = Instant::now();
                    late += u32::from(deadline.is_some_and(|deadline| heard >= deadline));
                }
                Advance::Whole(kind) => {
                    self.waiting = None;
                    return Ok(Arrival::Message(kind));
                }
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
            // What has come in time is taken. One that only says that it is there is late all the same.
            if late == ALIVE_AT_ONCE {
                return Ok(Arrival::Late);
            }
        }
    }

    fn advance(&mut self, pages: Pages) -> Result<Advance, Error> {
        if self.input == Condition::Broken {
            return Err(self.broken());
        }
        let order = &self.order;
        let from = self.side.other();
        let advance = match self.incoming.begun_pages() {
            Some(_) if pages == Pages::Announced => {
                self.incoming.advance_to_pages(&mut self.transport)
            }
            _ => self
                .incoming
                .advance(&mut self.transport, |kind| order.admits(from, kind)),
        };
        advance.map_err(|wrong| self.wrong(wrong))
    }

    fn wrong(&mut self, wrong: Wrong) -> Error {
        self.input = Condition::Broken;
        match wrong {
            Wrong::Io(error) => self.io(error),
            Wrong::Stream(violation) => self.violated(violation),
        }
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
        // Unless this is right, too, nothing more is read.
        self.input = Condition::Broken;
        let message = message::decode(kind, body, self.attempt).map_err(violated)?;
        let order = self.order.follow(self.side.other(), message.event());
        order.map_err(violated)?;
        if let Message::End { tallies } = &message {
            check_tallies(self.purpose, tallies, received).map_err(violated)?;
        }
        self.input = Condition::Whole;
        match message {
            Message::Failed(failure) => Err(Error::PeerFailed {
                peer: self.peer.clone(),
                failure,
            }),
            message => Ok(message),
        }
    }

    /// What a message says is wrong: nothing more is read.
    pub(crate) fn reject(&mut self, violation: Violation) -> Error {
        self.input = Condition::Broken;
        self.violated(violation)
    }

    /// Why the other side gave up, if an extra connection was lost and it says so on this main one, which may take a moment.
    pub fn explain(&mut self, error: Error) -> Error {
        match error.cause() {
            Cause::Vague => self.last_words().unwrap_or(error),
            Cause::Elsewhere | Cause::Plain => error,
        }
    }

    fn last_words(&mut self) -> Option<Error> {
        let deadline = Instant::now() + LAST_WORDS;
        while Instant::now() < deadline {
            match self.listen() {
                Err(failed @ Error::PeerFailed { .. }) => return Some(failed),
                Err(_) | Ok(Listening::Off) => return None,
                Ok(Listening::On) => (),
            }
            match self.transport.wait(Want::Read, &Unwatched, deadline) {
                Ok(Waited::Ready) => (),
                _ => return None,
            }
        }
        None
    }

    /// Waits until at most so many `Sync` have no answer.
    ///
    /// # Errors
    /// As [`Link::receive`]; something else than an answer has come.
    pub(crate) fn wait_synced(&mut self, most: u32, watch: &dyn Watch) -> Result<(), Error> {
        let mut answered = Instant::now();
        let mut left = u32::MAX;
        loop {
            let listening = self.listen()?;
            let syncs = self.order.syncs();
            if syncs <= most {
                return Ok(());
            }
            if syncs < std::mem::replace(&mut left, syncs) {
                answered = Instant::now();
            }
            if let (Listening::Off, Some(kind)) = (listening, self.incoming.kind()) {
                return Err(self.reject(Violation::content(kind, "an answer is due first")));
            }
            let silent = self.silent_at(answered);
            match self.wait_until(Want::Read, watch, silent)? {
                Waited::Ready => (),
                Waited::Cancelled => return Err(self.cancelled()),
                Waited::Late => return Err(self.silent()),
            }
        }
    }

    /// Looks for a `Failed`, as far as that is possible without taking what is for [`Link::receive`].
    pub(super) fn listen(&mut self) -> Result<Listening, Error> {
        let mut taken = 0;
        while taken < ALIVE_AT_ONCE {
            if let Some(kind) = self.incoming.kind()
                && !matches!(kind, Kind::Alive | Kind::Synced | Kind::Failed)
            {
                return Ok(Listening::Off);
            }
            match self.advance(Pages::Whole)? {
                Advance::Whole(kind @ (Kind::Alive | Kind::Synced | Kind::Failed)) => {
                    self.take_message(kind)?;
                    self.heard = Instant::now();
                    taken += 1;
                }
                Advance::Whole(_) => return Ok(Listening::Off),
                Advance::Some => (),
                Advance::None => return Ok(Listening::On),
                Advance::End => return Err(self.closed()),
            }
        }
        Ok(Listening::On)
    }
}

fn check_tallies(purpose: Purpose, tallies: &[Tally], received: Tally) -> Result<(), Violation> {
    let expected = match purpose {
        Purpose::Migrate { connections } => usize::from(connections),
        Purpose::Join { .. } | Purpose::Ask | Purpose::HandOver => 1,
    };
    let wrong = |reason| Err(Violation::content(Kind::End, reason));
    match tallies {
        _ if tallies.len() != expected => wrong("it is not about all connections"),
        [own, ..] if *own == received => Ok(()),
        _ => wrong("not all that was sent has arrived"),
    }
}
