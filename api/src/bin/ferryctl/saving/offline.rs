//! `snapshot inspect` and `snapshot verify`, which need neither Ferry nor KVM.

use std::path::Path;

use serde_json::json;
use vm_migration::directory;
use vm_migration::ram::Unwatched;

use crate::arguments::Look;
use crate::failure::Failure;
use crate::output::{self, Form};
use crate::text::printable;

/// Looks at a snapshot.
pub fn look(look: &Look, form: Form) -> Result<(), Failure> {
    match look {
        Look::Inspect { directory } => inspect(directory, form),
        Look::Verify { directory } => verify(directory, form),
    }
}

fn inspect(path: &Path, form: Form) -> Result<(), Failure> {
    let inspection = directory::inspect(path)?;
    match form {
        Form::Words => write(&inspection.to_string()),
        Form::Json => output::write_json(&json!({
            "directory": inspection.path.to_string_lossy(),
            "taken_bytes": inspection.taken,
            "manifest": inspection.manifest,
        })),
    }
}

fn verify(path: &Path, form: Form) -> Result<(), Failure> {
    let found = directory::verify(path, &Unwatched)?;
    let damages = &found.damages;
    match form {
        Form::Words => write(&found.to_string())?,
        Form::Json => {
            let list: Vec<_> = damages
                .iter()
                .map(|damage| json!({"part": damage.part, "what": damage.what}))
                .collect();
            output::write_json(&json!({
                "directory": path.to_string_lossy(),
                "sound": damages.is_empty(),
                "damages": list,
            }))?;
        }
    }
    match damages.len() {
        0 => Ok(()),
        places => Err(Failure::Damaged {
            path: path.to_owned(),
            places,
        }),
    }
}

/// Lines for people, whatever a damaged file may hold.
fn write(lines: &str) -> Result<(), Failure> {
    let shown: String = lines.lines().map(|line| printable(line) + "\n").collect();
    output::write(&shown)
}
