//! Sending messages.

use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use super::connection::{Condition, FAREWELL, Link};
use super::error::Error;
use super::failure::Failure;
use super::message::{self, Body, HEAD, Message};
use super::order::Kind;
use super::receiving::Listening;
use super::socket::{Rest, Waited, Want};
use super::wire::FRAME_HEADER;
use crate::pages::Staged;
use crate::watch::{Unwatched, Watch};

/// How long a frame that was begun may take to end after a cancel, so that the connection stays of use for `Failed`.
const CANCEL_GRACE: Duration = Duration::from_millis(100);
/// Fewer bytes are copied along with their header: to lend them takes a system call of its own.
const LENT_LEAST: usize = 32 << 10;
/// Frames of few pages are sent together, about so many bytes at a time: each time the receiver is woken.
const TOGETHER: usize = 64 << 10;
/// For how many silence limits one is waited for that says that it is there, but takes nothing: it may have a back-end that
/// is slow.
const STALLED: u32 = 4;

impl Link {
    /// Sends a message, whole. While the other side takes nothing, it is heard: if it failed, that is the error.
    ///
    /// # Errors
    /// The message cannot come here; the other side failed, is gone, or takes nothing for too long; or it was cancelled.
    /// After any error the other side does not have the message, and never will: it was not handed to the kernel whole, and
    /// then nothing follows on this connection. (A frame that was begun is given a moment to end after a cancel, so that
    /// `Failed` can follow.)
    pub fn send(&mut self, message: &Message<'_>, watch: &dyn Watch) -> Result<(), Error> {
        self.send_with(message, None, watch)
    }

    /// Whether so many bytes of pages would be lent to the kernel: what is sent with [`Link::send_pages`] must not change then until
    /// it is [known](Link::wait_synced) to be with the receiver.
    pub(crate) fn borrows(&self, bytes: usize) -> bool {
        bytes >= LENT_LEAST && self.transport.borrows()
    }

    /// Sends whole pages within one block; a few of them only with what follows, or with [`Link::flush`].
    ///
    /// # Errors
    /// As [`Link::send`].
    pub(crate) fn send_pages(
        &mut self,
        gpa: u64,
        pages: Staged<'_>,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        let data = pages.bytes;
        if data.len() < LENT_LEAST {
            return self.gather(gpa, data, watch);
        }
        let lent = self.borrows(data.len()).then_some(pages);
        self.send_with(&Message::Pages { gpa, data }, lent, watch)
    }

    /// Sends pages soon: with what is sent next, or when they are many.
    fn gather(&mut self, gpa: u64, data: &[u8], watch: &dyn Watch) -> Result<(), Error> {
        if self.output == Condition::Broken {
            return Err(self.broken());
        }
        let message = Message::Pages { gpa, data };
        let body = message.body(self.attempt);
        let frame = self.frame(&message, &body, watch)?;
        self.unsent.extend(frame.bytes());
        self.unsent.extend(data);
        match self.unsent.len() < TOGETHER {
            true => Ok(()),
            false => self.flush(watch),
        }
    }

    /// Sends a message, whose data may be lent.
    fn send_with(
        &mut self,
        message: &Message<'_>,
        lent: Option<Staged<'_>>,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        let body = message.body(self.attempt);
        let frame = self.frame(message, &body, watch)?;
        let rest = lent.map_or(Rest::Bytes(&body.data), Rest::Lent);
        self.write_frame(frame.bytes(), rest, watch)
    }

    /// What comes before the data of a message, which is due now.
    fn frame(
        &mut self,
        message: &Message<'_>,
        body: &Body<'_>,
        watch: &dyn Watch,
    ) -> Result<Frame, Error> {
        if watch.cancelled() {
            return Err(self.cancelled());
        }
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
        // The other side may take its time for what this says.
        self.waiting = None;
        let mut frame = Frame {
            bytes: [0; FRAME_HEADER + HEAD],
            length: FRAME_HEADER + head.len(),
        };
        let (header, rest) = frame.bytes.split_at_mut(FRAME_HEADER);
        header.copy_from_slice(&self.outgoing.header(kind, head, &body.data));
        rest[..head.len()].copy_from_slice(head);
        Ok(frame)
    }

