//! `cargo xtask test`: all tests, with the sum at the end.
//!
//! First what needs no Linux guest (unit tests, tiny guests on `/dev/kvm`), here unless there is no
//! `/dev/kvm`. Then the tests with Linux guests (target `linux` of `ferry-tests`), in the emulated machine
//! where needed. Only programs with tests that match the filter run, and only what these need is made.

use std::ffi::OsString;
use std::fs;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::assets::{self, Asset, Cache};
use crate::cargo::{self, Executable};
use crate::machine::{self, Job, Place};
use crate::process::Process;
use crate::progress::output;

/// The package of the tests that need back-ends.
const PACKAGE: &str = "ferry-tests";
/// Its test target with Linux guests.
const LINUX: &str = "linux";
/// All Linux tests of one emulated machine together.
const MACHINE_LIMIT: Duration = Duration::from_secs(40 * 60);

/// How often a machine that stands still is replaced.
const REPLACED_MOST: usize = 2;

/// Packages whose tests talk to real back-ends without booting Linux, and to which.
const NATIVE_ASSETS: [(&str, &[Asset]); 2] = [
    ("devices", &[Asset::StorageDaemon]),
    (
        "tests",
        &[Asset::StorageDaemon, Asset::Virtiofsd, Asset::OldVirtiofsd],
    ),
];

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

    let native = with_matches(built, filter)?;
    let linux = with_matches(linux.into_iter().collect(), filter)?;

    let mut assets = Vec::new();
    for (directory, needed) in NATIVE_ASSETS {
        let package = cargo::workspace().join(directory);
        if native
            .iter()
            .any(|suite| suite.executable.package == package)
        {
            assets.extend(needed);
        }
    }
    if !linux.is_empty() {
        assets = Asset::ALL.to_vec();
    }
    let variables = variables(&cache, &assets, ferry)?;

    let mut runner = Runner {
        cache,
        variables,
        filter: filter.map(str::to_owned),
        tally: Tally::default(),
    };
    runner.run(&native, &kvm_place()?)?;
    if filter.is_none() {
        runner.run_documentation()?;
    }
    runner.run(&linux, &Place::detect()?)?;
    Ok(runner.tally.conclude())
}

/// What tests find in their environment. The back-ends are on `PATH`, too.
///
/// # Errors
/// Something cannot be provided.
pub fn variables(
    cache: &Cache,
    assets: &[Asset],
    ferry: PathBuf,
) -> Result<Vec<(String, OsString)>> {
    let mut variables = vec![("FERRY_BIN".to_owned(), ferry.into_os_string())];
    let mut path = Vec::new();
    for (name, asset) in assets::environment(cache, assets)? {
        path.extend(asset.parent().map(PathBuf::from));
        variables.push((name, asset.into_os_string()));
    }
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    variables.push(("PATH".to_owned(), std::env::join_paths(path)?));
    Ok(variables)
}

/// The Linux tests' executable, if the package has such a target.
fn linux_target() -> Result<Option<Executable>> {
    let tests = cargo::workspace().join("tests/tests");
    if !tests.join(LINUX).exists() && !tests.join(format!("{LINUX}.rs")).exists() {
        return Ok(None);
    }
    let built = cargo::build(&["test", "--package", PACKAGE, "--test", LINUX, "--no-run"])?;
    let linux = built
        .into_iter()
        .find(|built| built.is_test && built.target == LINUX);
    linux
        .map(Some)
        .with_context(|| format!("cargo has built no test {LINUX}"))
}

/// Tiny guests run on any `/dev/kvm`, even one that only interprets.
fn kvm_place() -> Result<Place> {
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => Ok(Place::Native),
        Err(error) if std::env::var_os("FERRY_MACHINE").is_none() => Ok(Place::Emulated(format!(
            "/dev/kvm cannot be opened: {error}"
        ))),
        Err(_) => Place::detect(),
    }
}

/// An executable with tests that match.
struct Suite {
    executable: Executable,
    tests: Vec<String>,
}

