//! From an activation to the reset that ends it: giving the back-end memory and rings, and getting them back.

use std::sync::Arc;

use vhost::vhost_user::VhostUserProtocolFeatures;

use super::Worker;
use crate::vhost_user::counters::RunningRings;
use crate::vhost_user::error::Cause;
use crate::vhost_user::frontend::RingMessage;
use crate::vhost_user::inbox::Order;
use crate::vhost_user::memory::{RamRegion, is_ram};
use crate::vhost_user::rings;
use crate::virtio::{Activation, ActiveQueue};

/// The time from an activation to the reset that ends it.
pub(super) struct Session {
    /// The features that the driver has accepted.
    pub features: u64,
    /// Where the rings are.
    pub ram: Arc<[RamRegion]>,
    /// Rings that the back-end has been given.
    pub rings: Vec<Ring>,
    /// How far the activation has come.
    pub service: Service,
}

/// Whether a session's rings are to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// The activation has not ended, or not well: the guest has to reset the device.
    Incomplete,
    /// It is being restored, and its back-end's state is not there yet: the rings must not be started.
    Unloaded,
    /// The rings were all enabled, or may be.
    Complete,
}

/// A ring that the back-end has been given.
pub(super) struct Ring {
    pub queue: ActiveQueue,
    pub place: rings::Place,
    /// `None`: it may be running. Else where it is to go on when it is started again.
    pub stopped_at: Option<u16>,
    /// What the back-end has been told of it.
    pub told: Told,
}

/// What a back-end has been told of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing: it is being restored.
    Nothing,
    /// All but what starts it.
    SetUp,
    /// Everything, once. If it is stopped, it has to be told anew.
    Past,
}

impl Worker {
    /// Tells the back-end everything it needs to serve the rings, then lets it.
    pub(super) fn start_rings(&mut self, activation: Activation) -> Result<(), Cause> {
        let ram = self.shared.ram();
        for queue in &activation.queues {
            if !rings::fits(&ram, queue) {
                return Err(Cause::BadSetup {
                    reason: format!(
                        "the driver put queue {} outside of guest RAM or misaligned it",
                        queue.index
                    ),
                });
            }
        }
        let mut session = Session {
            features: activation.features,
            ram,
            rings: Vec::new(),
            service: Service::Incomplete,
        };
        let result = self.start_session(&mut session, &activation);
        self.session = Some(session);
        result
    }

    fn start_session(
        &mut self,
        session: &mut Session,
        activation: &Activation,
    ) -> Result<(), Cause> {
        let ram = Arc::clone(&session.ram);
        self.tell_features_and_ram(activation.features, &ram)?;
        self.unless_overtaken()?;
        // Should it fail on the way, each may be known to the back-end already.
        let set_up = activation.queues.iter().map(|queue| Ring {
            queue: queue.clone(),
            place: rings::Place::of(queue),
            stopped_at: Some(0),
            told: Told::SetUp,
        });
        session.rings = set_up.collect();
        self.set_up(session.rings.iter().map(|ring| (&ring.queue, 0)))?;
        self.unless_overtaken()?;
        self.kick_and_enable(session.rings.iter_mut())?;
        session.service = Service::Complete;
        let running = RunningRings::new(activation.features, &ram, &activation.queues);
        self.shared.set_rings(running);
        // The driver does not wait for this, and what it announced of a ring not yet enabled is lost: back-ends take
        // the signal and leave the ring alone.
        for queue in &activation.queues {
            kick(queue);
        }
        Ok(())
    }

    /// Ends an activation that is worth nothing any more.
    fn unless_overtaken(&self) -> Result<(), Cause> {
        let given_up = |order: &Order| matches!(order, Order::Reset(_));
        match self.shared.has_order(given_up) {
            true => Err(Cause::Overtaken),
            false => Ok(()),
        }
    }

    /// Tells the back-end everything that it needs to know of rings, and where they are to go on, before it may start them, which the
    /// kick's eventfd lets it do. The call comes before that: back-ends start at the kick, and what they complete
    /// then must raise its interrupt.
    pub(super) fn set_up<'a>(
        &mut self,
        rings: impl Iterator<Item = (&'a ActiveQueue, u16)>,
    ) -> Result<(), Cause> {
        let log = self.negotiated.ring_log();
        let messages = rings.flat_map(|(queue, base)| {
            let ring = rings::Parts::of(queue);
            [
                RingMessage::Num(ring.index, ring.size),
                RingMessage::Base(ring.index, base),
                RingMessage::Addr(ring, log),
                RingMessage::Call(queue),
            ]
        });
        self.frontend.tell_of_rings(&messages.collect::<Vec<_>>())
    }

