//! Why a guest cannot be saved or brought back.

use std::time::Duration;

use ferry_api::config::validate::Fault;
use ferry_devices::vhost_user;
use vm_migration::manifest::Difference;
use vm_migration::{directory, ram, stream};

use crate::{machine, memory};

/// Why a guest cannot be saved or brought back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Directory(#[from] directory::Error),
    #[error("cannot write the state")]
    Write(#[from] stream::Error),
    #[error(transparent)]
    Device(#[from] vhost_user::Error),
    #[error(transparent)]
    BackEnd(#[from] vhost_user::TransferError),
    #[error("{device}: it cannot be saved, because {reason}")]
    Unsupported { device: String, reason: String },
    #[error("the guest was held for {0:?}, and nobody said that it may go on")]
    HeldTooLong(Duration),
    #[error("the snapshot's configuration is not one that this Ferry knows: {0}")]
    Config(String),
    #[error("the guest has no device {0}, for which a socket was named")]
    NoSuchDevice(String),
    #[error(
        "{device}: the back-end has not taken the device's memory and features within {limit:?}"
    )]
    Late { device: String, limit: Duration },
    #[error(
        "a guest keeps the serial port that it has: it can lead elsewhere, but not be added or taken away"
    )]
    Serial,
    #[error("with the sockets that were named the devices do not go together: {0}")]
    Sockets(Fault),
    #[error("the devices are not those of the snapshot: {}", list(.0))]
    Differences(Vec<Difference>),
    #[error("the snapshot's RAM is not that of its configuration")]
    Layout,
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("it was given up")]
    Cancelled,
}

impl Error {
    /// Whether it says no more than that the work was given up.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Error::Cancelled
                | Error::Directory(directory::Error::Ram {
                    source: ram::Error::Cancelled,
                    ..
                })
        )
    }
}

fn list(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

impl From<vhost_user::StateError<stream::Error>> for Error {
    fn from(error: vhost_user::StateError<stream::Error>) -> Self {
        match error {
            vhost_user::StateError::BackEnd(error) => Error::BackEnd(error),
            vhost_user::StateError::Sink(error) => Error::Write(error),
            vhost_user::StateError::Cancelled => Error::Cancelled,
        }
    }
}

impl From<vhost_user::StateError> for Error {
    fn from(error: vhost_user::StateError) -> Self {
        match error {
            vhost_user::StateError::BackEnd(error) => Error::BackEnd(error),
            vhost_user::StateError::Sink(never) => match never {},
            vhost_user::StateError::Cancelled => Error::Cancelled,
        }
    }
}
