//! How fast state has to go by.
//!
//! A limit on silence alone lets a back-end hold the guest paused with a byte now and then. So what goes by is counted
//! against the time for which the back-end was waited for. No other time counts: a job may take its own to write the
//! state down, and reads several back-ends one after the other.

use std::time::Duration;

/// The least that has to move while a back-end is waited for as long as
/// [`StateLimits::silence`](super::StateLimits::silence), in bytes, unless the end comes: 6.5 kB/s where that is 10 s, of
/// which honest back-ends do a hundred times as much. A state of `n` bytes is thus waited for at most `n / LEAST_MOVED + 1`
/// times twice the silence (twice, as one wait of that length may end just in time).
pub const LEAST_MOVED: u64 = 64 << 10;

/// What has gone by since it last was enough.
#[derive(Default)]
pub struct Pace {
    /// How long the back-end has been waited for.
    waited: Duration,
    /// In bytes.
    moved: u64,
}

/// Too little has moved.
#[derive(Debug, PartialEq, Eq)]
pub struct TooSlow {
    /// How long the back-end was waited for.
    pub waited: Duration,
    /// How much came of it, in bytes.
    pub moved: u64,
}

impl Pace {
    pub fn note_waited(&mut self, time: Duration) {
        self.waited = self.waited.saturating_add(time);
    }

    pub fn note_moved(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        if self.moved >= LEAST_MOVED {
            *self = Pace::default();
        }
    }

    /// To be asked before the next wait: what is there already has counted by then.
    pub fn check(&self, silence: Duration) -> Result<(), TooSlow> {
        let Pace { waited, moved } = *self;
        match waited < silence {
            true => Ok(()),
            false => Err(TooSlow { waited, moved }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_enough_in_time_begins_anew() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.note_waited(SECOND * 9);
            pace.note_moved(LEAST_MOVED as usize);
            assert_eq!(pace.check(SECOND * 10), Ok(()));
        }
    }

    #[test]
    fn a_byte_now_and_then_is_too_slow() {
        let mut pace = Pace::default();
        for _ in 0..9 {
            pace.note_waited(SECOND);
            pace.note_moved(1);
            assert_eq!(pace.check(SECOND * 10), Ok(()));
        }
        pace.note_waited(SECOND);
        pace.note_moved(LEAST_MOVED as usize - 10);
        let (waited, moved) = (SECOND * 10, LEAST_MOVED - 1);
        assert_eq!(pace.check(waited), Err(TooSlow { waited, moved }));
        // Unless the rest was there by then.
        pace.note_moved(1);
        assert_eq!(pace.check(waited), Ok(()));
    }
}
