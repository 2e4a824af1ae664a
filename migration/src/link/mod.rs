//! The connections of a live migration: their preamble, their frames, and which message may come when.
//!
//! A *sender* connects and a *receiver* listens ([`Listener`]). One main connection carries everything; extra ones may
//! share guest RAM, with 1 MiB block *k* on connection *k % n*, so that pages never overtake each other. A connection of a
//! third kind only asks what became of an attempt. All calls block, with deadlines, and end soon after
//! [`Watch::cancelled`](crate::Watch::cancelled) says so.
//!
//! All numbers are big-endian; every checksum and digest is XXH3-64. They find damage and mistakes, not forgery: that is
//! what TLS ([`Tls`]) is for.
//!
//! ```text
//! preamble   magic 89 "FLINK" 0d 0a, u16 oldest and u16 newest version known, u16 purpose, u16 number of connections or
//!            index of this one, 16-byte id of the attempt, 8 zero bytes, u64 checksum
//! answer     magic, u16 version chosen or 0, u16 length of the refusal, 4 zero bytes, the id, 8 zero bytes, u64
//!            checksum; the refusal
//! frame      u16 kind, u16 zero, u32 length of the body, u64 checksum; the body
//! ```
//!
//! Both sides answer for the order of messages. `Alive` comes at any time, `Failed` at almost any:
//!
//! ```text
//!                  from the sender                    from the receiver
//! describing       Describe …, the last of them
//! preparing                                           Prepared
//! copying          Pages, Zeros, Round, Sync …        Synced …
//! saving           State …, StateEnd, Chunk …, ChunkEnd; End
//! loading                                             Ready
//! committing       Commit
//! starting         (no Failed any more)               Running
//! closing          Bye                                (no Failed any more)
//!
//! extra            Pages, Zeros, Sync …; End          Synced …
//! asked                                               Outcome
//! ```
//!
//! Over a unix socket without TLS the sender lends the kernel a copy of its pages, instead of having it make one. It must not change that until they are in
//! the receiver's RAM: the receiver answers each `Sync` with a `Synced` once all before it is. The answer may find the sender saving, or
//! further. A sender may ask over any connection, and does so at the end of each round: what is still under way would hold the guest up.
//! Through a tunnel to another host no more than 1 MiB would be under way at a time on each connection: that is what TCP is for.
//!
//! A hand-over within a host goes over a unix socket and has no pages. Descriptors go with `Handles`, which says how many there are, as
//! SCM_RIGHTS with the first byte of its frame: the sender's while it is describing, copying or saving, the receiver's while it is
//! preparing.
//!
//! A body's length is checked for its kind before memory is set aside, and its checksum before anything of it is handed on. Only
//! pages may be received where they belong, once it is known that they belong there; no one uses them before their checksum is known
//! to be right.

mod address;
mod connect;
mod connection;
mod error;
mod failure;
mod handles;
mod incoming;
mod listener;
mod message;
mod order;
mod receiving;
mod sending;
mod socket;
mod strangers;
mod tls;
mod versions;
mod wire;

pub use address::{Address, NotAnAddress, Patience};
pub use connection::Link;
pub use error::{Cause, Error, Violation};
pub use failure::{FAILURE_TEXT_MOST, FAILURE_TEXTS_MOST, Failure};
pub use listener::Listener;
pub use message::{Message, Outcome, TIMING_NAME_MOST, TIMINGS_MOST, Tally, Timing};
pub use order::{Kind, Last};
pub(crate) use receiving::Arrived;
pub use tls::{Tls, TlsError};
pub use versions::{NEWEST, OLDEST};

pub use crate::stream::StreamId;

/// The most connections of one migration.
pub const CONNECTIONS_MOST: u16 = 16;
/// The most devices whose state travels; their numbers are below.
pub const DEVICES_MOST: u16 = 1024;
/// The largest description of a machine, in bytes.
pub const DESCRIPTION_MOST: u64 = 2 << 20;
/// The most descriptors that go with one frame.
pub const HANDLES_MOST: usize = 64;
/// The most data in one frame, in bytes.
pub const FRAME_DATA_MOST: usize = 1 << 20;

/// RAM is divided among connections in blocks of this size, in bytes.
pub(crate) const BLOCK: u64 = crate::ram::BLOCK;
/// The size of a page, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The main connection of a migration.
    Migrate {
        /// How many there are, with this one.
        connections: u16,
    },
    /// An extra connection.
    Join {
        /// Which, from 1.
        index: u16,
    },
    /// Asks what became of the attempt.
    Ask,
    /// The only connection of a hand-over within a host, which carries descriptors.
    HandOver,
}

impl Purpose {
    /// Which connection of its attempt this is; the main one is 0.
    pub fn index(self) -> u16 {
        match self {
            Purpose::Join { index } => index,
            Purpose::Migrate { .. } | Purpose::Ask | Purpose::HandOver => 0,
        }
    }
}

#[cfg(test)]
mod tests;
