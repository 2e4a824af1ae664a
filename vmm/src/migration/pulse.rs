//! Work that takes long while the other side waits.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_migration::Watch;
use vm_migration::link::{self, Link, Message};

use super::Error;

/// Watches work as another one does, lets the other side know in between that this one is still there, and ends the work when that one
/// says that it has given up.
pub struct Pulse<'a> {
    watch: &'a dyn Watch,
    // Only ever held for one message.
    link: Mutex<&'a mut Link>,
    /// Why the other side does not want the work any more.
    refusal: Mutex<Option<link::Error>>,
}

impl<'a> Pulse<'a> {
    pub fn new(link: &'a mut Link, watch: &'a dyn Watch) -> Self {
        Pulse {
            watch,
            link: Mutex::new(link),
            refusal: Mutex::default(),
        }
    }

    /// What has come of the work: if the other side has ended it, that is why.
    pub fn outcome<T, E: Into<Error>>(&self, work: Result<T, E>) -> Result<T, Error> {
        match self.refused().take() {
            Some(refusal) => Err(refusal.into()),
            None => work.map_err(E::into),
        }
    }

    fn refused(&self) -> MutexGuard<'_, Option<link::Error>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub fn send(&self, message: &Message<'_>) -> Result<(), link::Error> {
        self.link().send(message, self.watch)
    }

    fn link(&self) -> MutexGuard<'_, &'a mut Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Pulse<'_> {
    fn done(&self, bytes: u64) {
        self.watch.done(bytes);
    }

    fn cancelled(&self) -> bool {
        // A connection that is broken is found out by whoever uses it next.
        if let Ok(mut link) = self.link.try_lock() {
            let _ = link.keep_alive_if_due();
            // What else it says is for whoever comes next.
            if let Err(error @ link::Error::PeerFailed { .. }) = link.notice() {
                self.refused().get_or_insert(error);
            }
        }
        self.refused().is_some() || self.watch.cancelled()
    }
}
