//! `snapshot` and `restore`: from the command line to the request, and to what is said at the end.

mod offline;
mod operation;
mod paused;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_api::{url, wire};

use super::arguments::{Look, Restore, Snapshot};
use super::commands::Session;
use super::failure::Failure;
use super::output;
use super::pairs;
pub use offline::look;
use operation::Operation;
use paused::WhilePaused;
pub use report::describe;

/// How long a command may hold the guest if nothing is said.
const HOLD: Duration = Duration::from_secs(60);

/// What cannot be done if `snapshot` fails, as a clause after "cannot".
pub fn snapshot_goal(snapshot: &Snapshot) -> &'static str {
    match snapshot.look {
        None => "save the guest",
        Some(Look::Inspect { .. }) => "inspect the snapshot",
        Some(Look::Verify { .. }) => "verify the snapshot",
    }
}

/// Saves the guest.
pub fn save(snapshot: &Snapshot, session: &Session<'_>) -> Result<(), Failure> {
    let given = snapshot.directory.as_deref().unwrap_or(Path::new(""));
    let directory = absolute(given)?;
    let hold = snapshot.hold_limit.unwrap_or(HOLD);
    let request = wire::Snapshot {
        destination_url: Some(url::of(&directory)),
        pause: Some(!snapshot.no_pause),
        after: snapshot.after.map(Into::into),
        hold_s: snapshot
            .while_paused
            .is_some()
            .then_some(hold.as_secs_f64()),
        prepare_ms: snapshot.prepare,
        state_most: snapshot.state_limit,
    };
    let command = snapshot.while_paused.as_deref();
    let operation = Operation {
        kind: wire::Operation::Snapshot,
        body: to_bytes(&request)?,
        while_paused: command.map(|command| WhilePaused::new(command, &directory, session.form)),
        directory,
        session,
    };
    let outcome = operation.run()?;
    output::write_end(outcome.progress.as_ref(), session.form, describe)
}

/// Brings a guest back.
pub fn restore(restore: &Restore, session: &Session<'_>) -> Result<(), Failure> {
    let directory = absolute(&restore.directory)?;
    let request = wire::Restore {
        source_url: Some(url::of(&directory)),
        memory_restore_mode: restore.memory.map(Into::into),
        resume: Some(!restore.paused),
        prefault: None,
        devices: pairs::sockets(&restore.socket)?,
        serial: restore.serial.as_deref().map(pairs::console).transpose()?,
    };
    let operation = Operation {
        kind: wire::Operation::Restore,
        body: to_bytes(&request)?,
        while_paused: None,
        directory,
        session,
    };
    let outcome = operation.run()?;
    output::write_end(outcome.progress.as_ref(), session.form, describe)
}

/// The path as Ferry finds it too.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|cause| Failure::Read {
        path: path.to_owned(),
        cause,
    })
}

fn to_bytes(request: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(request).map_err(|error| Failure::Usage(error.to_string()))
}
