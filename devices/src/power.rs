//! How a guest asks to be powered off or reset.
//!
//! The functions decode what is written to the registers; where the registers are is the machine's business.

/// A guest's request, made by a write to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Soft-off, ACPI state S5.
    Off,
    /// Reset of the whole machine.
    Reset(ResetSource),
}

/// The register through which a guest asked for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetSource {
    /// The reset register that the ACPI FADT names.
    Acpi,
    /// The keyboard controller's reset line.
    I8042,
    /// The PCI chip set's reset control register, port 0xCF9.
    Cf9,
}

impl std::fmt::Display for ResetSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ResetSource::Acpi => "the ACPI reset register",
            ResetSource::I8042 => "the keyboard controller",
            ResetSource::Cf9 => "port 0xCF9",
        })
    }
}

/// SLP_TYP of soft-off, as the DSDT's `\_S5` has to name it.
pub const SLP_TYP_S5: u8 = 5;
const SLP_EN: u8 = 1 << 5;
/// What a guest writes to the ACPI reset register, as the FADT has to name it.
pub const ACPI_RESET_VALUE: u8 = 1;
const I8042_PULSE_RESET: u8 = 0xfe;
const CF9_RESET_CPU: u8 = 1 << 2;

/// A write to the ACPI sleep control register (ACPI 6.5, 4.8.3.7).
pub fn sleep_control(value: u8) -> Option<PowerRequest> {
    (value & SLP_EN != 0 && value >> 2 & 7 == SLP_TYP_S5).then_some(PowerRequest::Off)
}

/// A write to the ACPI reset register (ACPI 6.5, 4.8.3.6).
pub fn acpi_reset(value: u8) -> Option<PowerRequest> {
    (value == ACPI_RESET_VALUE).then_some(PowerRequest::Reset(ResetSource::Acpi))
}

/// A command to the i8042 keyboard controller, of which only the reset exists.
pub fn i8042_command(value: u8) -> Option<PowerRequest> {
    (value == I8042_PULSE_RESET).then_some(PowerRequest::Reset(ResetSource::I8042))
}

/// A write to the reset control register.
pub fn reset_control(value: u8) -> Option<PowerRequest> {
    (value & CF9_RESET_CPU != 0).then_some(PowerRequest::Reset(ResetSource::Cf9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_sleep_enabled_powers_off() {
        assert_eq!(sleep_control(0x34), Some(PowerRequest::Off));
        assert_eq!(sleep_control(0x14), None);
        assert_eq!(sleep_control(0x20), None);
    }

    #[test]
    fn each_reset_register_knows_its_value() {
        assert_eq!(acpi_reset(1), Some(PowerRequest::Reset(ResetSource::Acpi)));
        assert_eq!(acpi_reset(0), None);
        assert_eq!(
            i8042_command(0xfe),
            Some(PowerRequest::Reset(ResetSource::I8042))
        );
        assert_eq!(i8042_command(0xd1), None);
        // Linux writes 0x2, then 0x6.
        assert_eq!(reset_control(0x2), None);
        assert_eq!(
            reset_control(0x6),
            Some(PowerRequest::Reset(ResetSource::Cf9))
        );
    }
}
