//! Why ferryctl ends with a status other than 0, and how it says so.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use ferry_api::chain;
use ferry_api::client::ClientError;

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
    /// Standard output.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

impl Failure {
    /// The exit status, as documented in [`super::arguments::EXIT_STATUS`].
    pub fn status(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Client(ClientError::Refused(_)) => 1,
            Failure::Usage(_) | Failure::Read { .. } | Failure::Json { .. } => 2,
            Failure::Client(ClientError::Connect { .. } | ClientError::Closed { .. }) => 3,
            Failure::Client(ClientError::TimedOut { .. }) => 4,
            Failure::Client(ClientError::Wire { .. }) | Failure::Output(_) => 5,
        })
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
            _ => None,
        }
    }
}
