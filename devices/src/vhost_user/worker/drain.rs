//! Waiting for requests in flight.
//!
//! By the protocol GET_VRING_BASE does this, but qemu-storage-daemon answers at once and writes to guest memory later,
//! when it may hold something else. So the rings are looked at in guest RAM until the back-end has used all that was
//! made available.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::{Ring, Session, kick};
use super::{DRAIN_INTERVAL, Worker};
use crate::sys::poll::{self, Interest};
use crate::vhost_user::error::Cause;
use crate::vhost_user::memory::RamRegion;
use crate::vhost_user::rings;

/// How long a kick may take from the guest to a back-end that has nothing else to do.
const KICK_TIME: Duration = Duration::from_millis(20);

/// How long requests in flight are waited for, and what the log is told when that is long.
struct Wait {
    what: &'static str,
    began: Instant,
    slow_at: Instant,
    deadline: Instant,
}

impl Worker {
    /// Lets requests in flight come to their end. What the reset cannot wait for could be written into the memory
    /// of the next guest, so a device whose requests do not end fails, as one that does not answer.
    pub(super) fn drain_for_reset(&mut self, session: &Session) -> Result<(), Cause> {
        // Some of the time is kept for the messages that follow.
        let limit = self.limits.dead.mul_f32(0.9);
        let wait = self.wait_for("a reset", limit);
        self.kick_draining(session);
        while self.any_draining(session) {
            self.wait_more(&wait)?;
        }
        self.let_kicks_arrive(session)
    }

    /// The same for a suspension, which is worth nothing any more when something waits behind it.
    pub(super) fn drain_for_suspend(&mut self, session: &Session) -> Result<(), Cause> {
        let wait = self.wait_for("a suspension", self.limits.dead);
        self.kick_draining(session);
        while self.any_draining(session) {
            self.unless_given_up()?;
            self.wait_more(&wait)?;
        }
        self.let_kicks_arrive(session)
    }

    /// A processor may have made a request available and been stopped before it could announce it. Where requests are
    /// not waited for, this can wait for the kick with which the ring starts again.
    fn kick_draining(&self, session: &Session) {
        let draining = |ring: &&Ring| self.is_draining(session, ring);
        for ring in session.rings.iter().filter(draining) {
            kick(&ring.queue);
        }
    }

    /// Waits for a moment until no kick of a running ring is on its way. A back-end whose ring is stopped between hearing of a
    /// kick and looking at the ring may stumble: in virtiofsd, the thread that serves the rings ends. Not for longer than
    /// a moment, because a back-end that polls its rings never takes a kick.
    fn let_kicks_arrive(&mut self, session: &Session) -> Result<(), Cause> {
        let running = session
            .rings
            .iter()
            .filter(|ring| ring.stopped_at.is_none());
        let mut kicks: Vec<_> = running
            .map(|ring| poll::entry(Some(&*ring.queue.kick), Interest::Read))
            .collect();
        let deadline = Instant::now() + KICK_TIME;
        loop {
            let now = Instant::now();
            poll::wait(&mut kicks, Some(now)).map_err(|source| Cause::Io {
                step: "look for kicks",
                source,
            })?;
            if now >= deadline || !kicks.iter().any(poll::ready) {
                return Ok(());
            }
            self.wait(Some(now + DRAIN_INTERVAL))?;
        }
    }

    /// Waits until a back-end that stopped its rings before it had finished has caught up with them: it would take the
    /// same requests again otherwise.
    pub(super) fn drain_for_resume(&mut self, session: &Session) -> Result<(), Cause> {
        let limit = self.limits.dead.mul_f32(0.9);
        let wait = self.wait_for("the guest's going on", limit);
        let shared = Arc::clone(&self.shared);
        let rules = shared.spec.profile.rules();
        let in_flight = |ring: &Ring| {
            ring.stopped_at.is_some_and(|base| {
                rules.drains(ring.place.index) && is_behind(&session.ram, ring, base)
            })
        };
        while session.rings.iter().any(in_flight) {
            self.wait_more(&wait)?;
        }
        Ok(())
    }

    fn wait_for(&self, what: &'static str, limit: Duration) -> Wait {
        let began = Instant::now();
        Wait {
            what,
            began,
            slow_at: began + self.limits.request,
            deadline: began + limit,
        }
    }

    /// One step of waiting, in which the back-end is listened to.
    fn wait_more(&mut self, wait: &Wait) -> Result<(), Cause> {
        let now = Instant::now();
        if now >= wait.deadline {
            let waited = now - wait.began;
            return Err(Cause::NotDrained { waited });
        }
        if now >= wait.slow_at {
            self.log_slow_drain(wait.what, wait.deadline - wait.began);
        }
        self.wait(Some(wait.deadline.min(now + DRAIN_INTERVAL)))
    }

    fn any_draining(&self, session: &Session) -> bool {
        let mut rings = session.rings.iter();
        rings.any(|ring| self.is_draining(session, ring))
    }

    /// Whether the back-end has requests to complete in a ring that carries requests and runs. A ring that makes no sense has none.
    fn is_draining(&self, session: &Session, ring: &Ring) -> bool {
        let rules = self.shared.spec.profile.rules();
        ring.stopped_at.is_none()
            && rules.drains(ring.place.index)
            && rings::indexes(&session.ram, &ring.place).is_ok_and(|indexes| {
                let count = indexes.outstanding();
                count > 0 && count <= ring.place.size
            })
    }

    /// Once per device, because a guest can provoke it at will.
    fn log_slow_drain(&mut self, what: &str, limit: Duration) {
        if !std::mem::replace(&mut self.slow_drain_logged, true) {
            tracing::warn!(
                device = self.shared.spec.id,
                "{what} waits for requests in flight: the back-end has not completed them within {:?}; \
                 they are waited for up to {limit:?}",
                self.limits.request,
            );
        }
    }
}

/// Whether the back-end took more requests of a ring stopped at `base` than it has completed. In a ring that makes no
/// sense it did not.
fn is_behind(ram: &[RamRegion], ring: &Ring, base: u16) -> bool {
    rings::indexes(ram, &ring.place).is_ok_and(|indexes| {
        let outstanding = indexes.outstanding();
        let taken = base.wrapping_sub(indexes.used);
        outstanding <= ring.place.size && (1..=outstanding).contains(&taken)
    })
}
