//! Kernels made byte by byte, whole and broken.

mod bzimage;
mod elf;
mod hostile;
mod run;

use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;

use super::*;

const MIB: u64 = 1 << 20;
const RSDP: GuestAddress = GuestAddress(layout::ACPI.start);

/// A file that goes with the value.
struct TestFile(TempFile);

impl TestFile {
    fn new(bytes: &[u8]) -> Self {
        let file = TempFile::new().unwrap();
        std::fs::write(file.as_path(), bytes).unwrap();
        Self(file)
    }

    fn path(&self) -> &Path {
        self.0.as_path()
    }
}

fn open(bytes: &[u8]) -> Result<Kernel, Error> {
    Kernel::open(TestFile::new(bytes).path())
}

fn initramfs(bytes: &[u8]) -> Initramfs {
    Initramfs::open(TestFile::new(bytes).path()).unwrap()
}

fn ram(size: u64) -> GuestMemoryMmap {
    let regions: Vec<_> = layout::ram_regions(size)
        .into_iter()
        .map(|r| (GuestAddress(r.start), (r.end - r.start) as usize))
        .collect();
    GuestMemoryMmap::from_ranges(&regions).unwrap()
}

fn params<'a>(cmdline: &'a str, initramfs: Option<&'a Initramfs>) -> BootParams<'a> {
    BootParams {
        initramfs,
        cmdline,
        rsdp: RSDP,
    }
}

fn read(ram: &GuestMemoryMmap, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn u32_at(ram: &GuestMemoryMmap, at: u64) -> u32 {
    ram.read_obj(GuestAddress(at)).unwrap()
}

fn u64_at(ram: &GuestMemoryMmap, at: u64) -> u64 {
    ram.read_obj(GuestAddress(at)).unwrap()
}

/// The kernel's command line as it will read it.
fn cmdline(ram: &GuestMemoryMmap) -> String {
    let bytes = read(ram, layout::CMDLINE.0, layout::CMDLINE_SPACE as usize);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

/// A whole error as Ferry prints it.
fn message(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn files_that_are_no_kernels_are_refused_with_what_they_are() {
    for (bytes, is) in [
        (&b""[..], "is empty"),
        (b"#!/bin/sh\nexit 0\n", "is a script"),
        (b"\x1F\x8B\x08\0\0\0", "is compressed with gzip"),
        (b"\x02\x21\x4C\x18\0\0", "is compressed with lz4"),
        (b"MZ\0\0", "is an EFI or DOS program"),
        (b"\x01\x02\x03", "is a file of unknown type"),
    ] {
        let text = message(&open(bytes).unwrap_err());
        assert!(text.contains(is) && text.contains("bzImage"), "{text}");
    }
}

#[test]
fn what_is_not_a_regular_file_is_refused_at_once() {
    let text = |path: &str| message(&Kernel::open(Path::new(path)).unwrap_err());
    assert!(
        text("/nonexistent/vmlinux").contains("cannot open /nonexistent/vmlinux: No such file")
    );
    assert!(text("/").contains("directory"));
    assert!(text("/dev/zero").contains("not a regular file"));
    // Opening a FIFO without a writer would wait.
    let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let fifo: PathBuf = dir.as_path().join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: the name is a string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(message(&Kernel::open(&fifo).unwrap_err()).contains("not a regular file"));
}

#[test]
fn an_empty_initramfs_is_refused() {
    let file = TestFile::new(b"");
    assert!(matches!(
        Initramfs::open(file.path()),
        Err(Error::InitramfsEmpty { .. })
    ));
    assert!(matches!(
        Initramfs::open(Path::new("/nonexistent")),
        Err(Error::Open { .. })
    ));
}
