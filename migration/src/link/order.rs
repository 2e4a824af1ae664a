//! Which message may come when, from which side. One table serves both sides: each follows it with what it sends and what
//! it receives. All but `Alive`, `Synced` and `Failed` takes turns, and so both see the same order.

use std::collections::BTreeMap;
use std::fmt;

use super::error::Violation;
use super::{DESCRIPTION_MOST, DEVICES_MOST, Purpose};

/// The kinds of messages, with their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are those of `Message`")]
pub enum Kind {
    Describe = 1,
    Pages = 2,
    Zeros = 3,
    Round = 4,
    State = 5,
    StateEnd = 6,
    Chunk = 7,
    ChunkEnd = 8,
    End = 9,
    Commit = 10,
    Bye = 11,
    Handles = 12,
    Sync = 13,
    Prepared = 32,
    Ready = 33,
    Running = 34,
    Outcome = 35,
    Synced = 36,
    Alive = 64,
    Failed = 65,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 20] = [
        Kind::Describe,
        Kind::Pages,
        Kind::Zeros,
        Kind::Round,
        Kind::State,
        Kind::StateEnd,
        Kind::Chunk,
        Kind::ChunkEnd,
        Kind::End,
        Kind::Commit,
        Kind::Bye,
        Kind::Handles,
        Kind::Sync,
        Kind::Prepared,
        Kind::Ready,
        Kind::Running,
        Kind::Outcome,
        Kind::Synced,
        Kind::Alive,
        Kind::Failed,
    ];

    pub(super) fn of(code: u16) -> Result<Self, Violation> {
        Kind::ALL
            .into_iter()
            .find(|kind| *kind as u16 == code)
            .ok_or(Violation::Unknown(code))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Sender,
    Receiver,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Side::Sender => Side::Receiver,
            Side::Receiver => Side::Sender,
        }
    }
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The receiver has not answered the preamble.
    Offered,
    Describing,
    Preparing,
    Copying,
    Saving,
    Loading,
    Committing,
    Starting,
    Closing,
    /// An extra connection.
    Joined,
    Asked,
    Over,
}

impl Stage {
    #[cfg(test)]
    pub(super) const ALL: [Stage; 12] = [
        Stage::Offered,
        Stage::Describing,
        Stage::Preparing,
        Stage::Copying,
        Stage::Saving,
        Stage::Loading,
        Stage::Committing,
        Stage::Starting,
        Stage::Closing,
        Stage::Joined,
        Stage::Asked,
        Stage::Over,
    ];

    /// What comes behind `kind` from `from`; `None` if it cannot come. `last` is whether a `Describe` is the last one.
    pub(super) fn after(self, from: Side, kind: Kind, last: Last) -> Option<Stage> {
        use Side::{Receiver, Sender};
        use Stage::*;
        let next = match (self, from, kind) {
            // The answer may come when the sender has ended.
            (Over, Receiver, Kind::Synced) => Over,
            (Offered | Over, ..) => return None,
            (_, _, Kind::Alive) => self,
            // Whoever has said COMMIT, or RUNNING, cannot take it back.
            (Starting, Sender, Kind::Failed) | (Closing, Receiver, Kind::Failed) => return None,
            (_, _, Kind::Failed) => Over,
            (Describing, Sender, Kind::Describe) => match last {
                Last::No => Describing,
                Last::Yes => Preparing,
            },
            (Describing | Copying | Saving, Sender, Kind::Handles) => self,
            (Preparing, Receiver, Kind::Handles) => Preparing,
            (Preparing, Receiver, Kind::Prepared) => Copying,
            (Copying, Sender, Kind::Pages | Kind::Zeros | Kind::Round | Kind::Sync) => Copying,
            // The sender may be further by now.
            (Copying | Saving | Loading | Joined, Receiver, Kind::Synced) => self,
            (Copying | Saving, Sender, Kind::State | Kind::Chunk) => Saving,
            (Copying | Saving, Sender, Kind::StateEnd | Kind::ChunkEnd) => Saving,
            (Saving, Sender, Kind::End) => Loading,
            (Loading, Receiver, Kind::Ready) => Committing,
            (Committing, Sender, Kind::Commit) => Starting,
            (Starting, Receiver, Kind::Running) => Closing,
            (Closing, Sender, Kind::Bye) => Over,
            (Joined, Sender, Kind::Pages | Kind::Zeros | Kind::Sync) => Joined,
            (Joined, Sender, Kind::End) => Over,
            (Asked, Receiver, Kind::Outcome) => Over,
            _ => return None,
        };
        Some(next)
    }

