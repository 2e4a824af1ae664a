//! Starting Ferry and watching what becomes of it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::TINY_GUEST;
use crate::lines::{Line, complete_lines};
use crate::process::{POLL, Process};

/// How long anything may take in a test with the tiny guest. It takes a hundredth of that.
const LIMIT: Duration = Duration::from_secs(60);

/// Something that listens on a vhost-user socket.
pub trait Listener {
    /// Where.
    fn socket(&self) -> &Path;
}

impl Listener for crate::backend::Running {
    fn socket(&self) -> &Path {
        crate::backend::Running::socket(self)
    }
}

/// The binary: `$FERRY_BIN`, or `ferry` beside the directory of the running test.
pub fn ferry_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FERRY_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test has a path");
    // target/debug/deps/tiny_blk-… → target/debug/ferry
    let path = test
        .ancestors()
        .nth(2)
        .expect("cargo's layout")
        .join("ferry");
    assert!(
        path.exists(),
        "{} is not there: run `cargo build -p ferry`, or set FERRY_BIN",
        path.display()
    );
    path
}

/// A virtual machine that is yet to be started.
#[derive(Debug)]
pub struct Ferry {
    kernel: PathBuf,
    cmdline: String,
    memory: String,
    cpus: u32,
    arguments: Vec<OsString>,
    disks: u32,
    directory: TempDir,
}

impl Ferry {
    /// Runs the tiny guest with this command line, on 64 MiB of RAM and one CPU.
    pub fn tiny(cmdline: &str) -> Self {
        Ferry {
            kernel: PathBuf::from(TINY_GUEST),
            cmdline: cmdline.to_owned(),
            memory: "64M".to_owned(),
            cpus: 1,
            arguments: Vec::new(),
            disks: 0,
            directory: TempDir::new().expect("a temporary directory"),
        }
    }

    /// Guest RAM, "64M".
    pub fn memory(mut self, size: &str) -> Self {
        self.memory = size.to_owned();
        self
    }

    /// Virtual processors.
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// One more word on Ferry's command line.
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.arguments.push(word.as_ref().to_owned());
        self
    }

    /// How long a request to a back-end may take, in seconds, before Ferry gives up what it attempted.
    pub fn request_timeout(self, seconds: u32) -> Self {
        self.arg("--request-timeout").arg(seconds.to_string())
    }

    /// How long, in seconds, a back-end may be silent before Ferry takes it for dead.
    pub fn dead_timeout(self, seconds: u32) -> Self {
        self.arg("--dead-timeout").arg(seconds.to_string())
    }

    /// A disk with one queue. Its name is `disk0`, the next one's `disk1`.
    pub fn with_disk(self, backend: &impl Listener) -> Self {
        self.with_disk_options(backend, "num_queues=1")
    }

    /// A disk with further options.
    pub fn with_disk_options(mut self, backend: &impl Listener, options: &str) -> Self {
        let socket = backend.socket().display();
        let value = format!(
            "vhost_user=on,socket={socket},id=disk{},{options}",
            self.disks
        );
        self.disks += 1;
        self.arg("--disk").arg(value)
    }

    /// A shared directory, named `fs0`.
    pub fn with_fs(self, backend: &impl Listener, tag: &str) -> Self {
        let value = format!("tag={tag},socket={},id=fs0", backend.socket().display());
        self.arg("--fs").arg(value)
    }

    /// A device of any type.
    pub fn with_device(self, backend: &impl Listener, options: &str) -> Self {
        let value = format!("socket={},{options}", backend.socket().display());
        self.arg("--vhost-user").arg(value)
    }

    /// Starts it.
    pub fn start(self) -> Guest {
        let serial = self.directory.path().join("serial");
        let mut command = Command::new(ferry_binary());
        command.arg("--kernel").arg(&self.kernel);
        command.arg("--cmdline").arg(&self.cmdline);
        command.arg("--cpus").arg(format!("boot={}", self.cpus));
        command.arg("--memory").arg(format!("size={}", self.memory));
        command
            .arg("--serial")
            .arg(format!("file={}", serial.display()));
        command.args(["--console", "off", "-v"]);
        command.args(&self.arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::start(command, None);
        let log = Log::default();
        let collector = process
            .child()
            .stderr
            .take()
            .map(|stderr| log.collect(stderr));
        Guest {
            process,
            log,
            collector,
            serial,
            _directory: self.directory,
        }
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Ended {
        self.start().end()
    }
}

/// What Ferry writes to its standard error.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<Line>>>);

impl Log {
    fn collect(&self, stderr: impl Read + Send + 'static) -> thread::JoinHandle<()> {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log.0
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Line(line));
            }
        })
    }

    fn lines(&self) -> Vec<Line> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A running virtual machine. Ends with a SIGKILL for Ferry when it is dropped.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    log: Log,
    collector: Option<thread::JoinHandle<()>>,
    serial: PathBuf,
    _directory: TempDir,
}

