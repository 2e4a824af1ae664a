//! Where everything is in the guest's physical address space and among its I/O ports.
//!
//! ```text
//! 0x0000_0000              conventional memory: boot structures (GDT, start info, page tables, command line)
//! 0x000A_0000              no RAM as the guest sees it; generation at 0xD_F000, ACPI tables from 0xE_0000
//! 0x0010_0000              kernel, initramfs, all other RAM below the hole
//! 0xC000_0000  PCI32       32-bit window for BARs
//! 0xE000_0000  ECAM        configuration space of PCI bus 0
//! 0xFEC0_0000  I/O APIC, 0xFEE0_0000 local APICs, 0xFFFB_C000 pages KVM needs for itself
//! 0x1_0000_0000            the rest of RAM
//! above RAM                64-bit window for BARs
//! ```

use std::ops::Range;

use vm_memory::GuestAddress;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

/// End of conventional memory: the guest sees no RAM from here to [`HIGH_MEMORY`], as on any PC, where this is
/// the place of video memory and ROMs.
pub const LOW_MEMORY_END: u64 = 0xA_0000;
/// Where memory above 1 MiB begins; kernels are loaded here or higher.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// End of RAM below the 3 GiB hole: what follows up to 4 GiB belongs to devices.
pub const HOLE_START: u64 = 0xC000_0000;
/// End of the hole: RAM goes on here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// The 32-bit window for BARs. 512 MiB, directly above RAM, and below ECAM.
pub const PCI32: Range<u64> = 0xC000_0000..0xE000_0000;
/// Memory-mapped configuration space (ECAM): 1 MiB, because there is one bus of 32 devices with 8 functions of
/// 4 KiB each.
pub const ECAM: Range<u64> = 0xE000_0000..0xE010_0000;
/// The only PCI bus.
pub const PCI_BUS: u8 = 0;
/// I/O APIC: where every PC has it, and where KVM puts it.
pub const IOAPIC: u64 = 0xFEC0_0000;
/// Local APICs: the architectural default, which KVM uses.
pub const LAPIC: u64 = 0xFEE0_0000;
/// One page for KVM's identity map, which Intel processors without unrestricted guest mode need.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages for KVM's task state segment, for the same processors; directly after the identity map.
pub const KVM_TSS: u64 = 0xFFFB_D000;
/// End of what KVM keeps for itself.
const KVM_PAGES_END: u64 = 0xFFFC_0000;

/// The 64-bit window begins at a multiple of this, so that BARs of up to 1 GiB lose nothing to alignment.
const PCI64_ALIGN: u64 = 1 << 30;
/// Most bytes in the 64-bit window: more than any set of devices asks for, and it keeps the guest's page tables
/// for it small.
const PCI64_SIZE: u64 = 64 << 30;

// Boot structures in conventional memory. The first page stays empty: real-mode code expects its vectors there.

/// Global descriptor table of the boot processor.
pub const GDT: GuestAddress = GuestAddress(0x1000);
/// PVH `hvm_start_info`; the module list and the memory map follow in the same page.
pub const START_INFO: GuestAddress = GuestAddress(0x2000);
/// PVH list of modules: one, the initramfs.
pub const MODULE_LIST: GuestAddress = GuestAddress(0x2080);
/// PVH memory map.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x2100);
/// Linux' `boot_params`, one page.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x3000);
/// Page tables for the 64-bit entry: one page of level 4, one of level 3, and four of level 2 that map the first
/// 4 GiB onto themselves in 2 MiB pages.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x4000);
/// The kernel's command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x1_0000);
/// Bytes set aside for the command line, its NUL included.
pub const CMDLINE_SPACE: u64 = 0x1_0000;

/// The page that has nothing in it but the machine's generation: guests may map it as they like, and hand it to programs.
pub const GENERATION_PAGE: Range<u64> = 0xD_F000..0xE_0000;
/// The generation, 16 bytes. Not where a guest looks for ROMs, which begin at multiples of 2 KiB.
pub const GENERATION: GuestAddress = GuestAddress(GENERATION_PAGE.start + 0x100);
/// ACPI tables: RSDP first, so that a guest that scans for it finds it at once (ACPI 6.5, 5.2.5.1).
pub const ACPI: Range<u64> = 0xE_0000..0xF_FFF0;
/// Where real-mode code jumps to reset a PC, `F000:FFF0`: the last 16 bytes below 1 MiB.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xF_FFF0);

// Interrupts and ports.

/// First serial port, eight ports.
pub const COM1_PORT: u16 = 0x3F8;
/// Ports of a 16550.
pub const COM1_PORTS: u16 = 8;
/// Its interrupt, an I/O APIC pin and a KVM GSI.
pub const COM1_IRQ: u32 = 4;
/// The power button's interrupt: a pin of the I/O APIC that no ISA device has.
pub const POWER_BUTTON_IRQ: u32 = 16;
/// The interrupt that announces a new generation: another such pin.
pub const GENERATION_IRQ: u32 = 17;
/// i8042 command and status port.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// ACPI sleep control register, one byte (ACPI 6.5, 4.8.3.7). Ports from 0x600 are nobody's on a PC.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register, one byte.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register, one byte.
pub const ACPI_RESET_PORT: u16 = 0x602;
/// PCI configuration mechanism #1, address; four ports.
pub const PCI_CONFIG_ADDRESS_PORT: u16 = 0xCF8;
/// PCI configuration mechanism #1, data; four ports.
pub const PCI_CONFIG_DATA_PORT: u16 = 0xCFC;
/// Reset control register of PC chip sets, in the middle of the configuration address: only single bytes are meant
/// for it.
pub const RESET_CONTROL_PORT: u16 = 0xCF9;

