//! `cargo xtask demo`: an unmodified Debian kernel under Ferry, with a disk by qemu-storage-daemon and a directory by virtiofsd.
//!
//! The guest writes checksummed data to both and reads it back; the host then looks for the same data
//! in the disk image and in the directory. Without hardware virtualization, all of this happens in the
//! emulated machine: there, this program runs a second time with `--inside`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::assets::{self, Asset, Cache};
use crate::cargo;
use crate::machine::{self, Job, Place, Streams};
use crate::process::Process;
use crate::progress::output;

const NEEDED: [Asset; 4] = [
    Asset::Vmlinux,
    Asset::Initramfs,
    Asset::Virtiofsd,
    Asset::StorageDaemon,
];

/// Bytes of test data that the guest writes; `demo.sh` says the same.
const DATA: u64 = 8 << 20;
const DISK: u64 = 64 << 20;
/// The guest ends itself long before.
const GUEST_LIMIT: Duration = Duration::from_secs(300);
const MACHINE_LIMIT: Duration = Duration::from_secs(600);
/// Someone may sit at the guest's shell for a while.
const INTERACTIVE_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Check,
    Interactive,
}

/// Runs the demo.
///
/// # Errors
/// Something is missing, does not start, or the data differ.
pub fn demo(arguments: &[OsString]) -> Result<ExitCode> {
    let mut mode = Mode::Check;
    let mut inside = false;
    for argument in arguments {
        match argument.to_str() {
            Some("--interactive") => mode = Mode::Interactive,
            Some("--inside") => inside = true,
            _ => bail!(
                "demo knows only --interactive, not '{}'",
                argument.display()
            ),
        }
    }
    if inside {
        let ferry = std::env::var_os("FERRY_BIN").context("FERRY_BIN is not set")?;
        return show(&PathBuf::from(ferry), &Cache::open()?, mode);
    }

    let place = Place::detect()?;
    let ferry = cargo::build_one("ferry", "ferry", "dev")?;
    let cache = Cache::open()?;
    let variables = assets::environment(&cache, &NEEDED)?;
    let Place::Emulated(reason) = place else {
        return show(&ferry, &cache, mode);
    };
    println!("Running in an emulated machine, because {reason}. This takes about a minute.");
    let mut argv = vec![std::env::current_exe()?.into_os_string()];
    argv.extend(["demo", "--inside"].map(OsString::from));
    let mut job = Job::new(argv, MACHINE_LIMIT)?;
    if mode == Mode::Interactive {
        job.argv.push("--interactive".into());
        job.streams = Streams::Terminal;
        job.timeout = INTERACTIVE_LIMIT;
    }
    for (name, value) in variables {
        job.set(&name, value);
    }
    job.set("FERRY_BIN", ferry);
    let outcome = machine::run(&cache, &job, std::io::stdout())?;
    Ok(ExitCode::from(outcome.status()?))
}

/// The demo itself, on a machine that can run Linux guests.
fn show(ferry: &Path, cache: &Cache, mode: Mode) -> Result<ExitCode> {
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let stage = Stage::set(dir.path(), cache)?;
    match mode {
        Mode::Interactive => interactive(&stage, ferry, cache),
        Mode::Check => check(&stage, ferry, cache),
    }
}

/// Disk, directory, and the back-ends that serve them.
struct Stage {
    dir: PathBuf,
    image: PathBuf,
    share: PathBuf,
    disk_socket: PathBuf,
    share_socket: PathBuf,
    storage_daemon: Process,
    virtiofsd: Process,
}

impl Stage {
    fn set(dir: &Path, cache: &Cache) -> Result<Self> {
        let image = dir.join("disk.img");
        File::create(&image)?.set_len(DISK)?;
        let share = dir.join("share");
        fs::create_dir(&share)?;
        fs::write(share.join("from-host"), "Written by the host.\n")?;
        fs::write(
            share.join("from-host.sha256"),
            sha256(&share.join("from-host"))?,
        )?;

        let disk_socket = dir.join("disk.sock");
        let share_socket = dir.join("share.sock");
        let mut command = Command::new(Asset::StorageDaemon.provide(cache)?);
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={}", image.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on",
                disk_socket.display()
            ));
        let storage_daemon =
            Process::serve("qemu-storage-daemon", &mut command, &disk_socket, dir)?;
        let mut command = Command::new(Asset::Virtiofsd.provide(cache)?);
        command
            .args(["--sandbox", "none", "--socket-path"])
            .arg(&share_socket)
            .arg("--shared-dir")
            .arg(&share);
        let virtiofsd = Process::serve("virtiofsd", &mut command, &share_socket, dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            image,
            share,
            disk_socket,
            share_socket,
            storage_daemon,
            virtiofsd,
        })
    }

    /// Ferry's command line; only `--serial` differs.
    fn ferry(&self, ferry: &Path, cache: &Cache, run: &str) -> Result<Command> {
        let mut command = Command::new(ferry);
        command
            .arg("--kernel")
            .arg(Asset::Vmlinux.provide(cache)?)
            .arg("--initramfs")
            .arg(Asset::Initramfs.provide(cache)?)
            .arg("--cmdline")
            .arg(format!(
                "console=ttyS0 quiet loglevel=0 mitigations=off panic=-1 ferry.run={run}"
            ))
            .args(["--cpus", "boot=1", "--memory", "size=512M", "--disk"])
            .arg(format!(
                "vhost_user=on,socket={},id=disk0",
                self.disk_socket.display()
            ))
            .arg("--fs")
            .arg(format!(
                "tag=share,socket={},id=share0",
                self.share_socket.display()
            ));
        Ok(command)
    }

    fn logs(&self) -> String {
        format!(
            "qemu-storage-daemon said:\n{}\nvirtiofsd said:\n{}",
            self.storage_daemon.log(),
            self.virtiofsd.log()
        )
    }
}

