//! A function's way into saved state and back.

use std::sync::{Arc, PoisonError};

use super::{Skeleton, State, VirtioPci};
use crate::interrupt::{Doorbells, MsiRouter};
use crate::pci::{MsiX, RestoreError, Wiring};
use crate::sys::poll;
use crate::virtio::pci::registers::Registers;
use crate::virtio::pci::state::{SaveError, VirtioPciStateV1};
use crate::virtio::{ActiveQueue, VirtioDevice};

/// Where a function with saved state has its eventfds from.
#[derive(Clone, Copy)]
pub enum Events<'a> {
    /// They are made, and interrupts are wired at once.
    New,
    /// These queues have theirs already, because their back-end works with them; another machine may still have their interrupts, which
    /// are not wired here before [`VirtioPci::set_wiring`].
    Shared(&'a [ActiveQueue]),
}

impl VirtioPci {
    /// Puts `device` behind a function as it was saved, and attaches to the device's events.
    ///
    /// *Before*: interrupt controllers and processors have their state, because interrupts that were pending are
    /// delivered.
    ///
    /// *Afterwards*: doorbells are wired, interrupts as `events` says, bells that were rung ring, and the device has not been
    /// told anything: one that was started and has no connection is to be given its own state and [`VirtioPci::activation`].
    ///
    /// # Errors
    /// The state is of another device, or the host does not give what it takes.
    pub fn from_state(
        device: Arc<dyn VirtioDevice>,
        router: Arc<dyn MsiRouter>,
        doorbells: Arc<dyn Doorbells>,
        state: &VirtioPciStateV1,
        events: Events<'_>,
    ) -> Result<Arc<Self>, RestoreError> {
        let VirtioPciStateV1 {
            device_type,
            config,
            msix,
            registers,
            kicked,
        } = state;
        if *device_type != device.device_type() {
            return Err(RestoreError::misfit(format!(
                "it was a virtio device of type {device_type} and is one of type {}",
                device.device_type()
            )));
        }
        // Where the guest has put the BAR is part of the registers.
        let (shared, wiring) = match events {
            Events::New => (&[][..], Wiring::Wired),
            Events::Shared(queues) => (queues, Wiring::Unwired),
        };
        let mut skeleton = Skeleton::new(&*device, 0, shared)
            .map_err(RestoreError::host("make its event descriptors"))?;
        skeleton.config = skeleton.config.with_state(config)?;
        let registers = Registers::from_state(device.clone(), skeleton.queues.clone(), registers)?;
        ring(&skeleton, kicked, shared)?;
        let control = skeleton.config.u16_at(skeleton.offsets.msix + 2);
        let msix = MsiX::from_state(router, skeleton.sources(), control, msix, wiring)?;
        let function = Self::assemble(device, doorbells, skeleton, msix, registers);
        function.wire_doorbells(&mut function.state());
        Ok(function)
    }

    /// What is to be saved of the function. The vCPUs and the device are at rest, so that nothing rings or signals.
    ///
    /// # Errors
    /// The device has not answered its driver's last order yet. Nothing has changed: it may be tried again.
    pub fn save(&self) -> Result<VirtioPciStateV1, SaveError> {
        let VirtioPci {
            device,
            queues,
            state,
            // These follow from what the guest has set up, or belong to the machine.
            doorbells: _,
            offsets: _,
            // A source of interrupts, saved among them.
            config_change: _,
            // For the machine's owner.
            doorbell_exits: _,
            complained: _,
        } = self;
        let State {
            config,
            msix,
            registers,
            wired: _,
        } = &*state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(VirtioPciStateV1 {
            device_type: device.device_type(),
            config: config.save(),
            msix: msix.save(),
            registers: registers.save()?,
            kicked: queues
                .iter()
                .map(|queue| poll::is_readable(&*queue.kick))
                .collect(),
        })
    }
}

/// Rings the bells that had been rung. What was rung is still in those that are shared.
fn ring(skeleton: &Skeleton, kicked: &[bool], shared: &[ActiveQueue]) -> Result<(), RestoreError> {
    if kicked.len() != skeleton.queues.len() {
        return Err(RestoreError::misfit(format!(
            "it had {} doorbells and has {}",
            kicked.len(),
            skeleton.queues.len()
        )));
    }
    for (index, (queue, kicked)) in skeleton.queues.iter().zip(kicked).enumerate() {
        if *kicked && shared.iter().all(|it| usize::from(it.index) != index) {
            queue
                .kick
                .write(1)
                .map_err(RestoreError::host("ring a doorbell"))?;
        }
    }
    Ok(())
}
