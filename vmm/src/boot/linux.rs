//! The 64-bit entry of a bzImage: `boot_params` and the page tables it starts on (Linux,
//! `Documentation/arch/x86/boot.rst`, "64-bit boot protocol").

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::bzimage::BzImage;
use super::place::Placement;
use super::{BootParams, Error, write};
use crate::layout::{self, MapKind};

/// A loader without an id of its own.
const LOADER_UNDEFINED: u8 = 0xFF;
/// "Normal" video mode: leave the screen as it is.
const VIDEO_NORMAL: u16 = 0xFFFF;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Page table entries: present, writable, and (in level 2) a page of 2 MiB.
const TABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
const LARGE_PAGE: u64 = 2 << 20;
/// Tables of level 2, for 1 GiB each.
const LEVEL2: u64 = 4;

/// Writes `boot_params`.
pub fn write_zero_page(
    ram: &GuestMemoryMmap,
    image: &BzImage,
    params: &BootParams<'_>,
    placement: &Placement,
) -> Result<(), Error> {
    let ram_size = ram.iter().map(GuestMemoryRegion::len).sum();
    let mut page = boot_params {
        hdr: image.header,
        ..Default::default()
    };
    page.acpi_rsdp_addr = params.rsdp.0;
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.vid_mode = VIDEO_NORMAL;
    // Placed below 4 GiB, all of these.
    page.hdr.code32_start = image.load_address.0 as u32;
    page.hdr.cmd_line_ptr = layout::CMDLINE.0 as u32;
    if let Some(initramfs) = &placement.initramfs {
        page.hdr.ramdisk_image = initramfs.start as u32;
        page.hdr.ramdisk_size = (initramfs.end - initramfs.start) as u32;
    }
    let map = layout::memory_map(ram_size);
    page.e820_entries = map.len() as u8;
    for (to, from) in page.e820_table.iter_mut().zip(map) {
        *to = boot_e820_entry {
            addr: from.range.start,
            size: from.range.end - from.range.start,
            r#type: match from.kind {
                MapKind::Ram => E820_RAM,
                MapKind::Reserved => E820_RESERVED,
            },
        };
    }
    write(ram, page.as_slice(), layout::ZERO_PAGE, "boot_params")
}

/// Writes page tables that map the first 4 GiB onto themselves: one table of level 4, one of level 3, and
/// [`LEVEL2`] of level 2.
pub fn write_page_tables(ram: &GuestMemoryMmap) -> Result<(), Error> {
    let level4 = layout::PAGE_TABLES.0;
    let level3 = level4 + layout::PAGE_SIZE;
    let level2 = level3 + layout::PAGE_SIZE;
    let mut tables = vec![0u64; ((2 + LEVEL2) * ENTRIES) as usize];
    let (upper, pages) = tables.split_at_mut(2 * ENTRIES as usize);
    upper[0] = level3 | TABLE;
    for (entry, table) in upper[ENTRIES as usize..].iter_mut().zip(0..LEVEL2) {
        *entry = (level2 + table * layout::PAGE_SIZE) | TABLE;
    }
    for (entry, page) in pages.iter_mut().zip(0..) {
        *entry = (page * LARGE_PAGE) | TABLE | LARGE;
    }
    let bytes: Vec<u8> = tables
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    write(ram, &bytes, GuestAddress(level4), "page tables")
}
