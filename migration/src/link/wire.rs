//! The fixed parts of the wire: preamble, its answer, frame headers, and what is summed up.

use crate::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use super::error::Violation;
use super::message::{self, Tally, be_u16, be_u32, be_u64};
use super::order::{Kind, Side};
use super::versions::Versions;
use super::{CONNECTIONS_MOST, Purpose};
use crate::stream::StreamId;

const MAGIC: [u8; 8] = *b"\x89FLINK\r\n";
pub(super) const PREAMBLE: usize = 48;
pub(super) const ANSWER: usize = 48;
pub(super) const FRAME_HEADER: usize = 16;
/// The longest reason of a refusal, in bytes.
pub(super) const REASON_MOST: usize = 1024;

/// What a client says first. Its form is the same in all versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preamble {
    pub(super) oldest: u16,
    pub(super) newest: u16,
    pub(super) purpose: Purpose,
    pub(super) attempt: StreamId,
}

impl Preamble {
    pub(super) fn encode(&self) -> [u8; PREAMBLE] {
        let (code, number) = match self.purpose {
            Purpose::Migrate { connections } => (1u16, connections),
            Purpose::Join { index } => (2, index),
            Purpose::Ask => (3, 0),
            Purpose::HandOver => (4, 0),
        };
        let mut bytes = [0; PREAMBLE];
        bytes[..8].copy_from_slice(&MAGIC);
        for (at, number) in [
            (8, self.oldest),
            (10, self.newest),
            (12, code),
            (14, number),
        ] {
            bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
        }
        bytes[16..32].copy_from_slice(&self.attempt.0);
        sealed(bytes)
    }

    pub(super) fn decode(bytes: &[u8; PREAMBLE]) -> Result<Self, Violation> {
        check_seal(bytes)?;
        let number = be_u16(&bytes[14..]);
        let purpose = match be_u16(&bytes[12..]) {
            1 if (1..=CONNECTIONS_MOST).contains(&number) => Purpose::Migrate {
                connections: number,
            },
            2 if (1..CONNECTIONS_MOST).contains(&number) => Purpose::Join { index: number },
            3 if number == 0 => Purpose::Ask,
            4 if number == 0 => Purpose::HandOver,
            _ => return Err(Violation::Preamble),
        };
        let mut attempt = [0; 16];
        attempt.copy_from_slice(&bytes[16..32]);
        Ok(Preamble {
            oldest: be_u16(&bytes[8..]),
            newest: be_u16(&bytes[10..]),
            purpose,
            attempt: StreamId(attempt),
        })
    }

    /// The newest version that both know.
    pub(super) fn version(&self) -> Result<u16, Violation> {
        let theirs = self.versions();
        let common = Versions::known().common(theirs);
        common.ok_or(Violation::Version {
            oldest: self.oldest,
            newest: self.newest,
        })
    }

    /// Those that the sender knows.
    pub(super) fn versions(&self) -> Versions {
        Versions {
            oldest: self.oldest,
            newest: self.newest,
        }
    }
}

/// What a receiver answers: a version, or 0 and the length of the reason that follows.
pub(super) struct Answer {
    pub(super) version: u16,
    pub(super) reason: u16,
    pub(super) attempt: StreamId,
}

impl Answer {
    pub(super) fn encode(&self) -> [u8; ANSWER] {
        let mut bytes = [0; ANSWER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_be_bytes());
        bytes[10..12].copy_from_slice(&self.reason.to_be_bytes());
        bytes[16..32].copy_from_slice(&self.attempt.0);
        sealed(bytes)
    }

    pub(super) fn decode(bytes: &[u8; ANSWER], attempt: StreamId) -> Result<Self, Violation> {
        check_seal(bytes)?;
        let answer = Answer {
            version: be_u16(&bytes[8..]),
            reason: be_u16(&bytes[10..]),
            attempt,
        };
        let known = Versions::known().contains(answer.version);
        match (answer.version, answer.reason) {
            _ if bytes[12..16] != [0; 4] => Err(Violation::Preamble),
            _ if bytes[16..32] != attempt.0 => Err(Violation::Attempt),
            (0, 1..) if usize::from(answer.reason) <= REASON_MOST => Ok(answer),
            (1.., 0) if known => Ok(answer),
            (version @ 1.., 0) => Err(Violation::Version {
                oldest: version,
                newest: version,
            }),
            _ => Err(Violation::Preamble),
        }
    }
}

