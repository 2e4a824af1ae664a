//! Giving a fresh back-end what was saved of another.
//!
//! Everything is checked before the back-end is told anything. Afterwards the session is as one that has been suspended:
//! each ring is noted with the place where it is to go on, and is set up when that is asked for, or when the device resumes. A
//! back-end starts a ring at its kick, so that one that is only set up stands still.

use std::sync::Arc;

use vhost::vhost_user::VhostUserProtocolFeatures;

use super::Worker;
use super::session::{Ring, Service, Session, Told};
use crate::vhost_user::counters::RunningRings;
use crate::vhost_user::device::DeviceState;
use crate::vhost_user::error::Cause;
use crate::vhost_user::inbox::Restoring;
use crate::vhost_user::memory::RamRegion;
use crate::vhost_user::moving::{BackEndStateV1, RingStateV1, VhostUserStateV1};
use crate::vhost_user::rings;
use crate::virtio::{Activation, ActiveQueue};

impl Worker {
    /// Makes the session that was saved. An error leaves the device without one.
    pub(super) fn restore(&mut self, restoring: Restoring) -> Result<(), Cause> {
        let Restoring { activation, state } = restoring;
        if self.session.is_some() || self.shared.state() != DeviceState::Idle {
            return bad("the device is in use already".into());
        }
        let ram = self.shared.ram();
        self.check_config(&state)?;
        match &activation {
            Some(activation) => self.check_session(activation, &state, &ram)?,
            None if state.rings.is_empty() && state.back_end == BackEndStateV1::Absent => {}
            None => {
                return bad(
                    "it is of a device that runs, and the driver has not started it".into(),
                );
            }
        }
        self.restore_config(&state)?;
        let Some(activation) = activation else {
            return Ok(());
        };
        self.tell_features_and_ram(activation.features, &ram)?;
        self.frontend.fence()?;
        let running = RunningRings::new(activation.features, &ram, &activation.queues);
        let session = session(ram, activation, &state);
        let service = session.service;
        self.session = Some(session);
        self.shared.set_rings(running);
        match service {
            Service::Unloaded => self.shared.set_state(DeviceState::Changing),
            _ => {
                self.publish_stopped();
                self.shared.set_state(DeviceState::Suspended);
            }
        }
        Ok(())
    }

    fn check_config(&self, state: &VhostUserStateV1) -> Result<(), Cause> {
        let now = self.shared.with_config(|config| config.bytes.len());
        let saved = state.config.len();
        match saved == now {
            true => Ok(()),
            false => bad(format!(
                "its configuration space has {saved} bytes, and the device's {now}"
            )),
        }
    }

    fn check_session(
        &self,
        activation: &Activation,
        state: &VhostUserStateV1,
        ram: &[RamRegion],
    ) -> Result<(), Cause> {
        let missing = activation.features & !self.negotiated.guest_features;
        if missing != 0 {
            return Err(Cause::Unusable {
                reason: format!(
                    "it lacks features that the guest's driver uses ({missing:#x}); use a back-end like the one that \
                     was saved"
                ),
            });
        }
        if state.features != activation.features {
            return bad("it is of a device with other features than the driver's".into());
        }
        if state.back_end == BackEndStateV1::Carried && !self.negotiated.offers_device_state() {
            return Err(Cause::Unusable {
                reason: "it does not offer DEVICE_STATE, so that the saved state cannot be loaded into it".into(),
            });
        }
        let queues = activation.queues.iter().map(|queue| queue.index);
        if !queues.eq(state.rings.iter().map(|ring| ring.index)) || state.rings.is_empty() {
            return bad("it is of a device with other queues than the driver's".into());
        }
        let pairs = activation.queues.iter().zip(&state.rings);
        pairs
            .into_iter()
            .try_for_each(|(queue, ring)| self.check_ring(queue, *ring, ram))
    }

    fn check_ring(
        &self,
        queue: &ActiveQueue,
        ring: RingStateV1,
        ram: &[RamRegion],
    ) -> Result<(), Cause> {
        let spec = &self.shared.spec;
        let index = queue.index;
        if u32::from(index) >= spec.profile.rules().queue_count(spec.num_queues) {
            return bad(format!("the device has no queue {index}"));
        }
        if !rings::fits(ram, queue) {
            return bad(format!(
                "queue {index} is outside of guest RAM or misaligned"
            ));
        }
        let base = ring.base;
        match rings::is_settled(ram, &rings::Place::of(queue), base) {
            true => Ok(()),
            false => bad(format!(
                "queue {index} is to go on at {base}, which is not where its used ring in guest RAM ends"
            )),
        }
    }

    /// Writes what the guest's driver had written.
    fn restore_config(&mut self, state: &VhostUserStateV1) -> Result<(), Cause> {
        let rules = self.shared.spec.profile.rules();
        let now = self.shared.with_config(|config| config.bytes.clone());
        let writable = rules.writable(self.negotiated.guest_features, now.len());
        let differs = |at: &usize| now.get(*at) != state.config.get(*at);
        let (Some(first), Some(last)) =
            (writable.clone().find(differs), writable.rev().find(differs))
        else {
            return Ok(());
        };
        let Some(written) = state.config.get(first..=last) else {
            return Ok(());
        };
        let protocol = self.negotiated.protocol;
        if protocol.contains(VhostUserProtocolFeatures::CONFIG) && self.negotiated.config_size > 0 {
            self.frontend.set_config(first as u32, written)?;
        }
        self.shared.with_config(|config| {
            if let Some(target) = config.bytes.get_mut(first..=last) {
                target.copy_from_slice(written);
            }
        });
        Ok(())
    }
}

fn session(ram: Arc<[RamRegion]>, activation: Activation, state: &VhostUserStateV1) -> Session {
    let Activation { features, queues } = activation;
    let rings = queues
        .into_iter()
        .zip(&state.rings)
        .map(|(queue, ring)| Ring {
            place: rings::Place::of(&queue),
            queue,
            stopped_at: Some(ring.base),
            told: Told::Nothing,
        });
    Session {
        features,
        ram,
        rings: rings.collect(),
        service: match state.back_end {
            BackEndStateV1::Carried => Service::Unloaded,
            BackEndStateV1::Absent => Service::Complete,
        },
    }
}

fn bad(reason: String) -> Result<(), Cause> {
    Err(Cause::BadState { reason })
}
