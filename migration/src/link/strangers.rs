//! What a receiver says of clients that are no senders. Whoever reaches its address can be one, as often as they like: a log is not
//! theirs to fill.

use std::fmt;
use std::time::{Duration, Instant};

/// How many are told of in one [`SPAN`], one by one. The others are counted.
const TOLD_MOST: u32 = 10;
const SPAN: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Strangers {
    /// When the first one came of those that are told of together.
    since: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Strangers {
    /// Says what became of one.
    pub(super) fn tell(&mut self, what: fmt::Arguments<'_>) {
        let now = Instant::now();
        if self.since.is_none_or(|since| now >= since + SPAN) {
            self.sum_up();
            self.since = Some(now);
            self.told = 0;
        }
        match self.is_told() {
            true => tracing::warn!("{what}"),
            false if self.untold == 1 => tracing::warn!(
                "{what}; so many clients are turned away here that the next ones are only counted"
            ),
            false => {}
        }
    }

    /// Counts one, and says whether it is told of like others.
    fn is_told(&mut self) -> bool {
        let is_told = self.told < TOLD_MOST;
        match is_told {
            true => self.told += 1,
            false => self.untold += 1,
        }
        is_told
    }

    fn sum_up(&mut self) {
        match std::mem::take(&mut self.untold) {
            0 | 1 => {}
            more => tracing::warn!("{} more clients were turned away", more - 1),
        }
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        self.sum_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_told_of_as_a_number() {
        let mut strangers = Strangers::default();
        let told = (0..1000).filter(|_| strangers.is_told()).count();
        assert_eq!(told, TOLD_MOST as usize);
        assert_eq!(strangers.untold, 1000 - u64::from(TOLD_MOST));
    }
}
