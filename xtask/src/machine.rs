//! The emulated machine: where hardware virtualization is missing, QEMU emulates a computer that has it.
//!
//! It runs one command (a [`Job`]) on the host's own root file system, mounted read-only with a memory
//! overlay: every program is simply there, and whatever it writes is gone afterwards. Output, errors and
//! exit status come back through virtio-serial ports; the machine's kernel messages go to a log.
//! No time measured inside means anything.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::assets::{self, Cache, machine_initramfs, machine_kernel};
use crate::cpio::Archive;
use crate::process::Process;
use crate::terminal::RawTerminal;

/// With less memory, in MiB, a machine does not do for all that is done in one.
const ENOUGH_MIB: u64 = 4096;

/// Where Linux guests can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Here.
    Native,
    /// In the emulated machine, for this reason.
    Emulated(String),
}

impl Place {
    /// Looks at the processor and at `/dev/kvm`. `FERRY_MACHINE=native` or `emulated` overrides it.
    ///
    /// # Errors
    /// `FERRY_MACHINE` is something else.
    pub fn detect() -> Result<Self> {
        match std::env::var("FERRY_MACHINE").as_deref() {
            Ok("native") => return Ok(Self::Native),
            Ok("emulated") => return Ok(Self::Emulated("FERRY_MACHINE asks for it".to_owned())),
            Ok("") | Err(_) => {}
            Ok(other) => {
                bail!("FERRY_MACHINE is '{other}', but knows only 'native' and 'emulated'")
            }
        }
        let info = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let virtualizes = info
            .lines()
            .filter(|line| line.starts_with("flags"))
            .flat_map(str::split_whitespace)
            .any(|flag| flag == "svm" || flag == "vmx");
        // kvm-pvm and others offer /dev/kvm without these flags, but interpret a guest's kernel.
        if !virtualizes {
            return Ok(Self::Emulated(
                "this processor shows neither svm nor vmx".to_owned(),
            ));
        }
        match fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
        {
            Ok(_) => Ok(Self::Native),
            Err(error) => Ok(Self::Emulated(format!(
                "/dev/kvm cannot be opened: {error}"
            ))),
        }
    }
}

/// How a job's standard streams are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// No input; output and errors apart.
    Plain,
    /// The user's terminal.
    Terminal,
}

/// A command to run in the emulated machine.
#[derive(Clone, Debug)]
pub struct Job {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory.
    pub directory: PathBuf,
    /// Standard streams.
    pub streams: Streams,
    /// After this the machine is stopped, and the run has failed.
    pub timeout: Duration,
    /// Memory of the machine in MiB. What it does not touch costs nothing.
    pub memory: u64,
    /// A directory that the machine may write to, at [`SHARED`] there.
    pub shared: Option<PathBuf>,
}

/// Where a machine has the directory that it shares with others.
pub const SHARED: &str = "/run/shared";

impl Job {
    /// A job with this process's environment and directory.
    ///
    /// # Errors
    /// There is no current directory.
    pub fn new(argv: Vec<OsString>, timeout: Duration) -> Result<Self> {
        let mut job = Self {
            argv,
            environment: std::env::vars_os().collect(),
            directory: std::env::current_dir()?,
            streams: Streams::Plain,
            timeout,
            memory: memory(1),
            shared: None,
        };
        job.set("FERRY_MACHINE", "native");
        // Memory, made by stage2. The overlay over 9p lacks file handles, for example.
        job.set("TMPDIR", "/run/tmp");
        Ok(job)
    }

    /// Sets an environment variable.
    pub fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.into(), value.into()));
    }

    /// The shell script that the machine runs.
    fn script(&self) -> Vec<u8> {
        let mut script = b"cd ".to_vec();
        quote(&mut script, self.directory.as_os_str().as_bytes());
        script.extend_from_slice(b" || exit 126\nexec env -i");
        for (name, value) in &self.environment {
            script.push(b' ');
            quote(
                &mut script,
                &[name.as_bytes(), b"=", value.as_bytes()].concat(),
            );
        }
        for word in &self.argv {
            script.push(b' ');
            quote(&mut script, word.as_bytes());
        }
        script.push(b'\n');
        script
    }
}

/// Adds a word to a shell script.
fn quote(script: &mut Vec<u8>, word: &[u8]) {
    script.push(b'\'');
    for byte in word {
        if *byte == b'\'' {
            script.extend_from_slice(b"'\\''");
        } else {
            script.push(*byte);
        }
    }
    script.push(b'\'');
}

/// What came of a job.
#[derive(Debug)]
pub struct Outcome<W> {
    /// Its exit status; none if the machine stands still for good.
    pub status: Option<u8>,
    /// Where its output went.
    pub output: W,
}

