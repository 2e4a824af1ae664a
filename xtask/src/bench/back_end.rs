//! The back-end of a disk that has much state inside.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A process with the back-end of a disk in it.
pub struct BackEnd {
    process: Child,
    socket: PathBuf,
}

impl BackEnd {
    /// Starts one, with so many MiB of state.
    ///
    /// # Errors
    /// The program does not start.
    pub fn start(helper: &Path, state: u64) -> Result<Self> {
        let mut process = Command::new(helper)
            .args(["serve", &format!("{state}M")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the back-end")?;
        let stdout = process.stdout.take().context("standard output is a pipe")?;
        let mut socket = String::new();
        BufReader::new(stdout).read_line(&mut socket)?;
        Ok(Self {
            process,
            socket: PathBuf::from(socket.trim_end()),
        })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        // It ends with its standard input, and removes its socket.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
