//! The command that runs while the guest is held.
//!
//! ```text
//!   Waiting ──Ferry holds the guest──▶ Running ──status 0──▶ Succeeded
//!                                         └──────else──────▶ Failed
//! ```
//!
//! It runs on the client's side: Ferry itself starts no programs.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::output::Form;
use crate::signals::{self, Whole};

/// How long a command has to end by itself when it is told to.
const GRACE: Duration = Duration::from_secs(1);

/// A command, and how far it is. Dropped, it ends what it has started.
#[derive(Debug)]
pub struct WhilePaused {
    command: OsString,
    directory: PathBuf,
    form: Form,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting,
    Running(Child),
    Succeeded,
    Failed(String),
}

/// How far a command is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It has not been started.
    Waiting,
    /// It runs.
    Running,
    /// It has ended with status 0.
    Succeeded,
    /// It has not; how it has ended is a clause.
    Failed(String),
}

impl WhilePaused {
    /// Nothing is started yet.
    pub fn new(command: &OsStr, directory: &Path, form: Form) -> Self {
        WhilePaused {
            command: command.to_owned(),
            directory: directory.to_owned(),
            form,
            state: State::Waiting,
        }
    }

    /// The command as it was given.
    pub fn command(&self) -> String {
        self.command.to_string_lossy().into_owned()
    }

    /// Starts it, once.
    pub fn start(&mut self) {
        if !matches!(self.state, State::Waiting) {
            return;
        }
        self.state = match self.spawn() {
            Ok(child) => State::Running(child),
            Err(cause) => State::Failed(format!("could not be started: {cause}")),
        };
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(&self.command)
            .env("FERRY_SNAPSHOT", &self.directory);
        if self.form == Form::Json {
            // JSON on standard output is for answers.
            let stderr = io::stderr().as_fd().try_clone_to_owned()?;
            command.stdout(Stdio::from(stderr));
        }
        if whole() == Whole::Group {
            command.process_group(0);
        }
        command.spawn()
    }

    /// How far it is.
    pub fn stand(&mut self) -> Stand {
        if let State::Running(child) = &mut self.state {
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) if status.success() => self.state = State::Succeeded,
                Ok(Some(status)) => self.state = State::Failed(ended(status)),
                Err(cause) => {
                    let reason = format!("could not be waited for: {cause}");
                    self.end();
                    self.state = State::Failed(reason);
                }
            }
        }
        match &self.state {
            State::Waiting => Stand::Waiting,
            State::Running(_) => Stand::Running,
            State::Succeeded => Stand::Succeeded,
            State::Failed(reason) => Stand::Failed(reason.clone()),
        }
    }

    /// Ends it, if it runs: first politely, and within bounded time.
    pub fn end(&mut self) {
        let State::Running(child) = &mut self.state else {
            return;
        };
        signals::send(child.id(), whole(), libc::SIGTERM);
        let told = Instant::now();
        while told.elapsed() < GRACE && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if matches!(child.try_wait(), Ok(None)) {
            signals::send(child.id(), whole(), libc::SIGKILL);
            let _ = child.wait();
        }
        self.state = State::Failed("was ended, because the snapshot was".into());
    }
}

impl Drop for WhilePaused {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a command that is to be ended consists of. On a terminal it stays in ferryctl's group, so that it may ask for a
/// password there, and Ctrl-C reaches it; else it has a group of its own.
fn whole() -> Whole {
    match io::stdin().is_terminal() {
        true => Whole::Process,
        false => Whole::Group,
    }
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
