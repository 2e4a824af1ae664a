//! What a receiver says of clients that are no senders. Whoever reaches its address can be one, as often as they like: a log is not
//! theirs to fill.

use std::fmt;
use std::time::{Duration, Instant};

/// How many are told of in one [`SPAN`]. The others are counted.
const TOLD_MOST: u64 = 10;
const SPAN: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Strangers {
    /// When the span began: when its first one came.
    since: Option<Instant>,
    /// How many have come in the span.
    came: u64,
}

/// How one is told of.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Fully,
    /// As the last one for now.
    Last,
    Not,
}

impl Strangers {
    /// Says what became of one.
    pub(super) fn tell(&mut self, what: fmt::Arguments<'_>) {
        let (before, told) = self.count(Instant::now());
        say_counted(before);
        match told {
            Told::Fully => tracing::warn!("{what}"),
            Told::Last => tracing::warn!(
                "{what}; many clients come here that are no senders: for a while, the next ones are only counted"
            ),
            Told::Not => {}
        }
    }

    /// Counts one; returns how many of a span that is over were not told of, and how this one is.
    fn count(&mut self, now: Instant) -> (u64, Told) {
        let is_over = self.since.is_none_or(|since| now >= since + SPAN);
        let before = match is_over {
            true => self.end(),
            false => 0,
        };
        self.since.get_or_insert(now);
        self.came += 1;
        let told = match self.came {
            ..TOLD_MOST => Told::Fully,
            TOLD_MOST => Told::Last,
            _ => Told::Not,
        };
        (before, told)
    }

    /// Ends the span; returns how many of it were not told of.
    fn end(&mut self) -> u64 {
        self.since = None;
        std::mem::take(&mut self.came).saturating_sub(TOLD_MOST)
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        say_counted(self.end());
    }
}

fn say_counted(clients: u64) {
    if clients > 0 {
        tracing::warn!("clients that came since and were no senders either: {clients}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_told_of_and_the_others_counted() {
        let mut strangers = Strangers::default();
        let begin = Instant::now();
        let first: Vec<_> = (0..TOLD_MOST).map(|_| strangers.count(begin)).collect();
        assert!(first[..9].iter().all(|told| *told == (0, Told::Fully)));
        assert_eq!(first[9], (0, Told::Last));
        for _ in 0..1000 {
            assert_eq!(strangers.count(begin + SPAN / 2), (0, Told::Not));
        }
        // Of the next span.
        assert_eq!(strangers.count(begin + SPAN), (1000, Told::Fully));
        // Of the one after that, and of none to speak of.
        assert_eq!(strangers.count(begin + 3 * SPAN), (0, Told::Fully));
        assert_eq!(strangers.end(), 0);
    }
}
