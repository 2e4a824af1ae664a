//! What comes while nothing is being asked: answers that are late, the end, and requests on the back-end channel.

use std::io;
use std::time::Instant;

use super::{Connection, Flushed};
use crate::sys::poll::Interest;
use crate::vhost_user::backend_channel::ChannelState;
use crate::vhost_user::error::{Cause, During, Violation};

impl Connection {
    /// What to poll the main socket for while nothing is being asked.
    pub fn interest(&self) -> Interest {
        match self.unsent {
            Some(_) => Interest::ReadOrWrite,
            None => Interest::Read,
        }
    }

    /// Whether an earlier request is still to be finished, and when that becomes fatal.
    pub fn dead_at(&self) -> Option<Instant> {
        let unsent = self.unsent.as_ref().map(|unsent| unsent.since);
        let since = unsent.or(self.owed.front().map(|owed| owed.since))?;
        Some(since + self.limits.dead)
    }

    /// To be called when the main socket is ready for [`Connection::interest`], or [`Connection::dead_at`] has come,
    /// while nothing is being asked: takes an owed answer, or finds that the back-end has gone or misbehaves.
    pub fn idle(&mut self) -> Result<(), Cause> {
        let result = self.idle_inner();
        self.poison_if_fatal(result)
    }

    /// To be called when the back-end channel has become readable.
    pub fn serve_channel(&mut self) -> Result<(), Cause> {
        let result = self.serve_channel_inner();
        self.poison_if_fatal(result)
    }

    fn idle_inner(&mut self) -> Result<(), Cause> {
        if self.poisoned {
            return Err(Cause::Poisoned);
        }
        if let Some(unsent) = &self.unsent {
            let (request, since) = (unsent.request, unsent.since);
            match self.owed.front().copied().filter(|_| self.owed.len() > 1) {
                // To a request before it.
                Some(owed) => drop(self.advance(owed)?),
                // Nothing may come before the request has gone out as a whole.
                None => self.check_quiet(During::Request(request))?,
            }
            return match self.try_flush()? {
                Flushed::All => Ok(()),
                Flushed::Part => self.check_alive(request, since),
            };
        }
        let Some(owed) = self.owed.front().copied() else {
            return self.check_quiet(During::Idle);
        };
        if self.advance(owed)?.is_none() {
            return self.check_alive(owed.request, owed.since);
        }
        Ok(())
    }

    /// Nothing is owed, so nothing may have come.
    pub(super) fn check_quiet(&mut self, during: During) -> Result<(), Cause> {
        debug_assert!(!self.incoming.has_begun());
        let mut byte = [0];
        match self.socket.try_recv(&mut byte) {
            Ok(received) if received.len == 0 => Err(Cause::Closed { during }),
            Ok(_) => Err(Cause::Violation {
                during: During::Idle,
                reason: Violation::Unsolicited,
            }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(Cause::Closed { during })
            }
            Err(source) => Err(Cause::Io {
                step: "receive from the back-end",
                source,
            }),
        }
    }

    pub(super) fn serve_channel_inner(&mut self) -> Result<(), Cause> {
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        let state = channel.serve()?;
        self.config_changed |= channel.take_config_changed();
        if state == ChannelState::Closed {
            tracing::debug!(device = %self.device, "the back-end has closed the back-end channel");
            self.channel = None;
        }
        Ok(())
    }
}
