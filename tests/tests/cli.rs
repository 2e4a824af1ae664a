//! Wrong command lines, given to the real binary: each ends at once with status 2 and one clear
//! message, and nothing has been started.
//!
//! The binary is `$FERRY_BIN`, or `ferry` in the directory that cargo has built these tests into.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Far more than any of this takes, and less than `--connect-timeout`'s default: no back-end is
/// waited for.
const LIMIT: Duration = Duration::from_secs(4);

fn ferry() -> PathBuf {
    if let Some(path) = std::env::var_os("FERRY_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    // target/debug/deps/cli-… → target/debug/ferry
    let path = test.parent().and_then(Path::parent).unwrap().join("ferry");
    assert!(
        path.exists(),
        "{} is not there: run `cargo build -p ferry`, or set FERRY_BIN",
        path.display()
    );
    path
}

/// Runs Ferry with nothing on standard input, and ends it if it does not end by itself.
fn run(directory: &Path, words: &[&str]) -> Output {
    let child = Command::new(ferry())
        .args(words)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    finish(child, words)
}

fn finish(mut child: Child, words: &[&str]) -> Output {
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{words:?} did not end");
        }
        thread::sleep(Duration::from_millis(2));
    };
    let mut output = Output {
        status,
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    stdout.read_to_end(&mut output.stdout).unwrap();
    stderr.read_to_end(&mut output.stderr).unwrap();
    output
}

/// A directory with a back-end's socket, on which somebody listens, and files to boot from.
struct Place {
    dir: TempDir,
    backend: UnixListener,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend = UnixListener::bind(dir.path().join("backend")).unwrap();
        backend.set_nonblocking(true).unwrap();
        // The beginning of an ELF file; enough for whoever looks no further.
        fs::write(dir.path().join("kernel"), b"\x7fELF").unwrap();
        fs::write(dir.path().join("text"), b"This is not a kernel.\n").unwrap();
        Self { dir, backend }
    }

    /// Expects that `words` are refused in one line that begins with `report`.
    fn refuses(&self, words: &[&str], report: &str) {
        let before = self.contents();
        let output = run(self.dir.path(), words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{words:?}");
        let (first, rest) = stderr.split_once('\n').unwrap();
        assert!(
            first.starts_with(&format!("ferry: {report}")),
            "{words:?}: {stderr}"
        );
        // One error; a hint may follow.
        assert!(
            rest.is_empty() || (rest.starts_with("  hint: ") && rest.lines().count() == 1),
            "{words:?}: {stderr}"
        );
        assert!(
            self.backend.accept().is_err(),
            "{words:?} has connected to the back-end"
        );
        assert_eq!(self.contents(), before, "{words:?} has made a file");
    }

    fn contents(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn wrong_command_lines_are_refused_before_anything_is_started() {
    let place = Place::new();
    place.refuses(&[], "--kernel: is missing");
    place.refuses(&["--kernel"], "--kernel: has no value");
    place.refuses(&["--kernels", "kernel"], "--kernels: there is no such flag");
    place.refuses(
        &["kernel"],
        "kernel: Ferry takes no arguments other than flags",
    );
    place.refuses(
        &["--kernel", "missing"],
        "--kernel: cannot use missing: No such file",
    );
    place.refuses(&["--kernel", "."], "--kernel: cannot use .: is a directory");
    place.refuses(&["--kernel", "backend"], "--kernel: cannot use backend: ");

    let disk = "vhost_user=on,socket=backend";
    for (flag, value, reason) in [
        ("--cpus", "boot=0", "boot=0 is not within 1 and 32"),
        ("--cpus", "boot=2,max=1", "boot=2 is more than max=1"),
        ("--cpus", "sockets=1", "there is no key `sockets`"),
        ("--memory", "size=1M", "size=1048576 is less than 64M"),
        ("--memory", "size=512X", "size=512X is not a size"),
        (
            "--memory",
            "size=512M,shared=off",
            "shared=off leaves back-ends without guest RAM",
        ),
        ("--disk", "path=disk.img", "Ferry has no built-in disks"),
        ("--disk", "vhost_user=on", "socket= is missing"),
        (
            "--disk",
            "vhost_user=on,socket=text",
            "socket=text is a file that is not a socket",
        ),
        (
            "--disk",
            "vhost_user=on,socket=other,queue_size=100",
            "queue_size=100 is not a power of two",
        ),
        ("--disk", disk, "socket=backend is used twice"),
        ("--fs", "socket=other", "tag= is missing"),
        (
            "--fs",
            "tag=x,socket=other,id=root",
            "id=root is used twice",
        ),
        ("--vhost-user", "socket=other", "device_type= is missing"),
        (
            "--vhost-user",
            "socket=other,device_type=0",
            "device_type=0 is not within 1 and 63",
        ),
        ("--serial", "stdout", "there is no `stdout`"),
        (
            "--serial",
            "file=missing/console",
            "cannot use missing/console: No such file",
        ),
        ("--serial", "socket=text", "cannot use text: it is there"),
        ("--console", "tty", "there is no `tty`"),
        ("--initramfs", "missing", "cannot use missing: No such file"),
        (
            "--log-file",
            "missing/log",
            "cannot use missing/log: No such file",
        ),
        (
            "--request-timeout",
            "soon",
            "`soon` is not a number of seconds",
        ),
    ] {
        let disk = format!("{disk},id=root");
        let words = [
            "--kernel",
            "kernel",
            "--disk",
            &disk,
            "--serial",
            "socket=console",
            flag,
            value,
        ];
        // A flag that may stand once replaces the one above.
        let words: Vec<&str> = match flag {
            "--serial" => [&words[..4], &words[6..]].concat(),
            _ => words.to_vec(),
        };
        place.refuses(&words, &format!("{flag}: {reason}"));
    }
}

#[test]
fn a_file_that_is_no_kernel_is_refused_before_anything_is_started() {
    let place = Place::new();
    let disk = "vhost_user=on,socket=backend";
    for file in ["text", "kernel"] {
        let words = ["--kernel", file, "--disk", disk, "--serial", "file=console"];
        place.refuses(&words, "--kernel: ");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let place = Place::new();
    let help = run(place.dir.path(), &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(help.stderr.is_empty());
    let help = String::from_utf8(help.stdout).unwrap();
    for part in [
        "Usage: ferry --kernel",
        "Exit status",
        "Examples",
        "--vhost-user",
    ] {
        assert!(help.contains(part), "{part}");
    }
    let version = run(place.dir.path(), &["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(version.stdout.starts_with(b"ferry "));
}
