//! What the user wants to boot: opened and checked before anything is started, loaded once per boot.

use ferry_api::config::{MemoryConfig, PayloadConfig};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::boot::{self, BootParams, EntryPoint, Initramfs, Kernel};

/// What is wrong with the user's files or command line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--kernel")]
    Kernel(#[source] boot::Error),
    #[error("--initramfs")]
    Initramfs(#[source] boot::Error),
    #[error("the guest cannot be booted as asked for")]
    Together(#[source] boot::Error),
}

/// Kernel, initramfs and command line. The files stay open, so that a reboot boots the same.
pub struct Payload {
    kernel: Kernel,
    initramfs: Option<Initramfs>,
    cmdline: String,
}

impl Payload {
    /// Opens the files and makes sure that they would boot in that much RAM.
    pub fn open(config: &PayloadConfig, memory: &MemoryConfig) -> Result<Payload, Error> {
        let kernel = Kernel::open(&config.kernel).map_err(Error::Kernel)?;
        let initramfs = config
            .initramfs
            .as_deref()
            .map(Initramfs::open)
            .transpose()
            .map_err(Error::Initramfs)?;
        let cmdline = config.cmdline.clone();
        kernel
            .check(memory.size, initramfs.as_ref(), &cmdline)
            .map_err(Error::Together)?;
        Ok(Payload {
            kernel,
            initramfs,
            cmdline,
        })
    }

    /// Puts everything into RAM, which holds nothing but zeros.
    pub fn load(
        &self,
        ram: &GuestMemoryMmap,
        rsdp: GuestAddress,
    ) -> Result<EntryPoint, boot::Error> {
        let params = BootParams {
            initramfs: self.initramfs.as_ref(),
            cmdline: &self.cmdline,
            rsdp,
        };
        self.kernel.load(ram, &params)
    }
}
