//! Debian's kernels: the cloud one for guests, the generic one (it has 9p) for the emulated machine.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::apt::Apt;
use super::{Cache, fingerprint, initramfs, module_names};

/// Part of the directories' names: counts changes of what is written below.
const RECIPE: &[u8] = b"1";

/// The guest's kernel: a directory with `bzImage`, `vmlinux`, `version` and `modules/`.
///
/// # Errors
/// The package cannot be had, or holds a kernel of an unknown form.
pub fn guest_kernel(cache: &Cache) -> Result<PathBuf> {
    let list = initramfs::GUEST_MODULES;
    let key = format!("kernel/cloud-{}", fingerprint(&[RECIPE, list.as_bytes()]));
    cache.ensure(
        &key,
        "getting Debian's cloud kernel for the guest (27 MB)",
        |dir, step| {
            let apt = Apt::open(cache, step)?;
            unpack(&apt, "linux-image-cloud-amd64", list, dir, step)?;
            let vmlinux = extract_vmlinux(&fs::read(dir.join("bzImage"))?)?;
            fs::write(dir.join("vmlinux"), vmlinux)?;
            Ok(())
        },
    )
}

/// The emulated machine's kernel: a directory with `bzImage`, `version` and `modules/`.
///
/// # Errors
/// The package cannot be had.
pub fn machine_kernel(cache: &Cache) -> Result<PathBuf> {
    let list = initramfs::MACHINE_MODULES;
    let key = format!("kernel/generic-{}", fingerprint(&[RECIPE, list.as_bytes()]));
    cache.ensure(
        &key,
        "getting Debian's kernel for the emulated machine (70 MB)",
        |dir, step| {
            let apt = Apt::open(cache, step)?;
            unpack(&apt, "linux-image-amd64", list, dir, step)
        },
    )
}

/// Takes the image and the named modules out of a kernel package.
fn unpack(
    apt: &Apt,
    meta: &str,
    list: &str,
    dir: &Path,
    step: &crate::progress::Step,
) -> Result<()> {
    let package = apt.real_package(meta)?;
    let unpacked = dir.join("package");
    apt.unpack(std::slice::from_ref(&package), &unpacked, step)?;
    let version = package
        .strip_prefix("linux-image-")
        .with_context(|| format!("{package} is not a kernel"))?;
    let image = unpacked.join(format!("boot/vmlinuz-{version}"));
    fs::copy(&image, dir.join("bzImage"))
        .with_context(|| format!("cannot copy {}", image.display()))?;
    fs::write(dir.join("version"), version)?;

    let mut found = HashMap::new();
    // Where /lib is a link to /usr/lib, packages hold the latter.
    for root in ["lib/modules", "usr/lib/modules"] {
        collect_modules(&unpacked.join(root), &mut found)?;
    }
    let modules = dir.join("modules");
    fs::create_dir(&modules)?;
    for name in module_names(list) {
        // Absent means built in; inserting would fail otherwise, and says so.
        if let Some(path) = found.get(&format!("{name}.ko")) {
            fs::copy(path, modules.join(format!("{name}.ko")))?;
        } else if found.contains_key(&format!("{name}.ko.xz")) {
            bail!("the modules of {package} are compressed, which is not supported");
        }
    }
    fs::remove_dir_all(&unpacked)?;
    Ok(())
}

fn collect_modules(dir: &Path, found: &mut HashMap<String, PathBuf>) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_modules(&entry.path(), found)?;
        } else {
            found.insert(
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            );
        }
    }
    Ok(())
}

/// Magic of lz4's "legacy" frame, which the kernel's build uses.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Each block of such a frame holds this much, but the last.
const LZ4_BLOCK: usize = 8 << 20;

/// The ELF file inside a bzImage (Linux `Documentation/x86/boot.rst`: `payload_offset`, `payload_length`).
fn extract_vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    ensure!(
        image.get(0x202..0x206) == Some(b"HdrS"),
        "the kernel image is not a bzImage"
    );
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = (sectors + 1) * 512 + word(image, 0x248)?;
    let payload = image
        .get(offset..)
        .and_then(|rest| rest.get(..word(image, 0x24c).ok()?))
        .context("the kernel image is shorter than its header says")?;
    let mut rest = payload
        .strip_prefix(&LZ4_LEGACY)
        .context("the kernel's payload is not LZ4, the only compression known here")?;
    let mut kernel = Vec::new();
    // The last four bytes are the size of the whole.
    while rest.len() > 4 {
        let length = word(rest, 0)?;
        let block = rest
            .get(4..4 + length)
            .context("the kernel's payload is cut off")?;
        let start = kernel.len();
        kernel.resize(start + LZ4_BLOCK, 0);
        let size = lz4_flex::block::decompress_into(block, &mut kernel[start..])
            .context("the kernel's payload is damaged")?;
        kernel.truncate(start + size);
        rest = &rest[4 + length..];
    }
    ensure!(
        word(rest, 0)? == kernel.len() && kernel.starts_with(b"\x7fELF"),
        "the kernel's payload is not the ELF file it should be"
    );
    Ok(kernel)
}

fn word(bytes: &[u8], offset: usize) -> Result<usize> {
    let word = bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .context("the kernel image is too short")?;
    Ok(u32::from_le_bytes(*word) as usize)
}