impl<W> Outcome<W> {
    /// The exit status of a job that nobody runs again.
    ///
    /// # Errors
    /// There is none.
    pub fn status(&self) -> Result<u8> {
        self.status
            .context("the emulated machine stands still for good: try again")
    }
}

/// Runs `job` to its end. Its output goes, as it comes, to `output`, its errors to this process's.
///
/// # Errors
/// The machine cannot be started, does not come up, or takes longer than the job allows.
pub fn run<W: Write + Send + 'static>(cache: &Cache, job: &Job, output: W) -> Result<Outcome<W>> {
    let kernel = machine_kernel(cache)?;
    let initramfs = machine_initramfs(cache)?;
    let qemu = assets::qemu(cache)?;
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;

    let mut archive = Archive::new();
    archive.file("job", &job.script());
    let mut bytes = fs::read(&initramfs)?;
    bytes.extend(archive.finish());
    let with_job = dir.path().join("initramfs.cpio");
    fs::write(&with_job, bytes)?;

    let log = dir.path().join("console.log");
    let listeners = Listeners::bind(dir.path())?;
    let mut command = qemu.command();
    arguments(
        &mut command,
        &kernel.join("bzImage"),
        &with_job,
        dir.path(),
        job,
    );
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let machine = Process::start("QEMU", &mut command)?;
    let outcome = listeners.serve(machine, job, output);
    outcome.with_context(|| {
        let log = fs::read(&log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last: Vec<&str> = log.lines().rev().take(20).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        format!(
            "the emulated machine's console ended with:\n{}",
            last.join("\n")
        )
    })
}

/// QEMU's command line.
fn arguments(command: &mut Command, kernel: &Path, initramfs: &Path, dir: &Path, job: &Job) {
    let terminal = match job.streams {
        Streams::Plain => "",
        Streams::Terminal => " ferry.terminal",
    };
    command
        // One processor on one thread. With several, a kernel that patches its own code (KVM does whenever the first
        // machine comes and the last one goes, and every guest with several processors does) hangs once in some
        // hundred boots: QEMU goes on executing its translation of an instruction that another processor has
        // replaced.
        .args(["-accel", "tcg,thread=single", "-smp", "1"])
        // Without "enhanced REP MOVSB", by which a kernel copies byte by byte: that takes an emulated processor up to three times as
        // long as its other ways.
        .args(["-cpu", "max,+svm,+npt,-erms"])
        .args(["-m", &job.memory.to_string()])
        .args([
            "-display",
            "none",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ])
        .arg("-serial")
        .arg(format!("file:{}", dir.join("console.log").display()))
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off{terminal}"
        ))
        .args([
            "-fsdev",
            "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        ])
        .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"])
        .args(["-device", "virtio-serial-pci"]);
    if let Some(shared) = &job.shared {
        let path = shared.display();
        command
            .arg("-fsdev")
            .arg(format!("local,id=shared,path={path},security_model=none"))
            .args(["-device", "virtio-9p-pci,fsdev=shared,mount_tag=shared"]);
    }
    let socket = |name: &str| format!("socket,id={name},path={}", dir.join(name).display());
    for name in ["out", "err", "status"] {
        command.arg("-chardev").arg(socket(name));
        if (job.streams, name) == (Streams::Terminal, "out") {
            command.args(["-serial", "chardev:out"]);
        } else {
            let port = format!("virtserialport,chardev={name},name=ferry.{name}");
            command.arg("-device").arg(port);
        }
    }
}

/// How many machines this host has processors and memory for: each has one processor, and the guests in it may have GiBs.
pub fn most_at_a_time() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let fit = usize::try_from(spare_mib() / ENOUGH_MIB).unwrap_or(usize::MAX);
    fit.clamp(1, processors)
}

/// Memory in MiB for each of so many machines: 8 GiB, or less where the host has little.
pub fn memory(machines: usize) -> u64 {
    (spare_mib() / machines as u64).clamp(1024, 8192)
}

/// Memory in MiB that machines may have together.
fn spare_mib() -> u64 {
    available_mib().unwrap_or(8192) * 3 / 4
}

/// Memory in MiB that is free, or can be freed, if the kernel says.
pub fn available_mib() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

/// Our ends of the machine's ports.
struct Listeners {
    out: UnixListener,
    err: UnixListener,
    status: UnixListener,
}

impl Listeners {
    fn bind(dir: &Path) -> Result<Self> {
        let bind = |name: &str| {
            let listener = UnixListener::bind(dir.join(name))?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(listener)
        };
        Ok(Self {
            out: bind("out")?,
            err: bind("err")?,
            status: bind("status")?,
        })
    }

