//! What can go wrong between the two sides.

use std::io;
use std::time::Duration;

use super::failure::Failure;
use super::order::Kind;
use super::{Address, FRAME_DATA_MOST};

/// A connection cannot be made, or be of use any longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`Watch::cancelled`](crate::Watch::cancelled) said so.
    #[error("{peer}: cancelled while {step}")]
    Cancelled {
        /// The other side.
        peer: Address,
        /// What was going on, as in "while …".
        step: &'static str,
    },
    /// The other side neither sent nor took anything.
    #[error("{peer}: nothing happened for {limit:?} while {step}")]
    Silent {
        /// The other side.
        peer: Address,
        /// What was going on, as in "while …".
        step: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// The other side has said no more than that it is there.
    #[error("{peer}: the other side is there, but has not gone on for {limit:?} while {step}")]
    Idle {
        /// The other side.
        peer: Address,
        /// What was going on, as in "while …".
        step: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// There is no receiver.
    #[error("{peer}: nobody listens")]
    Absent {
        /// Where it was to be.
        peer: Address,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The receiver uses TLS, and this side does not.
    #[error("{peer}: the receiver insists on TLS")]
    TlsThere {
        /// The receiver.
        peer: Address,
    },
    /// This side uses TLS, and the receiver has ended the connection before it has said anything of that kind: it may not know TLS.
    #[error("{peer}: the connection ended before TLS was agreed on")]
    TlsHere {
        /// The receiver.
        peer: Address,
    },
    /// The other side is gone.
    #[error("{peer}: the connection ended while {step}")]
    Closed {
        /// The other side.
        peer: Address,
        /// What was going on, as in "while …".
        step: &'static str,
    },
    /// A system call failed.
    #[error("{peer}: an error while {step}")]
    Io {
        /// The other side.
        peer: Address,
        /// What was going on, as in "while …".
        step: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// TLS failed, or cannot be set up.
    #[error("{peer}: TLS failed while {step}")]
    Tls {
        /// The other side.
        peer: Address,
        /// What was going on, as in "while …".
        step: &'static str,
        /// The reason.
        #[source]
        source: rustls::Error,
    },
    /// A side does not keep to the protocol, or the connection damages what it carries.
    #[error("{peer}: the migration stream is wrong")]
    Protocol {
        /// The other side.
        peer: Address,
        /// How.
        #[source]
        violation: Violation,
    },
    /// The receiver wants nothing of it.
    #[error("{peer}: refused: {reason}")]
    Refused {
        /// The other side.
        peer: Address,
        /// The receiver's reason.
        reason: String,
    },
    /// The other side gave up, and said why.
    #[error("{peer}: the other side gave up")]
    PeerFailed {
        /// The other side.
        peer: Address,
        /// Its reasons.
        #[source]
        failure: Failure,
    },
    /// Guest RAM on this side cannot be read or written.
    #[error("guest RAM at {gpa:#x}")]
    Ram {
        /// The guest-physical address.
        gpa: u64,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// An earlier error has ended the connection.
    #[error("{peer}: the connection was given up before")]
    Broken {
        /// The other side.
        peer: Address,
    },
}

impl Error {
    /// Whether it was cancelled on this side.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Cancelled { .. })
    }

    /// Whether the other side is gone or silent, as opposed to wrong or failed: it may be asked again.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Error::Absent { .. }
                | Error::TlsHere { .. }
                | Error::Silent { .. }
                | Error::Closed { .. }
                | Error::Io { .. }
        )
    }

    /// How much it says of why an attempt fails.
    pub fn cause(&self) -> Cause {
        match self {
            error if error.is_cancelled() => Cause::Elsewhere,
            Error::Broken { .. } => Cause::Vague,
            error if error.is_lost() => Cause::Vague,
            _ => Cause::Plain,
        }
    }
}

/// How much an error says of why an attempt fails. When one connection fails, all do: this is about the most that one of them knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Nothing: it was cancelled because of something else.
    Elsewhere,
    /// The other side is gone or silent, and may say on another connection why.
    Vague,
    /// All.
    Plain,
}

/// How a stream breaks the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It does not begin as Ferry's do, or its beginning is damaged.
    #[error("it does not begin as Ferry's migrations do")]
    Preamble,
    /// There is no version that both know.
    #[error(
        "it speaks versions {oldest} to {newest} of the protocol, and this Ferry {}",
        super::versions::Versions::known()
    )]
    Version {
        /// The oldest that the other side knows.
        oldest: u16,
        /// The newest that the other side knows.
        newest: u16,
    },
    /// It answers another attempt.
    #[error("it belongs to another attempt")]
    Attempt,
    /// A kind of message that does not exist.
    #[error("message {0} is unknown")]
    Unknown(u16),
    /// A field that must be zero is not.
    #[error("{0} has unknown flags")]
    Flags(Kind),
    /// A length that messages of its kind cannot have; at most [`FRAME_DATA_MOST`] bytes of data.
    #[error("{kind} cannot have {length} bytes (data is at most {FRAME_DATA_MOST})")]
    Length {
        /// The kind.
        kind: Kind,
        /// The length that was read, in bytes.
        length: u32,
    },
    /// What arrived is not what was sent here and now.
    #[error("the checksum of {0} is wrong: it is damaged, or from another stream")]
    Checksum(Kind),
    /// A message that cannot come here.
    #[error("{kind} cannot come while {step}")]
    Order {
        /// The kind.
        kind: Kind,
        /// What was going on, as in "while …".
        step: &'static str,
    },
    /// What a message says makes no sense.
    #[error("{kind}: {reason}")]
    Content {
        /// The kind.
        kind: Kind,
        /// What is wrong.
        reason: &'static str,
    },
}

impl Violation {
    pub(crate) fn content(kind: Kind, reason: &'static str) -> Self {
        Violation::Content { kind, reason }
    }
}

impl Error {
    pub(super) fn from_io(error: io::Error, peer: &Address, step: &'static str) -> Self {
        let peer = peer.clone();
        let kind = error.kind();
        match error.downcast::<rustls::Error>() {
            Ok(source) => Error::Tls { peer, step, source },
            Err(_) if kind == io::ErrorKind::ConnectionReset => Error::Closed { peer, step },
            Err(source) => Error::Io { peer, step, source },
        }
    }
}