    /// As in "while …".
    pub(super) fn step(self) -> &'static str {
        match self {
            Stage::Offered => "agreeing on the protocol",
            Stage::Describing => "the machine is described",
            Stage::Preparing => "the receiver prepares",
            Stage::Copying => "RAM is copied",
            Stage::Saving => "the state is saved",
            Stage::Loading => "the receiver loads the state",
            Stage::Committing => "the commit is due",
            Stage::Starting => "the receiver starts the guest",
            Stage::Closing => "the sender says goodbye",
            Stage::Joined => "RAM is copied over an extra connection",
            Stage::Asked => "the receiver is asked for the outcome",
            Stage::Over => "the connection is over",
        }
    }
}

/// Whether a piece is the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// More follow.
    No,
    /// It is.
    Yes,
}

/// What counts of a message.
#[derive(Clone, Copy)]
pub(super) struct Event {
    pub(super) kind: Kind,
    pub(super) last: Last,
    /// Of a `Chunk` or a `ChunkEnd`.
    pub(super) device: u16,
    /// Bytes of a `Describe` or a `Chunk`, or the total of a `ChunkEnd`.
    pub(super) bytes: u64,
}

/// How far a connection is, with what was counted on the way.
pub(super) struct Order {
    stage: Stage,
    carries: Carries,
    described: u64,
    /// How many `Sync` have not been answered.
    syncs: u32,
    state: StateSeen,
    devices: BTreeMap<u16, Device>,
}

/// What travels beside the state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carries {
    Pages,
    Descriptors,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StateSeen {
    No,
    Ended,
}

struct Device {
    bytes: u64,
    ended: Last,
}

impl Order {
    pub(super) fn new() -> Self {
        Order {
            stage: Stage::Offered,
            carries: Carries::Pages,
            described: 0,
            syncs: 0,
            state: StateSeen::No,
            devices: BTreeMap::new(),
        }
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// How many `Sync` have not been answered.
    pub(super) fn syncs(&self) -> u32 {
        self.syncs
    }

    /// The preamble was answered.
    pub(super) fn accepted(&mut self, purpose: Purpose) {
        if purpose == Purpose::HandOver {
            self.carries = Carries::Descriptors;
        }
        self.stage = match purpose {
            Purpose::Migrate { .. } | Purpose::HandOver => Stage::Describing,
            Purpose::Join { .. } => Stage::Joined,
            Purpose::Ask => Stage::Asked,
        };
    }

    /// Whether a message of this kind can come now. Asked before its content is there.
    pub(super) fn admits(&self, from: Side, kind: Kind) -> Result<(), Violation> {
        match self.stage.after(from, kind, Last::No) {
            Some(_) if self.is_carried(kind) => Ok(()),
            _ => Err(self.wrong(kind)),
        }
    }

    fn is_carried(&self, kind: Kind) -> bool {
        match kind {
            Kind::Pages | Kind::Zeros | Kind::Sync => self.carries == Carries::Pages,
            Kind::Handles => self.carries == Carries::Descriptors,
            _ => true,
        }
    }

    fn wrong(&self, kind: Kind) -> Violation {
        Violation::Order {
            kind,
            step: self.stage.step(),
        }
    }

    /// A message came, or is about to go.
    pub(super) fn follow(&mut self, from: Side, event: Event) -> Result<(), Violation> {
        let kind = event.kind;
        let next = self.stage.after(from, kind, event.last);
        let next = next.filter(|_| self.is_carried(kind));
        let next = next.ok_or_else(|| self.wrong(kind))?;
        let wrong = |reason| Err(Violation::content(kind, reason));
        match kind {
            Kind::Describe => {
                self.described += event.bytes;
                if self.described > DESCRIPTION_MOST {
                    return wrong("the description is too large");
                }
            }
            Kind::Sync => self.syncs += 1,
            Kind::Synced => match self.syncs.checked_sub(1) {
                Some(syncs) => self.syncs = syncs,
                None => return wrong("nothing has asked for it"),
            },
            Kind::State | Kind::StateEnd if self.state == StateSeen::Ended => {
                return wrong("the state has ended before");
            }
            Kind::StateEnd => self.state = StateSeen::Ended,
            Kind::Chunk | Kind::ChunkEnd => self.device(event)?,
            Kind::End if self.stage == Stage::Saving => {
                let open = |device: &Device| device.ended == Last::No;
                if self.state == StateSeen::No || self.devices.values().any(open) {
                    return wrong("some state has not ended");
                }
            }
            _ => (),
        }
        self.stage = next;
        Ok(())
    }

    fn device(&mut self, event: Event) -> Result<(), Violation> {
        let wrong = |reason| Err(Violation::content(event.kind, reason));
        if event.device >= DEVICES_MOST {
            return wrong("the number of the device is too large");
        }
        let device = self.devices.entry(event.device).or_insert(Device {
            bytes: 0,
            ended: Last::No,
        });
        if device.ended == Last::Yes {
            return wrong("the device's state has ended before");
        }
        match event.kind {
            Kind::Chunk => device.bytes = device.bytes.saturating_add(event.bytes),
            _ if device.bytes != event.bytes => return wrong("the total is wrong"),
            _ => device.ended = Last::Yes,
        }
        Ok(())
    }
}
