//! Tells the user what takes long: a spinner with the last line of output on a terminal, two lines elsewhere.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::process::die_with_parent;

/// One thing that takes long.
pub struct Step {
    what: String,
    bar: ProgressBar,
    begun: Instant,
}

/// Lines of a failed command's output that are worth repeating.
const TAIL: usize = 30;

impl Step {
    /// Announces `what`, for example "building virtiofsd 1.14.0 (about 3 minutes)".
    pub fn begin(what: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        } else {
            eprintln!("ferry: {what} ...");
            ProgressBar::hidden()
        };
        Self {
            what: what.to_owned(),
            bar,
            begun: Instant::now(),
        }
    }

    /// Says that it is done, and how long it took.
    pub fn end(self) {
        self.bar.finish_and_clear();
        let seconds = self.begun.elapsed().as_secs();
        eprintln!("ferry: {}: done in {seconds} s", self.what);
    }

    /// Runs a command to its end, showing its output line by line.
    ///
    /// # Errors
    /// The command cannot be started, or ends with another status than 0: then with the end of its output.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("cannot copy a pipe")?)
            .stderr(writer);
        // It writes where the next run will write: it must not outlive this one.
        die_with_parent(command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        // The command holds the pipe's write end: without this, reading would never end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut tail = VecDeque::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            self.bar.set_message(line.clone());
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(line);
        }
        let status = child.wait()?;
        if !status.success() {
            self.bar.finish_and_clear();
            let tail: Vec<String> = tail.into();
            bail!("{name} failed ({status}):\n{}", tail.join("\n"));
        }
        Ok(())
    }
}

/// Runs a short command and returns what it prints.
///
/// # Errors
/// The command cannot be started, or ends with another status than 0: then with its error output.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !out.status.success() {
        bail!(
            "{name} failed ({}): {}",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
