//! Word that the guest has left, which Ferry gives right before it ends itself.
//!
//! Questions at intervals miss it: from the pause to Ferry's end it may be a few milliseconds. Who waits for an event gets
//! it all the same.

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use ferry_api::client::{Client, ClientError, Reply};
use ferry_api::wire::EventReport;

use crate::commands::Session;

/// How long Ferry is to wait for an event before it answers that there is none.
const WAIT: Duration = Duration::from_secs(20);
/// How long ferryctl waits if Ferry has not.
const PAUSE: Duration = Duration::from_millis(200);
/// How long word that is on its way is waited for when Ferry has ended.
const LATE: Duration = Duration::from_secs(2);

/// A thread that waits for the word.
#[derive(Debug)]
pub struct News(Receiver<Finished>);

/// The guest has left.
#[derive(Debug)]
struct Finished {
    /// How long it has stood still, in milliseconds, if Ferry says so.
    downtime: Option<f64>,
}

impl News {
    /// Listens for what happens from now on. If Ferry does not tell, there will be no word.
    pub fn listen(questions: &Client, session: &Session<'_>) -> Self {
        let (sender, receiver) = mpsc::channel();
        if let Ok(reply) = questions.get("vm.events") {
            let after = newest(&events(&reply), 0);
            let client = session.client(WAIT);
            std::thread::spawn(move || {
                // Its end is the end of Ferry, or of ferryctl.
                let _ = follow(&client, after, &sender);
            });
        }
        News(receiver)
    }

    /// Whether the guest has left, and how long it has stood still, in milliseconds, as far as Ferry has said so. For a
    /// Ferry that has ended.
    pub fn finished(&self) -> Option<Option<f64>> {
        let finished = self.0.recv_timeout(LATE).ok();
        finished.map(|finished| finished.downtime)
    }
}

fn follow(client: &Client, mut after: u64, sender: &Sender<Finished>) -> Result<(), ClientError> {
    loop {
        let asked = Instant::now();
        let route = format!("vm.events?after={after}&wait={}", WAIT.as_secs());
        let events = events(&client.get(&route)?);
        let finished = events
            .iter()
            .find(|it| it.source == "migration" && it.event == "migration-finished");
        if let Some(event) = finished {
            let us = event.properties.get("downtime_us");
            let us = us.and_then(|text| text.parse::<f64>().ok());
            let downtime = us.map(|us| us / 1000.0);
            // Who does not wait any more needs no word.
            let _ = sender.send(Finished { downtime });
            return Ok(());
        }
        if events.is_empty() && asked.elapsed() < PAUSE {
            std::thread::sleep(PAUSE);
        }
        after = newest(&events, after);
    }
}

fn events(reply: &Reply) -> Vec<EventReport> {
    serde_json::from_slice(&reply.body).unwrap_or_default()
}

fn newest(events: &[EventReport], before: u64) -> u64 {
    events.last().and_then(|event| event.seq).unwrap_or(before)
}
