//! `cargo xtask test`: all tests, with the sum at the end.
//!
//! First what runs anywhere (unit tests, tiny guests on `/dev/kvm`), through `cargo test`. Then the
//! tests with Linux guests (target `linux` of `ferry-tests`), in the emulated machine where needed.
//! What only those need is made only if a Linux test's name matches the filter.

use std::ffi::OsString;
use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::assets::{self, Asset, Cache};
use crate::cargo::{self, Executable};
use crate::machine::{self, Job, Place};
use crate::process::Process;
use crate::progress::output;

/// The package of the tests that need back-ends.
const PACKAGE: &str = "ferry-tests";
/// Its test target with Linux guests.
const LINUX: &str = "linux";
/// All Linux tests together, in the emulated machine.
const LINUX_LIMIT: Duration = Duration::from_secs(25 * 60);

/// Assets of tests that do not boot Linux.
const NATIVE_ASSETS: [Asset; 2] = [Asset::Virtiofsd, Asset::StorageDaemon];

/// Runs the tests.
///
/// # Errors
/// Something does not build, or cannot be run at all.
pub fn test(arguments: &[OsString]) -> Result<ExitCode> {
    let filter = match arguments {
        [] => None,
        [filter] => Some(filter.to_str().context("the filter is not UTF-8")?),
        _ => bail!("test takes at most one filter"),
    };
    let cache = Cache::open()?;
    let ferry = cargo::build_one("ferry", "ferry", "dev")?;
    let built = cargo::build(&["test", "--workspace", "--no-run"])?;
    let linux = linux_target()?;

    let package = cargo::workspace().join("tests");
    let needs_back_ends = built
        .iter()
        .filter(|executable| executable.package == package)
        .map(|executable| matching(executable, filter))
        .sum::<Result<usize>>()?;
    let mut variables = vec![("FERRY_BIN".to_owned(), ferry)];
    if needs_back_ends > 0 {
        variables.extend(assets::environment(&cache, &NATIVE_ASSETS)?);
    }

    let mut tally = Tally::default();
    run_native(&variables, filter, &mut tally)?;
    if let Some(linux) = linux {
        let count = matching(&linux, filter)?;
        if count > 0 {
            variables.extend(assets::environment(&cache, &Asset::ALL)?);
            run_linux(&cache, &linux, count, &variables, filter, &mut tally)?;
        }
    }
    Ok(tally.conclude())
}

/// The Linux tests' executable, if the package has such a target.
fn linux_target() -> Result<Option<Executable>> {
    if !cargo::workspace().join("tests/tests/linux").exists()
        && !cargo::workspace().join("tests/tests/linux.rs").exists()
    {
        return Ok(None);
    }
    let built = cargo::build(&["test", "--package", PACKAGE, "--test", LINUX, "--no-run"])?;
    let linux = built.into_iter().find(|built| built.target == LINUX);
    linux
        .map(Some)
        .with_context(|| format!("cargo has built no test {LINUX}"))
}

/// How many of an executable's tests match the filter.
fn matching(executable: &Executable, filter: Option<&str>) -> Result<usize> {
    let list = output(Command::new(&executable.path).arg("--list").args(filter))?;
    Ok(list.lines().filter(|line| line.ends_with(": test")).count())
}

type Variables<'a> = &'a [(String, PathBuf)];

fn run_native(variables: Variables, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let mut command = cargo::command();
    command
        .args(["test", "--workspace", "--no-fail-fast", "--quiet", "--"])
        .args(filter)
        .envs(variables.iter().map(|(name, value)| (name, value)));
    run(&mut command, "cargo test", tally)
}

fn run_linux(
    cache: &Cache,
    linux: &Executable,
    count: usize,
    variables: Variables,
    filter: Option<&str>,
    tally: &mut Tally,
) -> Result<()> {
    match Place::detect()? {
        Place::Native => {
            let mut command = Command::new(&linux.path);
            command
                .args(filter)
                .current_dir(&linux.package)
                .envs(variables.iter().map(|(name, value)| (name, value)));
            run(&mut command, "the Linux tests", tally)
        }
        Place::Emulated(reason) => {
            println!(
                "\n{count} tests with Linux guests, in an emulated machine, because {reason}:"
            );
            let mut argv = vec![linux.path.clone().into_os_string()];
            argv.extend(filter.map(OsString::from));
            let mut job = Job::new(argv, LINUX_LIMIT)?;
            job.directory.clone_from(&linux.package);
            for (name, value) in variables {
                job.set(name, value);
            }
            let counter = Counter::new(std::io::stdout());
            match machine::run(cache, &job, counter) {
                Ok(outcome) => tally.add(outcome.output.tally, outcome.status == 0),
                Err(error) => {
                    eprintln!("ferry: {error:#}");
                    tally.add(Tally::default(), false);
                }
            }
            Ok(())
        }
    }
}

/// Runs a command, shows what it prints, and counts.
fn run(command: &mut Command, name: &str, tally: &mut Tally) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::start(name, command)?;
    let stdout = process.take_stdout().context("standard output is a pipe")?;
    let mut counter = Counter::new(std::io::stdout());
    std::io::copy(&mut BufReader::new(stdout), &mut counter)?;
    let status = process.wait()?;
    tally.add(counter.tally, status.success());
    Ok(())
}

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Adds what a program counted. One that failed without counting a failure is a failure.
    fn add(&mut self, other: Self, success: bool) {
        self.passed += other.passed;
        self.failed += other.failed;
        if !success && other.failed == 0 {
            self.failed += 1;
        }
    }

    /// Takes in a line of libtest's output.
    fn read(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else {
            return;
        };
        let number = |word: &str| {
            let (before, _) = result.split_once(word)?;
            before.split_whitespace().next_back()?.parse::<u64>().ok()
        };
        self.passed += number(" passed;").unwrap_or(0);
        self.failed += number(" failed;").unwrap_or(0);
    }

    /// Prints the last line.
    fn conclude(self) -> ExitCode {
        let Self { passed, failed } = self;
        if passed + failed == 0 {
            eprintln!("ferry: no test has this name");
        }
        println!("{passed} passed, {failed} failed");
        if failed == 0 && passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Passes output on, and counts the tests in it.
struct Counter<W> {
    to: W,
    line: Vec<u8>,
    tally: Tally,
}

impl<W: Write> Counter<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            line: Vec::new(),
            tally: Tally::default(),
        }
    }
}

impl<W: Write> Write for Counter<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                self.tally.read(&String::from_utf8_lossy(&self.line));
                self.line.clear();
            } else {
                self.line.push(*byte);
            }
        }
        self.to.write_all(bytes)?;
        self.to.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_over_all_results() {
        let mut counter = Counter::new(Vec::new());
        let text = "test a ... ok\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out\n\
                    x test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out\n";
        for part in text.as_bytes().chunks(7) {
            counter.write_all(part).expect("memory takes it");
        }
        assert_eq!(counter.to, text.as_bytes());
        let counted = Tally {
            passed: 15,
            failed: 2,
        };
        assert_eq!(counter.tally, counted);
    }

    #[test]
    fn a_program_that_fails_without_a_failed_test_is_a_failure() {
        let mut tally = Tally::default();
        tally.add(
            Tally {
                passed: 1,
                failed: 0,
            },
            false,
        );
        assert_eq!(tally.failed, 1);
        tally.add(
            Tally {
                passed: 0,
                failed: 2,
            },
            false,
        );
        assert_eq!(tally.failed, 3);
    }
}
