//! What the guest has sent and the far end has not taken yet: a bounded queue.
//!
//! Pushing never waits. The serial thread is woken through an eventfd, but only when it sleeps: a
//! guest that sends a whole screen causes one wake-up and not two thousand.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::loss::Loss;

/// The most bytes that wait. When there are more, the oldest are lost.
pub const OUTPUT_MOST: usize = 1 << 20;
/// A queue that once was long gives its memory back down to this many bytes.
const OUTPUT_KEPT: usize = 4096;

/// The queue.
#[derive(Debug)]
pub struct Output {
    state: Mutex<State>,
    drained: Condvar,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Bytes that the serial thread has taken and not written yet.
    taken: usize,
    reader: Reader,
    /// Bytes lost since the start.
    lost: u64,
    loss: Loss,
}

/// The serial thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reader {
    /// Will look into the queue again without being woken.
    #[default]
    Busy,
    /// Sleeps until it is woken.
    Asleep,
    /// Has nobody to write to for now.
    Unconnected,
    /// Will never write again: output is thrown away.
    Gone,
}

impl Output {
    /// An empty queue.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            drained: Condvar::new(),
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.state();
        if state.reader == Reader::Gone {
            return;
        }
        for byte in bytes {
            if state.bytes.len() >= OUTPUT_MOST {
                state.bytes.pop_front();
                state.lost += 1;
                state.loss.add(1);
            }
            state.bytes.push_back(*byte);
        }
        let lossy = state.loss.falls_due(Instant::now);
        let asleep = state.reader == Reader::Asleep;
        if asleep {
            state.reader = Reader::Busy;
        }
        drop(state);
        if asleep || lossy {
            self.wake();
        }
    }

    /// Puts what was left in another process before all that comes.
    pub fn refill(&self, bytes: &[u8]) {
        let mut state = self.state();
        if state.reader != Reader::Gone {
            state.bytes.extend(bytes);
        }
    }

    /// What is left: `taken` is what the serial thread has not written yet, and it writes no more for now.
    pub fn rest(&self, taken: &[u8]) -> Vec<u8> {
        let state = self.state();
        let (front, back) = state.bytes.as_slices();
        [taken, front, back].concat()
    }

    /// Takes up to `most` bytes into `chunk`, which is empty. If there are none, the caller is about
    /// to sleep: the next push wakes it.
    pub fn take(&self, chunk: &mut Vec<u8>, most: usize) {
        let mut state = self.state();
        let count = state.bytes.len().min(most);
        chunk.extend(state.bytes.drain(..count));
        state.taken = count;
        if count > 0 {
            state.reader = Reader::Busy;
            return;
        }
        state.reader = Reader::Asleep;
        state.bytes.shrink_to(OUTPUT_KEPT);
        drop(state);
        self.drained.notify_all();
    }

    /// `count` of the bytes taken have been written.
    pub fn written(&self, count: usize) {
        let mut state = self.state();
        state.taken = state.taken.saturating_sub(count);
        let empty = state.remaining() == 0;
        drop(state);
        if empty {
            self.drained.notify_all();
        }
    }

    /// `count` of the bytes taken cannot be written and are lost. Returns whether that is to be told now.
    pub fn give_up(&self, count: usize) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        state.lost += count as u64;
        state.loss.add(count as u64);
        state.loss.falls_due(|| now);
        let told = state.loss.tell_begin(now);
        drop(state);
        self.written(count);
        told
    }

    /// There is nobody to write to until [`Output::connected`].
    pub fn unconnected(&self) {
        let mut state = self.state();
        if state.reader != Reader::Gone {
            state.reader = Reader::Unconnected;
        }
        drop(state);
        self.drained.notify_all();
    }

    /// There is somebody to write to again.
    pub fn connected(&self) {
        let mut state = self.state();
        if state.reader == Reader::Unconnected {
            state.reader = Reader::Busy;
        }
    }

    /// From now on, output is thrown away.
    pub fn discard(&self) {
        let mut state = self.state();
        state.reader = Reader::Gone;
        state.bytes = VecDeque::new();
        state.taken = 0;
        drop(state);
        self.drained.notify_all();
    }

    /// Whether it is to be told now that bytes get lost.
    pub fn loss_begun(&self) -> bool {
        self.state().loss.tell_begin(Instant::now())
    }

    /// How many bytes were lost, once the far end has caught up after a loss that was told.
    pub fn loss_ended(&self) -> Option<u64> {
        let mut state = self.state();
        // A guest that fills the queue as fast as it empties has one long loss, not one per write.
        match state.bytes.len() < OUTPUT_MOST / 2 {
            true => state.loss.tell_end(),
            false => None,
        }
    }

    /// Bytes lost since the start.
    pub fn lost(&self) -> u64 {
        self.state().lost
    }

    /// Waits until nothing remains, or `limit` has passed, or there is nobody to wait for. Returns
    /// what remains.
    pub fn flush(&self, limit: Duration) -> usize {
        let end = Instant::now() + limit;
        let mut state = self.state();
        while state.remaining() > 0 && state.reader != Reader::Unconnected {
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                break;
            };
            let waited = self.drained.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.remaining()
    }

    /// Wakes the serial thread.
    pub fn wake(&self) {
        // The only failure is a counter at its maximum, and then the thread is awake already.
        let _ = self.wake.write(1);
    }

    /// What the serial thread sleeps on.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }
}

impl State {
    fn remaining(&self) -> usize {
        self.bytes.len() + self.taken
    }
}
