//! What tests and the demo need from outside the clone: back-ends, kernels, the guest's initramfs, QEMU.
//!
//! Everything lies in one directory, `$FERRY_CACHE` or `ferry` in the user's cache directory. An asset
//! is a directory there, named by its recipe (a version, or a hash of what goes into it), built under
//! another name and renamed when it is complete: what exists is whole, and deleting it makes the next
//! run build it again. Nothing is installed on the system, and nothing here needs root.
//!
//! Each asset can be replaced by one's own through an environment variable; see [`Asset`].

mod apt;
mod initramfs;
mod kernel;
mod tools;

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::progress::Step;
pub use initramfs::machine_initramfs;
pub use kernel::machine_kernel;
pub use tools::{new_qemu, qemu};

/// Something that a test, the demo or a benchmark asks for by the name of an environment variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asset {
    /// The guest's kernel as an ELF file.
    Vmlinux,
    /// The same kernel as a bzImage.
    BzImage,
    /// The guest's initramfs.
    Initramfs,
    /// virtiofsd.
    Virtiofsd,
    /// virtiofsd as it was before it was written in Rust.
    OldVirtiofsd,
    /// qemu-storage-daemon.
    StorageDaemon,
    /// vhost-device-rng.
    Rng,
    /// vhost-device-console.
    Console,
    /// vhost-device-vsock.
    Vsock,
}

impl Asset {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Vmlinux,
        Self::BzImage,
        Self::Initramfs,
        Self::Virtiofsd,
        Self::OldVirtiofsd,
        Self::StorageDaemon,
        Self::Rng,
        Self::Console,
        Self::Vsock,
    ];

    /// The environment variable that holds its path, for those who use it and for those who bring their own.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Vmlinux => "FERRY_KERNEL_VMLINUX",
            Self::BzImage => "FERRY_KERNEL_BZIMAGE",
            Self::Initramfs => "FERRY_INITRAMFS",
            Self::Virtiofsd => "FERRY_VIRTIOFSD",
            Self::OldVirtiofsd => "FERRY_OLD_VIRTIOFSD",
            Self::StorageDaemon => "FERRY_QSD",
            Self::Rng => "FERRY_VHOST_DEVICE_RNG",
            Self::Console => "FERRY_VHOST_DEVICE_CONSOLE",
            Self::Vsock => "FERRY_VHOST_DEVICE_VSOCK",
        }
    }

    /// Where it is; built first if it is absent.
    ///
    /// # Errors
    /// It cannot be built here: the message says what to install or to provide.
    pub fn provide(self, cache: &Cache) -> Result<PathBuf> {
        if let Some(path) = given(self.variable())? {
            return Ok(path);
        }
        match self {
            Self::Vmlinux => Ok(kernel::guest_kernel(cache)?.join("vmlinux")),
            Self::BzImage => Ok(kernel::guest_kernel(cache)?.join("bzImage")),
            Self::Initramfs => initramfs::guest_initramfs(cache),
            Self::Virtiofsd => tools::virtiofsd(cache),
            Self::OldVirtiofsd => tools::old_virtiofsd(cache),
            Self::StorageDaemon => tools::storage_daemon(cache),
            Self::Rng => tools::vhost_device(cache, "rng", "0.1.0"),
            Self::Console => tools::vhost_device(cache, "console", "0.1.0"),
            Self::Vsock => tools::vhost_device(cache, "vsock", "0.3.0"),
        }
        .with_context(|| {
            format!(
                "cannot provide {self:?} (or set {} to your own)",
                self.variable()
            )
        })
    }
}

/// Provides assets, as environment variables for the programs that use them.
///
/// # Errors
/// One of them cannot be built.
pub fn environment(cache: &Cache, assets: &[Asset]) -> Result<Vec<(String, PathBuf)>> {
    let mut variables = vec![("FERRY_CACHE".to_owned(), cache.dir.clone())];
    for asset in assets {
        variables.push((asset.variable().to_owned(), asset.provide(cache)?));
    }
    Ok(variables)
}

/// A path that the user gave in an environment variable.
fn given(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let path = PathBuf::from(path);
    if !path.exists() {
        bail!("{variable} names {}, which does not exist", path.display());
    }
    Ok(Some(path))
}

/// A program on `PATH`.
fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// The directory that holds all assets.
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens the cache, making its directory if needed.
    ///
    /// # Errors
    /// There is neither a home nor a cache directory, or it cannot be written.
    pub fn open() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let dir = if let Some(dir) = variable("FERRY_CACHE") {
            PathBuf::from(dir)
        } else if let Some(dir) = variable("XDG_CACHE_HOME") {
            Path::new(&dir).join("ferry")
        } else if let Some(home) = variable("HOME") {
            Path::new(&home).join(".cache/ferry")
        } else {
            bail!("no place to keep downloads: set HOME, XDG_CACHE_HOME or FERRY_CACHE");
        };
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        Ok(Self { dir })
    }

    /// Where everything lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the directory of the asset `key`, a relative path. If it is absent, announces `what` and lets `build` fill it.
    ///
    /// Runs at the same time wait for each other.
    ///
    /// # Errors
    /// What `build` says; then nothing is left behind.
    pub fn ensure(
        &self,
        key: &str,
        what: &str,
        build: impl FnOnce(&Path, &Step) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.dir.join(key);
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(key)?;
        if path.exists() {
            return Ok(path);
        }
        let parent = path.parent().context("an asset has a parent directory")?;
        fs::create_dir_all(parent)?;
        // Under the lock this name is nobody else's: what is there is from a run that was killed.
        let mut name = std::ffi::OsString::from(".new-");
        name.push(path.file_name().unwrap_or(OsStr::new("asset")));
        let new = parent.join(name);
        remove(&new)?;
        fs::create_dir_all(&new)?;
        let step = Step::begin(what);
        let built = build(&new, &step).and_then(|()| {
            fs::rename(&new, &path).with_context(|| format!("cannot make {}", path.display()))
        });
        if let Err(error) = built {
            remove(&new)?;
            return Err(error);
        }
        step.end();
        Ok(path)
    }

    /// Takes the lock of the asset `key`, saying so if another run holds it.
    pub fn lock(&self, key: &str) -> Result<File> {
        let locks = self.dir.join("locks");
        fs::create_dir_all(&locks)?;
        let path = locks.join(key.replace('/', "-"));
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("ferry: waiting for another run that makes {key}");
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cache"),
        }
        Ok(file)
    }
}

/// Removes a directory that may not exist.
fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// A short name for a recipe: FNV-1a, because it has to stay the same for ever.
fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{:012x}", hash >> 16)
}

/// The names in a list of modules, in order.
fn module_names(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}
