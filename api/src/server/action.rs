//! What a request asks for: its method, path and body, understood.
//!
//! Everything in here takes what a client has sent, and nothing else: it has no state and opens no file.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::routes::{self, Route};
use crate::control::{Refusal, RefusalKind, Request};
use crate::wire;

/// How long a client may wait for events.
const WAIT_MOST: Duration = Duration::from_secs(30);
/// How much of what a client has written comes back in an error, in bytes.
const ECHO_MOST: usize = 1024;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The server answers by itself.
    Ping,
    /// All numbers, for Prometheus.
    Metrics,
    /// The events after the one with the number `after`; if there are none, the next one within `wait`.
    Events {
        /// A number that the client has seen, or 0.
        after: u64,
        /// At most 30 seconds.
        wait: Duration,
    },
    /// The owner of the virtual machine answers.
    Ask(Request),
}

/// Why a request has no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status.
    pub status: u16,
    /// The reason and its causes, outermost first.
    pub chain: Vec<String>,
    /// The method that the route has, if it was another one.
    pub allow: Option<&'static str>,
}

impl Failure {
    /// A failure for one reason.
    pub fn new(status: u16, reason: impl Into<String>) -> Self {
        Failure::because(status, vec![reason.into()])
    }

    fn because(status: u16, mut chain: Vec<String>) -> Self {
        chain.iter_mut().for_each(shorten);
        Failure {
            status,
            chain,
            allow: None,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind {
            RefusalKind::Invalid => 400,
            RefusalKind::NotFound => 404,
            RefusalKind::Duplicate => 409,
            RefusalKind::Failed => 500,
        };
        Failure::because(status, refusal.chain)
    }
}

fn shorten(text: &mut String) {
    if text.len() > ECHO_MOST {
        text.truncate(text.floor_char_boundary(ECHO_MOST));
        text.push_str("...");
    }
}

/// Understands a request. `query` is what stands after the question mark.
pub fn read_action(
    method: &str,
    path: &str,
    query: Option<&str>,
    body: &[u8],
) -> Result<Action, Failure> {
    let Some(entry) = routes::find(path) else {
        return Err(Failure::new(404, format!("there is no route {path}")));
    };
    let right = entry.method.name();
    if method != right {
        let mut failure = Failure::new(405, format!("{path} takes {right} only"));
        failure.allow = Some(right);
        return Err(failure);
    }
    let request = match entry.route {
        Route::Ping => return Ok(Action::Ping),
        Route::Metrics => return Ok(Action::Metrics),
        Route::Events => return events(query.unwrap_or_default()),
        Route::Info => Request::Info,
        Route::Counters => Request::Counters,
        Route::Boot => Request::Boot,
        Route::Pause => Request::Pause,
        Route::Resume => Request::Resume,
        Route::Shutdown => Request::Shutdown,
        Route::Reboot => Request::Reboot,
        Route::PowerButton => Request::PowerButton,
        Route::Delete => Request::Delete,
        Route::ShutdownVmm => Request::ShutdownVmm,
        Route::Create => {
            let check = wire::VmConfig::check;
            Request::Create(checked(body, check, "the configuration is wrong")?)
        }
        Route::AddDisk => {
            let check = wire::Disk::check;
            Request::AddDisk(checked(body, check, "the disk's configuration is wrong")?)
        }
        Route::AddFs => {
            let check = wire::Fs::check;
            Request::AddFs(checked(body, check, "the share's configuration is wrong")?)
        }
        Route::RemoveDevice => {
            let check = wire::RemoveDevice::check;
            let id = checked(body, check, "there is no device without a name")?;
            Request::RemoveDevice(*id)
        }
        Route::Snapshot => {
            let check = wire::Snapshot::check;
            Request::Snapshot(checked(body, check, "the snapshot cannot be as asked for")?)
        }
        Route::Restore => {
            let check = wire::Restore::check;
            Request::Restore(checked(body, check, "the restore cannot be as asked for")?)
        }
        Route::SendMigration => {
            let check = wire::SendMigration::check;
            Request::SendMigration(checked(
                body,
                check,
                "the guest cannot be sent as asked for",
            )?)
        }
        Route::ReceiveMigration => {
            let check = wire::ReceiveMigration::check;
            let wrong = "no guest can be received as asked for";
            Request::ReceiveMigration(checked(body, check, wrong)?)
        }
        Route::Progress => Request::Progress,
        Route::Cancel => Request::Cancel,
        Route::SnapshotRelease => Request::ReleaseHold,
        Route::Migration => Request::Migration,
        Route::CancelMigration => Request::CancelMigration,
        Route::ReclaimMigration => Request::ReclaimMigration,
    };
    Ok(Action::Ask(request))
}

/// Reads what a route takes, and checks it. `wrong` is said of what does not pass.
fn checked<W, C, E>(
    body: &[u8],
    check: impl FnOnce(W) -> Result<C, E>,
    wrong: &str,
) -> Result<Box<C>, Failure>
where
    W: DeserializeOwned,
    E: std::error::Error,
{
    match check(json(body)?) {
        Ok(request) => Ok(Box::new(request)),
        Err(fault) => Err(Failure::because(400, vec![wrong.into(), fault.to_string()])),
    }
}

/// Reads JSON, and says where in it a mistake is.
fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    let wrong = |reason: String| {
        Failure::because(
            400,
            vec![
                "the body is not the JSON that this route takes".into(),
                reason,
            ],
        )
    };
    match body.trim_ascii().first() {
        Some(b'{') => {}
        Some(_) => return Err(wrong("it is not an object in braces".into())),
        None => return Err(wrong("it is empty".into())),
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        wrong(match path.as_str() {
            "." | "?" => cause.to_string(),
            path => format!("{path}: {cause}"),
        })
    })?;
    deserializer
        .end()
        .map_err(|error| wrong(error.to_string()))?;
    Ok(value)
}

/// `after=N&wait=SECONDS`, both optional.
fn events(query: &str) -> Result<Action, Failure> {
    let mut after = 0;
    let mut wait = Duration::ZERO;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| Failure::new(400, format!("{key}={value} is not a whole number")))
        };
        match key {
            "after" => after = number()?,
            "wait" => wait = Duration::from_secs(number()?).min(WAIT_MOST),
            _ => {}
        }
    }
    Ok(Action::Events { after, wait })
}
