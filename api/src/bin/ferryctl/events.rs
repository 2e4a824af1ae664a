//! `events`: what has happened, and with `--follow` what happens.
//!
//! Following is asking again and again: each question says which event was the last to be seen, and Ferry holds its
//! answer back until there is a newer one, or for [`WAIT`].

use std::time::{Duration, Instant};

use ferry_api::wire::EventReport;
use serde_json::Value;

use super::arguments::Events;
use super::commands::Session;
use super::failure::Failure;
use super::output::{self, Form};
use super::text::printable;

/// How long Ferry is to hold back its answer.
const WAIT: Duration = Duration::from_secs(20);
/// How long ferryctl waits if Ferry has not.
const PAUSE: Duration = Duration::from_millis(200);

/// Shows the events that Ferry still has, and then those that come.
pub fn show(events: &Events, session: &Session<'_>) -> Result<(), Failure> {
    let mut last = ask(session, events.after, Duration::ZERO)?;
    if !events.follow {
        return Ok(());
    }
    loop {
        let asked = Instant::now();
        let newest = ask(session, last, WAIT)?;
        if newest == last && asked.elapsed() < PAUSE {
            std::thread::sleep(PAUSE);
        }
        last = newest;
    }
}

/// Shows the events after the one with the number `last`, and says which is the last one now.
fn ask(session: &Session<'_>, last: u64, wait: Duration) -> Result<u64, Failure> {
    let route = match wait.as_secs() {
        0 => format!("vm.events?after={last}"),
        wait => format!("vm.events?after={last}&wait={wait}"),
    };
    let reply = session.client(wait).get(&route)?;
    let events: Vec<Value> = session.parse(&reply)?;
    let mut newest = last;
    for event in events {
        // Not the largest: the numbers of a Ferry that was started anew begin anew.
        newest = event.get("seq").and_then(Value::as_u64).unwrap_or(newest);
        match session.form {
            Form::Json => output::write_json(&event)?,
            Form::Words => output::write(&line(&session.understand(event)?))?,
        }
    }
    Ok(newest)
}

/// One event in one line.
fn line(event: &EventReport) -> String {
    let micros = event.timestamp.nanos / 1000;
    let mut text = format!(
        "[{:5}.{micros:06}] {:8} {}",
        event.timestamp.secs, event.source, event.event
    );
    for (name, value) in &event.properties {
        text += &format!("  {name}={value}");
    }
    printable(&text) + "\n"
}
