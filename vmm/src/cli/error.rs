//! What is wrong with a command line: which flag, why, and what to do instead.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use ferry_api::config::text::SyntaxError;
use ferry_api::config::validate::Fault;

/// A command line that Ferry cannot follow. Nothing has been started.
///
/// Shown as `--disk: queue_size=100 is not a power of two`; causes of causes follow through
/// [`Error::source`].
#[derive(Debug)]
pub struct UsageError {
    flag: String,
    problem: Problem,
    hint: Option<String>,
}

/// The reasons.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The flag itself: unknown, missing, given twice, without a value.
    #[error("{0}")]
    Flag(String),
    /// The value is not of the form `key=value,key=value`.
    #[error("{0}")]
    Syntax(String),
    /// A key that the flag does not have.
    #[error("there is no key `{key}` (keys: {known})")]
    UnknownKey {
        /// What was written.
        key: String,
        /// What may be written, separated by commas.
        known: String,
    },
    /// A key that has to be given.
    #[error("{0}= is missing")]
    MissingKey(&'static str),
    /// A key that stands there twice.
    #[error("{0}= is given twice")]
    RepeatedKey(&'static str),
    /// A value that the key does not take.
    #[error("{key}={value} {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was written.
        value: String,
        /// Why not, as the rest of a sentence that starts with key and value.
        reason: String,
    },
    /// Values that are fine alone but do not go together.
    #[error("{0}")]
    Conflict(String),
    /// A file that cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said about it.
        #[source]
        cause: io::Error,
    },
}

impl From<SyntaxError> for Problem {
    fn from(error: SyntaxError) -> Self {
        Problem::Syntax(error.to_string())
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Value {
                field,
                value,
                reason,
            } => Problem::Value {
                key: field,
                value,
                reason: reason.into_owned(),
            },
            Fault::Missing(field) => Problem::MissingKey(field),
            other => Problem::Conflict(other.to_string()),
        }
    }
}

impl UsageError {
    /// A problem with `flag`, which is written as the user would write it, `--disk`.
    pub fn new(flag: impl Into<String>, problem: Problem) -> Self {
        let flag = flag.into();
        Self {
            flag,
            problem,
            hint: None,
        }
    }

    /// Adds what the user may do about it, a sentence without its full stop.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What stands on standard error: the whole chain of causes in one line, then the hint in a
    /// second one. Ends without a line break.
    pub fn report(&self) -> String {
        let mut text = format!("ferry: {}", crate::logging::chain(self));
        if let Some(hint) = &self.hint {
            text.push_str("\n  hint: ");
            text.push_str(hint);
        }
        text
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.flag, self.problem)
    }
}

impl Error for UsageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source()
    }
}
