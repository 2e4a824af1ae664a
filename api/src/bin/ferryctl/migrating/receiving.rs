//! A guest that is being received: one connection waits for the end, others ask how it stands.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use ferry_api::client::{ClientError, Reply};
use ferry_api::wire::{Migration, MigrationRole};

use super::watch::{UNANSWERED_MOST, Watch};
use crate::commands::Session;
use crate::failure::{Failure, Undertaking};
use crate::signals::Signals;

/// Receives a guest. How it has gone is `None` if Ferry does not tell any more.
pub fn receive(
    body: Vec<u8>,
    url: String,
    session: &Session<'_>,
) -> Result<Option<Migration>, Failure> {
    let signals = Signals::note();
    let (sender, end) = mpsc::channel();
    let client = session.client(Duration::ZERO);
    std::thread::spawn(move || {
        // Who does not wait any more needs no answer.
        let _ = sender.send(client.put("vm.receive-migration", &body));
    });
    let mut watch = Watch::new(MigrationRole::Receive, url, session);
    let mut unanswered = 0;
    let ended = loop {
        match end.recv_timeout(watch.interval()) {
            Ok(ended) => break ended,
            Err(RecvTimeoutError::Timeout) => {}
            // The thread cannot end without an answer.
            Err(RecvTimeoutError::Disconnected) => return Err(lost(session)),
        }
        match watch.ask() {
            Ok(progress) => {
                unanswered = 0;
                let known = progress.is_some();
                if known && signals.noted().is_some() {
                    watch.cancel();
                } else if known {
                    watch.show()?;
                }
            }
            Err(error) => {
                unanswered += 1;
                if unanswered == UNANSWERED_MOST {
                    return Err(error);
                }
            }
        }
    };
    conclude(ended, watch, &signals)
}

fn conclude(
    ended: Result<Reply, ClientError>,
    mut watch: Watch<'_>,
    signals: &Signals,
) -> Result<Option<Migration>, Failure> {
    watch.clear();
    match (ended, signals.noted()) {
        (Ok(_), _) => {
            // What is not told now is told by `ferryctl migration`.
            let known = watch.ask().ok().flatten().is_some();
            Ok(watch.into_last().filter(|_| known))
        }
        (Err(ClientError::Refused(_)), Some(signal)) => Err(Failure::Interrupted {
            signal,
            kind: Undertaking::Receive,
        }),
        (Err(error), _) => Err(error.into()),
    }
}

fn lost(session: &Session<'_>) -> Failure {
    Failure::Client(ClientError::Closed {
        socket: session.socket().to_owned(),
        cause: None,
    })
}