/// What the guest may do with a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Use it as RAM.
    Ram,
    /// Leave it alone: devices, or tables that must outlive boot.
    Reserved,
}

/// One line of the memory map that a kernel is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What they are.
    pub kind: MapKind,
}

/// Splits `size` bytes of RAM into what lies below the hole and, if there is more, what lies above 4 GiB.
#[must_use]
pub fn ram_regions(size: u64) -> Vec<Range<u64>> {
    let below = size.min(HOLE_START);
    let above = size - below;
    let low = 0..below;
    let mut regions = Vec::from([low]);
    if above > 0 {
        regions.push(HOLE_END..HOLE_END.saturating_add(above));
    }
    regions
}

/// The memory map for a kernel (e820 or PVH), in ascending order without overlaps.
#[must_use]
pub fn memory_map(ram_size: u64) -> Vec<MapEntry> {
    let ram = |range| MapEntry {
        range,
        kind: MapKind::Ram,
    };
    let reserved = |range| MapEntry {
        range,
        kind: MapKind::Reserved,
    };
    let mut map = vec![
        ram(0..LOW_MEMORY_END),
        reserved(LOW_MEMORY_END..HIGH_MEMORY),
        ram(HIGH_MEMORY..ram_size.clamp(HIGH_MEMORY, HOLE_START)),
        // Linux uses ECAM only where the memory map or the DSDT reserves it.
        reserved(ECAM),
        reserved(KVM_IDENTITY_MAP..KVM_PAGES_END),
    ];
    map.extend(ram_regions(ram_size).into_iter().skip(1).map(ram));
    map
}

/// The 64-bit window for BARs, above RAM, within the guest's `phys_bits` of physical address.
///
/// Empty if the processor's addresses end too early.
#[must_use]
pub fn pci64_window(ram_size: u64, phys_bits: u8) -> Range<u64> {
    let limit = 1u64.checked_shl(phys_bits.into()).unwrap_or(u64::MAX);
    let ram_end = ram_regions(ram_size)
        .last()
        .map_or(0, |last| last.end)
        .max(HOLE_END);
    let start = ram_end.next_multiple_of(PCI64_ALIGN);
    let end = start.saturating_add(PCI64_SIZE).min(limit);
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_is_split_at_the_hole() {
        assert_eq!(ram_regions(64 << 20).len(), 1);
        assert_eq!(ram_regions(64 << 20)[0], 0..64 << 20);
        assert_eq!(ram_regions(3 * GIB).len(), 1);
        assert_eq!(ram_regions(3 * GIB)[0], 0..3 * GIB);
        assert_eq!(
            ram_regions(3 * GIB + PAGE_SIZE),
            [0..3 * GIB, 4 * GIB..4 * GIB + PAGE_SIZE]
        );
        assert_eq!(ram_regions(8 * GIB), [0..3 * GIB, 4 * GIB..9 * GIB]);
    }

    #[test]
    fn the_memory_map_is_sorted_and_disjoint_and_holds_all_ram_but_the_legacy_area() {
        for size in [64 << 20, GIB, 3 * GIB, 3 * GIB + PAGE_SIZE, 64 * GIB] {
            let map = memory_map(size);
            for pair in map.windows(2) {
                assert!(pair[0].range.end <= pair[1].range.start, "{pair:x?}");
            }
            let ram: u64 = map
                .iter()
                .filter(|e| e.kind == MapKind::Ram)
                .map(|e| e.range.end - e.range.start)
                .sum();
            assert_eq!(ram, size - (HIGH_MEMORY - LOW_MEMORY_END));
        }
    }

    #[test]
    fn the_64_bit_window_is_above_ram_and_within_the_address_width() {
        assert_eq!(pci64_window(GIB, 46), 4 * GIB..68 * GIB);
        assert_eq!(pci64_window(5 * GIB + PAGE_SIZE, 46).start, 7 * GIB);
        assert_eq!(pci64_window(GIB, 36), 4 * GIB..64 * GIB);
        assert!(pci64_window(63 * GIB, 36).is_empty());
        assert!(pci64_window(GIB, 32).is_empty());
        assert_eq!(pci64_window(GIB, 64).start, 4 * GIB);
    }

    #[test]
    fn boot_structures_do_not_overlap() {
        let taken = [
            GDT.0..GDT.0 + PAGE_SIZE,
            START_INFO.0..START_INFO.0 + 56,
            MODULE_LIST.0..MODULE_LIST.0 + 32,
            PVH_MEMORY_MAP.0..ZERO_PAGE.0,
            ZERO_PAGE.0..ZERO_PAGE.0 + PAGE_SIZE,
            PAGE_TABLES.0..PAGE_TABLES.0 + 6 * PAGE_SIZE,
            CMDLINE.0..CMDLINE.0 + CMDLINE_SPACE,
            LOW_MEMORY_END..GENERATION_PAGE.start,
            GENERATION_PAGE,
            ACPI,
            RESET_VECTOR.0..HIGH_MEMORY,
        ];
        for pair in taken.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
        let entries = memory_map(64 * GIB).len() as u64;
        assert!(PVH_MEMORY_MAP.0 + entries * 24 <= ZERO_PAGE.0);
    }
}