fn interactive(stage: &Stage, ferry: &Path, cache: &Cache) -> Result<ExitCode> {
    println!(
        "Disk image: {}. Shared directory: {}.",
        stage.image.display(),
        stage.share.display()
    );
    let mut command = stage.ferry(ferry, cache, "shell")?;
    command.args(["--serial", "tty"]);
    let status = command.status().context("cannot start ferry")?;
    println!("Ferry ended ({status}).");
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check(stage: &Stage, ferry: &Path, cache: &Cache) -> Result<ExitCode> {
    let begun = Instant::now();
    let serial = stage.dir.join("serial");
    let mut command = stage.ferry(ferry, cache, "demo")?;
    command
        .arg("--serial")
        .arg(format!("file={}", serial.display()))
        .stdin(Stdio::null());
    let mut process = Process::start("ferry", &mut command)?;
    let said = follow(&mut process, &serial).with_context(|| stage.logs())?;
    let report = Report::read(&said).with_context(|| stage.logs())?;

    // The guest said it read back what it wrote; the host believes what lies in its own files.
    let disk = sha256_of_start(&stage.image)?;
    ensure!(
        disk == report.disk,
        "the disk image holds {disk}, but the guest wrote {}",
        report.disk
    );
    let share = sha256(&stage.share.join("from-guest"))?;
    ensure!(
        share == report.share,
        "the shared directory holds {share}, but the guest wrote {}",
        report.share
    );
    let data = DATA >> 20;
    println!("\nThe demo has passed:");
    println!(
        "  guest   Debian's {}, 1 vCPU, 512 MiB, ended after {} s",
        report.kernel,
        begun.elapsed().as_secs()
    );
    println!(
        "  disk    /dev/vda, by qemu-storage-daemon: {data} MiB written, read back, found in the image"
    );
    println!(
        "  share   virtiofs, by virtiofsd: {data} MiB written, read back, found in the directory"
    );
    println!("  sha256  {disk}");
    Ok(ExitCode::SUCCESS)
}

/// Shows the guest's serial line until Ferry has ended, and returns all of it.
fn follow(process: &mut Process, serial: &Path) -> Result<String> {
    let deadline = Instant::now() + GUEST_LIMIT;
    let mut file = None;
    let mut said = Vec::new();
    loop {
        // Asked before reading, so that nothing written before the end is missed.
        let ended = process.ended()?;
        if file.is_none() {
            file = File::open(serial).ok();
        }
        if let Some(file) = &mut file {
            let before = said.len();
            file.read_to_end(&mut said)?;
            std::io::stdout().write_all(&said[before..])?;
            std::io::stdout().flush()?;
        }
        match ended {
            Some(status) if status.success() => break,
            Some(status) => bail!("ferry failed ({status})"),
            None => {}
        }
        if Instant::now() > deadline {
            bail!("the guest did not end within {} s", GUEST_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// What the guest reports on its serial line.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    kernel: String,
    disk: String,
    share: String,
}

impl Report {
    fn read(said: &str) -> Result<Self> {
        let find = |word: &str| {
            let start = format!("ferry: {word}: ok");
            said.lines()
                .find_map(|line| line.trim().strip_prefix(&start))
                .map(|rest| rest.trim().to_owned())
                .with_context(|| format!("the guest did not report '{word}'"))
        };
        find("demo")?;
        Ok(Self {
            kernel: find("kernel")?,
            disk: find("disk")?,
            share: find("share")?,
        })
    }
}

/// A file's checksum, by coreutils.
fn sha256(path: &Path) -> Result<String> {
    let text = output(Command::new("sha256sum").arg(path))?;
    let sum = text.split_whitespace().next();
    Ok(sum.context("sha256sum printed nothing")?.to_owned())
}

/// The checksum of the part of the disk that the guest wrote.
fn sha256_of_start(image: &Path) -> Result<String> {
    let start = image.with_extension("start");
    std::io::copy(
        &mut File::open(image)?.take(DATA),
        &mut File::create(&start)?,
    )?;
    sha256(&start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_needs_every_part() {
        let said = "ferry: init: ok\r\nferry: kernel: ok 6.1\r\nferry: disk: ok aa\r\nferry: share: ok bb\r\nferry: demo: ok\r\n";
        let report = Report::read(said).expect("all is there");
        assert_eq!((report.disk.as_str(), report.share.as_str()), ("aa", "bb"));
        for word in ["kernel", "disk", "share", "demo"] {
            let without = said.replace(&format!("{word}: ok"), &format!("{word}: failed"));
            assert!(Report::read(&without).is_err(), "{word}");
        }
    }
}
