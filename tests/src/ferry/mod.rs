//! Starting Ferry and watching what becomes of it.

mod ended;
mod events;
mod guest;
mod left;
mod linux;
mod migration;
mod snapshot;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::TINY_GUEST;
use crate::lines::Line;
use crate::process::Process;

pub use ended::Ended;
pub use events::is_documented;
pub use guest::Guest;
pub use left::{Left, Successor};
pub use linux::{Kernel, LINUX_COMMAND_LINE, Linux};
pub use migration::{Receive, Send, loopback_url};
pub use snapshot::{Answer, Asked, Restore, Snapshot};

/// What the tiny guest says last.
const DONE: &str = "tiny: done";

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
    payload: Payload,
    cmdline: String,
    memory: String,
    cpus: u32,
    arguments: Vec<OsString>,
    disks: u32,
    api: Option<PathBuf>,
    directory: TempDir,
}

#[derive(Debug)]
enum Payload {
    Tiny,
    Linux(Linux),
}

/// How patient a test is with a guest.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long anything may take. It takes a hundredth of that, on a machine that is neither loaded nor emulated.
    limit: Duration,
    /// How often a condition is looked at that has no event.
    poll: Duration,
}

impl Ferry {
    /// Runs the tiny guest with this command line, on 64 MiB of RAM and one CPU.
    pub fn tiny(cmdline: &str) -> Self {
        Self::new(Payload::Tiny, cmdline, "64M")
    }

    /// Runs Debian's kernel, on 512 MiB of RAM and one CPU. The guest runs `script` as root, with `sh -e`, says whether
    /// that succeeded, and powers off.
    pub fn linux(script: &str) -> Self {
        let linux = Payload::Linux(Linux::new(script));
        Self::new(linux, LINUX_COMMAND_LINE, "512M")
            .arg("--connect-timeout")
            .arg("60")
    }

    fn new(payload: Payload, cmdline: &str, memory: &str) -> Self {
        Ferry {
            payload,
            cmdline: cmdline.to_owned(),
            memory: memory.to_owned(),
            cpus: 1,
            arguments: Vec::new(),
            disks: 0,
            api: None,
            directory: TempDir::new().expect("a temporary directory"),
        }
    }

    /// How Linux is packed. It is [`Kernel::Vmlinux`] unless this says otherwise.
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.linux_payload().packing = kernel;
        self
    }

    /// A file in the root directory of Linux.
    pub fn file(mut self, path: &str, content: Vec<u8>) -> Self {
        self.linux_payload().files.push((path.to_owned(), content));
        self
    }

    fn linux_payload(&mut self) -> &mut Linux {
        match &mut self.payload {
            Payload::Linux(linux) => linux,
            Payload::Tiny => panic!("the tiny guest has nothing of this kind"),
        }
    }

    /// More words for the guest's command line.
    pub fn cmdline(mut self, more: &str) -> Self {
        self.cmdline = format!("{} {more}", self.cmdline);
        self
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

    /// Serves the API, for [`Guest::api`].
    pub fn with_api(mut self) -> Self {
        let socket = self.directory.path().join("api");
        self = self.arg("--api-socket").arg(&socket);
        self.api = Some(socket);
        self
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
        let patience = match &self.payload {
            Payload::Tiny => {
                command.arg("--kernel").arg(TINY_GUEST);
                Patience {
                    limit: Duration::from_secs(60),
                    poll: crate::process::POLL,
                }
            }
            Payload::Linux(linux) => {
                linux.describe(&mut command, self.directory.path());
                Patience {
                    limit: Duration::from_secs(240),
                    poll: Duration::from_millis(50),
                }
            }
        };
        command.arg("--cmdline").arg(&self.cmdline);
        command.arg("--cpus").arg(format!("boot={}", self.cpus));
        command.arg("--memory").arg(format!("size={}", self.memory));
        command
            .arg("--serial")
            .arg(format!("file={}", serial.display()));
        command.args(["--console", "off", "-v"]);
        command.args(&self.arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let process = Process::start(command, None);
        Guest::new(
            process,
            serial,
            patience,
            self.api,
            Arc::new(self.directory),
        )
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Ended {
        self.start().end()
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
