//! Why the state inside a back-end could not be moved.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::vhost_user::error::{Cause, Error};

/// Why state was not moved. `E` is the error of who takes the state.
#[derive(Debug, thiserror::Error)]
pub enum StateError<E = Infallible> {
    /// The back-end, or the way to it, failed.
    #[error(transparent)]
    BackEnd(TransferError),
    /// Who takes the state failed.
    #[error(transparent)]
    Sink(E),
    /// [`Watch::cancelled`](vm_migration::Watch::cancelled) said so.
    #[error("cancelled")]
    Cancelled,
}

impl<E> From<TransferError> for StateError<E> {
    fn from(error: TransferError) -> Self {
        StateError::BackEnd(error)
    }
}

/// A back-end, or the way to it, failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{step} vhost-user device {device} at {}", socket.display())]
pub struct TransferError {
    /// The device's name, `fs0`.
    pub device: String,
    /// The back-end's socket.
    pub socket: PathBuf,
    /// What was being done.
    pub step: StateStep,
    /// What happened.
    #[source]
    pub cause: Arc<StateCause>,
}

impl TransferError {
    /// What the device's worker says about it.
    pub(super) fn from_device(error: Error, step: StateStep) -> Self {
        let refused = matches!(*error.cause, Cause::Refused { .. });
        TransferError {
            device: error.device,
            socket: error.socket,
            step,
            cause: Arc::new(match refused {
                true => StateCause::Refused,
                false => StateCause::Device(error.cause),
            }),
        }
    }
}

/// A step of moving state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateStep {
    /// Asking the back-end whether it is willing.
    Begin,
    /// Reading the state.
    Read,
    /// Writing the state.
    Write,
    /// Asking the back-end how it went.
    Check,
}

impl fmt::Display for StateStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StateStep::Begin => "cannot begin to move the state inside",
            StateStep::Read => "cannot read the state inside",
            StateStep::Write => "cannot write the state inside",
            StateStep::Check => "cannot check (CHECK_DEVICE_STATE) the state inside",
        })
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StateCause {
    /// The back-end answered that it cannot.
    #[error(
        "the back-end says that it cannot; its own log has the reason (virtiofsd refuses what it could not find again, as its \
         options --migration-mode and --migration-on-error say)"
    )]
    Refused,
    /// The back-end does nothing.
    #[error(
        "not a byte has moved for {waited:?}, after {after} bytes; the back-end hangs, or is too slow for this limit"
    )]
    Silent {
        /// How long it was waited for.
        waited: Duration,
        /// Bytes moved before.
        after: u64,
    },
    /// The back-end does hardly anything.
    #[error(
        "only {moved} bytes have moved in {waited:.1?} of waiting, after {after} bytes; the back-end is too slow for this limit, in \
         which {} bytes are to move",
        super::LEAST_MOVED
    )]
    Slow {
        /// How long it was waited for.
        waited: Duration,
        /// Bytes moved in this time.
        moved: u64,
        /// Bytes moved before.
        after: u64,
    },
    /// There is more than may be.
    #[error(
        "the state has more than the {most} bytes that are allowed; allow more if the back-end is to be trusted with them"
    )]
    TooMuch {
        /// The cap, in bytes.
        most: u64,
    },
    /// The back-end's end is closed, or fails.
    #[error("the way to the back-end broke after {after} bytes; see the back-end's own log")]
    Broken {
        /// Bytes moved before.
        after: u64,
        /// What the system says.
        #[source]
        source: io::Error,
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
    /// Who loaded the state stopped before its end.
    #[error("it was given up before the end of the state")]
    GivenUp,
    /// As the device's worker says.
    #[error(transparent)]
    Device(Arc<Cause>),
}
