//! The PVH entry: what an ELF kernel finds in memory (Xen, `docs/misc/pvh.pandoc` and
//! `xen/include/public/arch-x86/hvm/start_info.h`).

use linux_loader::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE,
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::place::Placement;
use super::{Error, write};
use crate::layout::{self, MapKind};

/// Most bytes of a command line, without the NUL. PVH has no limit of its own, but x86 Linux cuts off what exceeds
/// its `COMMAND_LINE_SIZE` of 2048 without a word.
pub const MOST_CMDLINE: usize = 2047;
/// Version with a memory map.
const VERSION: u32 = 1;

/// Writes `hvm_start_info`, the module list and the memory map.
pub fn write_start_info(
    ram: &GuestMemoryMmap,
    ram_size: u64,
    rsdp: GuestAddress,
    placement: &Placement,
) -> Result<(), Error> {
    let map = memory_map(ram_size);
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: rsdp.0,
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initramfs) = &placement.initramfs {
        let module = hvm_modlist_entry {
            paddr: initramfs.start,
            size: initramfs.end - initramfs.start,
            ..Default::default()
        };
        info.nr_modules = 1;
        info.modlist_paddr = layout::MODULE_LIST.0;
        write(
            ram,
            module.as_slice(),
            layout::MODULE_LIST,
            "the PVH module list",
        )?;
    }
    let bytes: Vec<u8> = map.iter().flat_map(ByteValued::as_slice).copied().collect();
    write(ram, &bytes, layout::PVH_MEMORY_MAP, "the PVH memory map")?;
    write(
        ram,
        info.as_slice(),
        layout::START_INFO,
        "the PVH start info",
    )
}

fn memory_map(ram_size: u64) -> Vec<hvm_memmap_table_entry> {
    let entry = |entry: layout::MapEntry| hvm_memmap_table_entry {
        addr: entry.range.start,
        size: entry.range.end - entry.range.start,
        type_: match entry.kind {
            MapKind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
            MapKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
        },
        reserved: 0,
    };
    layout::memory_map(ram_size)
        .into_iter()
        .map(entry)
        .collect()
}