    /// Copies output until the machine has ended; then returns the job's status.
    fn serve<W: Write + Send + 'static>(
        self,
        mut machine: Process,
        job: &Job,
        output: W,
    ) -> Result<Outcome<W>> {
        let deadline = Instant::now() + job.timeout;
        let out = accept(&self.out, &mut machine)?;
        let err = accept(&self.err, &mut machine)?;
        let mut status = accept(&self.status, &mut machine)?;
        let _raw = match job.streams {
            Streams::Plain => None,
            Streams::Terminal => {
                forward_input(out.try_clone()?);
                Some(RawTerminal::enter()?)
            }
        };
        let out = copy(out, output);
        let err = copy(err, std::io::stderr());
        let mut pulse = Pulse::of(machine.id());
        let mut stands_still = false;
        while machine.ended()?.is_none() && !stands_still {
            stands_still = pulse.has_stopped();
            if Instant::now() > deadline {
                drop(machine);
                // What it has printed shows where it was.
                let _ = (out.join(), err.join());
                bail!("the job did not end within {} s", job.timeout.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(machine);
        let (Ok(output), Ok(_)) = (out.join(), err.join()) else {
            bail!("copying the job's output failed");
        };
        if stands_still {
            let status = None;
            return Ok(Outcome { status, output });
        }
        let mut text = String::new();
        status.read_to_string(&mut text)?;
        let status = text
            .trim()
            .parse()
            .context("the emulated machine ended without telling the job's exit status")?;
        let status = Some(status);
        Ok(Outcome { status, output })
    }
}

/// Whether an emulator still does something. It has been seen that its only processor halts and no timer is left that would wake it:
/// its kernel, which otherwise does something every few seconds whatever its programs do, never runs again.
struct Pulse {
    pid: u32,
    /// The processor time that it had used when that last changed, in ns, and when that was.
    last: (u64, Instant),
    looked: Instant,
}

impl Pulse {
    /// For how long nothing at all is done in a machine that stands still.
    const STILL: Duration = Duration::from_secs(60);
    const LOOK: Duration = Duration::from_secs(1);

    fn of(pid: u32) -> Self {
        let now = Instant::now();
        Self {
            pid,
            last: (0, now),
            looked: now,
        }
    }

    fn has_stopped(&mut self) -> bool {
        let now = Instant::now();
        if now - self.looked >= Self::LOOK {
            self.looked = now;
            // Where it is not known, it may have done something.
            match processor_time(self.pid) {
                Ok(used) if used == self.last.0 => {}
                used => self.last = (used.unwrap_or_default(), now),
            }
        }
        now - self.last.1 >= Self::STILL
    }
}

/// What all threads of a process have used, in ns.
fn processor_time(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let used = text.split_whitespace().next().context("no number")?;
        sum += used.parse::<u64>()?;
    }
    Ok(sum)
}

/// Takes QEMU's connection.
fn accept(listener: &UnixListener, machine: &mut Process) -> Result<UnixStream> {
    const LIMIT: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(error.into());
            }
            Err(_) => {}
        }
        if let Some(status) = machine.ended()? {
            bail!("QEMU ended at its start ({status})");
        }
        if Instant::now() > deadline {
            bail!("QEMU did not connect within {} s", LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Copies a port's bytes until QEMU closes it.
fn copy<W: Write + Send + 'static>(mut from: UnixStream, mut to: W) -> JoinHandle<W> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 {
                break;
            }
            // Output that nobody takes any more is dropped: the job must not stop for it.
            let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
        }
        to
    })
}

/// Copies what the user types. The thread ends with the process.
fn forward_input(mut to: UnixStream) {
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(count) = std::io::stdin().read(&mut buffer) {
            if count == 0 || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_keeps_its_words_whatever_they_hold() {
        let job = Job {
            argv: ["printf", "%s|", "it's", "a b", r"$HOME\n"]
                .map(OsString::from)
                .to_vec(),
            environment: vec![
                ("PATH".into(), "/usr/bin:/bin".into()),
                ("ODD".into(), r"a\n'b'".into()),
            ],
            directory: "/".into(),
            streams: Streams::Plain,
            timeout: Duration::from_secs(1),
            memory: 0,
            shared: None,
        };
        let out = Command::new("sh")
            .arg("-c")
            .arg(std::ffi::OsStr::from_bytes(&job.script()))
            .output()
            .expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&out.stdout), r"it's|a b|$HOME\n|");
        assert!(out.status.success());
    }
}
