//! `ferryctl`, as a test runs it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::ferry_binary;

/// A `ferryctl` that is yet to be started, for the Ferry at this API socket.
pub fn ferryctl(socket: &Path) -> Command {
    let mut command = Command::new(ferry_binary().with_file_name("ferryctl"));
    command.arg("--api-socket").arg(socket);
    command.stdin(Stdio::null());
    command
}
