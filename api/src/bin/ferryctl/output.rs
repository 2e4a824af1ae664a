//! Standard output, in words or as JSON.

use std::io::{self, Write};

use serde::Serialize;

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

/// Writes how something has ended, as far as that is known: as it is, or in the words that `describe` finds.
pub fn write_end<T: Serialize>(
    end: Option<&T>,
    form: Form,
    describe: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    match (form, end) {
        (Form::Json, Some(end)) => {
            let value = serde_json::to_value(end)
                .map_err(|error| Failure::Output(io::Error::other(error)))?;
            write_json(&value)
        }
        (Form::Json, None) => Ok(()),
        (Form::Words, Some(end)) => write(&describe(end)),
        (Form::Words, None) => write("done\n"),
    }
}
