//! The messages, and their bodies: a head of fixed size, which may be empty, and data.

use std::borrow::Cow;
use std::time::Duration;

use super::error::Violation;
use super::failure::{FAILURE_MOST, Failure};
use super::order::{Event, Kind, Last};
use super::{BLOCK, CONNECTIONS_MOST, FRAME_DATA_MOST, PAGE};
use crate::stream::StreamId;

/// The most timings in one `Running`.
pub const TIMINGS_MOST: usize = 64;
/// The longest name of a timing, in bytes.
pub const TIMING_NAME_MOST: usize = 32;

/// What comes before the data of a body, where anything does.
pub(super) const HEAD: usize = 8;
const TALLY: usize = 16;
/// The length of an attempt's number.
const ATTEMPT: usize = 16;

/// What one side says to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Sender: a piece of the description of the machine, at most [`DESCRIPTION_MOST`](super::DESCRIPTION_MOST) bytes in all.
    Describe {
        /// At most 1 MiB.
        piece: &'a [u8],
        /// Whether the description is complete with it.
        last: Last,
    },
    /// Sender: whole pages within one block of 1 MiB.
    Pages {
        /// Where they begin.
        gpa: u64,
        /// What they hold.
        data: &'a [u8],
    },
    /// Sender: whole pages of zeros within one block of 1 MiB.
    Zeros {
        /// Where they begin.
        gpa: u64,
        /// How many bytes of them.
        bytes: u64,
    },
    /// Both, in a hand-over: descriptors, which are taken by [`Link::take_handles`](super::Link::take_handles).
    Handles {
        /// How many, at most 64.
        count: u16,
    },
    /// Sender, at the end of a round, and where pages are lent to the kernel: is to be answered, once all pages before it are in RAM.
    Sync,
    /// Receiver: the answer.
    Synced,
    /// Both, at any time: still there.
    Alive,
    /// Sender: a round of copying begins. Information only.
    Round {
        /// Which, from 0.
        number: u32,
    },
    /// Sender: a piece of the saved state, at most 1 MiB.
    State(&'a [u8]),
    /// Sender: the saved state is complete.
    StateEnd,
    /// Sender: a piece of the state inside a back-end.
    Chunk {
        /// Which device of the description.
        device: u16,
        /// At most 1 MiB.
        data: &'a [u8],
    },
    /// Sender: the state inside a back-end is complete.
    ChunkEnd {
        /// Which device of the description.
        device: u16,
        /// All bytes of its chunks.
        total: u64,
    },
    /// Sender: nothing more comes before the commit; on an extra connection, nothing at all.
    End {
        /// What was sent: on every connection, by index; on an extra connection, on this one.
        tallies: Cow<'a, [Tally]>,
    },
    /// Sender: the guest is the receiver's.
    Commit {
        /// For how long it may be started, from the receiver's `Ready` on.
        good_for: Duration,
    },
    /// Both: gives up.
    Failed(Failure),
    /// Sender: knows that the guest runs.
    Bye,
    /// Receiver: RAM and back-ends are there.
    Prepared,
    /// Receiver: all is loaded and checked, and nothing was started.
    Ready,
    /// Receiver: the guest runs.
    Running {
        /// Since when, by the receiver's clock: microseconds since the Unix epoch.
        since: u64,
        /// Where the time went while it stood still; and as `release`, for how long it has run by now.
        timings: Cow<'a, [Timing]>,
    },
    /// Receiver, asked: what became of the attempt.
    Outcome(Outcome),
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest was started here.
    Running,
    /// The attempt ended without a commit.
    Discarded,
    /// The commit came, and the guest could not be started; nothing of it ran.
    NeverStarted,
    /// The attempt waits for its commit.
    Waiting,
    /// There was no such attempt, or it is forgotten.
    Unknown,
}

impl Outcome {
    const ALL: [Outcome; 5] = [
        Outcome::Running,
        Outcome::Discarded,
        Outcome::NeverStarted,
        Outcome::Waiting,
        Outcome::Unknown,
    ];
}

/// A step of the receiver's, and how long it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The step, at most 32 bytes.
    pub name: String,
    /// Microseconds.
    pub micros: u64,
}

/// What went over a connection in one direction, up to `End`, which does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many frames.
    pub frames: u64,
    /// XXH3-64 of their headers, which hold the checksums of the rest.
    pub digest: u64,
}

/// A body as it is sent.
pub(super) struct Body<'a> {
    pub(super) head: [u8; HEAD],
    pub(super) data: Cow<'a, [u8]>,
}

/// How much of a body comes before the data.
pub(super) fn head_bytes(kind: Kind) -> usize {
    match kind {
        Kind::Describe | Kind::Pages | Kind::Chunk => HEAD,
        _ => 0,
    }
}

