//! The frame that is on its way in. It is read as far as it has come, and so a wait can end within it and go on later.

use std::io;
use std::ops::Range;

use super::error::Violation;
use super::message::{self, HEAD};
use super::order::{Kind, Side};
use super::socket::Transport;
use super::wire::{Direction, FRAME_HEADER, FrameHeader};
use super::{Purpose, StreamId, Tally};
use crate::pages::Piece;

/// To what is aligned like this the kernel copies a good deal faster.
const ALIGNED: usize = 64;

pub(super) struct Incoming {
    header: [u8; FRAME_HEADER],
    header_there: usize,
    frame: Option<FrameHeader>,
    /// With the body of the frame in it, so that what is behind its head is aligned.
    buffer: Vec<u8>,
    body_there: usize,
    /// How long the body is that was taken last, if it is a chunk's.
    chunk: usize,
    direction: Direction,
}

/// How far it got.
pub(super) enum Advance {
    /// A whole frame is there, and right.
    Whole(Kind),
    /// Something came.
    Some,
    /// Nothing came, for now.
    None,
    /// The other side has ended the connection.
    End,
}

/// Why it cannot go on.
pub(super) enum Wrong {
    Io(io::Error),
    Stream(Violation),
}

impl From<Violation> for Wrong {
    fn from(violation: Violation) -> Self {
        Wrong::Stream(violation)
    }
}

impl Incoming {
    pub(super) fn new(attempt: StreamId, purpose: Purpose, from: Side) -> Self {
        Incoming {
            header: [0; FRAME_HEADER],
            header_there: 0,
            frame: None,
            buffer: Vec::new(),
            body_there: 0,
            chunk: 0,
            direction: Direction::new(attempt, purpose.index(), from),
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.direction.tally()
    }

    /// The kind of the frame, if its header is there.
    pub(super) fn kind(&self) -> Option<Kind> {
        self.frame.map(|frame| frame.kind)
    }

    /// Whether all of a frame is there.
    pub(super) fn is_whole(&self) -> bool {
        self.frame
            .is_some_and(|frame| frame.length == self.body_there)
    }

    /// Reads on. `admit` says whether a kind can come now, before memory is set aside for it.
    pub(super) fn advance(
        &mut self,
        transport: &mut Transport,
        admit: impl FnOnce(Kind) -> Result<(), Violation>,
    ) -> Result<Advance, Wrong> {
        let Some(frame) = self.frame else {
            return self.advance_header(transport, admit);
        };
        if self.is_whole() {
            return Ok(Advance::Whole(frame.kind));
        }
        let there = self.body_there;
        let read = transport.read(&mut self.body_mut()[there..frame.length]);
        let advance = arrived(read, &mut self.body_there)?;
        match self.is_whole() {
            true => self.check(frame),
            false => Ok(advance),
        }
    }

    fn advance_header(
        &mut self,
        transport: &mut Transport,
        admit: impl FnOnce(Kind) -> Result<(), Violation>,
    ) -> Result<Advance, Wrong> {
        let read = transport.read(&mut self.header[self.header_there..]);
        let advance = arrived(read, &mut self.header_there)?;
        if self.header_there < FRAME_HEADER {
            return Ok(advance);
        }
        let frame = FrameHeader::decode(&self.header)?;
        admit(frame.kind)?;
        let needed = frame.length + ALIGNED;
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        }
        self.frame = Some(frame);
        match self.is_whole() {
            true => self.check(frame),
            false => Ok(Advance::Some),
        }
    }

    fn check(&mut self, frame: FrameHeader) -> Result<Advance, Wrong> {
        let body = &self.buffer[begin(&self.buffer)..][..frame.length];
        let (head, data) = body.split_at(message::head_bytes(frame.kind).min(body.len()));
        self.direction.check(&self.header, frame, head, data)?;
        Ok(Advance::Whole(frame.kind))
    }

    /// Without a frame there may be none.
    fn body(&self) -> &[u8] {
        self.buffer.get(begin(&self.buffer)..).unwrap_or_default()
    }

    fn body_mut(&mut self) -> &mut [u8] {
        let begin = begin(&self.buffer);
        self.buffer.get_mut(begin..).unwrap_or_default()
    }

    /// Whether a frame of pages has begun of which no page was read; the length of the pages.
    pub(super) fn begun_pages(&self) -> Option<usize> {
        let frame = self.frame.filter(|frame| frame.kind == Kind::Pages)?;
        (self.body_there <= HEAD).then_some(frame.length - HEAD)
    }

    /// Reads on up to the first page; what comes before it, once it is there.
    pub(super) fn advance_to_pages(&mut self, transport: &mut Transport) -> Result<Advance, Wrong> {
        let there = self.body_there;
        let read = transport.read(&mut self.body_mut()[there..HEAD]);
        arrived(read, &mut self.body_there)
    }

    /// What comes before the first page, if it is there.
    pub(super) fn pages_head(&self) -> Option<[u8; HEAD]> {
        self.body()[..self.body_there].first_chunk().copied()
    }

    /// The pages were read elsewhere. Makes room for the next frame, if they are right.
    pub(super) fn check_elsewhere(&mut self, piece: &Piece<'_>) -> Result<(), Violation> {
        if let Some(frame) = self.frame {
            let head = &self.buffer[begin(&self.buffer)..][..HEAD];
            let (direction, header) = (&mut self.direction, &self.header);
            piece.summed(|data| direction.check(header, frame, head, data))?;
        }
        self.take();
        Ok(())
    }

    /// Makes room for the next frame, and hands out the body of this one.
    pub(super) fn take(&mut self) -> &[u8] {
        let frame = self.frame.take();
        let length = frame.map_or(0, |frame| frame.length);
        self.header_there = 0;
        self.body_there = 0;
        self.chunk = match frame {
            Some(frame) if frame.kind == Kind::Chunk => length,
            _ => 0,
        };
        &self.body()[..length]
    }

    /// Hands out the body of the chunk that was taken last, in exchange for another buffer; returns where in it the data are.
    pub(super) fn swap_chunk(&mut self, buffer: &mut Vec<u8>) -> Range<usize> {
        // What is being read is not to be given away.
        let length = std::mem::take(&mut self.chunk);
        if self.frame.is_some() || length == 0 {
            return 0..0;
        }
        std::mem::swap(&mut self.buffer, buffer);
        let begin = begin(buffer);
        begin + HEAD..begin + length
    }
}

/// Where a body begins in this buffer.
fn begin(buffer: &[u8]) -> usize {
    (buffer.as_ptr().addr() + HEAD).wrapping_neg() % ALIGNED
}

pub(super) fn arrived(read: io::Result<usize>, there: &mut usize) -> Result<Advance, Wrong> {
    match read {
        Ok(0) => Ok(Advance::End),
        Ok(bytes) => {
            *there += bytes;
            Ok(Advance::Some)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Advance::None),
        // A reset is how a connection ends on which something was under way.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Advance::End),
        Err(error) => Err(Wrong::Io(error)),
    }
}
