//! `cargo xtask bench boot`: how soon a guest speaks, and what its VMM costs beside the guest's RAM.
//!
//! The guest is the tests' tiny one, which says a line at once and halts. Runs of several VMMs take
//! turns, so that a change of the machine's mood meets all of them.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Kind, Options, median, print_command, tiny_guest};
use crate::cargo;

const GUEST_MIB: u64 = 128;
/// The tiny guest says hello and halts.
const COMMAND_LINE: &str = "console=ttyS0 mode=hello end=halt";
/// Its first word. A VMM's own output on the same stream does not count.
const FIRST: &[u8] = b"tiny:";
/// Its last word, after which memory is counted.
const LAST: &[u8] = b"done";
/// A guest that has said nothing by then never will.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs the benchmark.
///
/// # Errors
/// A VMM does not start the guest.
pub fn bench(arguments: &[OsString]) -> Result<ExitCode> {
    let Options { others, runs } = Options::read("boot", arguments, 51)?;
    let ferry = cargo::build_one("ferry", "ferry", "release")?;
    let kernel = tiny_guest()?;
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut contestants = vec![Contestant::new(Kind::Ferry, ferry)];
    contestants.extend(
        others
            .into_iter()
            .map(|(kind, path)| Contestant::new(kind, path)),
    );
    for _ in 0..runs {
        for contestant in &mut contestants {
            let command = contestant.command(&kernel, dir.path())?;
            let run = measure(command)
                .with_context(|| format!("cannot measure {}", contestant.kind.name()))?;
            contestant.runs.push(run);
        }
    }
    print(&contestants, runs);
    Ok(ExitCode::SUCCESS)
}

struct Contestant {
    kind: Kind,
    program: PathBuf,
    runs: Vec<Run>,
}

impl Contestant {
    fn new(kind: Kind, program: PathBuf) -> Self {
        Self {
            kind,
            program,
            runs: Vec::new(),
        }
    }

    /// The same guest for each VMM: one vCPU, the same RAM, a serial port on standard output.
    fn command(&self, kernel: &Path, dir: &Path) -> Result<Command> {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Ferry | Kind::CloudHypervisor => {
                command
                    .arg("--kernel")
                    .arg(kernel)
                    .args(["--cmdline", COMMAND_LINE, "--cpus", "boot=1", "--memory"])
                    .arg(format!("size={GUEST_MIB}M"))
                    .args(["--serial", "tty", "--console", "off"]);
            }
            Kind::Firecracker => {
                let config = serde_json::json!({
                    "boot-source": { "kernel_image_path": kernel, "boot_args": COMMAND_LINE },
                    "machine-config": { "vcpu_count": 1, "mem_size_mib": GUEST_MIB },
                    "drives": [],
                });
                let path = dir.join("firecracker.json");
                fs::write(&path, config.to_string())?;
                command
                    .args(["--no-api", "--level", "Error", "--config-file"])
                    .arg(path);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(command)
    }
}

/// What one run showed.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// From the start of the process to the guest's first byte.
    first_byte: Duration,
    /// Resident, without the guest's RAM.
    kib: u64,
}

/// Starts a VMM, waits for the guest, looks at the memory, ends the VMM.
///
/// Not a [`crate::process::Process`]: that one forks by hand, which takes longer than what is measured here should.
fn measure(mut command: Command) -> Result<Run> {
    let begun = Instant::now();
    let mut child = command.spawn().context("cannot start it")?;
    let stdout = child.stdout.take();
    let run = (|| {
        let mut stdout = stdout.context("standard output is a pipe")?;
        let first_byte = wait_for(&mut stdout, begun)?;
        let kib = resident_without_guest(child.id())?;
        Ok(Run { first_byte, kib })
    })();
    // Both fail only if it has ended already.
    let _ = child.kill();
    let _ = child.wait();
    run
}

