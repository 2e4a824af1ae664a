use ferry_devices::power::{self, PowerRequest};

use super::*;

fn info(vcpus: u8, serial: Serial) -> AcpiInfo {
    AcpiInfo {
        vcpus,
        serial,
        pci64: 0x1_4000_0000..0x11_4000_0000,
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The guest's view: RAM, searched from the RSDP on.
struct Guest {
    ram: GuestMemoryMmap,
    rsdp: GuestAddress,
}

impl Guest {
    fn with(info: &AcpiInfo) -> Self {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let rsdp = build(&ram, info).unwrap();
        Self { ram, rsdp }
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// A whole table, its checksum verified.
    fn table_at(&self, address: u64) -> Vec<u8> {
        let len = u32_at(&self.read(address, 8), 4) as usize;
        let table = self.read(address, len);
        assert_eq!(
            sum(&table),
            0,
            "checksum of {:?}",
            String::from_utf8_lossy(&table[..4])
        );
        assert!(layout::ACPI.contains(&address) && address + len as u64 <= layout::ACPI.end);
        table
    }

    fn table(&self, signature: &[u8; 4]) -> Vec<u8> {
        let rsdp = self.read(self.rsdp.0, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(sum(&rsdp[..20]), 0);
        assert_eq!(sum(&rsdp), 0);
        assert_eq!(rsdp[15], 2);
        let xsdt = self.table_at(u64_at(&rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let entries = xsdt[36..]
            .chunks(8)
            .map(|entry| self.table_at(u64_at(entry, 0)));
        let mut found = entries.filter(|table| &table[..4] == signature);
        let table = found.next().unwrap();
        assert!(found.next().is_none());
        table
    }
}

#[test]
fn fadt_says_how_to_power_off_and_reset_and_leads_to_the_dsdt() {
    let guest = Guest::with(&info(1, Serial::Present));
    let fadt = guest.table(b"FACP");
    assert_eq!(fadt.len(), 276);
    assert_eq!((fadt[8], fadt[131]), (6, 5));
    let flags = u32_at(&fadt, 112);
    assert_ne!(flags & Flags::HwReducedAcpi as u32, 0);
    assert_ne!(flags & Flags::ResetRegSup as u32, 0);
    // Generic addresses: I/O space, 8 bits, byte access.
    for (at, port) in [(116, 0x602u64), (244, 0x600), (256, 0x601)] {
        assert_eq!(fadt[at..at + 4], [1, 8, 0, 1]);
        assert_eq!(u64_at(&fadt, at + 4), port);
    }
    assert_eq!(fadt[128], power::ACPI_RESET_VALUE);
    assert_eq!(
        u32_at(&fadt, 40),
        0,
        "only one of DSDT and X_DSDT may be used"
    );
    assert_eq!(&guest.table_at(u64_at(&fadt, 140))[..4], b"DSDT");
}

#[test]
fn what_the_tables_tell_a_guest_to_write_is_understood() {
    let guest = Guest::with(&info(1, Serial::Present));
    let fadt = guest.table(b"FACP");
    assert!(power::acpi_reset(fadt[128]).is_some());
    // Name, "_S5_", package, its length and number of elements, and a byte prefix before the first one.
    let dsdt = guest.table_at(u64_at(&fadt, 140));
    let s5 = dsdt.windows(4).position(|name| name == b"_S5_").unwrap();
    assert_eq!(
        (dsdt[s5 - 1], dsdt[s5 + 4], dsdt[s5 + 7]),
        (0x08, 0x12, 0x0A)
    );
    let slp_typ = dsdt[s5 + 8];
    assert_eq!(
        power::sleep_control(1 << 5 | slp_typ << 2),
        Some(PowerRequest::Off)
    );
    assert_eq!(
        power::sleep_control(slp_typ << 2),
        None,
        "without SLP_EN nothing happens"
    );
}

#[test]
fn legacy_devices_are_those_that_exist() {
    let arch = |serial| {
        let fadt = Guest::with(&info(1, serial)).table(b"FACP");
        u16::from_le_bytes([fadt[109], fadt[110]])
    };
    let none = boot_arch::NO_VGA | boot_arch::NO_CMOS_RTC;
    assert_eq!(arch(Serial::Absent), none);
    assert_eq!(arch(Serial::Present), none | boot_arch::LEGACY_DEVICES);
}

#[test]
fn madt_lists_every_processor_once_and_the_io_apic() {
    for vcpus in [1, 4, 32] {
        let madt = Guest::with(&info(vcpus, Serial::Present)).table(b"APIC");
        assert_eq!(u32_at(&madt, 36), 0xFEE0_0000);
        let mut ids = Vec::new();
        let mut ioapics = 0;
        let mut rest = &madt[44..];
        while let [kind, len, ..] = *rest {
            match kind {
                0 => {
                    assert_eq!((len, rest[2], u32_at(rest, 4)), (8, rest[3], 1));
                    ids.push(rest[3]);
                }
                1 => {
                    assert_eq!((u32_at(rest, 4), u32_at(rest, 8)), (0xFEC0_0000, 0));
                    ioapics += 1;
                }
                other => panic!("unexpected structure {other}"),
            }
            rest = &rest[len.into()..];
        }
        assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
        assert_eq!(ioapics, 1);
    }
}

#[test]
fn mcfg_describes_one_bus() {
    let mcfg = Guest::with(&info(1, Serial::Present)).table(b"MCFG");
    assert_eq!(mcfg.len(), 60);
    assert_eq!(u64_at(&mcfg, 44), layout::ECAM.start);
    assert_eq!(mcfg[52..56], [0, 0, 0, 0]);
    assert_eq!(layout::ECAM.end - layout::ECAM.start, 1 << 20);
}

#[test]
fn dsdt_depends_on_the_machine() {
    let dsdt = |info: &AcpiInfo| {
        let guest = Guest::with(info);
        guest.table_at(u64_at(&guest.table(b"FACP"), 140))
    };
    let holds = |table: &[u8], what: &[u8]| table.windows(what.len()).any(|window| window == what);
    let full = dsdt(&info(1, Serial::Present));
    assert!(
        holds(&full, b"PCI0")
            && holds(&full, b"MBRD")
            && holds(&full, b"COM1")
            && holds(&full, b"_S5_")
    );
    assert!(
        holds(&full, &0x1_4000_0000u64.to_le_bytes())
            && holds(&full, &0x11_3FFF_FFFFu64.to_le_bytes())
    );
    assert!(!holds(&dsdt(&info(1, Serial::Absent)), b"COM1"));
    // A QWord address space descriptor begins with 0x8A and its length.
    let small = dsdt(&AcpiInfo {
        pci64: 0..0,
        ..info(1, Serial::Present)
    });
    assert!(holds(&full, &[0x8A, 0x2B, 0]) && !holds(&small, &[0x8A, 0x2B, 0]));
}

/// Where `what` begins in `table`, once.
fn find(table: &[u8], what: &[u8]) -> usize {
    let mut found = table.windows(what.len()).enumerate();
    let mut found = found.by_ref().filter(|(_, window)| *window == what);
    let (at, _) = found.next().unwrap();
    assert!(found.next().is_none());
    at
}

#[test]
fn the_generation_is_found_by_linux_and_windows_in_a_page_of_its_own() {
    let guest = Guest::with(&info(1, Serial::Present));
    let dsdt = guest.table_at(u64_at(&guest.table(b"FACP"), 140));
    find(&dsdt, b"\x08_HID\x0dVMGENCTR\0");
    find(&dsdt, b"\x08_CID\x0dVM_Gen_Counter\0");
    find(&dsdt, b"\x08_DDN\x0dVM_Gen_Counter\0");
    // A package of two integers: a double word, and zero.
    let at = find(&dsdt, b"\x08ADDR\x12\x08\x02\x0c");
    let address = u64::from(u32_at(&dsdt, at + 9));
    assert_eq!(dsdt[at + 13], 0, "there is no upper half");
    assert_eq!(address, layout::GENERATION.0);
    assert!(address.is_multiple_of(8), "as its specification says");
    let page = address & !(layout::PAGE_SIZE - 1);
    let map = layout::memory_map(1 << 30);
    let whole = map
        .iter()
        .find(|entry| entry.range.contains(&page))
        .unwrap();
    assert_eq!(whole.kind, layout::MapKind::Reserved);
    assert!(whole.range.contains(&(page + layout::PAGE_SIZE - 1)));
    assert!(!layout::ACPI.contains(&(page + layout::PAGE_SIZE - 1)));
}

#[test]
fn each_interrupt_of_the_event_device_notifies_another_device() {
    let guest = Guest::with(&info(1, Serial::Present));
    let dsdt = guest.table_at(u64_at(&guest.table(b"FACP"), 140));
    // If (Arg0 == irq) { Notify (path, 0x80) }, and an extended interrupt descriptor: consumer, edge, active high.
    for (irq, device) in [(16u8, b"PWRB"), (17, b"VGEN")] {
        let condition = [0x93, 0x68, 0x0a, irq, 0x86];
        let at = find(&dsdt, &condition);
        let path = [&b"\\\x2e_SB_"[..], device, &[0x0a, 0x80]].concat();
        assert_eq!(dsdt[at + condition.len()..][..path.len()], path);
        find(&dsdt, &[0x89, 6, 0, 3, 1, irq, 0, 0, 0]);
    }
}

#[test]
fn tables_are_deterministic_and_small() {
    let bytes = tables(&info(32, Serial::Present)).unwrap();
    assert_eq!(bytes, tables(&info(32, Serial::Present)).unwrap());
    assert!(bytes.len() < 4096, "{}", bytes.len());
    assert!(tables(&info(u8::MAX, Serial::Present)).is_ok());
}

#[test]
fn ram_that_is_too_small_is_an_error() {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xE_0000)]).unwrap();
    assert!(matches!(
        build(&ram, &info(1, Serial::Present)),
        Err(Error::Write(_))
    ));
}
