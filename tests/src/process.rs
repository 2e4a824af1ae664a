//! Other programs: found, started, and ended with the test.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at that has no event.
pub const POLL: Duration = Duration::from_millis(5);

/// A program's path: what the environment variable names, what lies on `PATH`, or what an earlier
/// `cargo xtask test` has left in the cache.
pub fn tool(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&on_path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.or_else(|| cached(name)).unwrap_or_else(|| {
        panic!("{name} is not there: run `cargo xtask test`, which provides it, or set {variable}")
    })
}

fn cached(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("FERRY_CACHE")
        .map(PathBuf::from)
        .or_else(|| {
            let home = PathBuf::from(std::env::var_os("HOME")?);
            Some(home.join(".cache/ferry"))
        })?;
    let versions = fs::read_dir(cache.join("tools")).ok()?;
    let mut found: Vec<PathBuf> = versions
        .flatten()
        .map(|entry| entry.path().join("bin").join(name))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.pop()
}

/// A process that is killed when this is dropped, and when the test's thread dies.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: Option<PathBuf>,
}

impl Process {
    /// Starts a command. Its output goes to the file `log`, or where the command says if there is none.
    pub fn start(mut command: Command, log: Option<&Path>) -> Self {
        command.stdin(Stdio::null());
        if let Some(path) = log {
            let file = File::create(path).expect("a log file");
            command
                .stdout(file.try_clone().expect("a log file"))
                .stderr(file);
        }
        let mut process = Self::start_as_is(command);
        process.log = log.map(Path::to_owned);
        process
    }

    /// Starts a command with the standard streams that it names.
    pub fn start_as_is(mut command: Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        die_with_parent(&mut command);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Process {
            child,
            name,
            log: None,
        }
    }

    /// The process itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the number is that of our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// The exit status, if it has ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if begin.elapsed() > limit {
                return None;
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if let (true, Some(log)) = (thread::panicking(), &self.log) {
            let text = fs::read_to_string(log).unwrap_or_default();
            eprintln!("--- output of {} ---\n{text}", self.name);
        }
    }
}

fn die_with_parent(command: &mut Command) {
    let set = || {
        // SAFETY: prctl() with this option only sets a flag of the new process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        Ok(())
    };
    // SAFETY: `set` only makes a system call, which is allowed between fork and exec.
    unsafe { command.pre_exec(set) };
}