/// Leaves out what has no matching test.
fn with_matches(executables: Vec<Executable>, filter: Option<&str>) -> Result<Vec<Suite>> {
    let mut suites = Vec::new();
    for executable in executables
        .into_iter()
        .filter(|executable| executable.is_test)
    {
        let mut command = Command::new(&executable.path);
        let list = output(
            command
                .arg("--list")
                .args(filter)
                .current_dir(&executable.package),
        )?;
        let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
        let tests: Vec<_> = names.map(str::to_owned).collect();
        if !tests.is_empty() {
            suites.push(Suite { executable, tests });
        }
    }
    Ok(suites)
}

/// What all runs have in common.
struct Runner {
    cache: Cache,
    variables: Vec<(String, OsString)>,
    filter: Option<String>,
    tally: Tally,
}

impl Runner {
    fn run(&mut self, suites: &[Suite], place: &Place) -> Result<()> {
        if suites.is_empty() {
            return Ok(());
        }
        match place {
            Place::Native => {
                for suite in suites {
                    self.run_here(suite)?;
                }
            }
            Place::Emulated(reason) => {
                self.run_in_machines(suites, reason)?;
            }
        }
        Ok(())
    }

    fn run_here(&mut self, suite: &Suite) -> Result<()> {
        let Executable {
            target,
            package,
            path,
            ..
        } = &suite.executable;
        println!(
            "\n{target} ({}):",
            package
                .strip_prefix(cargo::workspace())
                .unwrap_or(package)
                .display()
        );
        let mut command = Command::new(path);
        command
            .args(&self.filter)
            .current_dir(package)
            .env("CARGO_MANIFEST_DIR", package);
        self.count(&mut command, target)
    }

    /// Examples in documentation; cargo alone can run these.
    fn run_documentation(&mut self) -> Result<()> {
        println!("\ndocumentation:");
        let mut command = cargo::command();
        command.args(["test", "--workspace", "--doc", "--no-fail-fast", "--quiet"]);
        self.count(&mut command, "cargo test")
    }

    /// Runs a command, shows what it prints, and counts.
    fn count(&mut self, command: &mut Command, name: &str) -> Result<()> {
        command
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::start(name, command)?;
        let stdout = process.take_stdout().context("standard output is a pipe")?;
        let mut counter = Counter::new(std::io::stdout());
        std::io::copy(&mut BufReader::new(stdout), &mut counter)?;
        let status = process.wait()?;
        self.tally.add(counter.tally, status.success());
        Ok(())
    }

    /// Runs the tests in emulated machines, one for each processor here, at the same time. Each takes one test after the other that
    /// no other has taken.
    fn run_in_machines(&mut self, suites: &[Suite], reason: &str) -> Result<()> {
        let tests: usize = suites.iter().map(|suite| suite.tests.len()).sum();
        let machines = machine::most_at_a_time().min(tests);
        println!("\n{tests} tests in {machines} emulated machines, because {reason}:");
        let before = self.tally.sum();
        let taken = tempfile::tempdir().context("cannot make a temporary directory")?;
        let job = self.job(suites, machines, taken.path())?;
        let cache = &self.cache;
        let (job, place) = (&job, taken.path());
        let tallies: Vec<_> = std::thread::scope(|scope| {
            let run = |number| scope.spawn(move || run_machine(cache, job, place, number));
            let running: Vec<_> = (0..machines).map(run).collect();
            running.into_iter().map(ScopedJoinHandle::join).collect()
        });
        for tally in tallies {
            match tally.map_err(|_| anyhow!("the thread of an emulated machine panicked"))? {
                Ok(tally) => self.tally.add(tally, true),
                Err(error) => {
                    eprintln!("ferry: {error:#}");
                    self.tally.add(Tally::default(), false);
                }
            }
        }
        // Nothing that was not run is to look as if it had passed.
        let run = self.tally.sum() - before;
        if run != tests as u64 {
            eprintln!("ferry: of {tests} tests {run} have been run");
            self.tally.add(Tally::default(), false);
        }
        Ok(())
    }

