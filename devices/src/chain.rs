//! Errors in the log.

use std::error::Error;

/// An error and its causes in one line, outermost first.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // A transparent error says what its cause says.
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot start")]
        Own(#[source] io::Error),
        #[error(transparent)]
        Transparent(#[from] io::Error),
    }

    #[test]
    fn every_cause_is_named_once() {
        let cause = || io::Error::other("no room");
        assert_eq!(chain(&Outer::Own(cause())), "cannot start: no room");
        assert_eq!(chain(&Outer::Transparent(cause())), "no room");
    }
}