    /// Sends `Alive` if nothing was sent for a quarter of the silence limit. Never waits.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn keep_alive_if_due(&mut self) -> Result<(), Error> {
        let early = self.sent_last.elapsed() < self.silence / 4;
        let over = self.order.admits(self.side, Kind::Alive).is_err();
        if early || over || self.output == Condition::Broken {
            return Ok(());
        }
        if self.unsent.is_empty() && !self.transport.has_pending() {
            let follow = self.order.follow(self.side, Message::Alive.event());
            follow.map_err(|violation| self.violated(violation))?;
            let header = self.outgoing.header(Kind::Alive, &[], &[]);
            self.unsent.extend(header);
        }
        let written = match self.unsent.is_empty() {
            true => self.transport.flush().map(|()| 0),
            false => self.transport.write(&[IoSlice::new(&self.unsent)]),
        };
        match written {
            Ok(sent) => {
                self.unsent.drain(..sent);
                self.sent_last = Instant::now();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
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

    /// Hands the kernel what is left of small frames.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub(crate) fn flush(&mut self, watch: &dyn Watch) -> Result<(), Error> {
        match self.unsent.is_empty() {
            true => Ok(()),
            false => self.write(&[], &[], watch),
        }
    }

    /// Writes a frame, or something else that must not be cut.
    pub(super) fn write(
        &mut self,
        first: &[u8],
        second: &[u8],
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        self.write_frame(first, Rest::Bytes(second), watch)
    }

    fn write_frame(
        &mut self,
        first: &[u8],
        rest: Rest<'_>,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        if self.output == Condition::Broken {
            return Err(self.broken());
        }
        // Until this is whole, it is not.
        self.output = Condition::Broken;
        let mut unsent = std::mem::take(&mut self.unsent);
        let (second, mut lent) = match rest {
            Rest::Bytes(bytes) => (bytes, None),
            Rest::Lent(pages) => (&[][..], Some(pages)),
        };
        let mut slices = [&unsent[..], first, second].map(IoSlice::new);
        let mut slices = &mut slices[..];
        let mut pace = Pace {
            moved: Instant::now(),
            cancelled: None,
        };
        IoSlice::advance_slices(&mut slices, 0);
        loop {
            let written = match (slices.is_empty(), &mut lent) {
                (false, _) => {
                    let written = self.transport.write(slices);
                    written.map(|bytes| IoSlice::advance_slices(&mut slices, bytes))
                }
                (true, Some(pages)) if !pages.bytes.is_empty() => self.transport.lend(pages),
                (true, _) if self.transport.has_pending() => self.transport.flush(),
                (true, _) => break,
            };
            match written {
                Ok(()) => pace.moved = Instant::now(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_to_write(&mut pace, watch)?;
                }
                Err(error) => return Err(self.write_failed(error)),
            }
        }
        unsent.clear();
        self.unsent = unsent;
        self.sent_last = Instant::now();
        self.output = Condition::Whole;
        Ok(())
    }

    fn wait_to_write(&mut self, pace: &mut Pace, watch: &dyn Watch) -> Result<(), Error> {
        let want = match self.listen()? {
            Listening::On => Want::Both,
            Listening::Off => Want::Write,
        };
        let silent = self.silent_at(pace.moved);
        let (watch, until) = match pace.cancelled {
            None => (watch, silent),
            Some(since) => (&Unwatched as &dyn Watch, silent.min(since + CANCEL_GRACE)),
        };
        match self.wait_until(want, watch, until)? {
            Waited::Ready => Ok(()),
            Waited::Cancelled => {
                pace.cancelled = Some(Instant::now());
                Ok(())
            }
            _ if pace.cancelled.is_some() => Err(self.cancelled()),
            _ => Err(self.silent()),
        }
    }

    /// When one is silent that has done nothing of what it is to do since that time. To say that it is there helps for a while.
    pub(super) fn silent_at(&self, since: Instant) -> Instant {
        let silent = self.heard.max(since) + self.silence;
        silent.min(since + STALLED * self.silence)
    }

    /// Waits, and not at all once it is late: what the other side has to say may have no end, so that it is always ready.
    pub(super) fn wait_until(
        &mut self,
        want: Want,
        watch: &dyn Watch,
        until: Instant,
    ) -> Result<Waited, Error> {
        let waited = match Instant::now() < until {
            true => self.transport.wait(want, watch, until),
            false => Ok(Waited::Late),
        };
        waited.map_err(|error| self.io(error))
    }

    /// A write failed: the other side may have said why.
    fn write_failed(&mut self, error: io::Error) -> Error {
        self.output = Condition::Broken;
        let deadline = Instant::now() + FAREWELL;
        let mut said = self.listen();
        // It may have said before, many times, that it is there.
        while matches!(said, Ok(Listening::On)) && self.has_input() && Instant::now() < deadline {
            said = self.listen();
        }
        match said {
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
}

/// What comes before the data of a message.
struct Frame {
    bytes: [u8; FRAME_HEADER + HEAD],
    length: usize,
}

impl Frame {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// How a write gets on.
struct Pace {
    moved: Instant,
    cancelled: Option<Instant>,
}