    /// What each of so many machines runs: one test at a time, as it has one processor. Tests are taken by who makes a directory of
    /// their number.
    fn job(&self, suites: &[Suite], machines: usize, taken: &Path) -> Result<Job> {
        let script = "status=0; number=0; while [ $# -gt 0 ]; do number=$((number + 1)); mine=$FERRY_TAKEN/$number; \
                      if mkdir \"$mine\" 2> /dev/null; then : > \"$mine/$FERRY_TAKER\"; cd \"$1\" || exit 126; \
                      CARGO_MANIFEST_DIR=$1 \"$2\" --exact $3 || status=1; rm \"$mine/$FERRY_TAKER\"; \
                      elif [ ! -d \"$mine\" ]; then echo \"cannot take $3\" >&2; status=1; fi; \
                      shift 3; done; exit $status";
        let mut argv: Vec<OsString> = ["sh", "-c", script, "sh"].map(OsString::from).to_vec();
        for Suite { executable, tests } in suites {
            // A program takes a moment to start.
            let at_once = if executable.target == LINUX { 1 } else { 32 };
            for tests in tests.chunks(at_once) {
                argv.push(executable.package.clone().into());
                argv.push(executable.path.clone().into());
                argv.push(tests.join(" ").into());
            }
        }
        let mut job = Job::new(argv, MACHINE_LIMIT)?;
        job.memory = machine::memory(machines);
        job.shared = Some(taken.to_owned());
        job.set("FERRY_TAKEN", machine::SHARED);
        job.set("RUST_TEST_THREADS", "1");
        for (name, value) in &self.variables {
            job.set(name, value);
        }
        Ok(job)
    }
}

/// Runs one of several machines, and another one in its place should it stand still.
fn run_machine(cache: &Cache, job: &Job, taken: &Path, number: usize) -> Result<Tally> {
    let taker = number.to_string();
    let mut job = job.clone();
    job.set("FERRY_TAKER", &taker);
    let mut tally = Tally::default();
    for _ in 0..=REPLACED_MOST {
        let outcome = machine::run(cache, &job, Counter::new(std::io::stdout()))?;
        let succeeded = outcome.status.is_none_or(|status| status == 0);
        tally.add(outcome.output.tally, succeeded);
        if outcome.status.is_some() {
            return Ok(tally);
        }
        eprintln!(
            "ferry: an emulated machine stands still for good: its test is run again in another one"
        );
        give_back(taken, &taker)?;
    }
    bail!("one emulated machine after the other stands still")
}

/// The test of a machine that is no more is nobody's.
fn give_back(taken: &Path, taker: &str) -> Result<()> {
    for test in fs::read_dir(taken)? {
        let test = test?.path();
        if test.join(taker).exists() {
            fs::remove_dir_all(&test)?;
        }
    }
    Ok(())
}

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Adds what a program counted. One that failed without counting a failure is a failure.
    fn add(&mut self, other: Self, success: bool) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
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
        self.ignored += number(" ignored;").unwrap_or(0);
    }

    fn sum(self) -> u64 {
        self.passed + self.failed + self.ignored
    }

    /// Prints the last line.
    fn conclude(self) -> ExitCode {
        let Self { passed, failed, .. } = self;
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

/// Passes output on, each line as a whole (others may print there, too), and counts the tests in it.
struct Counter<W: Write> {
    to: W,
    line: Vec<u8>,
    tally: Tally,
}

impl<W: Write> Drop for Counter<W> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.line.push(b'\n');
            // Nobody is left who could be told.
            let _ = self.to.write_all(&self.line);
        }
    }
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
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.tally.read(&String::from_utf8_lossy(&self.line));
                lines.append(&mut self.line);
            }
        }
        self.to.write_all(&lines)?;
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
            ignored: 1,
        };
        assert_eq!(counter.tally, counted);
    }

    #[test]
    fn a_program_that_fails_without_a_failed_test_is_a_failure() {
        let mut tally = Tally::default();
        tally.add(
            Tally {
                passed: 1,
                ..Tally::default()
            },
            false,
        );
        assert_eq!(tally.failed, 1);
        tally.add(
            Tally {
                failed: 2,
                ..Tally::default()
            },
            false,
        );
        assert_eq!(tally.failed, 3);
    }
}
