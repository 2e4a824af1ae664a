//! A VMM that is measured, with its API and its guest.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::serial::Serial;
use super::{LIMIT, MIB, http};

/// A tick each millisecond, for ever.
const TICKS: &str = "console=ttyS0 mode=ticks ticks=1000000000 period=1";
/// Where the tiny guest itself has ended, in bytes.
pub const FREE_RAM: u64 = 16 * MIB;

/// A VMM with an API, and with a guest whose serial port is a pipe to here.
pub struct Vmm {
    process: Child,
    socket: PathBuf,
    serial: Serial,
    directory: tempfile::TempDir,
}

impl Vmm {
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
            .context("cannot start the VMM")?;
        let stdout = process.stdout.take();
        let stdout = stdout.context("standard output is a pipe")?;
        let vmm = Self {
            process,
            socket,
            serial: Serial::listen(stdout),
            directory,
        };
        http::wait_for_api(&vmm.socket, LIMIT)?;
        Ok(vmm)
    }

    /// Starts one whose guest has this command line, by which it comes to tick, and this memory, as the flag describes it.
    ///
    /// # Errors
    /// It does not tick.
    pub fn with_guest(
        program: &Path,
        kernel: &Path,
        memory: &str,
        command_line: &str,
        more: &[&str],
    ) -> Result<Self> {
        let kernel = kernel.to_str().context("the kernel's path is not UTF-8")?;
        let mut arguments = vec![
            "--kernel",
            kernel,
            "--cmdline",
            command_line,
            "--cpus",
            "boot=1",
            "--memory",
            memory,
            "--serial",
            "tty",
            "--console",
            "off",
        ];
        arguments.extend(more);
        let vmm = Self::start(program, &arguments)?;
        vmm.serial.first_tick(LIMIT)?;
        Ok(vmm)
    }

    /// Starts one whose guest ticks, in `mib` MiB of RAM, all of which hold data.
    ///
    /// # Errors
    /// It does not tick, or its RAM is not to be found.
    pub fn with_full_guest(program: &Path, kernel: &Path, mib: u64) -> Result<Self> {
        let vmm = Self::with_guest(program, kernel, &format!("size={mib}M"), TICKS, &[])?;
        vmm.fill_ram(mib)?;
        Ok(vmm)
    }

    /// A place for sockets and the like, for as long as this VMM is there.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What its guest says.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Asks the API how something stands.
    ///
    /// # Errors
    /// It refuses.
    pub fn get(&self, route: &str) -> Result<Value> {
        let answer = http::ask(&self.socket, "GET", route, LIMIT)?;
        serde_json::from_str(&answer).with_context(|| format!("{route} answers no JSON"))
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
    pub fn restore(&self, directory: &Path, mode: &str) -> Result<Duration> {
        let request = json!({
            "source_url": format!("file://{}", directory.display()),
            "memory_restore_mode": mode,
            "resume": true,
        });
        let begun = Instant::now();
        thread::scope(|scope| {
            let answer = scope.spawn(|| self.put("vm.restore", &request));
            // A restore that fails is followed by no tick.
            while !self.serial.has_ticked() && !answer.is_finished() {
                if begun.elapsed() > LIMIT {
                    bail!("the restored guest does not tick");
                }
                let _ = self.serial.first_tick(Duration::from_millis(100));
            }
            match answer.is_finished() {
                true => answer
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    .map(|_| ()),
                false => Ok(()),
            }
        })?;
        let tick = self.serial.first_tick(LIMIT)?;
        Ok(tick.duration_since(begun))
    }

    /// Writes something into each page that the guest has no use for, through the file that its RAM is: for a guest whose
    /// kernel is interpreted, this would take a minute.
    ///
    /// # Errors
    /// Its RAM is not to be found.
    pub fn fill_ram(&self, mib: u64) -> Result<()> {
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
        bail!("the VMM has no memory file of {bytes} bytes");
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

    /// The most memory that this process has had since [`Vmm::reset_peak`], in bytes.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn peak(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// How much guest RAM it has mapped now, in bytes.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn mapped(&self) -> Result<u64> {
        self.memory("RssShmem:")
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

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
