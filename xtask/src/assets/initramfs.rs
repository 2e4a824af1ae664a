//! The two initramfs archives: the guest's, and the emulated machine's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::Apt;
use super::kernel::{guest_kernel, machine_kernel};
use super::{Cache, fingerprint, given, module_names};
use crate::cpio::Archive;

/// Modules of the guest, in the order of insertion.
pub const GUEST_MODULES: &str = include_str!("../../../resources/guest/modules");
/// Modules of the emulated machine, in the order of insertion.
pub const MACHINE_MODULES: &str = include_str!("../../../resources/machine/modules");

/// Files of an archive: path and content.
type Files<'a> = &'a [(&'a str, &'a str)];

const GUEST_FILES: Files = &[
    ("init", include_str!("../../../resources/guest/init")),
    ("demo.sh", include_str!("../../../resources/guest/demo.sh")),
];
const MACHINE_FILES: Files = &[
    ("init", include_str!("../../../resources/machine/init")),
    ("stage2", include_str!("../../../resources/machine/stage2")),
];

/// The guest's initramfs. A test puts a second archive with `/test.sh` behind it.
///
/// # Errors
/// Its parts cannot be had.
pub fn guest_initramfs(cache: &Cache) -> Result<PathBuf> {
    let kernel = guest_kernel(cache)?;
    build(cache, "guest", &kernel, GUEST_MODULES, GUEST_FILES)
}

/// The emulated machine's initramfs. A second archive with `/job` goes behind it.
///
/// # Errors
/// Its parts cannot be had.
pub fn machine_initramfs(cache: &Cache) -> Result<PathBuf> {
    let kernel = machine_kernel(cache)?;
    build(cache, "machine", &kernel, MACHINE_MODULES, MACHINE_FILES)
}

fn build(cache: &Cache, name: &str, kernel: &Path, modules: &str, files: Files) -> Result<PathBuf> {
    let version = fs::read(kernel.join("version"))?;
    let mut recipe = vec![b"1".as_slice(), &version, modules.as_bytes()];
    recipe.extend(files.iter().map(|(_, content)| content.as_bytes()));
    let key = format!("{name}/{}", fingerprint(&recipe));
    let dir = cache.ensure(&key, &format!("making the {name}'s initramfs"), |dir, _| {
        let busybox = fs::read(busybox(cache)?).context("cannot read busybox")?;
        let archive = archive(&busybox, kernel, modules, files)?;
        fs::write(dir.join("initramfs.cpio"), archive)?;
        Ok(())
    })?;
    Ok(dir.join("initramfs.cpio"))
}

fn archive(busybox: &[u8], kernel: &Path, modules: &str, files: Files) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.console();
    archive.directory("bin");
    archive.file("bin/busybox", busybox);
    archive.symlink("bin/sh", "busybox");
    archive.directory("modules");
    let mut list = String::new();
    for name in module_names(modules) {
        let file = format!("{name}.ko");
        // The kernel's recipe left out what is built in.
        if let Ok(module) = fs::read(kernel.join("modules").join(&file)) {
            archive.file(&format!("modules/{file}"), &module);
            list += name;
            list.push('\n');
        }
    }
    archive.file("modules/list", list.as_bytes());
    for (path, content) in files {
        archive.file(path, content.as_bytes());
    }
    Ok(archive.finish())
}

/// A statically linked busybox.
fn busybox(cache: &Cache) -> Result<PathBuf> {
    if let Some(path) = given("FERRY_BUSYBOX")? {
        return Ok(path);
    }
    let dir = cache.ensure("packages/busybox-1", "getting busybox", |dir, step| {
        let apt = Apt::open(cache, step)?;
        apt.unpack(&["busybox-static".to_owned()], dir, step)
    })?;
    let found = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| dir.join(path))
        .into_iter()
        .find(|path| path.exists());
    found.context("the package busybox-static holds no busybox")
}
