//! Whose turn it is to work.
//!
//! Most of a row's time somebody waits for somebody else's patience to end, and a few dozen rows can do that at once. But only a few of
//! them can start processes and move guests, or none has the time that its limits allow.

use std::sync::{Condvar, Mutex};

use crate::party::lock;

/// Rows that work at once, for each processor.
const EACH: usize = 4;

/// How many rows work.
static WORKING: Mutex<usize> = Mutex::new(0);
static CHANGED: Condvar = Condvar::new();

/// The turn of a row. It ends when this is dropped.
pub struct Turn(());

impl Turn {
    /// Waits for one.
    pub fn wait() -> Turn {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let most = processors * EACH;
        let mut working = CHANGED
            .wait_while(lock(&WORKING), |working| *working >= most)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *working += 1;
        Turn(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&WORKING) -= 1;
        CHANGED.notify_one();
    }
}
