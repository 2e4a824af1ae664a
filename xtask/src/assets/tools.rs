//! Programs: the back-ends, and QEMU for the emulated machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use super::{Cache, given, on_path};
use crate::progress::Step;

/// What QEMU consists of. qemu-system-data and seabios hold the firmware.
const QEMU_PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// virtiofsd, built from crates.io.
///
/// # Errors
/// It cannot be built.
pub fn virtiofsd(cache: &Cache) -> Result<PathBuf> {
    const VERSION: &str = "1.14.0";
    let what = format!("building virtiofsd {VERSION} (about 3 minutes)");
    let dir = cache.ensure(&format!("tools/virtiofsd-{VERSION}"), &what, |dir, step| {
        let libraries = static_libraries(cache).context(
            "virtiofsd needs libseccomp and libcap-ng (Debian: libseccomp-dev and libcap-ng-dev)",
        )?;
        cargo_install("virtiofsd", VERSION, dir, Some(&libraries), step)
    })?;
    Ok(dir.join("bin/virtiofsd"))
}

/// One of rust-vmm's vhost-device back-ends, built from crates.io.
///
/// # Errors
/// It cannot be built.
pub fn vhost_device(cache: &Cache, name: &str, version: &str) -> Result<PathBuf> {
    let name = format!("vhost-device-{name}");
    let what = format!("building {name} {version} (about a minute)");
    let dir = cache.ensure(&format!("tools/{name}-{version}"), &what, |dir, step| {
        cargo_install(&name, version, dir, None, step)
    })?;
    Ok(dir.join("bin").join(name))
}

fn cargo_install(
    name: &str,
    version: &str,
    dir: &Path,
    libraries: Option<&Path>,
    step: &Step,
) -> Result<()> {
    let target = dir.join("target");
    let mut command = Command::new("cargo");
    command
        .args(["install", "--locked", "--version", version, "--root"])
        .arg(dir)
        .arg(name)
        // A workspace's own cargo configuration is not for others' programs.
        .current_dir(dir)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if let Some(libraries) = libraries {
        command
            .env("LIBSECCOMP_LINK_TYPE", "static")
            .env("LIBSECCOMP_LIB_PATH", libraries)
            .env("RUSTFLAGS", format!("-L native={}", libraries.display()));
    }
    step.run(&mut command)
        .with_context(|| format!("cannot build {name} {version}"))?;
    fs::remove_dir_all(&target)?;
    Ok(())
}

/// A directory with libseccomp and libcap-ng as static libraries, and nothing else: the linker would
/// prefer shared ones, whose development links dangle outside an installed system.
fn static_libraries(cache: &Cache) -> Result<PathBuf> {
    cache.ensure(
        "packages/virtiofsd-libraries-1",
        "getting libseccomp and libcap-ng",
        |dir, step| {
            let apt = Apt::open(cache, step)?;
            let unpacked = dir.join("package");
            let packages = ["libseccomp-dev", "libcap-ng-dev"].map(str::to_owned);
            apt.unpack(&packages, &unpacked, step)?;
            for library in ["libseccomp.a", "libcap-ng.a"] {
                let path = unpacked.join("usr/lib/x86_64-linux-gnu").join(library);
                fs::copy(&path, dir.join(library))
                    .with_context(|| format!("cannot copy {}", path.display()))?;
            }
            fs::remove_dir_all(&unpacked)?;
            Ok(())
        },
    )
}

/// QEMU, for the emulated machine.
pub struct Qemu {
    program: PathBuf,
    prefix: Option<PathBuf>,
}

impl Qemu {
    /// A command that runs it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(prefix) = &self.prefix {
            command.env("LD_LIBRARY_PATH", library_path(prefix));
            command.env(
                "QEMU_MODULE_DIR",
                prefix.join("usr/lib/x86_64-linux-gnu/qemu"),
            );
            for share in ["usr/share/seabios", "usr/share/qemu"] {
                command.arg("-L").arg(prefix.join(share));
            }
        }
        command
    }
}

fn library_path(prefix: &Path) -> String {
    let dirs = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    dirs.map(|dir| prefix.join(dir).display().to_string())
        .join(":")
}

