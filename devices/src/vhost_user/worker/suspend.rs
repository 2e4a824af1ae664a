//! Stopping the rings without the guest's noticing, and letting them go on.
//!
//! ```text
//!          no requests in flight   something harmless answered    GET_VRING_BASE of each ring
//!   Active ─────────┬──────────────────────────┬─────────────────────────────┬───────────▶ Suspended
//!     ▲             │ given up                 │ given up                                      │
//!     │             ▼                          ▼                                               ▼
//!     └──────── nothing to do ─────────────────┘                      start what is stopped: NUM, BASE, …
//! ```
//!
//! The guest's processors stand still before the device is suspended, so that what is available does not grow. But
//! an owner may lose its patience and let the guest go on in the midst of it; from then on an order to resume waits in
//! the inbox, and what is read of a ring says little. An answer to GET_VRING_BASE that is
//! owed by then is waited for all the same: without it nobody knows where the ring is to go on. All rings are asked for together, so
//! that from there on the suspension ends as if nobody had lost patience.
//!
//! qemu-storage-daemon does not survive GET_VRING_BASE while it has requests in flight. That is the reason for
//! the harmless question: a back-end that stands still (stopped by a signal, say) is left owing that answer, which
//! stops nothing, whenever it comes.

use std::time::Instant;

use vhost::vhost_user::message::FrontendReq;

use super::Worker;
use super::session::{Ring, Service, Session, Told, kick};
use crate::vhost_user::device::DeviceState;
use crate::vhost_user::error::{Cause, During, Violation};
use crate::vhost_user::frontend::Patience;
use crate::vhost_user::inbox::Order;
use crate::vhost_user::memory::RamRegion;
use crate::vhost_user::message::RequestCode;
use crate::vhost_user::rings;

impl Worker {
    /// Stops all rings, and keeps where they are to go on. The inner error leaves the device alive.
    pub(super) fn suspend(&mut self) -> Result<Result<(), Cause>, Cause> {
        let stands = |session: &mut Session| session.service != Service::Unloaded;
        let Some(mut session) = self.session.take_if(stands) else {
            return Ok(Ok(()));
        };
        self.shared.set_state(DeviceState::Changing);
        // The owner has a patience of its own. What the back-end is asked here is needed, whenever it comes.
        self.frontend
            .set_patience(Patience::PerMessage(self.limits.dead));
        let result = self.stop_rings(&mut session);
        let state = session.state();
        self.session = Some(session);
        match result {
            Ok(()) => {
                self.shared.counters.suspends.add();
                self.publish_stopped();
                self.shared.set_state(DeviceState::Suspended);
                Ok(Ok(()))
            }
            Err(cause @ (Cause::GivenUp | Cause::NotDrained { .. })) => {
                self.shared.set_state(state);
                Ok(Err(cause))
            }
            Err(cause) => Err(cause.late_is_dead()),
        }
    }

    fn stop_rings(&mut self, session: &mut Session) -> Result<(), Cause> {
        self.unless_given_up()?;
        while let Some(write) = self.shared.next_write() {
            self.write_config(&write)?;
            self.unless_given_up()?;
        }
        // Rings that were never enabled would never run empty.
        if session.service == Service::Complete {
            self.drain_for_suspend(session)?;
        }
        self.frontend.get_features()?;
        self.unless_given_up()?;
        // They are asked all at once, and may take as long as one of them.
        let by_then = Patience::Until(Instant::now() + self.limits.dead);
        self.frontend.set_patience(by_then);
        let stopped = self.stop(session)?;
        let mut rings = session.rings.iter();
        rings
            .by_ref()
            .filter(|ring| stopped.contains(&ring.place.index))
            .try_for_each(|ring| self.check_base(&session.ram, ring))
    }

    /// Ends a suspension that is worth nothing any more.
    pub(super) fn unless_given_up(&self) -> Result<(), Cause> {
        let ends_it = |order: &Order| matches!(order, Order::Resume(_) | Order::Reset(_));
        match self.shared.has_order(ends_it) {
            true => Err(Cause::GivenUp),
            false => Ok(()),
        }
    }

