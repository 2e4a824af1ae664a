//! `migrate`, `receive` and `migration`: from the command line to the request, and to what is said at the end.

mod news;
mod receiving;
mod report;
mod sending;
mod watch;

use std::path::Path;

use ferry_api::migration::{MigrationUrl, WrongMigrationUrl};
use ferry_api::wire;

use super::arguments::{About, Migrate, Receive};
use super::commands::Session;
use super::failure::Failure;
use super::output::{self, Form};
use super::pairs;
use sending::{CONFIRM, End, Sending};

pub use report::describe;
pub use watch::Watch;

/// What cannot be done if `migration` fails, as a clause after "cannot".
pub fn goal(about: Option<About>) -> &'static str {
    match about {
        None => "show the migration",
        Some(About::Cancel) => "cancel the migration",
        Some(About::Reclaim) => "take the guest back",
    }
}

/// Sends the guest.
pub fn send(migrate: &Migrate, session: &Session<'_>) -> Result<(), Failure> {
    let url = place(&migrate.destination)?;
    let request = wire::SendMigration {
        destination_url: Some(url.clone()),
        downtime_ms: migrate.downtime_ms,
        timeout_s: migrate.time_limit,
        timeout_strategy: migrate.on_timeout.map(Into::into),
        connections: migrate.connections,
        tls_dir: directory(migrate.tls_dir.as_deref())?,
        local: None,
        successor: None,
        memory_mode: None,
        preserve_source: Some(migrate.keep_source),
        unlogged: migrate.unlogged.map(Into::into),
        throttle: Some(migrate.throttle),
        state_most: migrate.state_limit,
    };
    let confirm = migrate.confirm_limit.unwrap_or(CONFIRM);
    let end = Sending::begin(&to_bytes(&request)?, url, session)?.follow(confirm)?;
    conclude(end, session)
}

/// Receives a guest.
pub fn receive(receive: &Receive, session: &Session<'_>) -> Result<(), Failure> {
    let url = place(&receive.receiver)?;
    let request = wire::ReceiveMigration {
        receiver_url: Some(url.clone()),
        devices: pairs::sockets(&receive.socket)?,
        serial: receive.serial.as_deref().map(pairs::console).transpose()?,
        tls_dir: directory(receive.tls_dir.as_deref())?,
        insecure: receive.insecure.then_some(true),
        state_most: receive.state_limit,
    };
    let progress = receiving::receive(to_bytes(&request)?, url, session)?;
    output::write_end(progress.as_ref(), session.form, describe)
}

/// Asks for a guest, and the place of its process, to be handed to a Ferry that waits for them.
pub fn local_request(url: &str) -> Result<Vec<u8>, Failure> {
    to_bytes(&wire::SendMigration {
        destination_url: Some(url.to_owned()),
        local: Some(true),
        successor: Some(true),
        ..wire::SendMigration::default()
    })
}

fn conclude(end: End, session: &Session<'_>) -> Result<(), Failure> {
    match end {
        End::Done(progress) => output::write_end(Some(&*progress), session.form, describe),
        End::Left(news) => match session.form {
            Form::Json => Ok(()),
            Form::Words => output::write(&news),
        },
    }
}

/// The URL as Ferry shows it, with a path that Ferry finds too.
pub fn place(url: &str) -> Result<String, Failure> {
    let wrong = |reason: String| Failure::Usage(format!("{url} {reason}"));
    let place = url
        .parse()
        .map_err(|error: WrongMigrationUrl| wrong(error.to_string()))?;
    match &place {
        MigrationUrl::Unix(path) => Ok(format!("unix:{}", pairs::absolute(path).map_err(wrong)?)),
        MigrationUrl::Tcp { .. } => Ok(place.to_string()),
    }
}

fn directory(path: Option<&Path>) -> Result<Option<String>, Failure> {
    let whole = path.map(pairs::absolute).transpose();
    whole.map_err(|reason| Failure::Usage(format!("--tls-dir: it {reason}")))
}

/// As JSON.
pub fn to_bytes(request: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(request).map_err(|error| Failure::Usage(error.to_string()))
}