/// Reads until the guest is done; returns when its first byte came.
fn wait_for(stdout: &mut ChildStdout, begun: Instant) -> Result<Duration> {
    let contains = |text: &[u8], word: &[u8]| text.windows(word.len()).any(|window| window == word);
    let mut said = Vec::new();
    let mut began_line = None;
    let mut first = None;
    let mut buffer = [0; 4096];
    loop {
        if !readable(stdout, LIMIT.saturating_sub(begun.elapsed()))? {
            bail!("the guest was not done within {} s", LIMIT.as_secs());
        }
        let count = stdout.read(&mut buffer)?;
        let now = begun.elapsed();
        if count == 0 {
            bail!(
                "it ended early; it said:\n{}",
                String::from_utf8_lossy(&said)
            );
        }
        said.extend_from_slice(&buffer[..count]);
        // The byte that begins a line may turn out to have been the guest's first.
        let line = said
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        if began_line.is_none_or(|(start, _)| start != line) && said.len() > line {
            began_line = Some((line, now));
        }
        if first.is_none() {
            let start = said.windows(FIRST.len()).position(|window| window == FIRST);
            first = start.map(|start| match began_line {
                Some((line, time)) if line == start => time,
                _ => now,
            });
        }
        if let Some(first) = first
            && contains(&said, LAST)
        {
            return Ok(first);
        }
    }
}

/// Whether there is something to read, in time.
fn readable(stream: &ChildStdout, timeout: Duration) -> Result<bool> {
    let mut poll = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout = i32::try_from(timeout.as_millis())?;
    // SAFETY: one pollfd, which outlives the call.
    let result = unsafe { libc::poll(&raw mut poll, 1, timeout) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot wait for output");
    }
    Ok(result > 0)
}

/// KiB resident in a process, without mappings that are as large as the guest's RAM: there is no other such.
fn resident_without_guest(process: u32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{process}/smaps"))
        .context("cannot read its memory map")?;
    Ok(sum_small_mappings(&maps))
}

fn sum_small_mappings(maps: &str) -> u64 {
    let number = |line: &str, name: &str| {
        let value = line.strip_prefix(name)?.split_whitespace().next()?;
        value.parse::<u64>().ok()
    };
    let (mut size, mut sum) = (0, 0);
    for line in maps.lines() {
        if let Some(kib) = number(line, "Size:") {
            size = kib;
        } else if let Some(kib) = number(line, "Rss:")
            && size < GUEST_MIB * 1024
        {
            sum += kib;
        }
    }
    sum
}

fn print(contestants: &[Contestant], runs: usize) {
    let columns: Vec<[f64; 2]> = contestants
        .iter()
        .map(|contestant| {
            let runs = contestant.runs.iter();
            let mut times = runs
                .clone()
                .map(|run| run.first_byte.as_secs_f64() * 1e3)
                .collect::<Vec<_>>();
            #[expect(
                clippy::cast_precision_loss,
                reason = "KiB of a process are far below 2^52"
            )]
            let mut memory = runs.map(|run| run.kib as f64 / 1024.0).collect::<Vec<_>>();
            [median(&mut times), median(&mut memory)]
        })
        .collect::<Vec<_>>();
    println!(
        "Medians of {runs} runs; a guest with 1 vCPU and {GUEST_MIB} MiB; in brackets: multiple of Ferry's.\n"
    );
    println!("| VMM | process start to first serial byte | resident beyond guest RAM |");
    println!("|---|---|---|");
    for (contestant, [time, memory]) in contestants.iter().zip(&columns) {
        let name = contestant.kind.name();
        let ratio = |value: f64, index: usize| match contestant.kind {
            Kind::Ferry => String::new(),
            _ => format!(" ({:.2}x)", value / columns[0][index]),
        };
        println!(
            "| {name} | {time:.2} ms{} | {memory:.2} MiB{} |",
            ratio(*time, 0),
            ratio(*memory, 1)
        );
    }
    print_command();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_left_out() {
        let maps = "\
55d0-55d1 r-xp 00000000 fd:00 1 /bin/ferry
Size:               1000 kB
Rss:                 300 kB
7f00-7f01 rw-s 00000000 00:01 2 /memfd:ram
Size:             131072 kB
Rss:               50000 kB
7f02-7f03 rw-p 00000000 00:00 0
Size:                 64 kB
Rss:                  12 kB
";
        assert_eq!(sum_small_mappings(maps), 312);
    }

    #[test]
    fn the_guests_first_byte_counts_and_not_the_vmms() {
        let script = "printf 'vmm says\\n'; sleep 0.3; printf t; sleep 0.3; printf 'iny: x\\ntiny: done\\n'; sleep 5";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        let run = measure(command).expect("the script speaks");
        assert!(run.first_byte >= Duration::from_millis(300));
        assert!(run.kib > 0);
    }
}
