//! A small XFS, which can clone files where the rest of the machine perhaps cannot.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// An XFS in a file on `/dev/shm`, mounted.
pub struct Xfs {
    mounted: PathBuf,
    /// With the file and the place.
    _directory: tempfile::TempDir,
}

impl Xfs {
    /// Makes one of `bytes` bytes, and mounts it.
    ///
    /// # Errors
    /// This needs root, a loop device, `mkfs.xfs`, and a kernel that has XFS; which of them is missing.
    pub fn new(bytes: u64) -> Result<Self> {
        let directory = tempfile::tempdir_in("/dev/shm")?;
        let image = directory.path().join("image");
        File::create(&image)?.set_len(bytes)?;
        let mounted = directory.path().join("mounted");
        std::fs::create_dir(&mounted)?;
        run(Command::new("mkfs.xfs")
            .args(["-q", "-m", "reflink=1"])
            .arg(&image))?;
        run(Command::new("mount")
            .args(["-t", "xfs", "-o", "loop"])
            .arg(&image)
            .arg(&mounted))?;
        Ok(Self {
            mounted,
            _directory: directory,
        })
    }

    /// Copies a directory into it, and waits until it is there. Returns the copy.
    ///
    /// # Errors
    /// There is not enough room.
    pub fn copy(&self, directory: &Path) -> Result<PathBuf> {
        let to = self.mounted.join("copy");
        run(Command::new("cp")
            .args(["-a", "--sparse=auto"])
            .arg(directory)
            .arg(&to))?;
        run(Command::new("sync").arg("-f").arg(&to))?;
        Ok(to)
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.mounted)) {
            eprintln!("ferry: {error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let Output { status, stderr, .. } = command
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(())
}