    /// Checks where the back-end says that it has stopped: not before what it has used, and not after what was made
    /// available; and in between only where buffers are parked. Else it does not keep to the protocol, and whatever
    /// it did next would be wrong.
    fn check_base(&self, ram: &[RamRegion], ring: &Ring) -> Result<(), Cause> {
        let place = &ring.place;
        let (Some(base), Ok(indexes)) = (ring.stopped_at, rings::indexes(ram, place)) else {
            return Ok(());
        };
        let outstanding = indexes.outstanding();
        // Read before this is asked: the guest runs only after the order to resume has been given.
        let guest_runs = self.unless_given_up().is_err();
        if outstanding > place.size || guest_runs {
            // The guest's doing, or it moves.
            return Ok(());
        }
        let taken = base.wrapping_sub(indexes.used);
        if taken <= outstanding {
            return Ok(());
        }
        Err(Cause::Violation {
            during: During::Request(RequestCode::from(FrontendReq::GET_VRING_BASE)),
            reason: Violation::Contents(format!(
                "it stopped queue {} at {base}, which is not between the used index {} and the available index {}",
                place.index, indexes.used, indexes.available
            )),
        })
    }

    /// Starts the rings that are stopped. There is no message for that: they are set up anew.
    pub(super) fn resume(&mut self) -> Result<(), Cause> {
        self.moving = None;
        self.refuse_unloaded()?;
        self.loads = false;
        self.not_loaded = None;
        if let Some(mut session) = self.session.take() {
            self.shared.set_stopped(Vec::new());
            let result = self
                .unprepare(&session)
                .and_then(|()| self.restart_rings(&mut session));
            let state = session.state();
            self.session = Some(session);
            result.map_err(Cause::late_is_dead)?;
            self.shared.set_state(state);
        }
        self.shared.counters.resumes.add();
        Ok(())
    }

    /// Tells the back-end all of the stopped rings but what would start them.
    pub(super) fn set_up_rings(&mut self) -> Result<(), Cause> {
        let Some(mut session) = self.session.take() else {
            return Ok(());
        };
        let outcome = self.set_up_stopped(&mut session);
        self.session = Some(session);
        outcome
    }

    fn set_up_stopped(&mut self, session: &mut Session) -> Result<(), Cause> {
        match session.service {
            Service::Complete => {}
            Service::Incomplete => return Ok(()),
            Service::Unloaded => {
                let reason = "the state inside its back-end is not loaded yet".into();
                return Err(Cause::BadState { reason });
            }
        }
        // Back-ends read where the used ring ends when they are told where it is.
        self.drain_for_resume(session)?;
        self.set_up_others(session)?;
        self.frontend.fence()
    }

    /// Tells the back-end those of the stopped rings that it has not been told yet.
    fn set_up_others(&mut self, session: &mut Session) -> Result<(), Cause> {
        let other = |ring: &&mut Ring| ring.stopped_at.is_some() && ring.told != Told::SetUp;
        let mut others: Vec<_> = session.rings.iter_mut().filter(other).collect();
        // Should that fail on the way, each may be known to the back-end already.
        others.iter_mut().for_each(|ring| ring.told = Told::Past);
        let places = others.iter();
        self.set_up(places.filter_map(|ring| Some((&ring.queue, ring.stopped_at?))))?;
        others.iter_mut().for_each(|ring| ring.told = Told::SetUp);
        Ok(())
    }

    fn restart_rings(&mut self, session: &mut Session) -> Result<(), Cause> {
        // What was not running before stays for the guest to reset.
        if session.service == Service::Incomplete {
            return Ok(());
        }
        self.drain_for_resume(session)?;
        self.set_up_others(session)?;
        let stopped = |ring: &&mut Ring| ring.stopped_at.is_some();
        let mut restarted: Vec<_> = session.rings.iter_mut().filter(stopped).collect();
        if restarted.is_empty() {
            return Ok(());
        }
        self.kick_and_enable(restarted.iter_mut().map(|ring| &mut **ring))?;
        for ring in restarted {
            // A kick may have been taken before the ring was stopped, and an interrupt lost on its way.
            kick(&ring.queue);
            let _ = ring.queue.call.write(1);
        }
        Ok(())
    }
}

impl Session {
    /// Where the device stands when nothing is under way.
    fn state(&self) -> DeviceState {
        let any_stopped = self.rings.iter().any(|ring| ring.stopped_at.is_some());
        match (self.service, any_stopped) {
            (Service::Unloaded, _) => DeviceState::Changing,
            (Service::Incomplete, _) => DeviceState::Idle,
            (Service::Complete, false) => DeviceState::Active,
            (Service::Complete, true) => DeviceState::Changing,
        }
    }
}
