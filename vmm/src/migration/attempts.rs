//! What became of the attempts to move a guest here, for senders that have lost their connection and ask.
//!
//! They ask at the address at which their attempt was received. So a listener that may be asked goes on listening
//! ([`Attempts::keep_answering`]) until the next migration is received, or Ferry ends.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vm_migration::Watch;
use vm_migration::link::{Link, Listener, Message, Outcome, Purpose, StreamId};

use crate::progress::LOOK;

/// How many are remembered. A sender whose attempt is forgotten is told so, and does not let its guest go on.
const MOST: usize = 64;

/// What became of the last attempts.
#[derive(Default)]
pub struct Attempts {
    // Both are held for one look at a time.
    known: Mutex<VecDeque<(StreamId, Outcome)>>,
    answering: Mutex<Option<Answering>>,
}

impl Attempts {
    /// Notes what has become of an attempt, in place of what was noted before.
    pub fn note(&self, attempt: StreamId, outcome: Outcome) {
        let mut known = lock(&self.known);
        known.retain(|(id, _)| *id != attempt);
        if known.len() == MOST {
            known.pop_front();
        }
        known.push_back((attempt, outcome));
    }

    /// What has become of an attempt.
    pub fn outcome(&self, attempt: StreamId) -> Outcome {
        let known = lock(&self.known);
        let found = known.iter().find(|(id, _)| *id == attempt);
        found.map_or(Outcome::Unknown, |(_, outcome)| *outcome)
    }

    /// Answers a sender that asks.
    pub fn answer(&self, mut link: Link) {
        let outcome = self.outcome(link.attempt());
        let answered = link
            .accept_it()
            .and_then(|()| link.send(&Message::Outcome(outcome), &vm_migration::Unwatched));
        if let Err(error) = answered {
            tracing::debug!("a sender that asked: {error}");
        }
    }

    /// Goes on answering those who ask at an address, until [`Attempts::stop_answering`].
    pub fn keep_answering(self: &Arc<Self>, listener: Listener) {
        let stop = Arc::new(Stop::default());
        let (attempts, watch) = (self.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("answering".into())
            .stack_size(128 << 10)
            .spawn(move || attempts.answer_all(listener, &*watch));
        match thread {
            Ok(thread) => {
                let before = lock(&self.answering).replace(Answering { stop, thread });
                if let Some(before) = before {
                    before.end();
                }
            }
            Err(error) => tracing::warn!("nobody can ask what became of a migration: {error}"),
        }
    }

    /// Leaves the address to others.
    pub fn stop_answering(&self) {
        let answering = lock(&self.answering).take();
        if let Some(answering) = answering {
            answering.end();
        }
    }

    fn answer_all(&self, mut listener: Listener, watch: &dyn Watch) {
        while !watch.cancelled() {
            let link = match listener.accept(watch, None) {
                Ok(link) => link,
                // The next one may get through.
                Err(error) => {
                    tracing::debug!("nobody can ask what became of a migration: {error}");
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            match link.purpose() {
                Purpose::Ask => self.answer(link),
                Purpose::Migrate { .. } | Purpose::Join { .. } | Purpose::HandOver => {
                    let _ = link.refuse("nobody waits for a guest here");
                }
            }
        }
    }
}

/// A thread that answers.
struct Answering {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

impl Answering {
    fn end(self) {
        self.stop.0.store(true, Ordering::SeqCst);
        let _ = self.thread.join();
    }
}

#[derive(Default)]
struct Stop(AtomicBool);

impl Watch for Stop {
    fn done(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_the_oldest_are_forgotten() {
        let attempts = Attempts::default();
        let id = |number: u8| StreamId([number; 16]);
        assert_eq!(attempts.outcome(id(0)), Outcome::Unknown);
        attempts.note(id(0), Outcome::Waiting);
        attempts.note(id(0), Outcome::Running);
        assert_eq!(attempts.outcome(id(0)), Outcome::Running);
        for number in 1..=MOST as u8 {
            attempts.note(id(number), Outcome::Discarded);
        }
        assert_eq!(attempts.outcome(id(0)), Outcome::Unknown);
        assert_eq!(attempts.outcome(id(1)), Outcome::Discarded);
    }
}
