//! Standard output, in words or as JSON.

use std::io::{self, Write};

use super::failure::Failure;

/// For whom the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// People.
    Words,
    /// Programs.
    Json,
}

/// Writes `text` at once, so that who reads a pipe has it.
pub fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(Failure::Output)
}

/// Writes one line of compact JSON.
pub fn write_json(value: &serde_json::Value) -> Result<(), Failure> {
    write(&format!("{value}\n"))
}