fn sealed(mut bytes: [u8; 48]) -> [u8; 48] {
    let checksum = xxh3_64(&bytes[..40]);
    bytes[40..].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn check_seal(bytes: &[u8; 48]) -> Result<(), Violation> {
    let sound = bytes[..8] == MAGIC && be_u64(&bytes[40..]) == xxh3_64(&bytes[..40]);
    match sound && bytes[32..40] == [0; 8] {
        true => Ok(()),
        false => Err(Violation::Preamble),
    }
}

/// A frame's header.
#[derive(Clone, Copy)]
pub(super) struct FrameHeader {
    pub(super) kind: Kind,
    /// Of the body, in bytes.
    pub(super) length: usize,
    checksum: u64,
}

impl FrameHeader {
    /// Of a body that follows, or an error for what cannot be one.
    pub(super) fn decode(bytes: &[u8; FRAME_HEADER]) -> Result<Self, Violation> {
        let kind = Kind::of(be_u16(bytes))?;
        if bytes[2..4] != [0; 2] {
            return Err(Violation::Flags(kind));
        }
        Ok(FrameHeader {
            kind,
            length: message::check_length(kind, be_u32(&bytes[4..]))?,
            checksum: be_u64(&bytes[8..]),
        })
    }
}

/// One direction of a connection: the number of the next frame, and the digest of those before.
///
/// The checksum of a frame covers, besides its content, the attempt, the connection, the direction, and its number: so a
/// frame of another attempt, a second one, or one in another place is as wrong as a damaged one.
pub(super) struct Direction {
    seed: u64,
    number: u64,
    tally: Tally,
    digest: Xxh3,
}

impl Direction {
    pub(super) fn new(attempt: StreamId, index: u16, from: Side) -> Self {
        let mut origin = [0; 19];
        origin[..16].copy_from_slice(&attempt.0);
        origin[16..18].copy_from_slice(&index.to_be_bytes());
        origin[18] = from as u8;
        Direction {
            seed: xxh3_64(&origin),
            number: 0,
            tally: Tally::default(),
            digest: Xxh3::new(),
        }
    }

    /// The data is summed up at once, with the checksum of all the rest as the seed.
    fn checksum(&self, fixed: &[u8], head: &[u8], data: &[u8]) -> u64 {
        let mut rest = [0; 16];
        rest[..8].copy_from_slice(fixed);
        rest[8..8 + head.len()].copy_from_slice(head);
        let seed = self.seed.wrapping_add(self.number);
        let seed = xxh3_64_with_seed(&rest[..8 + head.len()], seed);
        xxh3_64_with_seed(data, seed)
    }

    /// The header of the next frame to send.
    pub(super) fn header(&mut self, kind: Kind, head: &[u8], data: &[u8]) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; FRAME_HEADER];
        bytes[..2].copy_from_slice(&(kind as u16).to_be_bytes());
        let length = (head.len() + data.len()) as u32;
        bytes[4..8].copy_from_slice(&length.to_be_bytes());
        let checksum = self.checksum(&bytes[..8], head, data);
        bytes[8..].copy_from_slice(&checksum.to_be_bytes());
        self.count(kind, &bytes);
        bytes
    }

    /// Whether a received body is what was sent; if so, it counts.
    pub(super) fn check(
        &mut self,
        bytes: &[u8; FRAME_HEADER],
        header: FrameHeader,
        head: &[u8],
        data: &[u8],
    ) -> Result<(), Violation> {
        if self.checksum(&bytes[..8], head, data) != header.checksum {
            return Err(Violation::Checksum(header.kind));
        }
        self.count(header.kind, bytes);
        Ok(())
    }

    fn count(&mut self, kind: Kind, header: &[u8; FRAME_HEADER]) {
        self.number += 1;
        if kind == Kind::End {
            return;
        }
        self.digest.update(header);
        self.tally.frames += 1;
    }

    pub(super) fn tally(&self) -> Tally {
        Tally {
            digest: self.digest.digest(),
            ..self.tally
        }
    }
}