impl Guest {
    /// Everything on the serial port so far.
    pub fn serial(&self) -> Vec<Line> {
        let bytes = fs::read(&self.serial).unwrap_or_default();
        complete_lines(&String::from_utf8_lossy(&bytes))
    }

    /// Everything in Ferry's log so far.
    pub fn log(&self) -> Vec<Line> {
        self.log.lines()
    }

    /// Waits for a line on the serial port that contains `text`.
    pub fn wait_for(&mut self, text: &str) -> Line {
        self.wait_until(&format!("'{text}' on the serial port"), |guest| {
            find(&guest.serial(), text)
        })
    }

    /// Waits for `count` lines on the serial port that contain `text`.
    pub fn wait_for_count(&mut self, text: &str, count: usize) {
        self.wait_until(
            &format!("{count} times '{text}' on the serial port"),
            |guest| {
                let found = guest
                    .serial()
                    .iter()
                    .filter(|line| line.0.contains(text))
                    .count();
                (found >= count).then_some(())
            },
        );
    }

    /// Waits for a line in Ferry's log that contains `text`.
    pub fn wait_for_log(&mut self, text: &str) -> Line {
        self.wait_until(&format!("'{text}' in Ferry's log"), |guest| {
            find(&guest.log(), text)
        })
    }

    /// Waits for something that is neither; panics when it does not come, or Ferry ends before it.
    pub fn wait_until<T>(&mut self, what: &str, look: impl Fn(&Guest) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            let ended = self.process.child().try_wait().ok().flatten();
            if let Some(found) = look(self) {
                return found;
            }
            if let Some(status) = ended {
                panic!(
                    "Ferry ended ({status}) before {what}\n{}",
                    self.transcript()
                );
            }
            if begin.elapsed() > LIMIT {
                panic!("no {what} within {:?}\n{}", LIMIT, self.transcript());
            }
            thread::sleep(POLL);
        }
    }

    /// Whether Ferry still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.child().try_wait(), Ok(None))
    }

    /// Ferry's process number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(self) -> Ended {
        self.process.signal(libc::SIGTERM);
        self.end()
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let status = self.process.wait(LIMIT);
        let Some(status) = status else {
            panic!(
                "Ferry has not ended within {:?}\n{}",
                LIMIT,
                self.transcript()
            );
        };
        if let Some(collector) = self.collector.take() {
            let _ = collector.join();
        }
        Ended {
            status: status.code(),
            serial: self.serial(),
            log: self.log(),
        }
    }

    fn transcript(&self) -> String {
        transcript(&self.serial(), &self.log())
    }
}

/// What is left of a virtual machine.
#[derive(Debug)]
pub struct Ended {
    /// Ferry's exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// Everything on the serial port.
    pub serial: Vec<Line>,
    /// Ferry's log.
    pub log: Vec<Line>,
}

impl Ended {
    /// Panics unless the guest finished what it was to do and powered off, and Ferry ended with status 0.
    pub fn succeeded(self) -> Self {
        if let Some(failure) = find(&self.serial, "FAIL") {
            panic!("{failure}\n{}", self.transcript());
        }
        let done =
            find(&self.serial, "tiny: done").or_else(|| find(&self.serial, "ferry: test: ok"));
        assert!(
            done.is_some(),
            "the guest was not done\n{}",
            self.transcript()
        );
        self.with_status(0)
    }

    /// Panics unless Ferry ended with this status.
    pub fn with_status(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            Some(status),
            "exit status\n{}",
            self.transcript()
        );
        self
    }

    /// The first line on the serial port that contains `text`. Panics if there is none.
    pub fn line(&self, text: &str) -> Line {
        find(&self.serial, text)
            .unwrap_or_else(|| panic!("no '{text}' on the serial port\n{}", self.transcript()))
    }

    /// All lines on the serial port that contain `text`.
    pub fn lines(&self, text: &str) -> Vec<Line> {
        self.serial
            .iter()
            .filter(|line| line.0.contains(text))
            .cloned()
            .collect()
    }

    /// All lines in Ferry's log that contain `text`.
    pub fn log_lines(&self, text: &str) -> Vec<Line> {
        self.log
            .iter()
            .filter(|line| line.0.contains(text))
            .cloned()
            .collect()
    }

    /// The line in which Ferry counts the vCPUs' exits at its end.
    pub fn exits(&self) -> Line {
        find(&self.log, "vCPU exits:")
            .unwrap_or_else(|| panic!("no count of exits\n{}", self.transcript()))
    }

    /// Serial port and log, for a failed test's message.
    pub fn transcript(&self) -> String {
        transcript(&self.serial, &self.log)
    }
}

fn find(lines: &[Line], text: &str) -> Option<Line> {
    lines.iter().find(|line| line.0.contains(text)).cloned()
}

fn transcript(serial: &[Line], log: &[Line]) -> String {
    let text = |lines: &[Line]| {
        lines
            .iter()
            .map(|line| format!("  {line}\n"))
            .collect::<String>()
    };
    format!("serial port:\n{}Ferry's log:\n{}", text(serial), text(log))
}
