//! `cargo xtask bench api`: how soon the REST API answers.
//!
//! A tiny guest ticks meanwhile.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Kind, Options, http, median, print_command, tiny_guest};
use crate::cargo;

const COMMAND_LINE: &str = "console=ttyS0 mode=ticks ticks=100000000 period=10";
/// Whoever has not answered by then never will.
const LIMIT: Duration = Duration::from_secs(20);

const REQUESTS: [(&str, &str); 4] = [
    ("GET", "vmm.ping"),
    ("GET", "vm.info"),
    ("PUT", "vm.pause"),
    ("PUT", "vm.resume"),
];

/// Runs the benchmark.
///
/// # Errors
/// A VMM does not start, or does not answer as it should.
pub fn bench(arguments: &[OsString]) -> Result<ExitCode> {
    let Options { others, runs } = Options::read("api", arguments, 201)?;
    let ferry = cargo::build_one("ferry", "ferry", "release")?;
    let kernel = tiny_guest()?;
    let programs = [(Kind::Ferry, ferry)].into_iter().chain(others);
    let mut contestants = programs
        .map(|(kind, program)| Contestant::start(kind, &program, &kernel))
        .collect::<Result<Vec<_>>>()?;
    for _ in 0..runs {
        for contestant in &mut contestants {
            contestant
                .measure()
                .with_context(|| format!("cannot measure {}", contestant.kind.name()))?;
        }
    }
    print(&mut contestants, runs);
    Ok(ExitCode::SUCCESS)
}

struct Contestant {
    kind: Kind,
    process: Child,
    directory: tempfile::TempDir,
    /// Milliseconds of each run, by request.
    times: [Vec<f64>; REQUESTS.len()],
}

impl Contestant {
    fn start(kind: Kind, program: &Path, kernel: &Path) -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let process = Command::new(program)
            .arg("--kernel")
            .arg(kernel)
            .args(["--cmdline", COMMAND_LINE, "--cpus", "boot=1"])
            .args([
                "--memory",
                "size=128M",
                "--serial",
                "null",
                "--console",
                "off",
            ])
            .arg("--api-socket")
            .arg(directory.path().join("api.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", kind.name()))?;
        let contestant = Self {
            kind,
            process,
            directory,
            times: Default::default(),
        };
        let begun = Instant::now();
        while !matches!(contestant.ask("GET", "vm.info"), Ok(answer) if answer.contains("\"Running\""))
        {
            if begun.elapsed() > LIMIT {
                bail!("{} does not run the guest", kind.name());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(contestant)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    fn measure(&mut self) -> Result<()> {
        for (index, (method, route)) in REQUESTS.into_iter().enumerate() {
            let begun = Instant::now();
            self.ask(method, route)?;
            let time = begun.elapsed();
            self.times[index].push(time.as_secs_f64() * 1e3);
        }
        Ok(())
    }

    fn ask(&self, method: &str, route: &str) -> Result<String> {
        http::ask(&self.socket(), method, route, LIMIT)
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn print(contestants: &mut [Contestant], runs: usize) {
    println!("Medians of {runs} runs in milliseconds; in brackets: multiple of Ferry's.\n");
    let routes = REQUESTS.map(|(_, route)| route).join(" | ");
    println!("| VMM | {routes} |");
    println!("|---|{}", "---|".repeat(REQUESTS.len()));
    let mut first: Option<Vec<f64>> = None;
    for contestant in contestants {
        let times: Vec<f64> = contestant
            .times
            .iter_mut()
            .map(|times| median(times))
            .collect();
        let cells: Vec<String> = match &first {
            None => times.iter().map(|time| format!("{time:.2}")).collect(),
            Some(first) => std::iter::zip(&times, first)
                .map(|(time, own)| format!("{time:.2} ({:.2}x)", time / own))
                .collect(),
        };
        println!("| {} | {} |", contestant.kind.name(), cells.join(" | "));
        first.get_or_insert(times);
    }
    print_command();
}