/// The bodies' lengths, head included.
pub(super) fn check_length(kind: Kind, length: u32) -> Result<usize, Violation> {
    const MOST: usize = HEAD + FRAME_DATA_MOST;
    let bytes = length as usize;
    let right = match kind {
        Kind::Describe => (HEAD..=MOST).contains(&bytes),
        Kind::Pages => {
            (HEAD + PAGE as usize..=MOST).contains(&bytes)
                && (bytes - HEAD).is_multiple_of(PAGE as usize)
        }
        Kind::Chunk => (HEAD + 1..=MOST).contains(&bytes),
        Kind::State => (1..=FRAME_DATA_MOST).contains(&bytes),
        Kind::End => {
            (1..=CONNECTIONS_MOST as usize).contains(&(bytes / TALLY))
                && bytes.is_multiple_of(TALLY)
        }
        Kind::Zeros | Kind::ChunkEnd => bytes == 16,
        Kind::Commit => bytes == ATTEMPT + 8,
        Kind::Round => bytes == 4,
        Kind::Handles => bytes == 2,
        Kind::Outcome => bytes == 1,
        Kind::Running => (8..=8 + TIMINGS_MOST * (1 + TIMING_NAME_MOST + 8)).contains(&bytes),
        Kind::Failed => bytes <= FAILURE_MOST,
        Kind::StateEnd
        | Kind::Bye
        | Kind::Prepared
        | Kind::Ready
        | Kind::Sync
        | Kind::Synced
        | Kind::Alive => bytes == 0,
    };
    match right {
        true => Ok(bytes),
        false => Err(Violation::Length { kind, length }),
    }
}

impl Message<'_> {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Describe { .. } => Kind::Describe,
            Message::Pages { .. } => Kind::Pages,
            Message::Zeros { .. } => Kind::Zeros,
            Message::Handles { .. } => Kind::Handles,
            Message::Sync => Kind::Sync,
            Message::Synced => Kind::Synced,
            Message::Alive => Kind::Alive,
            Message::Round { .. } => Kind::Round,
            Message::State(_) => Kind::State,
            Message::StateEnd => Kind::StateEnd,
            Message::Chunk { .. } => Kind::Chunk,
            Message::ChunkEnd { .. } => Kind::ChunkEnd,
            Message::End { .. } => Kind::End,
            Message::Commit { .. } => Kind::Commit,
            Message::Failed(_) => Kind::Failed,
            Message::Bye => Kind::Bye,
            Message::Prepared => Kind::Prepared,
            Message::Ready => Kind::Ready,
            Message::Running { .. } => Kind::Running,
            Message::Outcome(_) => Kind::Outcome,
        }
    }

    pub(super) fn event(&self) -> Event {
        let mut event = Event {
            kind: self.kind(),
            last: Last::No,
            device: 0,
            bytes: 0,
        };
        match self {
            Message::Describe { piece, last } => {
                event.last = *last;
                event.bytes = piece.len() as u64;
            }
            Message::Chunk { device, data } => {
                event.device = *device;
                event.bytes = data.len() as u64;
            }
            Message::ChunkEnd { device, total } => {
                event.device = *device;
                event.bytes = *total;
            }
            _ => (),
        }
        event
    }

    pub(super) fn body(&self, attempt: StreamId) -> Body<'_> {
        let mut head = [0; HEAD];
        let data: Cow<'_, [u8]> = match self {
            Message::Describe { piece, last } => {
                head[0] = (*last == Last::Yes).into();
                (*piece).into()
            }
            Message::Pages { gpa, data } => {
                head = gpa.to_be_bytes();
                (*data).into()
            }
            Message::Zeros { gpa, bytes } => numbers([*gpa, *bytes]).into(),
            Message::Round { number } => number.to_be_bytes().to_vec().into(),
            Message::Handles { count } => count.to_be_bytes().to_vec().into(),
            Message::State(piece) => (*piece).into(),
            Message::Chunk { device, data } => {
                head[..2].copy_from_slice(&device.to_be_bytes());
                (*data).into()
            }
            Message::ChunkEnd { device, total } => {
                numbers([u64::from(*device) << 48, *total]).into()
            }
            Message::End { tallies } => tallies
                .iter()
                .flat_map(|tally| numbers([tally.frames, tally.digest]))
                .collect(),
            Message::Commit { good_for } => {
                let micros = u64::try_from(good_for.as_micros()).unwrap_or(u64::MAX);
                [&attempt.0[..], &micros.to_be_bytes()].concat().into()
            }
            Message::Failed(failure) => failure.encode().into(),
            Message::Running { since, timings } => encode_running(*since, timings).into(),
            Message::Outcome(outcome) => vec![*outcome as u8 + 1].into(),
            Message::Alive
            | Message::Sync
            | Message::Synced
            | Message::StateEnd
            | Message::Bye
            | Message::Prepared
            | Message::Ready => Cow::Borrowed(&[]),
        };
        Body { head, data }
    }
}

