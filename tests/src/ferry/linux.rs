//! Debian's kernel with an initramfs for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Archive;

/// How Linux is packed.
#[derive(Clone, Copy, Debug)]
pub enum Kernel {
    /// An ELF file, entered through its PVH note.
    Vmlinux,
    /// A compressed kernel, entered in 64-bit mode.
    BzImage,
}

/// Words for the kernel, before those of a test.
pub const LINUX_COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=0 mitigations=off panic=-1";

/// What Linux is booted from.
#[derive(Debug)]
pub struct Linux {
    pub(super) packing: Kernel,
    /// Files added to the initramfs: path and content.
    pub(super) files: Vec<(String, Vec<u8>)>,
}

impl Linux {
    /// A guest that runs `script`.
    pub fn new(script: &str) -> Self {
        let script = format!("set -e\n{script}\n");
        Linux {
            packing: Kernel::Vmlinux,
            files: vec![("test.sh".to_owned(), script.into_bytes())],
        }
    }

    /// Adds what Ferry has to be told; files that are made for it go to `directory`.
    pub(super) fn describe(&self, command: &mut Command, directory: &Path) {
        command.arg("--kernel").arg(self.kernel());
        command
            .arg("--initramfs")
            .arg(self.write_initramfs(directory));
    }

    /// The kernel's path.
    pub fn kernel(&self) -> PathBuf {
        asset(match self.packing {
            Kernel::Vmlinux => "FERRY_KERNEL_VMLINUX",
            Kernel::BzImage => "FERRY_KERNEL_BZIMAGE",
        })
    }

    /// Makes an initramfs in `directory`, and returns its path.
    pub fn write_initramfs(&self, directory: &Path) -> PathBuf {
        let initramfs = directory.join("initramfs");
        fs::write(&initramfs, self.initramfs()).expect("an initramfs");
        initramfs
    }

    /// The common initramfs with this guest's files in a second archive behind it.
    fn initramfs(&self) -> Vec<u8> {
        let mut content = fs::read(asset("FERRY_INITRAMFS")).expect("the common initramfs");
        let mut archive = Archive::new();
        for (path, file) in &self.files {
            archive.file(path, file);
        }
        content.extend(archive.finish());
        content
    }
}

/// What `cargo xtask test` names in the environment.
fn asset(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run these tests through `cargo xtask test`"),
    }
}
