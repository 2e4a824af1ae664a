//! Why a guest cannot be moved.

use std::io;
use std::time::Duration;

use ferry_api::config::SavedError;
use ferry_devices::serial::SerialError;
use ferry_devices::vhost_user;
use vm_migration::link::{self, Cause};
use vm_migration::manifest::Difference;
use vm_migration::stream;

use crate::{hypervisor, machine, memory, snapshot};

/// Why a guest cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Link(link::Error),
    #[error(
        "no Ferry waits for a guest there: begin to receive (ferryctl receive, vm.receive-migration) before the guest is sent"
    )]
    Absent(#[source] link::Error),
    #[error(
        "the receiver uses TLS and this sender does not: name a tls_dir here (ferryctl migrate --tls-dir), with a certificate of \
         the authority that the receiver trusts"
    )]
    TlsThere(#[source] link::Error),
    #[error(
        "this sender uses TLS and the receiver seems not to: it needs a tls_dir, too (ferryctl receive --tls-dir)"
    )]
    TlsHere(#[source] link::Error),
    #[error(transparent)]
    Tls(#[from] link::TlsError),
    #[error("the saved state")]
    Stream(#[from] stream::Error),
    #[error("the description of the guest")]
    Description(#[from] stream::DecodeError),
    #[error(transparent)]
    Device(#[from] vhost_user::Error),
    #[error(transparent)]
    BackEnd(#[from] vhost_user::TransferError),
    #[error(
        "{device}: its back-end cannot log which RAM it writes (it offers no LOG_SHMFD and LOG_ALL); with \
         \"unlogged\": \"resend\" all RAM is sent again while the guest stands still"
    )]
    Unlogged { device: String },
    #[error("{device}: the back-end has not done within {limit:?} what it takes to {step}")]
    Late {
        device: String,
        step: &'static str,
        limit: Duration,
    },
    #[error("cannot make a log that back-ends can write to")]
    Log(#[source] io::Error),
    #[error(
        "the guest's RAM was not sent within {0:?}: the connection is too slow for it, or it is written faster than it can be \
         sent; a longer timeout_s or downtime_ms (--time-limit, --downtime-ms), \"throttle\": true (--throttle) or \
         \"timeout_strategy\": \"Ignore\" would move it all the same"
    )]
    Timeout(Duration),
    #[error("the guest cannot be received as it was asked for")]
    Request(#[from] snapshot::Error),
    #[error(
        "the guest is defined in a way that this Ferry does not take; is it older than the sender's?"
    )]
    Definition(#[source] SavedError),
    #[error("the sender has another {0} than what it says; is this Ferry older than the sender's?")]
    Mismatch(&'static str),
    #[error("the devices are not those that the guest has: {}", list(.0))]
    Differences(Vec<Difference>),
    #[error(
        "the sender says that its serial port leads to {0}; over TCP a receiver has to say itself where that is to lead: \
         name it as \"serial\" (ferryctl: --serial)"
    )]
    Serial(String),
    #[error(
        "anybody who reaches this address could send a guest: name a \"tls_dir\", or say \"insecure\": true"
    )]
    Open,
    #[error("the guest would have to stand still for too long, because the other side is too slow")]
    TooSlow(#[source] Box<Error>),
    #[error("the guest has {size} bytes of RAM, and this host no more than {here}")]
    TooMuchRam { size: u64, here: u64 },
    #[error("{0} bytes of saved state are more than a machine can have")]
    StateTooLarge(usize),
    #[error(
        "connection {number} of {of} has not come within {limit:?}; if something between sender and receiver takes only one, send \
         with connections=1 (ferryctl migrate --connections 1)"
    )]
    NotJoined {
        number: u16,
        of: u16,
        limit: Duration,
    },
    #[error(
        "the receiver is there, but connection {number} of {of} could not be made; if something between sender and receiver takes \
         only one, send with connections=1 (ferryctl migrate --connections 1)"
    )]
    Join {
        number: u16,
        of: u16,
        #[source]
        source: link::Error,
    },
    #[error("the sender has not handed the guest over within {0:?}")]
    NoCommit(Duration),
    #[error(
        "the sender has asked whether the guest runs here, and its word that it may has not come before that"
    )]
    Asked,
    #[error(
        "the sender handed the guest over, and this process has not taken it in time: it may have been stopped, or its host"
    )]
    LateCommit,
    #[error("the receiver is there, but has not said in time whether the guest runs")]
    NotConfirmed,
    #[error("the sender is there, but has not said in time that it knows")]
    NoFarewell,
    #[error("the receiver has not started the guest; it says: {0}")]
    NotStarted(&'static str),
    #[error("the guest was taken back by vm.migration-reclaim")]
    Reclaimed,
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error("cannot map the guest's RAM to receive it")]
    Map(#[source] io::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("cannot draw a random number")]
    Random(#[source] io::Error),
    #[error(
        "{device}: there is no connection to its back-end that could be handed over; it can be once the back-end runs again and the \
         guest has rebooted"
    )]
    Unconnected {
        device: String,
        /// What has become of the connection.
        source: Option<Box<vhost_user::Error>>,
    },
    #[error("cannot share what says whose the guest is")]
    Ownership(#[source] io::Error),
    #[error("cannot share what the guest is connected to")]
    Outside(#[source] io::Error),
    #[error("{device}: cannot go on with the connection that was handed over")]
    Connection { device: String, source: io::Error },
    #[error(
        "a guest that is handed over within a host keeps the connections of its devices: name no sockets for them"
    )]
    Sockets,
    #[error(
        "the guest's serial port is on the terminal of the process it runs in, which stays there: name another place for it as \
         \"serial\" in the request to receive it"
    )]
    Terminal,
    #[error("cannot go on with the serial port that was handed over")]
    FarEnd(#[source] SerialError),
    #[error("the guest was reset just then: hand it over again")]
    Rebooted,
    #[error("the receiver has not taken the guest")]
    NotTaken(#[source] Box<Error>),
    #[error("the sender has taken its guest back")]
    TakenBack,
    #[error(
        "the process that the guest was handed to has ended, and the guest with it: it cannot go on here, because it ran there"
    )]
    Lost,
    #[error("it was given up")]
    Cancelled,
}

impl Error {
    /// Whether it says no more than that the work was given up.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Error::Cancelled => true,
            Error::Link(error) => error.is_cancelled(),
            _ => false,
        }
    }

    /// How much it says of why the attempt fails.
    pub fn cause(&self) -> Cause {
        match self {
            Error::Cancelled => Cause::Elsewhere,
            Error::Link(error) => error.cause(),
            _ => Cause::Plain,
        }
    }

    /// Whether the guest is neither here nor there.
    pub fn is_loss(&self) -> bool {
        matches!(self, Error::Lost)
    }

    /// For the other side to know.
    pub fn failure(&self) -> link::Failure {
        link::Failure::new(ferry_api::chain(self))
    }
}

fn list(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

impl<E: Into<Error>> From<vhost_user::StateError<E>> for Error {
    fn from(error: vhost_user::StateError<E>) -> Self {
        match error {
            vhost_user::StateError::BackEnd(error) => Error::BackEnd(error),
            vhost_user::StateError::Sink(error) => error.into(),
            vhost_user::StateError::Cancelled => Error::Cancelled,
        }
    }
}

impl From<link::Error> for Error {
    fn from(error: link::Error) -> Self {
        match error {
            link::Error::Absent { .. } => Error::Absent(error),
            link::Error::TlsThere { .. } => Error::TlsThere(error),
            link::Error::TlsHere { .. } => Error::TlsHere(error),
            error => Error::Link(error),
        }
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
