//! What became of the attempts to move a guest here, for senders that have lost their connection and ask.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_migration::link::{Outcome, StreamId};

/// How many are remembered. A sender whose attempt is forgotten is told so, and does not let its guest go on.
const MOST: usize = 64;

/// What became of the last attempts.
#[derive(Default)]
pub struct Attempts {
    // Held for one look at a time.
    known: Mutex<VecDeque<(StreamId, Outcome)>>,
}

impl Attempts {
    /// Notes what has become of an attempt, in place of what was noted before.
    pub fn note(&self, attempt: StreamId, outcome: Outcome) {
        let mut known = self.known();
        known.retain(|(id, _)| *id != attempt);
        if known.len() == MOST {
            known.pop_front();
        }
        known.push_back((attempt, outcome));
    }

    /// What has become of an attempt.
    pub fn outcome(&self, attempt: StreamId) -> Outcome {
        let known = self.known();
        let found = known.iter().find(|(id, _)| *id == attempt);
        found.map_or(Outcome::Unknown, |(_, outcome)| *outcome)
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<(StreamId, Outcome)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
