//! The power button: an interrupt that the guest's ACPI driver takes for a press (`acpi::dsdt`).

use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::hypervisor::{Error, Vm};
use crate::layout;

/// A machine's power button.
pub struct PowerButton {
    interrupt: EventFd,
}

impl PowerButton {
    /// Wires a button to `vm`.
    pub fn new(vm: &Vm) -> Result<Self, Error> {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|error| errno::Error::new(error.raw_os_error().unwrap_or(libc::EMFILE)))
            .map_err(Error::refused("have a power button"))?;
        vm.wire_irq(layout::POWER_BUTTON_IRQ, &interrupt)?;
        Ok(PowerButton { interrupt })
    }

    /// Presses it. What comes of it is the guest's to say.
    pub fn press(&self) {
        // Fails only when 2^64 - 2 presses are pending.
        let _ = self.interrupt.write(1);
    }
}
