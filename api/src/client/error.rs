//! Why a request has led to nothing, as the client sees it.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::control::ENDED;

/// The most reasons that are taken from a refusal.
const REASONS_MOST: usize = 32;

/// Why a request has led to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot connect to {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The connection ended before there was an answer. A Ferry that ends does that.
    #[error("{} closed the connection without an answer", socket.display())]
    Closed {
        /// The socket.
        socket: PathBuf,
        /// What the system said, if it is more than the end of the stream.
        #[source]
        cause: Option<io::Error>,
    },
    /// The time is over. The request may still be carried out.
    #[error("{} has not {step} within {} s", socket.display(), limit.as_secs_f64())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// What was waited for: `answered`.
        step: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// Ferry does not do it, and says why.
    #[error(transparent)]
    Refused(Refused),
    /// What came is no answer of Ferry's.
    #[error("what listens on {} does not speak as Ferry does", socket.display())]
    Wire {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: WireError,
    },
}

impl ClientError {
    /// Whether the connection was closed before all of the request had been read: nothing has been done for it. A unix socket's end says so
    /// to whoever writes to it, or has written what nobody took (unix(7)); one that has read everything just ends.
    pub(super) fn is_unread(&self) -> bool {
        let ClientError::Closed { cause, .. } = self else {
            return false;
        };
        let kind = cause.as_ref().map(io::Error::kind);
        matches!(
            kind,
            Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        )
    }

    /// The error and its causes, outermost first; never empty.
    pub fn chain(&self) -> Vec<String> {
        crate::chain(self)
    }
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It does not begin as HTTP does.
    #[error("the answer is not HTTP")]
    NotHttp(#[source] httparse::Error),
    /// The head is longer than anything that Ferry sends.
    #[error("the answer's head has more than {most} bytes")]
    LongHead {
        /// The limit.
        most: usize,
    },
    /// The length of the body is missing, or no number, or there twice.
    #[error("the answer does not tell how long it is")]
    NoLength,
    /// The body is longer than anything that Ferry sends.
    #[error("the answer has {length} bytes, more than the {most} that are taken")]
    LongBody {
        /// What the head says.
        length: u64,
        /// The limit.
        most: usize,
    },
    /// The connection ended within the answer.
    #[error("the answer ends after {received} of {length} bytes")]
    Truncated {
        /// What there is.
        received: usize,
        /// What the head says.
        length: usize,
    },
    /// The connection ended within the head.
    #[error("the answer ends within its head")]
    TruncatedHead,
    /// The body is not what this route answers with.
    #[error("the answer's body is not what was asked for")]
    Body(#[source] serde_json::Error),
}

/// Ferry's reasons not to do something, as an error whose sources are the reasons behind the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status, 400 to 599 from Ferry.
    pub status: u16,
    reason: Reason,
}

impl Refused {
    /// Takes the reasons from a body: a JSON array of strings, outermost first. Anything else is one reason.
    pub(super) fn new(status: u16, body: &[u8]) -> Self {
        let reasons = match serde_json::from_slice(body) {
            Ok(reasons) => reasons,
            Err(_) => vec![String::from_utf8_lossy(body).trim().to_owned()],
        };
        Refused::because(status, reasons)
    }

    /// The same of reasons that have come in another way, outermost first.
    pub fn because(status: u16, mut reasons: Vec<String>) -> Self {
        reasons.retain(|reason| !reason.is_empty());
        reasons.truncate(REASONS_MOST);
        let innermost = reasons
            .pop()
            .unwrap_or_else(|| format!("status {status}, without a reason"));
        let mut reason = Reason {
            text: innermost,
            cause: None,
        };
        for text in reasons.into_iter().rev() {
            let cause = Some(Box::new(reason));
            reason = Reason { text, cause };
        }
        Refused { status, reason }
    }

    /// Whether Ferry has ended instead of answering.
    pub fn is_end(&self) -> bool {
        self.reason.text == ENDED
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.reason, f)
    }
}

impl Error for Refused {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reason.source()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Reason {
    text: String,
    cause: Option<Box<Reason>>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Reason {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &dyn Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(status: u16, body: &[u8]) -> Vec<String> {
        ClientError::Refused(Refused::new(status, body)).chain()
    }

    #[test]
    fn a_refusal_is_its_reasons_and_nothing_else() {
        let body = br#"["disk0 cannot be suspended","it did not answer"]"#;
        assert_eq!(
            chain(500, body),
            ["disk0 cannot be suspended", "it did not answer"]
        );
    }

    #[test]
    fn a_body_that_is_no_array_of_strings_is_the_reason() {
        assert_eq!(chain(404, b"Not Found\n"), ["Not Found"]);
        assert_eq!(chain(400, b"[1,2]"), ["[1,2]"]);
        assert_eq!(chain(500, b"\xff"), ["\u{fffd}"]);
    }

    #[test]
    fn a_refusal_without_a_reason_tells_the_status() {
        for body in [&b""[..], b"[]", b"[\"\"]"] {
            assert_eq!(chain(503, body), ["status 503, without a reason"]);
        }
    }

    #[test]
    fn no_more_reasons_are_taken_than_anyone_reads() {
        let body = serde_json::to_vec(&vec!["again"; 1000]).unwrap();
        assert_eq!(chain(500, &body).len(), REASONS_MOST);
    }
}