/// Takes a body apart, whose length and checksum are right.
pub(super) fn decode(kind: Kind, body: &[u8], attempt: StreamId) -> Result<Message<'_>, Violation> {
    let (head, data) = body
        .split_at_checked(head_bytes(kind))
        .ok_or(Violation::Flags(kind))?;
    let wrong = |reason| Err(Violation::content(kind, reason));
    Ok(match kind {
        Kind::Describe => Message::Describe {
            piece: data,
            last: match head {
                [0, 0, 0, 0, 0, 0, 0, 0] => Last::No,
                [1, 0, 0, 0, 0, 0, 0, 0] => Last::Yes,
                _ => return Err(Violation::Flags(kind)),
            },
        },
        Kind::Pages => {
            let gpa = be_u64(head);
            check_pages(kind, gpa, data.len() as u64)?;
            Message::Pages { gpa, data }
        }
        Kind::Zeros => {
            let (gpa, bytes) = (be_u64(data), be_u64(&data[8..]));
            check_pages(kind, gpa, bytes)?;
            Message::Zeros { gpa, bytes }
        }
        Kind::Handles => Message::Handles {
            count: be_u16(data),
        },
        Kind::Sync => Message::Sync,
        Kind::Synced => Message::Synced,
        Kind::Alive => Message::Alive,
        Kind::Round => Message::Round {
            number: (be_u32(data)),
        },
        Kind::State => Message::State(data),
        Kind::StateEnd => Message::StateEnd,
        Kind::Chunk if head[2..] != [0; 6] => return Err(Violation::Flags(kind)),
        Kind::Chunk => Message::Chunk {
            device: be_u16(head),
            data,
        },
        Kind::ChunkEnd if data[2..8] != [0; 6] => return Err(Violation::Flags(kind)),
        Kind::ChunkEnd => Message::ChunkEnd {
            device: be_u16(data),
            total: be_u64(&data[8..]),
        },
        Kind::End => Message::End {
            tallies: data
                .chunks_exact(TALLY)
                .map(|tally| Tally {
                    frames: be_u64(tally),
                    digest: be_u64(&tally[8..]),
                })
                .collect(),
        },
        Kind::Commit if data[..ATTEMPT] != attempt.0 => {
            return wrong("it is about another attempt");
        }
        Kind::Commit => Message::Commit {
            good_for: Duration::from_micros(be_u64(&data[ATTEMPT..])),
        },
        Kind::Failed => Message::Failed(Failure::decode(data)?),
        Kind::Bye => Message::Bye,
        Kind::Prepared => Message::Prepared,
        Kind::Ready => Message::Ready,
        Kind::Running => {
            let cut = Violation::content(kind, "it is cut off");
            let (since, timings) = data.split_at_checked(8).ok_or(cut)?;
            Message::Running {
                since: be_u64(since),
                timings: decode_timings(timings)?.into(),
            }
        }
        Kind::Outcome => match Outcome::ALL.get(usize::from(data[0]).wrapping_sub(1)) {
            Some(outcome) => Message::Outcome(*outcome),
            None => return wrong("the outcome is unknown"),
        },
    })
}

/// That these are whole pages of one block.
pub(super) fn check_pages(kind: Kind, gpa: u64, bytes: u64) -> Result<(), Violation> {
    let whole = gpa.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE) && bytes != 0;
    match whole && bytes <= BLOCK - gpa % BLOCK {
        true => Ok(()),
        false => Err(Violation::content(
            kind,
            "it is not about whole pages of one block",
        )),
    }
}

fn encode_running(since: u64, timings: &[Timing]) -> Vec<u8> {
    let mut bytes = since.to_be_bytes().to_vec();
    for timing in timings.iter().take(TIMINGS_MOST) {
        let name = &timing.name[..timing.name.floor_char_boundary(TIMING_NAME_MOST)];
        bytes.push(name.len() as u8);
        bytes.extend(name.as_bytes());
        bytes.extend(timing.micros.to_be_bytes());
    }
    bytes
}

fn decode_timings(mut bytes: &[u8]) -> Result<Vec<Timing>, Violation> {
    let wrong = |reason| Violation::content(Kind::Running, reason);
    let mut timings = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let length = usize::from(*length);
        if length > TIMING_NAME_MOST || timings.len() == TIMINGS_MOST {
            return Err(wrong("it has too much text"));
        }
        let cut = wrong("a timing is cut off");
        let (timing, rest) = rest.split_at_checked(length + 8).ok_or(cut)?;
        let (name, micros) = timing.split_at(length);
        let name = std::str::from_utf8(name).map_err(|_| wrong("a name is not UTF-8"))?;
        timings.push(Timing {
            name: name.replace(|c: char| c.is_control(), " "),
            micros: be_u64(micros),
        });
        bytes = rest;
    }
    Ok(timings)
}

fn numbers(numbers: [u64; 2]) -> Vec<u8> {
    numbers
        .into_iter()
        .flat_map(|number| number.to_be_bytes())
        .collect()
}

pub(super) fn be_u16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

pub(super) fn be_u32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

pub(super) fn be_u64(bytes: &[u8]) -> u64 {
    u64::from(be_u32(bytes)) << 32 | u64::from(be_u32(&bytes[4..]))
}
