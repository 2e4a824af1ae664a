//! What a guest says on its serial port, and when: each byte is a sign of life, about 30 µs apart in a guest that speaks
//! without a break.

use std::collections::VecDeque;
use std::io::Read;
use std::process::ChildStdout;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::median;

/// What each tick begins with.
const TICK: &[u8] = b"tick";
/// How many of the last signs are remembered.
const REMEMBERED: usize = 4096;

/// The serial port of a guest, read by a thread of its own for as long as it speaks.
#[derive(Clone)]
pub struct Serial(Arc<Shared>);

#[derive(Default)]
struct Shared {
    // Held for a few assignments.
    heard: Mutex<Heard>,
    news: Condvar,
}

#[derive(Default)]
struct Heard {
    signs: VecDeque<Instant>,
    first: Option<Instant>,
    tick: Option<Instant>,
    ended: bool,
}

impl Serial {
    /// Listens to a port that leads to a pipe.
    pub fn listen(mut stdout: ChildStdout) -> Self {
        let serial = Self(Arc::default());
        let shared = serial.0.clone();
        thread::spawn(move || {
            let mut said = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                let now = Instant::now();
                let mut heard = shared.heard();
                heard.first.get_or_insert(now);
                if heard.signs.len() == REMEMBERED {
                    heard.signs.pop_front();
                }
                heard.signs.push_back(now);
                if heard.tick.is_none() {
                    said.extend_from_slice(&buffer[..count]);
                    if said.windows(TICK.len()).any(|window| window == TICK) {
                        heard.tick = Some(now);
                        said = Vec::new();
                        shared.news.notify_all();
                    }
                }
            }
            shared.heard().ended = true;
            shared.news.notify_all();
        });
        serial
    }

    /// Waits for the first tick that this VMM's guest has said, for so long at most; returns when it came.
    ///
    /// # Errors
    /// There is none.
    pub fn first_tick(&self, limit: Duration) -> Result<Instant> {
        let heard = self.0.heard();
        let waited = self
            .0
            .news
            .wait_timeout_while(heard, limit, |heard| heard.tick.is_none() && !heard.ended);
        let (heard, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match heard.tick {
            Some(tick) => Ok(tick),
            None => bail!("the guest does not tick"),
        }
    }

    /// Whether the guest has ticked.
    pub fn has_ticked(&self) -> bool {
        self.0.heard().tick.is_some()
    }

    /// When the first byte came from this VMM's guest.
    pub fn first(&self) -> Option<Instant> {
        self.0.heard().first
    }

    /// When the last byte came, so far.
    pub fn last(&self) -> Option<Instant> {
        self.0.heard().signs.back().copied()
    }

    /// The time between two bytes that is usual for a guest that speaks.
    pub fn usual_pause(&self) -> Duration {
        let heard = self.0.heard();
        let signs = heard.signs.iter();
        let mut pauses: Vec<f64> = std::iter::zip(signs.clone().skip(1), signs)
            .map(|(later, earlier)| later.duration_since(*earlier).as_secs_f64())
            .collect();
        match pauses.is_empty() {
            true => Duration::ZERO,
            false => Duration::from_secs_f64(median(&mut pauses)),
        }
    }
}

impl Shared {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
