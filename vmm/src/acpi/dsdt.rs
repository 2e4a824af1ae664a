//! The DSDT: devices that cannot be found by asking the hardware.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiInfo, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Serial};
use ferry_devices::power;

use crate::layout;

/// Bytes of a table's header (ACPI 6.5, 5.2.6).
const HEADER: u32 = 36;
/// From revision 2 on, integers have 64 bits.
const REVISION: u8 = 6;

/// Builds the DSDT.
pub fn dsdt(info: &AcpiInfo) -> impl Aml + use<> {
    let mut aml = Vec::new();
    pci_host(info, &mut aml);
    motherboard(&mut aml);
    if info.serial == Serial::Present {
        com1(&mut aml);
    }
    power_button(&mut aml);
    soft_off(&mut aml);
    let mut table = Sdt::new(
        *b"DSDT",
        HEADER,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&aml);
    table
}

/// `\_SB.PCI0`, the PCI Express host bridge, and the windows it decodes. There is no `_PRT`, because devices
/// interrupt with MSI-X only.
fn pci_host(info: &AcpiInfo, aml: &mut Vec<u8>) {
    let bus = AddressSpace::<u16>::new_bus_number(layout::PCI_BUS.into(), layout::PCI_BUS.into());
    let config_port = layout::PCI_CONFIG_ADDRESS_PORT;
    let config = IO::new(config_port, config_port, 1, 8);
    let uncached = AddressSpaceCacheable::NotCacheable;
    let window32 = AddressSpace::<u32>::new_memory(
        uncached,
        true,
        layout::PCI32.start as u32,
        (layout::PCI32.end - 1) as u32,
        None,
    );
    let mut resources: Vec<&dyn Aml> = vec![&bus, &config, &window32];
    let window64;
    if !info.pci64.is_empty() {
        let (first, last) = (info.pci64.start, info.pci64.end - 1);
        window64 = AddressSpace::<u64>::new_memory(uncached, true, first, last, None);
        resources.push(&window64);
    }
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "PCI0".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
                &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_SEG".into(), &ZERO),
                &Name::new("_BBN".into(), &layout::PCI_BUS),
                // Devices' accesses to memory are coherent.
                &Name::new("_CCA".into(), &1u8),
                &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// `\_SB.MBRD`: addresses that are taken. Linux trusts an ECAM area only if a device like this one reserves it.
fn motherboard(aml: &mut Vec<u8>) {
    let length = (layout::ECAM.end - layout::ECAM.start) as u32;
    let power = layout::SLEEP_CONTROL_PORT;
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "MBRD".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, layout::ECAM.start as u32, length),
                        // Sleep control, sleep status and reset.
                        &IO::new(power, power, 1, 3),
                    ]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// `\_SB.COM1`, the 16550.
fn com1(aml: &mut Vec<u8>) {
    let port = layout::COM1_PORT;
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_DDN".into(), &"COM1"),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        // Consumer, edge, active high, exclusive: an ISA interrupt.
                        &Interrupt::new(true, true, false, false, layout::COM1_IRQ),
                        &IO::new(port, port, 1, layout::COM1_PORTS as u8),
                    ]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// `\_SB.PWRB`, the power button, and `\_SB.GED`, which tells the guest of its presses: hardware-reduced machines
/// have no fixed button, and no GPEs (ACPI 6.5, 4.8.2.2.1.2 and 5.6.9).
fn power_button(aml: &mut Vec<u8>) {
    const PRESSED: u8 = 0x80;
    Scope::new(
        "\\_SB_".into(),
        vec![
            &Device::new(
                "PWRB".into(),
                vec![
                    &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
                    &Name::new("_UID".into(), &ZERO),
                ],
            ),
            &Device::new(
                "GED_".into(),
                vec![
                    &Name::new("_HID".into(), &"ACPI0013"),
                    &Name::new("_UID".into(), &ZERO),
                    &Name::new(
                        "_CRS".into(),
                        &ResourceTemplate::new(vec![
                            // Consumer, edge, active high, exclusive.
                            &Interrupt::new(true, true, false, false, layout::POWER_BUTTON_IRQ),
                        ]),
                    ),
                    // The only interrupt has only one meaning, so its number, the argument, is not looked at.
                    &Method::new(
                        "_EVT".into(),
                        1,
                        true,
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &PRESSED)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// `\_S5`, soft-off: SLP_TYP for the sleep control register. The other elements belong to registers that
/// hardware-reduced machines lack.
fn soft_off(aml: &mut Vec<u8>) {
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&power::SLP_TYP_S5, &ZERO, &ZERO, &ZERO]),
    )
    .to_aml_bytes(aml);
}
