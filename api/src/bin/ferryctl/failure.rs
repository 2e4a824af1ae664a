//! Why ferryctl ends with a status other than 0, and how it says so.

use std::io;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use ferry_api::chain;
use ferry_api::client::ClientError;
use ferry_api::wire::Operation;
use vm_migration::directory;

use super::signals::Signals;
use super::text::printable;

/// Why a command has led to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Ferry, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The command line is complete for clap, and still not usable.
    #[error("{0}")]
    Usage(String),
    /// A configuration that cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A configuration that is no JSON.
    #[error("{} is not JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        cause: serde_json::Error,
    },
    /// A snapshot that cannot be looked at.
    #[error(transparent)]
    Snapshot(#[from] directory::Error),
    /// A snapshot that is not as it was written. What is wrong stands on standard output.
    #[error("{} is damaged in {places} {}", path.display(), if *places == 1 { "place" } else { "places" })]
    Damaged {
        /// The snapshot.
        path: PathBuf,
        /// In how many places.
        places: usize,
    },
    /// The command that was to run while the guest was held.
    #[error("`{command}` {how}")]
    WhilePaused {
        /// The command.
        command: String,
        /// How it has ended, as a clause.
        how: String,
        /// What has become of the snapshot.
        end: End,
    },
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted {
        /// The signal.
        signal: i32,
        /// What was given up.
        kind: Undertaking,
    },
    /// A Ferry that has ended while its guest was being sent, and cannot have given it away by what is known.
    #[error("this Ferry has ended, and was at {phase} when it was asked last")]
    Vanished {
        /// The phase in which it was seen last.
        phase: String,
    },
    /// A place for files that is of no use.
    #[error("cannot use {}", path.display())]
    Directory {
        /// The place.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A program that is none.
    #[error("cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A new process that does not live.
    #[error("{} has ended too early: {status}", program.display())]
    Ended {
        /// The program.
        program: PathBuf,
        /// How.
        status: ExitStatus,
        /// What it has said last.
        lines: Vec<String>,
    },
    /// A new process that says nothing.
    #[error("{} has not answered on the --api-socket that it was given, within {limit:?}", program.display())]
    Mute {
        /// The program.
        program: PathBuf,
        /// The time it had.
        limit: Duration,
    },
    /// A guest that has not been handed over.
    #[error(transparent)]
    Stays(Box<Failure>),
    /// A guest that may have been handed over, or not.
    #[error("nobody has said whether the guest has arrived")]
    Open {
        /// Why it is not known.
        #[source]
        cause: Box<Failure>,
        /// What was started for it.
        left: Option<Left>,
    },
    /// Nothing to hand over.
    #[error("there is no guest: it {0}")]
    NoGuest(&'static str),
    /// A guest of which nobody says that it runs.
    #[error("it was handed over to {url}, and nobody has said that it runs there")]
    Unconfirmed {
        /// Where to.
        url: String,
    },
    /// Standard output.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

impl Failure {
    /// The exit status, as documented in [`super::arguments::EXIT_STATUS`].
    pub fn status(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Client(ClientError::Refused(_))
            | Failure::Snapshot(_)
            | Failure::Damaged { .. } => 1,
            Failure::Ended { .. } | Failure::Mute { .. } | Failure::NoGuest(_) => 1,
            Failure::Stays(cause) => return cause.status(),
            Failure::Directory { .. } | Failure::Start { .. } => 2,
            Failure::Usage(_) | Failure::Read { .. } | Failure::Json { .. } => 2,
            Failure::Client(ClientError::Connect { .. } | ClientError::Closed { .. })
            | Failure::Vanished { .. } => 3,
            Failure::Client(ClientError::TimedOut { .. }) => 4,
            Failure::Client(ClientError::Wire { .. }) | Failure::Output(_) => 5,
            Failure::WhilePaused { .. } => 6,
            Failure::Unconfirmed { .. } | Failure::Open { .. } => 7,
            // As a shell would have it, if the signal itself does not end ferryctl.
            Failure::Interrupted { signal, .. } => u8::try_from(128 + signal).unwrap_or(1),
        })
    }

    /// Nothing has become of a hand-over.
    pub fn stays(self) -> Self {
        match self {
            Failure::Interrupted { .. } => self,
            other => Failure::Stays(Box::new(other)),
        }
    }

    /// A hand-over that was given up.
    pub fn interrupted(signals: &Signals) -> Self {
        Failure::Interrupted {
            signal: signals.noted().unwrap_or(libc::SIGINT),
            kind: Undertaking::HandOver,
        }
    }

    /// What a new process has said last.
    fn last_words(&self) -> &[String] {
        match self {
            Failure::Stays(cause) => cause.last_words(),
            Failure::Ended { lines, .. } => lines,
            _ => &[],
        }
    }

    /// Whether who reads standard output has closed it, as `head` does.
    pub fn is_closed_output(&self) -> bool {
        matches!(self, Failure::Output(cause) if cause.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What stands on standard error. `goal` is what could not be done: `pause the guest`.
    pub fn report(&self, goal: &str) -> String {
        let mut chain = chain(self).into_iter();
        let first = printable(&chain.next().unwrap_or_default());
        let failed = format!("cannot {goal}");
        // Ferry may have said so itself.
        let mut text = match first.starts_with(&failed) {
            true => format!("ferryctl: {first}\n"),
            false => format!("ferryctl: {failed}: {first}\n"),
        };
        for reason in chain {
            text += &format!("  because {}\n", printable(&reason));
        }
        for line in self.last_words() {
            text += &format!("  it says: {}\n", printable(line));
        }
        if let Some(hint) = self.hint() {
            text += &format!("  hint: {}\n", printable(&hint));
        }
        text
    }

    fn hint(&self) -> Option<String> {
        match self {
            Failure::Client(ClientError::Connect { socket, .. }) => {
                let socket = socket.display();
                Some(format!("is Ferry running with --api-socket {socket}?"))
            }
            Failure::Client(ClientError::TimedOut { .. }) => Some(
                "it may still happen; ferryctl info tells, and --timeout gives it more time".into(),
            ),
            Failure::WhilePaused { end, .. } => Some(match end {
                End::GivenUp => "the snapshot was given up, and the guest goes on as before".into(),
                End::Finished => "the snapshot was finished all the same".into(),
            }),
            Failure::Stays(_) => Some("the guest goes on in the old process".into()),
            Failure::Open { left: None, .. } => {
                Some("ferryctl info tells who answers, and ferryctl migration how it went".into())
            }
            Failure::Open {
                left: Some(Left { pid, directory }),
                ..
            } => {
                let (api, directory) = (directory.join("api"), directory.display());
                let api = api.display();
                Some(format!(
                    "the new process ({pid}) and {directory} were left as they are; ferryctl --api-socket {api} info asks \
                     that process as long as it waits for the guest"
                ))
            }
            Failure::Interrupted { kind, .. } => Some(kind.given_up().into()),
            Failure::Vanished { .. } => Some(
                "ask the receiver: ferryctl info there tells whether the guest has arrived".into(),
            ),
            Failure::Unconfirmed { .. } => Some(
                "it does not run here, and Ferry goes on asking; ferryctl migration tells more. If it is certain that the \
                 guest has never run there, ferryctl migration reclaim lets it go on here"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// A new process that was left alone, because it may have the guest.
#[derive(Debug)]
pub struct Left {
    pub pid: u32,
    /// What was made for it.
    pub directory: PathBuf,
}

/// What has become of a snapshot whose command has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There is none.
    GivenUp,
    /// It is there.
    Finished,
}

/// What takes time, and can be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undertaking {
    /// A guest is saved.
    Snapshot,
    /// It is brought back.
    Restore,
    /// It is sent to another Ferry.
    Send,
    /// It is received from another Ferry.
    Receive,
    /// It is handed to a new process.
    HandOver,
}

impl Undertaking {
    fn given_up(self) -> &'static str {
        match self {
            Undertaking::Snapshot => "the snapshot was given up, and the guest goes on as before",
            Undertaking::Restore => "the restore was given up",
            Undertaking::Send => "the migration was given up, and the guest goes on here as before",
            Undertaking::Receive => "no guest was received",
            Undertaking::HandOver => {
                "the hand-over was given up, and the guest goes on in the old process"
            }
        }
    }
}

impl From<Operation> for Undertaking {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Snapshot => Undertaking::Snapshot,
            Operation::Restore => Undertaking::Restore,
        }
    }
}