/// The QEMU that the user names in FERRY_QEMU, the system's, or Debian's, unpacked.
///
/// # Errors
/// None can be had.
pub fn qemu(cache: &Cache) -> Result<Qemu> {
    if let Some(program) = given("FERRY_QEMU")?.or_else(|| on_path("qemu-system-x86_64")) {
        return Ok(Qemu {
            program,
            prefix: None,
        });
    }
    let prefix = cache.ensure(
        "packages/qemu-1",
        "getting QEMU for the emulated machine (15 MB)",
        |dir, step| {
            let apt = Apt::open(cache, step)?;
            // busybox and kernels come on their own.
            apt.unpack(&apt.closure(&QEMU_PACKAGES)?, dir, step)
        },
    )?;
    Ok(Qemu {
        program: prefix.join("usr/bin/qemu-system-x86_64"),
        prefix: Some(prefix),
    })
}

/// QEMU as Debian's backports have it, unpacked: a script that runs it, for machines with KVM.
///
/// # Errors
/// It cannot be had.
pub fn new_qemu(cache: &Cache) -> Result<PathBuf> {
    let name = "qemu-system-x86_64";
    let dir = cache.ensure(
        "packages/qemu-backports-1",
        "getting QEMU from Debian's backports (15 MB)",
        |dir, step| {
            let apt = Apt::backports(cache, step)?;
            apt.unpack(&apt.closure(&QEMU_PACKAGES)?, dir, step)?;
            let firmware = "-L \"$root/usr/share/seabios\" -L \"$root/usr/share/qemu\"";
            let program = format!("usr/bin/{name}");
            write_script(&dir.join(name), "$here", &program, firmware)
        },
    )?;
    Ok(dir.join(name))
}

/// The system's qemu-storage-daemon, or Debian's, unpacked.
///
/// # Errors
/// None can be had.
pub fn storage_daemon(cache: &Cache) -> Result<PathBuf> {
    if let Some(path) = on_path("qemu-storage-daemon") {
        return Ok(path);
    }
    let dir = cache.ensure(
        "packages/qemu-storage-daemon-1",
        "getting qemu-storage-daemon",
        |dir, step| {
            let apt = Apt::open(cache, step)?;
            // Debian 12 has it in qemu-system-common, later ones in qemu-utils.
            apt.unpack(
                &apt.closure(&["qemu-system-common", "qemu-utils"])?,
                dir,
                step,
            )?;
            let path = dir.join("qemu-storage-daemon");
            write_script(&path, "$here", "usr/bin/qemu-storage-daemon", "")
        },
    )?;
    Ok(dir.join("qemu-storage-daemon"))
}

/// virtiofsd as QEMU brought it up to version 7, from Debian 12, unpacked.
///
/// # Errors
/// It cannot be had: later suites have none.
pub fn old_virtiofsd(cache: &Cache) -> Result<PathBuf> {
    let name = "old-virtiofsd";
    let dir = cache.ensure(
        "tools/old-virtiofsd-7.2",
        "getting the virtiofsd of QEMU 7.2",
        |dir, step| {
            let apt = Apt::open(cache, step)?;
            apt.unpack(&apt.closure(&["qemu-system-common"])?, dir, step)?;
            let program = "usr/lib/qemu/virtiofsd";
            if !dir.join(program).exists() {
                bail!("qemu-system-common of this system has no virtiofsd; Debian 12's has");
            }
            fs::create_dir(dir.join("bin"))?;
            write_script(&dir.join("bin").join(name), "$here/..", program, "")
        },
    )?;
    Ok(dir.join("bin").join(name))
}

/// Writes a script that runs an unpacked program with the libraries that came with it, because its users only know one
/// path. `root` is where they were unpacked, seen from the script's own directory `$here`; `options` are the shell's words
/// before those of the user.
fn write_script(path: &Path, root: &str, program: &str, options: &str) -> Result<()> {
    let script = format!(
        "#!/bin/sh\nhere=$(dirname \"$0\")\nroot={root}\n\
         lib=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu\n\
         LD_LIBRARY_PATH=$lib exec \"$root/{program}\" {options} \"$@\"\n"
    );
    fs::write(path, script)?;
    make_executable(path)
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
