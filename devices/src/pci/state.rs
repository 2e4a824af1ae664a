//! What stands in the way of a function that is made from saved state.

use std::io;

/// The state is of another function than the one that is to take it. Completes "the saved state does not fit: …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotThisFunction(pub(crate) String);

/// A function cannot be made from saved state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state is of another function, or cannot be.
    #[error("the saved state does not fit the device")]
    State(#[from] NotThisFunction),
    /// The host does not give what the function takes.
    #[error("cannot {step}")]
    Host {
        /// What was asked of it.
        step: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// To be used as `map_err(RestoreError::host("attach an interrupt"))`.
    pub(crate) fn host(step: &'static str) -> impl FnOnce(io::Error) -> RestoreError {
        move |source| RestoreError::Host { step, source }
    }

    /// For what cannot be, whoever saved it.
    pub(crate) fn misfit(what: String) -> Self {
        RestoreError::State(NotThisFunction(what))
    }
}
