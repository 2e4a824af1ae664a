//! Booting: from a kernel file to guest RAM in which the first instruction can run.
//!
//! ```text
//! Kernel::open ─▶ headers checked ─▶ Kernel::check ─▶ it fits   … before anything is started
//! Kernel::load ─▶ kernel, initramfs, command line, memory map in RAM ─▶ EntryPoint ─▶ registers
//! ```
//!
//! A [`Kernel`] and an [`Initramfs`] keep their files open. A guest that reboots is loaded once more from the same
//! files, even if others have taken their names meanwhile. Each time RAM holds nothing but zeros before: what a kernel
//! wants to be zero is left alone, so that it costs neither time nor memory.
//!
//! Two ways lead in, chosen by looking at the file: [`pvh`] for ELF kernels, [`linux`] for bzImages.

mod bzimage;
mod elf;
mod error;
mod file;
mod identify;
pub mod linux;
mod place;
mod pvh;
mod reset;
#[cfg(test)]
mod tests;

use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

pub use error::Error;
pub use file::Initramfs;

use crate::layout;
use bzimage::BzImage;
use elf::PvhImage;
use file::BootFile;
use place::Placement;

/// Where and how the boot processor starts. [`crate::cpu::registers`] turns this into registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    /// 32-bit protected mode without paging, `ebx` holding the address of `hvm_start_info`.
    Pvh {
        /// First instruction.
        entry: GuestAddress,
        /// `hvm_start_info`.
        start_info: GuestAddress,
    },
    /// Long mode on identity-mapped page tables, `rsi` holding the address of `boot_params`.
    Linux64 {
        /// First instruction.
        entry: GuestAddress,
        /// `boot_params`.
        zero_page: GuestAddress,
    },
}

/// What goes into RAM with the kernel.
#[derive(Clone, Copy, Debug)]
pub struct BootParams<'a> {
    /// The initial RAM file system.
    pub initramfs: Option<&'a Initramfs>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Address of the ACPI root pointer, from [`crate::acpi::build`].
    pub rsdp: GuestAddress,
}

/// A kernel file whose headers have been checked.
#[derive(Debug)]
pub struct Kernel {
    file: BootFile,
    image: Image,
}

/// What kind of kernel it is.
#[derive(Debug)]
enum Image {
    Pvh(PvhImage),
    Linux64(BzImage),
}

impl Kernel {
    /// Opens a kernel and finds out what it is.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Read`], [`Error::NotAKernel`], [`Error::Damaged`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = BootFile::open(path)?;
        let head = file.head(identify::WANTED)?;
        let image = if elf::is_elf(&head) {
            Image::Pvh(elf::parse(&file)?)
        } else if bzimage::is_linux(&head) {
            Image::Linux64(bzimage::parse(&file)?)
        } else {
            return Err(file.not_a_kernel(identify::name(&head)));
        };
        Ok(Self { file, image })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Finds out whether it would boot in `ram_size` bytes of RAM, without touching any.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], [`Error::InitramfsTooLarge`], [`Error::CmdlineTooLong`], [`Error::CmdlineNul`].
    pub fn check(
        &self,
        ram_size: u64,
        initramfs: Option<&Initramfs>,
        cmdline: &str,
    ) -> Result<(), Error> {
        self.check_cmdline(cmdline)?;
        self.place(ram_size, initramfs).map(drop)
    }

    /// Puts the kernel and all it asks for into guest RAM, which is laid out as [`layout::ram_regions`] says and
    /// holds nothing but zeros.
    ///
    /// # Errors
    /// Those of [`Kernel::check`]; [`Error::Read`] if a file has changed; [`Error::Ram`] if guest RAM is not laid out
    /// as it should be.
    pub fn load(
        &self,
        ram: &GuestMemoryMmap,
        params: &BootParams<'_>,
    ) -> Result<EntryPoint, Error> {
        let ram_size = ram.iter().map(GuestMemoryRegion::len).sum();
        self.check_cmdline(params.cmdline)?;
        let placement = self.place(ram_size, params.initramfs)?;
        self.write_cmdline(ram, params.cmdline)?;
        reset::write_vector(ram)?;
        if let (Some(initramfs), Some(place)) = (params.initramfs, &placement.initramfs) {
            initramfs.load(ram, GuestAddress(place.start))?;
        }
        match &self.image {
            Image::Pvh(image) => {
                for segment in &image.segments {
                    self.file.load(
                        ram,
                        segment.span,
                        GuestAddress(segment.to.start),
                        "a segment",
                    )?;
                }
                pvh::write_start_info(ram, ram_size, params.rsdp, &placement)?;
                Ok(EntryPoint::Pvh {
                    entry: image.entry,
                    start_info: layout::START_INFO,
                })
            }
            Image::Linux64(image) => {
                self.file
                    .load(ram, image.payload, image.load_address, "the kernel proper")?;
                linux::write_zero_page(ram, image, params, &placement)?;
                linux::write_page_tables(ram)?;
                Ok(EntryPoint::Linux64 {
                    entry: image.entry(),
                    zero_page: layout::ZERO_PAGE,
                })
            }
        }
    }

    fn place(&self, ram_size: u64, initramfs: Option<&Initramfs>) -> Result<Placement, Error> {
        let (kernel, limit) = match &self.image {
            Image::Pvh(image) => (image.extent(), layout::HOLE_START),
            Image::Linux64(image) => (image.extent(), image.initramfs_limit()),
        };
        place::place(self.path(), kernel, limit, ram_size, initramfs)
    }

    /// Most bytes the kernel takes as its command line, without the NUL.
    fn cmdline_limit(&self) -> usize {
        match &self.image {
            Image::Pvh(_) => pvh::MOST_CMDLINE,
            Image::Linux64(image) => image.cmdline_limit(),
        }
    }

    fn check_cmdline(&self, cmdline: &str) -> Result<(), Error> {
        let (len, limit) = (cmdline.len(), self.cmdline_limit());
        if len > limit {
            return Err(Error::CmdlineTooLong {
                path: self.path().to_owned(),
                len,
                limit,
            });
        }
        if cmdline.contains('\0') {
            return Err(Error::CmdlineNul);
        }
        Ok(())
    }

    fn write_cmdline(&self, ram: &GuestMemoryMmap, cmdline: &str) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(cmdline.len() + 1);
        bytes.extend_from_slice(cmdline.as_bytes());
        bytes.push(0);
        write(ram, &bytes, layout::CMDLINE, "the command line")
    }
}

/// Writes bytes into guest RAM; `what` names them in an error.
fn write(
    ram: &GuestMemoryMmap,
    bytes: &[u8],
    to: GuestAddress,
    what: &'static str,
) -> Result<(), Error> {
    ram.write_slice(bytes, to)
        .map_err(|source| Error::Ram { what, source })
}
