//! A Linux guest under Ferry, as a scenario describes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::back_ends::Serving;
use crate::cpio::Archive;

/// Longer than any scenario takes on a loaded, emulated machine.
const LIMIT: Duration = Duration::from_secs(240);

/// How the kernel is packed.
#[derive(Clone, Copy, Debug)]
pub enum Kernel {
    /// An ELF file, entered through its PVH note.
    Vmlinux,
    /// A compressed kernel, entered in 64-bit mode.
    BzImage,
}

/// A guest to be run.
pub struct Guest {
    dir: tempfile::TempDir,
    kernel: Kernel,
    cmdline: String,
    arguments: Vec<String>,
    /// Files added to the initramfs: path and content.
    files: Vec<(String, Vec<u8>)>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// Ferry's exit status.
    pub status: Option<i32>,
    /// What the guest wrote to its serial port.
    pub serial: String,
    /// Ferry's log.
    pub log: String,
}

impl Guest {
    /// A guest with 1 vCPU and 512 MiB that runs `script` as root, with `sh -e`, and powers off.
    pub fn runs(script: &str) -> Self {
        let script = format!("set -e\n{script}\n");
        Guest {
            dir: tempfile::tempdir().expect("a temporary directory"),
            kernel: Kernel::Vmlinux,
            cmdline: "console=ttyS0 quiet loglevel=0 mitigations=off panic=-1".into(),
            arguments: vec!["-v".into()],
            files: vec![("test.sh".into(), script.into_bytes())],
        }
    }

    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    pub fn cmdline(mut self, more: &str) -> Self {
        self.cmdline = format!("{} {more}", self.cmdline);
        self
    }

    /// Adds a file to the guest's root.
    pub fn file(mut self, path: &str, content: Vec<u8>) -> Self {
        self.files.push((path.into(), content));
        self
    }

    /// Adds arguments to Ferry's command line.
    pub fn with<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments.extend(arguments.map(String::from));
        self
    }

    /// Adds the device that `back_end` serves.
    pub fn device(self, back_end: &Serving) -> Self {
        let [flag, value] = back_end.ferry_arguments();
        self.with([&flag, &value])
    }

    /// Runs the guest to its end.
    pub fn ends(self) -> Ended {
        let serial = self.dir.path().join("serial");
        let kernel = match self.kernel {
            Kernel::Vmlinux => asset("FERRY_KERNEL_VMLINUX"),
            Kernel::BzImage => asset("FERRY_KERNEL_BZIMAGE"),
        };
        let mut command = Command::new(asset("FERRY_BIN"));
        command
            .arg("--kernel")
            .arg(kernel)
            .arg("--initramfs")
            .arg(self.initramfs())
            .args(["--cmdline", &self.cmdline, "--connect-timeout", "60"])
            .args(["--serial", &format!("file={}", serial.display())]);
        if !self.arguments.iter().any(|argument| argument == "--memory") {
            command.args(["--memory", "size=512M"]);
        }
        command.args(&self.arguments);
        let output = run_within(&mut command, LIMIT);
        Ended {
            status: output.status.code(),
            serial: fs::read_to_string(&serial).unwrap_or_default(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs the guest, whose script has to succeed.
    pub fn passes(self) -> Ended {
        let ended = self.ends();
        assert!(
            ended.serial.contains("ferry: test: ok") && ended.status == Some(0),
            "the script has failed: {ended:#?}"
        );
        ended
    }

    /// The common initramfs with this guest's files in a second archive behind it.
    fn initramfs(&self) -> PathBuf {
        let mut content = fs::read(asset("FERRY_INITRAMFS")).expect("the initramfs");
        let mut archive = Archive::new();
        for (path, file) in &self.files {
            archive.file(path, file);
        }
        content.extend(archive.finish());
        let path = self.dir.path().join("initramfs");
        fs::write(&path, content).expect("write the initramfs");
        path
    }
}

/// What `cargo xtask test` names in the environment.
pub fn asset(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run these tests through `cargo xtask test`"),
    }
}

/// Runs a command that is killed when it takes longer than `limit`.
pub fn run_within(command: &mut Command, limit: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let deadline = Instant::now() + limit;
    while child.try_wait().expect("wait for a child").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("kill a child");
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.wait_with_output().expect("wait for a child")
}

/// The last lines of a file, for a failure's message.
pub fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(10).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
