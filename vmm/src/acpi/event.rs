//! The lines of the generic event device: interrupts whose meaning the guest learns from `_EVT` (see [`super::dsdt`]).

use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::hypervisor::{Error, Vm};

/// A line to a machine's generic event device.
pub struct EventLine {
    interrupt: EventFd,
}

impl EventLine {
    /// Wires a line to pin `irq` of the I/O APIC of `vm`.
    pub fn new(vm: &Vm, irq: u32) -> Result<Self, Error> {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|error| errno::Error::new(error.raw_os_error().unwrap_or(libc::EMFILE)))
            .map_err(Error::refused("have a line for ACPI events"))?;
        vm.wire_irq(irq, &interrupt)?;
        Ok(EventLine { interrupt })
    }

    /// Tells the guest that something has happened. What comes of it is the guest's to say.
    pub fn raise(&self) {
        // Fails only when 2^64 - 2 events are pending.
        let _ = self.interrupt.write(1);
    }
}
