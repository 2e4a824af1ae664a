//! A Ferry process with a guest, and those that take its place: the same paths, another process each time.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ferry_api::client::{Client, Limits};
use ferry_tests::{Process, TINY_GUEST, ferry_binary, ferryctl};
use serde_json::Value;
use tempfile::TempDir;

/// Only keeps a failure from hanging.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Says `tick n=`, and `typed …` for each line that is typed; and ends by itself, should nobody end it.
pub const ECHO: &str = "mode=echo ticks=6000 period=10";

/// Where a guest lives, whichever process has it.
pub struct Place {
    directory: TempDir,
    /// The first process.
    pub first: Process,
    /// What the first process has to say, if nobody else reads it.
    pub log: PathBuf,
}

impl Place {
    /// Starts a guest, with more words for the first process.
    pub fn start(cmdline: &str, serial: &str, words: &[String]) -> Self {
        Self::start_in(
            tempfile::tempdir().expect("a directory"),
            cmdline,
            serial,
            words,
        )
    }

    /// The same, with variables in the first process's environment.
    pub fn start_as(cmdline: &str, serial: &str, variables: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::with(directory, cmdline, serial, &[], variables)
    }

    /// The same, in a directory that has something in it already.
    pub fn start_in(directory: TempDir, cmdline: &str, serial: &str, words: &[String]) -> Self {
        Self::with(directory, cmdline, serial, words, &[])
    }

    fn with(
        directory: TempDir,
        cmdline: &str,
        serial: &str,
        words: &[String],
        variables: &[(&str, &str)],
    ) -> Self {
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("run")).expect("a directory");
        let mut command = Command::new(ferry_binary());
        command
            .arg("--kernel")
            .arg(TINY_GUEST)
            .args([
                "--cmdline",
                cmdline,
                "--memory",
                "size=64M",
                "--console",
                "off",
                "-v",
            ])
            .args(["--serial", serial, "--request-timeout", "8"])
            .arg("--api-socket")
            .arg(at("api"))
            .args(words)
            .envs(variables.iter().copied())
            .current_dir(directory.path());
        let log = at("log");
        let first = Process::start(command, Some(&log));
        let place = Place {
            directory,
            first,
            log,
        };
        place.wait_until("an answer", || place.client().get("vm.info").ok().map(drop));
        place.wait_until("a guest that runs", || {
            (place.state() == "Running").then_some(())
        });
        place
    }

    /// Something in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Whoever answers.
    pub fn client(&self) -> Client {
        let limits = Limits {
            connect: LIMIT,
            silence: LIMIT,
            total: LIMIT,
        };
        Client::new(self.path("api"), limits)
    }

    /// The process that answers.
    pub fn pid(&self) -> u64 {
        get(&self.client(), "vmm.ping")["pid"]
            .as_u64()
            .expect("a number")
    }

    /// What the guest does.
    pub fn state(&self) -> String {
        get(&self.client(), "vm.info")["state"]
            .as_str()
            .expect("a text")
            .to_owned()
    }

    /// `ferryctl handover` with these words, ready to be started.
    pub fn ferryctl(&self, words: &[&str]) -> Command {
        let mut command = ferryctl(&self.path("api"));
        command
            .arg("handover")
            // What the new process inherits would keep whoever reads ferryctl's output waiting.
            .arg("--log")
            .arg(self.path("new.log"))
            .args(words)
            .env("XDG_RUNTIME_DIR", self.path("run"));
        // Whoever runs the tests may ignore it (a shell's background job), which processes inherit.
        let heed_ctrl_c = || {
            // SAFETY: the call has no memory arguments, and may be made between fork and exec.
            unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
            Ok(())
        };
        // SAFETY: the closure does nothing but that.
        unsafe { command.pre_exec(heed_ctrl_c) };
        command
    }

    /// Runs it to its end.
    pub fn run(&self, words: &[&str]) -> Output {
        self.ferryctl(words).output().expect("ferryctl runs")
    }

    /// Hands the guest to a new process, which is not the one before.
    pub fn succeed(&self) {
        let before = self.pid();
        let ferry = ferry_binary();
        let output = self.run(&[
            "--exec",
            ferry.to_str().expect("UTF-8"),
            "--",
            "--request-timeout",
            "8",
        ]);
        assert!(output.status.success(), "{}", said(&output));
        assert_ne!(self.pid(), before);
        self.is_gone(before);
        assert_eq!(entries(&self.path("run")), 0, "the private directory stays");
    }

    /// Waits until that process is no more.
    pub fn is_gone(&self, pid: u64) {
        self.wait_until("the end of the old process", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // One that is ours is a zombie until it is waited for.
            let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
            (stat.is_empty() || state.starts_with('Z')).then_some(())
        });
    }

    /// Waits until `look` finds something.
    pub fn wait_until<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        let mut look = look;
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            if begin.elapsed() > LIMIT {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                panic!("no {what}\n{log}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the guest and the process that has it; nothing of it is left in the directory but files.
    pub fn end(&self) {
        let pid = self.pid();
        self.client().put("vmm.shutdown", b"").expect("Ferry ends");
        self.is_gone(pid);
        assert!(!self.path("api").exists(), "the API's socket stays");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Successors are nobody's children.
        if self.path("api").exists() {
            let limits = Limits::default();
            let _ = Client::new(self.path("api"), limits).put("vmm.shutdown", b"");
        }
    }
}

/// An answer, as JSON.
pub fn get(client: &Client, route: &str) -> Value {
    let reply = client
        .get(route)
        .unwrap_or_else(|error| panic!("{route}: {error:?}"));
    serde_json::from_slice(&reply.body).expect("JSON")
}

/// What a program has said.
pub fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// How many files there are.
pub fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("a directory").count()
}

/// All that can be read at once, to the end of `text`. False at the end.
pub fn drain(from: &mut impl Read, text: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 16384];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => text.extend(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
            Err(error) => panic!("cannot be read: {error}"),
        }
    }
}
