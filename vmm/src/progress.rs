//! What the meters of long jobs are made of.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ferry_api::snapshot::DeviceProgress;

/// How often a job that waits looks whether it has been given up.
pub const LOOK: Duration = Duration::from_millis(20);

/// A job has been given up, or nobody is left for whom it could do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp;

/// It can be given up.
const UNDECIDED: u8 = 0;
/// It has been given up.
const CANCELLED: u8 = 1;
/// It is past the point at which it could be given up.
const COMMITTED: u8 = 2;

/// Whether a job is given up, or cannot be any more. The first to decide does so for good.
#[derive(Default)]
pub struct Decision(AtomicU8);

impl Decision {
    /// Gives the job up, unless that is not possible any more.
    pub fn cancel(&self) {
        self.decide(CANCELLED);
    }

    /// From now on the job cannot be given up, unless it has been. Returns whether it was so.
    pub fn commit(&self) -> bool {
        self.decide(COMMITTED);
        !self.is_cancelled()
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst) == CANCELLED
    }

    /// Waits for something to arrive; nothing at the deadline.
    ///
    /// # Errors
    /// [`GivenUp`], soon after the job was given up, or once nobody is left who could send anything.
    pub fn wait<T>(&self, receiver: &Receiver<T>, deadline: Instant) -> Result<Option<T>, GivenUp> {
        loop {
            if self.is_cancelled() {
                return Err(GivenUp);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left.min(LOOK)) {
                Ok(item) => return Ok(Some(item)),
                Err(RecvTimeoutError::Disconnected) => return Err(GivenUp),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn decide(&self, decision: u8) {
        let order = Ordering::SeqCst;
        // If it is decided already, it stays so.
        let _ = self.0.compare_exchange(UNDECIDED, decision, order, order);
    }
}

/// A stretch of time that has not begun, goes on, or has ended.
#[derive(Clone, Copy, Default)]
pub struct Stretch {
    begun: Option<Instant>,
    ended: Option<Instant>,
}

impl Stretch {
    pub fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    pub fn begin_at(&mut self, begun: Instant) {
        self.begun.get_or_insert(begun);
    }

    pub fn begun(&self) -> Option<Instant> {
        self.begun
    }

    pub fn end(&mut self) {
        self.end_at(Instant::now());
    }

    pub fn end_at(&mut self, ended: Instant) {
        self.ended.get_or_insert(ended);
    }

    pub fn has_begun(self) -> bool {
        self.begun.is_some()
    }

    pub fn length(self) -> Duration {
        let end = self.ended.unwrap_or_else(Instant::now);
        self.begun
            .map_or(Duration::ZERO, |begun| end.duration_since(begun))
    }
}

/// How far the state of one back-end is.
pub struct Device {
    pub id: String,
    pub bytes: u64,
    pub time: Stretch,
    pub checked: bool,
}

impl Device {
    pub fn new(id: String) -> Self {
        Device {
            id,
            bytes: 0,
            time: Stretch::default(),
            checked: false,
        }
    }

    pub fn progress(&self) -> DeviceProgress {
        let Device {
            id,
            bytes,
            time,
            checked,
        } = self;
        DeviceProgress {
            id: id.clone(),
            bytes: *bytes,
            elapsed: time.length(),
            checked: *checked,
        }
    }
}

/// The steps so far, each with its time; `now` is the end of the last one.
pub fn lengths<T: Copy>(steps: &[(T, Instant)], now: Instant) -> Vec<(T, Duration)> {
    let ends = steps.iter().skip(1).map(|(_, begun)| *begun);
    let steps = steps.iter().zip(ends.chain([now]));
    steps
        .map(|((step, begun), end)| (*step, end.duration_since(*begun)))
        .collect()
}
