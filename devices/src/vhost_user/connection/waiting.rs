//! Waiting for the back-end: until its answer is due, and beyond that until it is taken for dead.

use std::time::Instant;

use super::Connection;
use crate::sys::poll::{self, Interest};
use crate::vhost_user::error::Cause;
use crate::vhost_user::message::RequestCode;

impl Connection {
    /// Waits until the main socket is ready for `interest`, serving the back-end channel meanwhile: a back-end may
    /// await an answer there before it gives its own. `since` is when `request` was sent.
    pub(super) fn wait(
        &mut self,
        interest: Interest,
        deadline: Instant,
        request: RequestCode,
        since: Instant,
    ) -> Result<(), Cause> {
        loop {
            self.check_alive(request, since)?;
            let now = Instant::now();
            if now >= deadline {
                self.count_late();
                return Err(Cause::Late {
                    request,
                    waited: now - since,
                });
            }
            let note_at = self.note_if_slow(now);
            let mut until = deadline.min(since + self.limits.dead);
            if let Some(note_at) = note_at {
                until = until.min(note_at);
            }
            let mut entries = [
                poll::entry(Some(&*self.stop), Interest::Read),
                poll::entry(Some(&self.socket), interest),
                poll::entry(self.channel(), Interest::Read),
            ];
            poll::wait(&mut entries, Some(until)).map_err(|source| Cause::Io {
                step: "wait for the back-end",
                source,
            })?;
            let [stop, socket, channel] = entries.map(|entry| poll::ready(&entry));
            if stop {
                return Err(Cause::Stopped);
            }
            if channel {
                self.serve_channel_inner()?;
            }
            if socket {
                return Ok(());
            }
        }
    }

    /// Tells the log once that an answer takes longer than usual; returns when that would be.
    fn note_if_slow(&mut self, now: Instant) -> Option<Instant> {
        let owed = self.owed.front_mut().filter(|owed| !owed.noted)?;
        let at = owed.since + self.limits.request;
        if now < at {
            return Some(at);
        }
        owed.noted = true;
        tracing::warn!(
            device = %self.device,
            "the back-end has not answered {} for {:?}; it is waited for up to {:?}",
            owed.request, self.limits.request, self.limits.dead,
        );
        self.count_late();
        None
    }

    /// Counts the owed answer as late, once.
    fn count_late(&mut self) {
        if let Some(owed) = self.owed.front_mut().filter(|owed| !owed.counted) {
            owed.counted = true;
            self.counters.late_answers.add();
        }
    }

    pub(super) fn check_alive(&self, request: RequestCode, since: Instant) -> Result<(), Cause> {
        let waited = since.elapsed();
        if waited >= self.limits.dead {
            return Err(Cause::Dead { request, waited });
        }
        Ok(())
    }
}
