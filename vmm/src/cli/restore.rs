//! `--restore` and `--restore-socket`.

use ferry_api::config::keys;
use ferry_api::config::text::WrongRestore;
use ferry_api::snapshot::{RestoreRequest, Start};

use super::error::{Problem, UsageError};
use super::flags::Flags;
use super::machine;

const FLAG: &str = "--restore";
const SOCKET: &str = "--restore-socket";

/// What is to be restored, if anything.
pub fn request(flags: &Flags) -> Result<Option<RestoreRequest>, UsageError> {
    let conflict = |flag, text: &str| UsageError::new(flag, Problem::Conflict(text.into()));
    let Some(text) = &flags.restore else {
        return match flags.restore_socket.is_empty() {
            true => Ok(None),
            false => Err(conflict(SOCKET, "there is nothing to restore")
                .hint("name the snapshot: --restore source_url=file:///DIRECTORY")),
        };
    };
    if flags.describe_another_machine() {
        return Err(conflict(
            FLAG,
            "the snapshot says what machine there is, and other flags do as well",
        )
        .hint("what is elsewhere now: --restore-socket ID=PATH, --serial"));
    }
    let mut request: RestoreRequest = text.parse().map_err(|error| {
        UsageError::new(FLAG, problem(error)).hint("--restore source_url=file:///DIRECTORY")
    })?;
    for socket in &flags.restore_socket {
        request
            .add_socket(socket)
            .map_err(|error| UsageError::new(SOCKET, problem(error)))?;
    }
    request.serial = flags
        .serial
        .as_deref()
        .map(|text| machine::serial(Some(text)))
        .transpose()?;
    if request.start == Start::Paused && flags.api_socket.is_none() {
        return Err(conflict(
            FLAG,
            "the guest would be paused, and nobody could resume it",
        )
        .hint("add resume=on, or --api-socket PATH"));
    }
    Ok(Some(request))
}

fn problem(error: WrongRestore) -> Problem {
    match error {
        WrongRestore::UnknownKey { key } => Problem::UnknownKey {
            key,
            known: keys::names(keys::RESTORE).join(", "),
        },
        WrongRestore::Fault(fault) => fault.into(),
        other => Problem::Syntax(other.to_string()),
    }
}
