//! What can go wrong between Ferry and a back-end.
//!
//! [`Error`] names the device and its socket; its source, a [`Cause`], names the message and the
//! reason. Whether a cause ends the connection is said by [`Cause::is_fatal`]: an answer that is late
//! and an answer that says no are not the end of a back-end.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::message::RequestCode;
use super::moving::TransferError;

/// A vhost-user device could not be started, or has failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("vhost-user device {device} at {}", socket.display())]
pub struct Error {
    /// The device's name, `disk0`.
    pub device: String,
    /// The back-end's socket.
    pub socket: PathBuf,
    /// What happened.
    #[source]
    pub cause: Arc<Cause>,
}

impl Error {
    /// Whether there was nobody to speak with at the socket: it is missing, nobody listens, or it may not be used.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            *self.cause,
            Cause::NoListener { .. } | Cause::CannotConnect { .. }
        )
    }
}

/// Why a device could not be started, or has failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Nobody accepted a connection in time.
    #[error(
        "nothing listens there after {waited:?}; start the back-end, or check the path of its socket"
    )]
    NoListener {
        /// How long it was tried.
        waited: Duration,
        /// The last refusal.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be used, and waiting would not help.
    #[error("cannot connect to the socket")]
    CannotConnect {
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// The back-end has closed the connection, most often by exiting.
    #[error("the back-end closed the connection {during}; see the back-end's own log")]
    Closed {
        /// In the middle of what.
        during: During,
    },
    /// No answer in time. The answer stays owed; the connection lives on.
    #[error("the back-end has not answered {request} within {waited:?}")]
    Late {
        /// The unanswered request.
        request: RequestCode,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It was connected to, and has not said a word.
    #[error(
        "the back-end has not answered GET_FEATURES, the first request, within {waited:.1?}: it hangs, or serves another front-end \
         (most serve one at a time: for a guest that comes from elsewhere, name the socket of a new one in the request to receive \
         or restore it)"
    )]
    NeverAnswered {
        /// How long it was waited for.
        waited: Duration,
    },
    /// No answer for so long that the back-end is given up.
    #[error("the back-end has not answered {request} for {waited:.1?} and is taken for dead")]
    Dead {
        /// The unanswered request.
        request: RequestCode,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Requests in flight do not come to their end, so that the back-end may yet write to guest memory.
    #[error("the back-end has not completed its requests within {waited:.1?}")]
    NotDrained {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The back-end does not keep to the protocol.
    #[error("the back-end violated the vhost-user protocol {during}")]
    Violation {
        /// In the middle of what.
        during: During,
        /// What it did.
        #[source]
        reason: Violation,
    },
    /// The back-end answered that it could not do what it was asked to.
    #[error("the back-end refused {request}")]
    Refused {
        /// The request.
        request: RequestCode,
    },
    /// The back-end is not fit for the device it was to serve.
    #[error("the back-end is not usable: {reason}")]
    Unusable {
        /// What it lacks or offers wrongly, and what to do.
        reason: String,
    },
    /// The activation makes no sense for this device: a defect in Ferry.
    #[error("the queues cannot be set up: {reason}")]
    BadSetup {
        /// What does not fit.
        reason: String,
    },
    /// An operating system call failed.
    #[error("cannot {step}")]
    Io {
        /// What was attempted, as an infinitive.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The connection has failed before, which was reported then.
    #[error("the connection to the back-end has failed before")]
    Poisoned,
    /// The device is being removed.
    #[error("the device is being removed")]
    Stopped,
    /// The guest asked for a reset before its activation had ended.
    #[error("a reset was asked for before the activation had ended")]
    Overtaken,
    /// The owner let the device go on, or reset it, before it had come to rest, or before its state had been moved; or another attempt
    /// to move that has begun.
    #[error(
        "it was given up, because the device was to go on or to be reset, or by another attempt"
    )]
    GivenUp,
    /// The device cannot be saved at this moment.
    #[error("the device cannot be saved now: {reason}")]
    NotAtRest {
        /// A clause.
        reason: String,
    },
    /// Saved state is not of this device, or cannot be.
    #[error("the saved state cannot be restored: {reason}")]
    BadState {
        /// A clause that says what does not fit.
        reason: String,
    },
    /// The back-end has none of its state, or only a part of it, and must not be let start.
    #[error("the state inside the back-end was not restored")]
    NotLoaded {
        /// How that came.
        #[source]
        source: TransferError,
    },
}

impl Cause {
    /// For what cannot be given up: no answer within the limit is then the back-end's end.
    pub(super) fn late_is_dead(self) -> Self {
        match self {
            Cause::Late { request, waited } => Cause::Dead { request, waited },
            other => other,
        }
    }

    /// Whether the connection is of no use any more.
    pub fn is_fatal(&self) -> bool {
        match self {
            Cause::Late { .. }
            | Cause::Refused { .. }
            | Cause::Unusable { .. }
            | Cause::BadSetup { .. }
            | Cause::Overtaken
            | Cause::GivenUp
            | Cause::NotAtRest { .. }
            | Cause::BadState { .. } => false,
            Cause::NoListener { .. }
            | Cause::CannotConnect { .. }
            | Cause::Closed { .. }
            | Cause::NeverAnswered { .. }
            | Cause::Dead { .. }
            | Cause::NotDrained { .. }
            | Cause::Violation { .. }
            | Cause::Io { .. }
            | Cause::Poisoned
            | Cause::NotLoaded { .. }
            | Cause::Stopped => true,
        }
    }
}

/// What was going on when something happened on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum During {
    /// Nothing was asked of the back-end.
    Idle,
    /// A request was being sent, or its answer awaited.
    Request(RequestCode),
    /// A request from the back-end arrived on the back-end channel.
    BackendRequest(u32),
    /// The back-end channel was being read.
    BackendChannel,
}

impl std::fmt::Display for During {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            During::Idle => f.write_str("while nothing was asked of it"),
            During::Request(code) => write!(f, "in answer to {code}"),
            During::BackendRequest(code) => {
                write!(f, "with request {code} on the back-end channel")
            }
            During::BackendChannel => f.write_str("on the back-end channel"),
        }
    }
}

/// How a back-end left the protocol. Each of these poisons the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An answer to something else.
    #[error("its answer is to request {0}")]
    WrongRequest(RequestCode),
    /// Header flags that are not those of an answer (or a request) of protocol version 1.
    #[error("its header has the flags {0:#x}")]
    WrongFlags(u32),
    /// A message whose size does not belong to it.
    #[error("its message has {0} bytes of payload")]
    WrongSize(u32),
    /// A message with more or fewer file descriptors than belong to it.
    #[error("its message has {0} file descriptors")]
    WrongFds(usize),
    /// More file descriptors than any message of the protocol may have.
    #[error("its message has more than {most} file descriptors", most = super::socket::MAX_FDS)]
    TooManyFds,
    /// Bytes that nobody asked for.
    #[error("it sent a message that nobody asked for")]
    Unsolicited,
    /// An answer whose contents cannot be.
    #[error("{0}")]
    Contents(String),
    /// It asks on the back-end channel and does not read the answers.
    #[error("it does not read the answers to its own requests")]
    AnswersUnread,
}
