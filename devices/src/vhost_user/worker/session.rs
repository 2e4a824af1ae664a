//! From an activation to the reset that ends it: giving the back-end memory and rings, and getting them back.

use std::sync::Arc;
use std::time::Instant;

use vhost::vhost_user::VhostUserProtocolFeatures;

use super::{DRAIN_INTERVAL, Session, Worker};
use crate::vhost_user::error::Cause;
use crate::vhost_user::frontend::{Frontend, RingEvent, RingState};
use crate::vhost_user::memory::RamRegion;
use crate::vhost_user::rings;
use crate::vhost_user::socket::MAX_FDS;
use crate::virtio::{Activation, ActiveQueue};

impl Worker {
    /// Tells the back-end everything it needs to serve the rings, then lets it.
    pub(super) fn start_rings(&mut self, activation: Activation) -> Result<(), Cause> {
        let ram = self.shared.ram();
        for queue in &activation.queues {
            if !rings::fits(&ram, queue) {
                return Err(Cause::BadSetup {
                    reason: format!("queue {} does not lie in guest RAM", queue.index),
                });
            }
        }
        let session = self.session.insert(Session {
            ram: Arc::clone(&ram),
            rings: Vec::new(),
        });
        let frontend = &mut self.frontend;
        frontend.set_features(self.negotiated.acknowledge(activation.features))?;
        let knows = |told: &Arc<[RamRegion]>| Arc::ptr_eq(told, &ram);
        if !self.told_ram.as_ref().is_some_and(knows) {
            // Should the answer be lost, the table is sent again.
            self.told_ram = None;
            send_memory(frontend, &ram, self.negotiated.memory_slots)?;
            self.told_ram = Some(ram);
        }
        for queue in &activation.queues {
            if self.shared.has_command() {
                return Err(Cause::Overtaken);
            }
            frontend.set_vring_num(queue.index, queue.size)?;
            frontend.set_vring_base(queue.index, 0)?;
            frontend.set_vring_addr(queue)?;
            // The call before the kick: back-ends start at the kick, and what they complete then must raise
            // its interrupt. Whether the kick arrived may stay unknown, so the ring counts as running before it.
            frontend.set_vring_event(queue.index, RingEvent::Call, Some(&queue.call))?;
            session.rings.push(queue.clone());
            frontend.set_vring_event(queue.index, RingEvent::Kick, Some(&queue.kick))?;
        }
        for queue in &activation.queues {
            frontend.set_vring_enable(queue.index, RingState::Enabled)?;
        }
        frontend.fence()?;
        // The driver does not wait for this, and what it announced of a ring not yet enabled is lost: back-ends take
        // the signal and leave the ring alone. The write can only fail when a signal is pending anyway.
        for queue in &activation.queues {
            let _ = queue.kick.write(1);
        }
        Ok(())
    }

    /// Stops the rings, then resets the back-end's device if it knows how.
    pub(super) fn end_session(&mut self, session: &Session) -> Result<(), Cause> {
        self.drain(session)?;
        for queue in &session.rings {
            self.frontend.get_vring_base(queue.index)?;
        }
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

    /// Lets requests in flight come to their end. By the protocol GET_VRING_BASE does this, but qemu-storage-daemon
    /// answers at once and writes to guest memory later, when it may hold something else. So a device whose requests
    /// do not end fails, as one that does not answer.
    fn drain(&mut self, session: &Session) -> Result<(), Cause> {
        let rules = self.shared.spec.profile.rules();
        let began = Instant::now();
        let slow_at = began + self.limits.request;
        // Some of the time is kept for the messages that follow.
        let deadline = began + self.limits.dead.mul_f32(0.9);
        let mut draining: Vec<&ActiveQueue> = session
            .rings
            .iter()
            .filter(|queue| rules.drains(queue.index) && is_outstanding(&session.ram, queue))
            .collect();
        for queue in &draining {
            // A request may have been made available and not been announced. The signal can only fail
            // when as many are pending that one more makes no difference.
            let _ = queue.kick.write(1);
        }
        while !draining.is_empty() {
            let now = Instant::now();
            if now >= deadline {
                return Err(Cause::NotDrained {
                    waited: now - began,
                });
            }
            if now >= slow_at {
                self.log_slow_drain();
            }
            self.wait(Some(deadline.min(now + DRAIN_INTERVAL)))?;
            draining.retain(|queue| is_outstanding(&session.ram, queue));
        }
        Ok(())
    }

    /// Once per device, because a guest can provoke it at will.
    fn log_slow_drain(&mut self) {
        if !std::mem::replace(&mut self.slow_drain_logged, true) {
            tracing::warn!(
                device = self.shared.spec.id,
                "a reset waits for requests in flight: the back-end has not completed them within {:?}; \
                 they are waited for up to {:?}",
                self.limits.request,
                self.limits.dead,
            );
        }
    }
}

/// Tells the back-end all of guest RAM: in one table if it fits there, which replaces whatever was
/// told before, else region by region.
fn send_memory(
    frontend: &mut Frontend,
    ram: &[RamRegion],
    memory_slots: Option<u64>,
) -> Result<(), Cause> {
    if ram.len() <= MAX_FDS {
        return frontend.set_mem_table(ram);
    }
    if memory_slots.unwrap_or(0) < ram.len() as u64 {
        return Err(Cause::Unusable {
            reason: format!(
                "guest RAM has {} regions, and it can hold {}",
                ram.len(),
                memory_slots.unwrap_or(MAX_FDS as u64)
            ),
        });
    }
    for region in ram {
        frontend.add_mem_reg(region)?;
    }
    Ok(())
}

/// Whether the back-end still has requests of `queue` to complete. A ring that makes no sense has none.
fn is_outstanding(ram: &[RamRegion], queue: &ActiveQueue) -> bool {
    rings::outstanding(ram, queue).is_ok_and(|count| count > 0 && count <= queue.size)
}
