//! A Ferry that is measured, and what its guest says.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{LIMIT, MIB};
use crate::bench::http;

/// A tick each millisecond, for ever.
const TICKS: &str = "console=ttyS0 mode=ticks ticks=1000000000 period=1";
/// What each tick begins with.
const TICK: &[u8] = b"tick";
/// Where the tiny guest itself has ended, in bytes.
const FREE_RAM: u64 = 16 * MIB;

/// A Ferry with an API, and with a guest whose serial port is a pipe to here.
pub struct Ferry {
    process: Child,
    socket: PathBuf,
    stdout: Option<ChildStdout>,
    _directory: tempfile::TempDir,
}

impl Ferry {
    /// Starts one, with these arguments. It serves its API when this returns.
    ///
    /// # Errors
    /// It does not.
    pub fn start(program: &Path, arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let socket = directory.path().join("api.sock");
        let mut process = Command::new(program)
            .arg("--api-socket")
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start Ferry")?;
        let stdout = process.stdout.take();
        let ferry = Self {
            process,
            socket,
            stdout,
            _directory: directory,
        };
        http::wait_for_api(&ferry.socket, LIMIT)?;
        Ok(ferry)
    }

    /// Starts one whose guest has this command line, by which it comes to tick, and `mib` MiB of RAM.
    ///
    /// # Errors
    /// It does not tick.
    pub fn with_guest(
        program: &Path,
        kernel: &Path,
        mib: u64,
        command_line: &str,
        more: &[&str],
    ) -> Result<Self> {
        let memory = format!("size={mib}M");
        let kernel = kernel.to_str().context("the kernel's path is not UTF-8")?;
        let mut arguments = vec![
            "--kernel",
            kernel,
            "--cmdline",
            command_line,
            "--cpus",
            "boot=1",
            "--memory",
            &memory,
            "--serial",
            "tty",
        ];
        arguments.extend(more);
        let mut ferry = Self::start(program, &arguments)?;
        let first = ferry.first_tick()?.recv_timeout(LIMIT);
        first.context("the guest does not tick")?;
        Ok(ferry)
    }

    /// Starts one whose guest ticks, in `mib` MiB of RAM, all of which hold data.
    ///
    /// # Errors
    /// It does not tick, or its RAM is not to be found.
    pub fn with_full_guest(program: &Path, kernel: &Path, mib: u64) -> Result<Self> {
        let ferry = Self::with_guest(program, kernel, mib, TICKS, &[])?;
        ferry.fill_ram(mib)?;
        Ok(ferry)
    }

    /// Asks the API for something.
    ///
    /// # Errors
    /// It refuses.
    pub fn put(&self, route: &str, body: &Value) -> Result<String> {
        http::put(&self.socket, route, body, LIMIT)
    }

    /// Takes a snapshot, after which the guest runs on; returns how long it took.
    ///
    /// # Errors
    /// Ferry refuses.
    pub fn save(&self, directory: &Path) -> Result<Duration> {
        let request = json!({
            "destination_url": format!("file://{}", directory.display()),
            "pause": true,
            "after": "resume",
            "prepare_ms": 0,
        });
        let begun = Instant::now();
        self.put("vm.snapshot", &request)?;
        Ok(begun.elapsed())
    }

    /// Restores a guest into this Ferry, which has none yet; returns how long it took until the guest's first tick.
    ///
    /// # Errors
    /// Ferry refuses, or nothing ticks.
    pub fn restore(&mut self, directory: &Path, mode: &str) -> Result<Duration> {
        let request = json!({
            "source_url": format!("file://{}", directory.display()),
            "memory_restore_mode": mode,
            "resume": true,
        });
        let tick = self.first_tick()?;
        let begun = Instant::now();
        let tick = thread::scope(|scope| {
            let answer = scope.spawn(|| self.put("vm.restore", &request));
            // A restore that fails is followed by no tick.
            loop {
                if let Ok(tick) = tick.recv_timeout(Duration::from_millis(100)) {
                    return Ok(tick);
                }
                if begun.elapsed() > LIMIT {
                    bail!("the restored guest does not tick");
                }
                if answer.is_finished() {
                    match answer.join() {
                        Ok(Ok(_)) => return Ok(tick.recv_timeout(LIMIT)?),
                        Ok(Err(error)) => return Err(error),
                        Err(panic) => std::panic::resume_unwind(panic),
                    }
                }
            }
        })?;
        Ok(tick.duration_since(begun))
    }

    /// Reads the guest's output from now on, for as long as there is any; sends when the first tick came.
    fn first_tick(&mut self) -> Result<Receiver<Instant>> {
        let mut stdout = self
            .stdout
            .take()
            .context("standard output is read already")?;
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut said = Vec::new();
            let mut buffer = [0; 4096];
            let mut sender = Some(sender);
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                let Some(waiting) = &sender else { continue };
                said.extend_from_slice(&buffer[..count]);
                if said.windows(TICK.len()).any(|window| window == TICK) {
                    // Nobody waits for it any more, if it came too late.
                    let _ = waiting.send(Instant::now());
                    sender = None;
                }
            }
        });
        Ok(receiver)
    }

    /// Writes something into each page that the guest has no use for, through the file that its RAM is: for a guest whose
    /// kernel is interpreted, this would take a minute.
    fn fill_ram(&self, mib: u64) -> Result<()> {
        let ram = self.ram_file(mib * MIB)?;
        let mut block: Vec<u64> = vec![0; (MIB / 8) as usize];
        let mut number = 0u64;
        for at in (FREE_RAM..mib * MIB).step_by(MIB as usize) {
            for word in &mut block {
                number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
                *word = (number ^ number >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            }
            let bytes: Vec<u8> = block.iter().flat_map(|word| word.to_le_bytes()).collect();
            ram.write_all_at(&bytes, at)
                .context("cannot fill the guest's RAM")?;
        }
        Ok(())
    }

    fn ram_file(&self, bytes: u64) -> Result<File> {
        for entry in fs::read_dir(format!("/proc/{}/fd", self.process.id()))? {
            let path = entry?.path();
            let is_memfd = fs::read_link(&path)
                .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"));
            if is_memfd && fs::metadata(&path)?.len() == bytes {
                return Ok(File::options().write(true).open(path)?);
            }
        }
        bail!("Ferry has no memory file of {bytes} bytes");
    }

    /// Forgets how much memory this process has had; returns how much it has now, in bytes.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn reset_peak(&self) -> Result<u64> {
        let path = format!("/proc/{}/clear_refs", self.process.id());
        fs::write(path, "5").context("cannot reset its peak memory")?;
        self.memory("VmRSS:")
    }

    /// The most memory that this process has had since [`Ferry::reset_peak`], in bytes.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn peak(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = kib
            .context("the kernel does not tell its memory")?
            .parse()?;
        Ok(kib << 10)
    }
}

impl Drop for Ferry {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
