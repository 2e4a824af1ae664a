//! What the log is told of lost output: a beginning and an end, however often a guest loses some.
//!
//! ```text
//!            bytes get lost            told              caught up: told, with the count
//!      Quiet ──────────────▶ Due ──────────────▶ Told ──────────────▶ Quiet
//!            not before the last beginning is PAUSE ago
//! ```
//!
//! Bytes that get lost before the pause is over are counted in the next message.

use std::time::{Duration, Instant};

/// The least time from one beginning that is told to the next.
pub const PAUSE: Duration = Duration::from_secs(60);

/// Lost bytes and what has been told of them.
#[derive(Debug, Default)]
pub struct Loss {
    /// Bytes that no message has named.
    unreported: u64,
    notice: Notice,
    /// When a beginning was told last.
    told: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Notice {
    #[default]
    Quiet,
    Due,
    Told,
}

impl Loss {
    /// `count` more bytes are lost.
    pub fn add(&mut self, count: u64) {
        self.unreported += count;
    }

    /// Whether a loss is to be told from now on that was not before. The clock is asked only if it
    /// matters: this is called for every byte the guest sends.
    pub fn falls_due(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.unreported == 0 || self.notice != Notice::Quiet {
            return false;
        }
        let due = self
            .told
            .is_none_or(|told| now().saturating_duration_since(told) >= PAUSE);
        if due {
            self.notice = Notice::Due;
        }
        due
    }

    /// Whether the beginning is to be told now. After that it counts as told.
    pub fn tell_begin(&mut self, now: Instant) -> bool {
        let due = self.notice == Notice::Due;
        if due {
            self.notice = Notice::Told;
            self.told = Some(now);
        }
        due
    }

    /// The far end has caught up: how many bytes were lost, if the beginning was told.
    pub fn tell_end(&mut self) -> Option<u64> {
        if self.notice != Notice::Told {
            return None;
        }
        self.notice = Notice::Quiet;
        Some(std::mem::take(&mut self.unreported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_comes_and_goes_is_told_once_a_minute() {
        let begin = Instant::now();
        let mut loss = Loss::default();
        let (mut begun, mut ended) = (Vec::new(), Vec::new());
        for second in 0..150 {
            let now = begin + Duration::from_secs(second);
            for _ in 0..10 {
                loss.add(1);
                loss.falls_due(|| now);
                if loss.tell_begin(now) {
                    begun.push(second);
                }
                ended.extend(loss.tell_end());
            }
        }
        assert_eq!(begun, [0, 60, 120]);
        // The first byte, and what was lost from then to the first byte of the next message.
        assert_eq!(ended, [1, 600, 600]);
    }

    #[test]
    fn a_loss_without_a_told_beginning_has_no_end_and_neither_comes_twice() {
        let now = Instant::now();
        let mut loss = Loss::default();
        assert!(!loss.falls_due(|| now));
        loss.add(3);
        assert!(loss.falls_due(|| now));
        assert!(!loss.falls_due(|| now));
        assert_eq!(loss.tell_end(), None);
        assert!(loss.tell_begin(now));
        assert!(!loss.tell_begin(now));
        assert_eq!(loss.tell_end(), Some(3));
        assert_eq!(loss.tell_end(), None);
    }
}
