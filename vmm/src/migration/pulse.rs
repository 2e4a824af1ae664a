//! Work that takes long while the other side waits.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vm_migration::Watch;
use vm_migration::link::{self, Link, Message};

/// Watches work as another one does, and lets the other side know in between that this one is still there.
pub struct Pulse<'a> {
    watch: &'a dyn Watch,
    // Only ever held for one message.
    link: Mutex<&'a mut Link>,
    attention: Attention,
    /// Why the other side does not want the work any more.
    refusal: Mutex<Option<link::Error>>,
}

/// Whether the other side is heard meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attention {
    /// What it says is for later.
    None,
    /// All that it can say is that it has failed.
    Failure,
}

impl<'a> Pulse<'a> {
    pub fn new(link: &'a mut Link, watch: &'a dyn Watch) -> Self {
        Pulse {
            watch,
            link: Mutex::new(link),
            attention: Attention::None,
            refusal: Mutex::default(),
        }
    }

    /// The same, and ends the work when the other side, which has nothing else to say, says that it has failed.
    pub fn attentive(link: &'a mut Link, watch: &'a dyn Watch) -> Self {
        Pulse {
            attention: Attention::Failure,
            ..Self::new(link, watch)
        }
    }

    /// Why the other side has ended the work, if it has.
    pub fn refusal(&self) -> Option<link::Error> {
        self.refused().take()
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
            if self.attention == Attention::Failure && link.has_input() {
                let heard = link.receive_for(self.watch, Instant::now());
                if let Err(error @ link::Error::PeerFailed { .. }) = heard {
                    self.refused().get_or_insert(error);
                }
            }
        }
        self.refused().is_some() || self.watch.cancelled()
    }
}
