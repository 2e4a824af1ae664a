//! From an activation to the reset that ends it: giving the back-end memory and rings, and getting them back.

use std::time::Instant;

use vhost::vhost_user::VhostUserProtocolFeatures;

use super::{DRAIN_INTERVAL, MemoryTable, Session, Worker};
use crate::vhost_user::error::Cause;
use crate::vhost_user::frontend::{Frontend, RingEvent, RingState};
use crate::vhost_user::memory::RamRegion;
use crate::vhost_user::rings;
use crate::vhost_user::socket::MAX_FDS;
use crate::virtio::{Activation, ActiveQueue};

impl Worker<'_> {
    /// Tells the back-end everything it needs to serve the rings, then lets it.
    pub(super) fn start_rings(&mut self, activation: Activation) -> Result<(), Cause> {
        for queue in &activation.queues {
            if !rings::fits(self.ram, queue) {
                return Err(Cause::BadSetup {
                    reason: format!("queue {} does not lie in guest RAM", queue.index),
                });
            }
        }
        let session = self.session.insert(Session::default());
        let frontend = &mut self.frontend;
        frontend.set_features(self.negotiated.acknowledge(activation.features))?;
        if self.memory == MemoryTable::Unknown {
            send_memory(frontend, self.ram, self.negotiated.memory_slots)?;
            self.memory = MemoryTable::Sent;
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
        self.drain(&session.rings)?;
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
    /// answers at once and writes to guest memory later, when it may hold something else. Bounded, because a
    /// ring that the guest has filled with nonsense never runs empty.
    fn drain(&mut self, started: &[ActiveQueue]) -> Result<(), Cause> {
        let rules = self.shared.spec.profile.rules();
        let deadline = Instant::now() + self.limits.request;
        let mut draining: Vec<&ActiveQueue> = started
            .iter()
            .filter(|queue| rules.drains(queue.index) && is_outstanding(self.ram, queue))
            .collect();
        for queue in &draining {
            // A request may have been made available and not been announced. The signal can only fail
            // when as many are pending that one more makes no difference.
            let _ = queue.kick.write(1);
        }
        while !draining.is_empty() && Instant::now() < deadline {
            self.wait(Some(deadline.min(Instant::now() + DRAIN_INTERVAL)))?;
            let ram = self.ram;
            draining.retain(|queue| is_outstanding(ram, queue));
        }
        if !draining.is_empty() {
            tracing::warn!(
                device = self.shared.spec.id,
                "reset with requests in flight: the back-end has not completed them within {:?}",
                self.limits.request
            );
        }
        Ok(())
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
