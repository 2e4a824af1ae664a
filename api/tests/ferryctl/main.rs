//! The real ferryctl, against a server that says exactly what a test wants it to say.

#![allow(clippy::expect_used, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod failures;
mod held;
mod migrating;
mod moving;
mod real;
mod requests;
mod saving;
mod script;
mod snapshots;
mod words;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// ferryctl for the server at `socket`, with nothing of the caller's environment that it would look at.
fn ferryctl(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferryctl"));
    command
        .env_remove("FERRY_API_SOCKET")
        .arg("--api-socket")
        .arg(socket)
        .args(words)
        .stdin(Stdio::null());
    // Whoever runs the tests may ignore signals (nohup, a shell's background job), which processes inherit.
    let heed_signals = || {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the call has no memory arguments, and may be made between fork and exec.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure does nothing but that.
    unsafe { command.pre_exec(heed_signals) };
    command
}

/// How one run of ferryctl has ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Outcome {
            status: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs ferryctl to its end; it bounds its own time.
fn run(socket: &Path, words: &[&str]) -> Outcome {
    ferryctl(socket, words).output().unwrap().into()
}

/// The same, with `input` on standard input.
fn run_with_input(socket: &Path, words: &[&str], input: &[u8]) -> Outcome {
    let mut child = ferryctl(socket, words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap().into()
}

/// A run that has succeeded: what it has printed.
fn prints(socket: &Path, words: &[&str]) -> String {
    let outcome = run(socket, words);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert_eq!(outcome.stderr, "");
    outcome.stdout
}
