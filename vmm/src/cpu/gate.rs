//! The word of the machine's owner to all of its vCPUs.
//!
//! ```text
//!            park                 release
//!  running ───────▶ parked ─────────────────▶ running
//!     │                │  ▲ or from the beginning
//!     └───── end ──────┴──────▶ ended
//! ```
//!
//! The owner says what it wants, then signals the threads, so that they leave KVM and look. Nothing here waits for
//! anything but vCPUs, whose way out of KVM waits for no one.
//!
//! Parked vCPUs run *errands* for the owner, each on its own thread, all at the same time. They count as parked
//! meanwhile. An errand that takes longer than the owner waits is not interrupted: its vCPU looks for new orders
//! when it has come to its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::vcpu::GuestEnd;

/// What the owner wants of every vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Run the guest.
    Run,
    /// Stand still between two instructions, with nothing half-done.
    Park,
    /// End the thread.
    End,
}

/// What a vCPU that asked is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Go on. So many ticks of the host's TSC, since the machine's first instruction, are not to be seen by the guest.
    Run { hidden_ticks: u64 },
    /// End.
    End,
}

/// Why vCPUs do not stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotParked {
    /// There is nothing left to be parked.
    #[error("the guest has just ended")]
    GuestEnded,
    /// They run on.
    #[error("{count} vCPUs did not stop within {limit:?}")]
    Late {
        /// How many.
        count: usize,
        /// How long they were waited for.
        limit: Duration,
    },
}

/// What a parked vCPU does for the owner; it is given the vCPU's index.
pub type Errand = Arc<dyn Fn(u8, &VcpuFd) + Send + Sync>;

/// Only vCPUs that are all parked can be sent on an errand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAllHere;

/// Where vCPUs are held.
pub struct Gate {
    word: Mutex<Word>,
    changed: Condvar,
    /// Whether something else than running is wanted: what a vCPU looks at between any two exits.
    attention: AtomicBool,
}

struct Word {
    wanted: Wanted,
    /// vCPUs that are neither parked nor ended.
    running: usize,
    /// Whether the guest has ended by itself.
    guest_ended: bool,
    hidden_ticks: u64,
    /// Until then vCPUs are held back, though they are to run.
    hold_until: Option<Instant>,
    /// How many errands there have been, and the last one, until it is done.
    errands: u64,
    errand: Option<Errand>,
}

impl Gate {
    /// A gate for `count` vCPUs, of which that is wanted first, with so many ticks hidden already.
    pub fn new(count: usize, wanted: Wanted, hidden_ticks: u64) -> Self {
        Gate {
            word: Mutex::new(Word {
                wanted,
                running: count,
                guest_ended: false,
                hidden_ticks,
                hold_until: None,
                errands: 0,
                errand: None,
            }),
            changed: Condvar::new(),
            attention: AtomicBool::new(wanted != Wanted::Run),
        }
    }

    /// Says what the vCPUs are to do. Those in the guest look once they have been signalled.
    pub fn want(&self, wanted: Wanted) {
        let mut word = self.word();
        word.wanted = wanted;
        self.attention
            .store(wanted != Wanted::Run, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Holds vCPUs that run for so long. Those in the guest look once they have been signalled.
    pub fn hold(&self, time: Duration) {
        let mut word = self.word();
        word.hold_until = Some(Instant::now() + time);
        self.attention.store(true, Ordering::SeqCst);
    }

    /// Lets parked vCPUs go on, and hides `ticks` more of the host's TSC from the guest.
    pub fn release(&self, ticks: u64) {
        let mut word = self.word();
        word.hidden_ticks = word.hidden_ticks.wrapping_add(ticks);
        drop(word);
        self.want(Wanted::Run);
    }

    /// Waits until every vCPU is parked.
    pub fn wait_parked(&self, limit: Duration) -> Result<(), NotParked> {
        let running = |word: &mut Word| word.running > 0;
        let (word, _) = self
            .changed
            .wait_timeout_while(self.word(), limit, running)
            .unwrap_or_else(PoisonError::into_inner);
        match word.running {
            // One that has ended has said so before it left.
            0 if word.guest_ended => Err(NotParked::GuestEnded),
            0 => Ok(()),
            count => Err(NotParked::Late { count, limit }),
        }
    }

    /// Sends all vCPUs, which are parked, on an errand.
    pub fn send(&self, errand: Errand) -> Result<(), NotAllHere> {
        let mut word = self.word();
        if word.wanted != Wanted::Park || word.running > 0 || word.guest_ended {
            return Err(NotAllHere);
        }
        word.errands += 1;
        word.errand = Some(errand);
        self.changed.notify_all();
        Ok(())
    }

    /// Nobody who has not set out on the errand yet shall do so any more.
    pub fn call_off(&self) {
        self.word().errand = None;
    }

    /// Whether a vCPU has to ask for an [`Order`].
    pub fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// Called by a vCPU that stands between two instructions: holds it for as long as it is to be parked, and has it
    /// run the owner's errands through `run` meanwhile.
    pub fn pass(&self, mut run: impl FnMut(&Errand)) -> Order {
        let mut word = self.word();
        if word.wanted == Wanted::Park {
            word.running -= 1;
            self.changed.notify_all();
            // Errands begin only once all vCPUs are here, so those that there have been are not this one's.
            let mut seen = word.errands;
            while word.wanted == Wanted::Park {
                if seen == word.errands {
                    word = self
                        .changed
                        .wait(word)
                        .unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                seen = word.errands;
                if let Some(errand) = word.errand.clone() {
                    drop(word);
                    run(&errand);
                    drop(errand);
                    word = self.word();
                }
            }
            word.running += 1;
        }
        while word.wanted == Wanted::Run
            && let Some(until) = word.hold_until
        {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                word.hold_until = None;
                self.attention.store(false, Ordering::SeqCst);
                break;
            }
            let waited = self.changed.wait_timeout(word, left);
            word = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match word.wanted {
            Wanted::End => Order::End,
            Wanted::Run | Wanted::Park => Order::Run {
                hidden_ticks: word.hidden_ticks,
            },
        }
    }

    /// Called by a vCPU whose thread ends; `end` is how the guest ended, if it did so by itself.
    pub fn leave(&self, end: Option<&GuestEnd>) {
        let mut word = self.word();
        word.running -= 1;
        word.guest_ended |= end.is_some();
        self.changed.notify_all();
    }

    fn word(&self) -> MutexGuard<'_, Word> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
