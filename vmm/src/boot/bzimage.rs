//! bzImages: Linux kernels that unpack themselves (Linux, `Documentation/arch/x86/boot.rst`).

use std::mem::offset_of;
use std::ops::Range;

use linux_loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, boot_params, setup_header};
use vm_memory::{ByteValued, GuestAddress};

use super::Error;
use super::file::{BootFile, Span};
use crate::layout;

/// Where the setup header is, in the file as in `boot_params`.
const HEADER: usize = offset_of!(boot_params, hdr);
/// Where the header's magic number is in the file.
const MAGIC_AT: usize = HEADER + offset_of!(setup_header, header);
const MAGIC: &[u8] = b"HdrS";
/// The first protocol with `xloadflags`, and so with a 64-bit entry.
const PROTOCOL: u16 = 0x020C;
const SECTOR: u64 = 512;
/// Unit of `syssize`.
const PARAGRAPH: u64 = 16;
/// The 64-bit entry point, from where the protected-mode kernel is loaded.
const ENTRY_64: u64 = 0x200;

/// A kernel that has been checked.
#[derive(Clone)]
pub struct BzImage {
    /// The setup header as it is in the file; what the file's header lacks is zero.
    pub header: setup_header,
    /// The protected-mode kernel.
    pub payload: Span,
    /// Where it goes.
    pub load_address: GuestAddress,
}

impl std::fmt::Debug for BzImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BzImage")
            .field("payload", &self.payload)
            .field("load_address", &self.load_address)
            .finish_non_exhaustive()
    }
}

impl BzImage {
    /// The addresses it takes from the start until it has unpacked itself.
    pub fn extent(&self) -> Range<u64> {
        let size = u64::from(self.header.init_size).max(self.payload.len);
        self.load_address.0..self.load_address.0.saturating_add(size)
    }

    /// The 64-bit entry point.
    pub fn entry(&self) -> GuestAddress {
        GuestAddress(self.load_address.0 + ENTRY_64)
    }

    /// The initramfs must end here at the latest.
    pub fn initramfs_limit(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }

    /// Most bytes of a command line, without the NUL.
    pub fn cmdline_limit(&self) -> usize {
        (self.header.cmdline_size as usize).min(layout::CMDLINE_SPACE as usize - 1)
    }
}

/// Whether the file begins like a Linux kernel of any protocol since 2.00.
pub fn is_linux(head: &[u8]) -> bool {
    head.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC)
}

/// Parses and checks the setup header.
///
/// # Errors
/// [`Error::NotAKernel`] for a Linux kernel without 64-bit entry, [`Error::Damaged`].
pub fn parse(file: &BootFile) -> Result<BzImage, Error> {
    let header = header(file)?;
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(file.not_a_kernel("a zImage, which loads below 1 MiB"));
    }
    let version = header.version;
    if version < PROTOCOL {
        return Err(file.not_a_kernel("a bzImage older than Linux 3.8, without 64-bit entry"));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(file.not_a_kernel("a 32-bit bzImage"));
    }
    let setup_sectors = match header.setup_sects {
        0 => 4,
        some => u64::from(some),
    };
    let offset = (setup_sectors + 1) * SECTOR;
    let len = u64::from(header.syssize) * PARAGRAPH;
    if len <= ENTRY_64 {
        return Err(file.damaged("its header gives the kernel no size"));
    }
    // The size is counted in paragraphs: the last one may be cut short.
    let available = file.size().saturating_sub(offset);
    if available + PARAGRAPH <= len {
        return Err(file.damaged(format!(
            "the kernel proper has {len} bytes at {offset:#x}, but the file ends at {:#x}",
            file.size()
        )));
    }
    let load_address = header.pref_address;
    if !(layout::HIGH_MEMORY..layout::HOLE_START).contains(&load_address) {
        return Err(file.damaged(format!("it wants to be loaded at {load_address:#x}")));
    }
    Ok(BzImage {
        header,
        payload: Span {
            offset,
            len: len.min(available),
        },
        load_address: GuestAddress(load_address),
    })
}

/// Reads as much of the setup header as the file says it has: it ends where the jump at 0x200 leads.
fn header(file: &BootFile) -> Result<setup_header, Error> {
    let mut header = setup_header::default();
    let bytes = file.head(HEADER + size_of::<setup_header>())?;
    let jump = offset_of!(setup_header, header) - 1;
    let Some(source) = bytes.get(HEADER..).filter(|source| source.len() > jump) else {
        return Err(file.damaged("it ends within the setup header"));
    };
    let end = offset_of!(setup_header, header) + usize::from(source[jump]);
    let end = end.min(size_of::<setup_header>());
    let Some(source) = source.get(..end) else {
        return Err(file.damaged("it ends within the setup header"));
    };
    header.as_mut_slice()[..end].copy_from_slice(source);
    Ok(header)
}
