//! What is left of a guest whose Ferry is gone, and the next Ferry.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::{Guest, Patience, Restore, ferry_binary};
use crate::lines::{Line, complete_lines};
use crate::process::Process;

/// Makes sockets' names differ.
static NUMBER: AtomicU32 = AtomicU32::new(1);

/// A guest without a Ferry: what it has said, and where it goes on to.
#[derive(Clone, Debug)]
pub struct Left {
    said: Vec<u8>,
    serial: PathBuf,
    patience: Patience,
    directory: Arc<TempDir>,
}

impl Left {
    pub(super) fn new(
        said: Vec<u8>,
        serial: PathBuf,
        patience: Patience,
        directory: Arc<TempDir>,
    ) -> Self {
        Left {
            said,
            serial,
            patience,
            directory,
        }
    }

    /// Everything on its serial port.
    pub fn serial(&self) -> Vec<Line> {
        complete_lines(&String::from_utf8_lossy(&self.said))
    }

    /// The next Ferry for it.
    pub fn successor(&self) -> Successor<'_> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = self.directory.path().join(format!("api-{number}"));
        let mut command = Command::new(ferry_binary());
        command.arg("--api-socket").arg(&socket).arg("-v");
        Successor {
            left: self,
            command,
            socket,
        }
    }

    /// Brings the guest back in a Ferry that is started without a machine, through its API, and has it run.
    pub fn restored(&self, restore: &Restore) -> Guest {
        let guest = self.successor().start();
        if let Err(reasons) = guest.restore(restore) {
            panic!("{}\n{}", reasons.join(": "), guest.transcript());
        }
        guest
    }
}

/// A Ferry that is yet to be started, for a guest that is to be restored.
#[derive(Debug)]
pub struct Successor<'a> {
    left: &'a Left,
    command: Command,
    socket: PathBuf,
}

impl Successor<'_> {
    /// One more word on Ferry's command line.
    pub fn arg(mut self, word: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(word);
        self
    }

    /// Has Ferry restore the guest from its command line.
    pub fn restoring(self, restore: &Restore) -> Self {
        let mut successor = self;
        for word in restore.flags() {
            successor = successor.arg(word);
        }
        successor
    }

    /// Where the API will be.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts it, and waits until its API answers.
    pub fn start(self) -> Guest {
        let mut guest = self.spawn();
        guest.wait_until("an answer to ping", |guest| {
            guest.api().get("vmm.ping").ok()
        });
        guest
    }

    /// Starts it.
    pub fn spawn(mut self) -> Guest {
        self.command.stdout(Stdio::null()).stderr(Stdio::piped());
        let Left {
            said,
            serial,
            patience,
            directory,
        } = self.left;
        let process = Process::start(self.command, None);
        Guest::new(
            process,
            serial.clone(),
            *patience,
            Some(self.socket),
            Arc::clone(directory),
        )
        .with_earlier(said.clone())
    }
}
