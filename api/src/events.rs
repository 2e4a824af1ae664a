//! What happens to a virtual machine, as events for those who watch it.
//!
//! One [`EventLog`] takes events from whoever has some, without ever waiting: it keeps the last few for clients that ask
//! for them, and hands each to a thread of its own that writes them to the event monitor, one JSON object per line. A
//! monitor that does not read loses events, and is told how many.

mod monitor;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use monitor::Writer;
pub use monitor::{LentMonitor, Monitor, WrongMonitor};

/// What an event tells beyond its name.
pub type Properties = BTreeMap<String, String>;

/// How many events are kept.
const KEPT: usize = 1024;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place among all events of this log, from 1.
    pub seq: u64,
    /// When it happened, counted from the log's creation.
    pub since_start: Duration,
    /// The part of Ferry that it concerns.
    pub source: &'static str,
    /// What has happened.
    pub event: &'static str,
    /// What more there is to tell.
    pub properties: Properties,
}

/// Takes events, keeps some, and passes them on.
#[derive(Debug)]
pub struct EventLog {
    start: Instant,
    kept: Mutex<VecDeque<Arc<Event>>>,
    /// The last event's number, for those who wait for the next one.
    last: watch::Sender<u64>,
    /// Behind `kept`, where both are locked.
    monitor: Mutex<Option<Writer>>,
}

impl EventLog {
    /// A log without events. Starts a thread if there is a monitor.
    ///
    /// # Errors
    /// The monitor cannot be opened, or its thread cannot be started.
    pub fn new(monitor: Option<Monitor>) -> io::Result<Self> {
        Ok(EventLog {
            start: Instant::now(),
            kept: Mutex::default(),
            last: watch::Sender::new(0),
            monitor: Mutex::new(
                monitor
                    .map(|monitor| Writer::start(monitor.open()?, None))
                    .transpose()?,
            ),
        })
    }

    /// What another process needs to write to the monitor from now on; none if there is no monitor.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn lend_monitor(&self) -> io::Result<Option<LentMonitor>> {
        lock(&self.monitor).as_ref().map(Writer::lend).transpose()
    }

    /// Writes what happens from now on to a monitor that was another process's, once that one has written all that it had to; unless
    /// there is a monitor, which somebody has asked for after that one.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn take_monitor(&self, monitor: LentMonitor) -> io::Result<()> {
        let LentMonitor { file, before } = monitor;
        let mut monitor = lock(&self.monitor);
        if monitor.is_none() {
            *monitor = Some(Writer::start(file, Some(before))?);
        }
        Ok(())
    }

    /// Takes an event. Never waits for anyone who reads it.
    pub fn publish(&self, source: &'static str, event: &'static str, properties: Properties) {
        let event = {
            let mut kept = self.kept();
            let event = Arc::new(Event {
                seq: *self.last.borrow() + 1,
                since_start: self.start.elapsed(),
                source,
                event,
                properties,
            });
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(event.clone());
            // Inside of the lock, so that numbers are in order.
            if let Some(monitor) = &*lock(&self.monitor) {
                monitor.hand(event.clone());
            }
            self.last.send_replace(event.seq);
            event
        };
        tracing::debug!(seq = event.seq, "event {} {}", event.source, event.event);
    }

    /// The events after the one with the number `seq`, as far as they are kept. A number that no event has yet stands
    /// for another log, so that all events are new to whoever asks.
    pub fn after(&self, seq: u64) -> Vec<Arc<Event>> {
        let kept = self.kept();
        let newest = kept.back().map_or(0, |event| event.seq);
        let seq = if seq > newest { 0 } else { seq };
        let new = kept.iter().filter(|event| event.seq > seq);
        new.cloned().collect()
    }

    /// Tells of new events.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        lock(&self.kept)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