    /// Has the back-end start rings that are set up. Whether the kick arrives may stay unknown, so they count as running before it.
    pub(super) fn kick_and_enable<'a>(
        &mut self,
        rings: impl Iterator<Item = &'a mut Ring>,
    ) -> Result<(), Cause> {
        let started: Vec<_> = rings
            .map(|ring| {
                (ring.stopped_at, ring.told) = (None, Told::Past);
                &ring.queue
            })
            .collect();
        let kicks = started.iter().map(|queue| RingMessage::Kick(queue));
        self.frontend.tell_of_rings(&kicks.collect::<Vec<_>>())?;
        let enables = started.iter().map(|queue| RingMessage::Enable(queue.index));
        self.frontend.tell_of_rings(&enables.collect::<Vec<_>>())?;
        self.frontend.fence()
    }

    /// The features that the driver has accepted, guest RAM if the back-end does not know it, and the dirty log if there is one: a
    /// back-end may log only what it knew when it was given that.
    pub(super) fn tell_features_and_ram(
        &mut self,
        features: u64,
        ram: &Arc<[RamRegion]>,
    ) -> Result<(), Cause> {
        let accepted = self.negotiated.acknowledge(features);
        self.frontend.set_features(accepted)?;
        self.log_all = false;
        self.tell_ram(ram)?;
        self.log_new_session(features, ram)
    }

    /// The same of guest RAM alone, for a session that is to come; and that the back-end answers.
    pub(super) fn tell_ram_ahead(&mut self) -> Result<(), Cause> {
        if self.session.is_some() {
            let reason = "the device is in use already".into();
            return Err(Cause::BadState { reason });
        }
        // What a move that was given up still writes is not for this RAM.
        self.settle_load()?;
        let ram = self.shared.ram();
        self.tell_ram(&ram)?;
        self.frontend.get_features().map(drop)
    }

    fn tell_ram(&mut self, ram: &Arc<[RamRegion]>) -> Result<(), Cause> {
        let knows = |told: &Arc<[RamRegion]>| Arc::ptr_eq(told, ram);
        if self.told_ram.as_ref().is_some_and(knows) {
            return Ok(());
        }
        self.park_rings(ram)?;
        // Should the answer be lost, the table is sent again.
        self.told_ram = None;
        // One table, which replaces whatever was told before: guest RAM has two regions at most.
        self.frontend.set_mem_table(ram)?;
        self.told_ram = Some(Arc::clone(ram));
        Ok(())
    }

    /// Moves the rings of former sessions, which stand still, to where there is RAM before and after. libvhost-user, with it
    /// qemu-storage-daemon, looks for all rings that it has ever been given whenever it is given a memory table, and closes
    /// the connection if one of them is not there any more, whoever's it was.
    fn park_rings(&mut self, ram: &[RamRegion]) -> Result<(), Cause> {
        let Some(told) = &self.told_ram else {
            return Ok(());
        };
        let mut starts = ram.iter().map(|region| region.guest);
        let Some(place) = starts.find(|start| is_ram(told, *start, 1)) else {
            return Ok(());
        };
        let log = self.negotiated.ring_log();
        let former = self.former.values_mut();
        let lost: Vec<_> = former.filter(|ring| !ring.begin_in(ram)).collect();
        let messages = lost.iter().flat_map(|ring| {
            [
                // Some forget the number with a reset, and look for it first.
                RingMessage::Num(ring.index, ring.size),
                RingMessage::Addr(ring.parked_at(place), log),
            ]
        });
        self.frontend.tell_of_rings(&messages.collect::<Vec<_>>())?;
        lost.into_iter()
            .for_each(|ring| *ring = ring.parked_at(place));
        Ok(())
    }

    /// Notes the rings of a session that has ended.
    pub(super) fn note_former(&mut self, session: &Session) {
        let told = session
            .rings
            .iter()
            .filter(|ring| ring.told != Told::Nothing);
        self.former
            .extend(told.map(|ring| (ring.place.index, rings::Parts::of(&ring.queue))));
    }

    /// Stops the rings, then resets the back-end's device if it knows how. Rings that are stopped already
    /// have nothing in flight, and asking for them again would tell nothing; the same of those that were only set up.
    pub(super) fn end_session(&mut self, session: &mut Session) -> Result<(), Cause> {
        self.drain_for_reset(session)?;
        self.stop(session)?;
        let protocol = self.negotiated.protocol;
        if !protocol.contains(VhostUserProtocolFeatures::RESET_DEVICE) {
            return Ok(());
        }
        // It clears what the back-end keeps for this driver (open files, say), and in some back-ends the accepted
        // features, which the next activation sends anyway. Rings alone it would not stop everywhere.
        match self.frontend.reset_device() {
            Err(cause @ Cause::Refused { .. }) => {
                self.log_refusal(cause, "the device is only stopped, not reset");
                Ok(())
            }
            other => other,
        }?;
        self.frontend.fence()
    }

    /// Stops the rings that may be running, and notes where they are to go on. Returns which they are.
    pub(super) fn stop(&mut self, session: &mut Session) -> Result<Vec<u16>, Cause> {
        let rings = session.rings.iter_mut();
        let running: Vec<_> = rings.filter(|ring| ring.stopped_at.is_none()).collect();
        let indexes: Vec<_> = running.iter().map(|ring| ring.place.index).collect();
        let bases = self.frontend.get_vring_bases(&indexes)?;
        for (ring, base) in running.into_iter().zip(bases) {
            ring.stopped_at = Some(base);
        }
        Ok(indexes)
    }
}

/// Tells the back-end that there may be buffers in a ring. This can only fail when as many signals are pending that
/// one more makes no difference.
pub(super) fn kick(queue: &ActiveQueue) {
    let _ = queue.kick.write(1);
}
