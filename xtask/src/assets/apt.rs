//! Debian packages, fetched and unpacked without installing them and without root.
//!
//! apt-get works with state and cache directories of our own and an empty list of installed packages,
//! so that a system with packages from several suites cannot confuse it; `dpkg -x` only unpacks.
//! Packages that the system has installed are left out: their files are found where they belong.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Cache, on_path};
use crate::progress::{Step, output};

/// Debian's package index is asked for again after this time.
const INDEX_AGE: Duration = Duration::from_secs(24 * 3600);
/// An option of a package source: whose signatures count. The package debian-archive-keyring, which every Debian has, brings it.
const KEYRING: &str = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";

/// apt-get with directories of our own.
pub struct Apt {
    dir: PathBuf,
    /// Further options.
    options: Vec<String>,
}

impl Apt {
    /// Prepares it, and updates the package index if it is older than a day.
    ///
    /// # Errors
    /// This system has no apt-get, or no index can be had.
    pub fn open(cache: &Cache, step: &Step) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg", "dpkg-query"] {
            if on_path(program).is_none() {
                bail!(
                    "there is no {program} here: on a system other than Debian, set the environment variables \
                     that `cargo xtask assets --help` lists to your own files"
                );
            }
        }
        let apt = Self {
            dir: cache.dir().join("apt"),
            options: Vec::new(),
        };
        apt.prepare(cache, step)?;
        Ok(apt)
    }

    /// Prepares another one, for the system's release of Debian with its backports, which come first.
    ///
    /// # Errors
    /// This is not Debian, or no index can be had.
    pub fn backports(cache: &Cache, step: &Step) -> Result<Self> {
        // It says where the system's packages come from.
        let system = Self::open(cache, step)?;
        let release = fs::read_to_string("/etc/os-release").context("cannot read os-release")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("os-release does not name Debian's release")?;
        let mirrors = output(system.command("apt-get").args([
            "indextargets",
            "--format=$(REPO_URI)",
            "Created-By: Packages",
            &format!("Release: {codename}"),
            "Component: main",
        ]))?;
        let mirror = mirrors
            .lines()
            .next()
            .with_context(|| format!("this system has no package source for {codename}"))?;
        let backports = format!("{codename}-backports");
        let dir = cache.dir().join("apt-backports");
        fs::create_dir_all(&dir)?;
        let list = dir.join("sources.list");
        fs::write(
            &list,
            format!(
                "deb {KEYRING} {mirror} {codename} main\ndeb {KEYRING} {mirror} {backports} main\n"
            ),
        )?;
        let apt = Self {
            dir,
            options: vec![
                format!("Dir::Etc::sourcelist={}", list.display()),
                "Dir::Etc::sourceparts=/dev/null".to_owned(),
                format!("APT::Default-Release={backports}"),
            ],
        };
        apt.prepare(cache, step)?;
        Ok(apt)
    }

    /// Makes the directories, and updates an index that is too old.
    fn prepare(&self, cache: &Cache, step: &Step) -> Result<()> {
        // Only one at a time may update the index.
        let name = self.dir.file_name().and_then(|name| name.to_str());
        let _lock = cache.lock(name.unwrap_or("apt"))?;
        fs::create_dir_all(self.dir.join("state/lists/partial"))?;
        fs::create_dir_all(self.dir.join("cache/archives/partial"))?;
        fs::write(self.dir.join("nothing-installed"), "")?;
        let stamp = self.dir.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < INDEX_AGE));
        if !fresh {
            step.run(self.command("apt-get").arg("update"))
                .context("cannot get Debian's package index")?;
            fs::write(&stamp, "")?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, path: &str| format!("{name}={}", self.dir.join(path).display());
        command.env("LC_ALL", "C");
        for option in [
            option("Dir::State", "state"),
            option("Dir::Cache", "cache"),
            option("Dir::State::status", "nothing-installed"),
            "APT::Install-Recommends=0".to_owned(),
            // The downloading user would not be allowed into a home directory.
            "APT::Sandbox::User=root".to_owned(),
            "Debug::NoLocking=1".to_owned(),
        ]
        .iter()
        .chain(&self.options)
        {
            command.arg("-o").arg(option);
        }
        command
    }

    /// The package that the meta-package `name` stands for: its first dependency.
    ///
    /// # Errors
    /// This system's package sources do not have it.
    pub fn real_package(&self, name: &str) -> Result<String> {
        let text = output(self.command("apt-cache").args(["depends", name]))
            .with_context(|| format!("this system's package sources have no {name}"))?;
        text.lines()
            .find_map(|line| line.trim().strip_prefix("Depends:"))
            .map(|package| package.trim().to_owned())
            .with_context(|| format!("package {name} does not depend on a kernel"))
    }

    /// `wanted`, and all that they depend on and that is not installed.
    ///
    /// # Errors
    /// This system's package sources do not have them.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<String>> {
        let mut command = self.command("apt-get");
        command
            .args(["-qq", "-y", "--print-uris", "install"])
            .args(wanted);
        let text = output(&mut command)?;
        let installed = output(Command::new("dpkg-query").args([
            "-W",
            "-f",
            "${db:Status-Status} ${Package}\n",
        ]))?;
        let installed: HashSet<&str> = installed
            .lines()
            .filter_map(|line| line.strip_prefix("installed "))
            .collect();
        // 'URI' name_version_architecture.deb size hash
        let files = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1)?.split_once('_'));
        // What backports bring may be installed, but too old for the others of them.
        let names = files.filter(|(name, rest)| {
            wanted.contains(name) || !installed.contains(name) || rest.contains("~bpo")
        });
        Ok(names.map(|(name, _)| name.to_owned()).collect())
    }

    /// Downloads packages and unpacks them all into `prefix`.
    ///
    /// # Errors
    /// A download or unpacking fails.
    pub fn unpack(&self, packages: &[String], prefix: &Path, step: &Step) -> Result<()> {
        let downloads =
            tempfile::tempdir_in(&self.dir).context("cannot make a directory for downloads")?;
        let mut command = self.command("apt-get");
        command
            .arg("download")
            .args(packages)
            .current_dir(downloads.path());
        if step.run(&mut command).is_err() {
            // The archive has moved on since the index was fetched.
            step.run(self.command("apt-get").arg("update"))?;
            let mut command = self.command("apt-get");
            command
                .arg("download")
                .args(packages)
                .current_dir(downloads.path());
            step.run(&mut command)
                .with_context(|| format!("cannot download {}", packages.join(" ")))?;
        }
        for package in fs::read_dir(downloads.path())? {
            let package = package?.path();
            step.run(Command::new("dpkg").arg("-x").arg(&package).arg(prefix))
                .with_context(|| format!("cannot unpack {}", package.display()))?;
        }
        Ok(())
    }
}
