//! The DSDT: devices that cannot be found by asking the hardware.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, Equal, IO, If, Interrupt,
    Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, Scope, ZERO,
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
    generation(&mut aml);
    events(&mut aml);
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

/// `\_SB.PWRB`, the power button: hardware-reduced machines have no fixed one (ACPI 6.5, 4.8.2.2.1.2).
fn power_button(aml: &mut Vec<u8>) {
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "PWRB".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
                &Name::new("_UID".into(), &ZERO),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// `\_SB.VGEN`, the machine's generation. Windows knows it by its `_CID`, Linux by its `_HID` too; `ADDR` is where the number
/// is, lower half first.
fn generation(aml: &mut Vec<u8>) {
    const COUNTER: &str = "VM_Gen_Counter";
    let address = layout::GENERATION.0;
    let halves = [address as u32, (address >> 32) as u32];
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "VGEN".into(),
            vec![
                &Name::new("_HID".into(), &"VMGENCTR"),
                &Name::new("_CID".into(), &COUNTER),
                &Name::new("_DDN".into(), &COUNTER),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("ADDR".into(), &Package::new(vec![&halves[0], &halves[1]])),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// `\_SB.GED`, which tells the guest of events: hardware-reduced machines have no GPEs (ACPI 6.5, 5.6.9). `_EVT` is called
/// with the number of the interrupt.
fn events(aml: &mut Vec<u8>) {
    // Both of a press and of a new generation.
    const HAS_HAPPENED: u8 = 0x80;
    // Consumer, edge, active high, exclusive.
    let interrupt = |irq| Interrupt::new(true, true, false, false, irq);
    let (button, generation) = (layout::POWER_BUTTON_IRQ, layout::GENERATION_IRQ);
    let (button_path, generation_path) = (Path::new("\\_SB_.PWRB"), Path::new("\\_SB_.VGEN"));
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "GED_".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&interrupt(button), &interrupt(generation)]),
                ),
                &Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![
                        &If::new(
                            &Equal::new(&Arg(0), &button),
                            vec![&Notify::new(&button_path, &HAS_HAPPENED)],
                        ),
                        &If::new(
                            &Equal::new(&Arg(0), &generation),
                            vec![&Notify::new(&generation_path, &HAS_HAPPENED)],
                        ),
                    ],
                ),
            ],
        )],
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
