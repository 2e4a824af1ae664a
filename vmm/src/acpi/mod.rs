//! ACPI tables: what tells a guest how many processors there are, where the interrupt controllers and the PCI bus are,
//! and how to power off and reset. ACPI 6.5, hardware-reduced: no PM timer, no SCI, no fixed buttons.
//!
//! **Power-off.** Linux evaluates `\_S5`, finds [`power::SLP_TYP_S5`], and writes SLP_TYP and SLP_EN together, the
//! byte 0x34, to the FADT's sleep control register, I/O port [`layout::SLEEP_CONTROL_PORT`]
//! (ACPI 6.5, 4.8.3.7). Before that it writes 0x80 (WAK_STS) to the sleep status register,
//! [`layout::SLEEP_STATUS_PORT`], which reads as 0.
//!
//! **Reset.** The FADT names the reset register: [`power::ACPI_RESET_VALUE`] to I/O port
//! [`layout::ACPI_RESET_PORT`] (ACPI 6.5, 4.8.3.6). Linux takes it with `reboot=acpi`; left to itself, it takes a
//! hardware-reduced machine for one with EFI, finds none, and jumps to the BIOS in real mode, where
//! `boot::reset` has code that writes the same register. Its other ways are the i8042's command 0xFE, port 0xCF9 and
//! a triple fault.

mod dsdt;
pub mod event;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use ferry_devices::power;

use crate::layout;

const OEM_ID: [u8; 6] = *b"FERRY ";
const OEM_TABLE_ID: [u8; 8] = *b"FERRYVMM";
const OEM_REVISION: u32 = 1;
/// Tables begin at multiples of this; the specification asks for none but the RSDP's 16.
const ALIGN: u64 = 16;

/// Bits of the FADT's IA-PC boot architecture flags (ACPI 6.5, table 5.11).
mod boot_arch {
    /// There are devices on the ISA bus.
    pub const LEGACY_DEVICES: u16 = 1 << 0;
    /// There is no VGA.
    pub const NO_VGA: u16 = 1 << 2;
    /// There is no CMOS real-time clock.
    pub const NO_CMOS_RTC: u16 = 1 << 5;
}

/// Whether the machine has its serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    /// A 16550 at COM1.
    Present,
    /// None.
    Absent,
}

/// What the tables say of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiInfo {
    /// Processors; their APIC ids are 0, 1, 2, …
    pub vcpus: u8,
    /// The serial port.
    pub serial: Serial,
    /// The 64-bit window for BARs; may be empty.
    pub pci64: Range<u64>,
}

/// Why the tables could not be written.
#[derive(Debug, Error)]
pub enum Error {
    /// They are larger than the area kept for them.
    #[error("ACPI tables need {need} bytes but have {space}")]
    TooLarge {
        /// Bytes they need.
        need: u64,
        /// Bytes there are.
        space: u64,
    },
    /// Guest RAM does not reach to where they go.
    #[error("cannot write ACPI tables to guest RAM")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// Writes the tables into [`layout::ACPI`] and returns the address of the RSDP.
///
/// The same `info` always gives the same bytes.
///
/// # Errors
/// [`Error::Write`] if guest RAM is smaller than 1 MiB.
pub fn build(ram: &GuestMemoryMmap, info: &AcpiInfo) -> Result<GuestAddress, Error> {
    let tables = tables(info)?;
    ram.write_slice(&tables, GuestAddress(layout::ACPI.start))
        .map_err(Error::Write)?;
    Ok(GuestAddress(layout::ACPI.start))
}

/// All tables as they lie in memory from the start of [`layout::ACPI`]: the RSDP, what the XSDT points to, the XSDT.
fn tables(info: &AcpiInfo) -> Result<Vec<u8>, Error> {
    let mut area = Area::default();
    // The RSDP comes first, but its checksum needs the XSDT's address.
    area.place(&Rsdp::new(OEM_ID, 0));
    let dsdt = area.place(&dsdt::dsdt(info));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(area.place(&fadt(info, dsdt)));
    xsdt.add_entry(area.place(&madt(info)));
    xsdt.add_entry(area.place(&mcfg()));
    let rsdp = Rsdp::new(OEM_ID, area.place(&xsdt));
    let mut bytes = area.bytes;
    let mut head = Vec::new();
    rsdp.to_aml_bytes(&mut head);
    bytes[..head.len()].copy_from_slice(&head);

    let (need, space) = (bytes.len() as u64, layout::ACPI.end - layout::ACPI.start);
    if need > space {
        return Err(Error::TooLarge { need, space });
    }
    Ok(bytes)
}

/// The tables so far.
#[derive(Default)]
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and returns its guest-physical address.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        let offset = (self.bytes.len() as u64).next_multiple_of(ALIGN);
        self.bytes.resize(offset as usize, 0);
        table.to_aml_bytes(&mut self.bytes);
        layout::ACPI.start + offset
    }
}

/// A register of one byte at an I/O port.
fn port(address: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address.into(),
    )
}

/// Fixed description (ACPI 6.5, 5.2.9).
fn fadt(info: &AcpiInfo, dsdt: u64) -> impl Aml + use<> {
    let mut arch = boot_arch::NO_VGA | boot_arch::NO_CMOS_RTC;
    if info.serial == Serial::Present {
        arch |= boot_arch::LEGACY_DEVICES;
    }
    // PwrButton, SlpButton and FixRtc say that these are *not* fixed hardware.
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = arch.into();
    fadt.reset_reg = port(layout::ACPI_RESET_PORT);
    fadt.reset_value = power::ACPI_RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"FERRY\0\0\0").into();
    fadt.finalize()
}

/// Interrupt controllers (ACPI 6.5, 5.2.12). APIC ids are those in CPUID.
fn madt(info: &AcpiInfo) -> impl Aml + use<> {
    let lapic = LocalInterruptController::Address(layout::LAPIC as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for cpu in 0..info.vcpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    // Ids of I/O APICs and local APICs are apart since the xAPIC; KVM's reads 0.
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt
}

/// ECAM (PCI Firmware Specification 3.3, 4.1.2).
fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, layout::PCI_BUS, layout::PCI_BUS);
    mcfg
}

#[cfg(test)]
mod tests;
