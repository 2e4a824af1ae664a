//! All the firmware there is: a reset vector.
//!
//! Linux that finds hardware-reduced ACPI takes the machine for one with EFI, and so resets it through EFI and not
//! through the register that the FADT names. Where there is no EFI, it goes back to real mode and jumps to the BIOS at
//! `F000:FFF0`. (Linux, `arch/x86/kernel/reboot.c`, `reboot_init` and `native_machine_emergency_restart`.) There it
//! finds what a BIOS would do.

use ferry_devices::power;
use vm_memory::GuestMemoryMmap;

use super::{Error, write};
use crate::layout;

/// Writes the code that resets the machine through the ACPI reset register.
pub fn write_vector(ram: &GuestMemoryMmap) -> Result<(), Error> {
    let [low, high] = layout::ACPI_RESET_PORT.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xFA,                          // cli
        0xBA, low, high,               // mov dx, the register
        0xB0, power::ACPI_RESET_VALUE, // mov al, the value
        0xEE,                          // out dx, al
        0xF4,                          // hlt
        0xEB, 0xFD,                    // jmp to the hlt
    ];
    write(ram, &code, layout::RESET_VECTOR, "the reset vector")
}
