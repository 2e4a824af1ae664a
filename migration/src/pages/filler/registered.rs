//! What is registered with the kernel, for a handler of SIGBUS to find.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use linux_raw_sys::general::uffdio_range;
use linux_raw_sys::ioctl::UFFDIO_UNREGISTER;

/// No descriptor.
const NONE: RawFd = -1;
/// So often SIGBUS is taken for a page that is missing: each thread that touches RAM may have had one before the first one's handler is
/// done. Behind that it is something else, and not waited for for ever.
const CHANCES: u32 = 64;

/// Addresses at which pages that are missing raise SIGBUS. Those of a free one are zero.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    /// What undoes that.
    calls: AtomicI32,
    chances: AtomicU32,
}

/// Two regions for the guest that comes, and some more for tests, which have several at once.
static SLOTS: [Slot; 64] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        calls: AtomicI32::new(NONE),
        chances: AtomicU32::new(0),
    }
}; 64];

/// Addresses that are registered as long as this lives. It ends when no other thread touches them any more: a handler may be at work
/// meanwhile.
pub(super) struct Registered {
    slot: &'static Slot,
}

impl Registered {
    /// Notes what was registered with `calls`, which has to outlive this; not if there are too many.
    pub(super) fn note(addresses: Range<usize>, calls: &OwnedFd) -> Option<Self> {
        let claim = |slot: &&Slot| {
            let claimed =
                slot.start
                    .compare_exchange(0, addresses.start, Ordering::SeqCst, Ordering::SeqCst);
            claimed.is_ok()
        };
        let slot = SLOTS.iter().find(claim)?;
        slot.end.store(addresses.end, Ordering::SeqCst);
        slot.chances.store(CHANCES, Ordering::SeqCst);
        slot.calls.store(calls.as_raw_fd(), Ordering::SeqCst);
        Some(Registered { slot })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.slot.unregister();
        self.slot.calls.store(NONE, Ordering::SeqCst);
        self.slot.end.store(0, Ordering::SeqCst);
        self.slot.start.store(0, Ordering::SeqCst);
    }
}

impl Slot {
    fn addresses(&self) -> Range<usize> {
        self.start.load(Ordering::SeqCst)..self.end.load(Ordering::SeqCst)
    }

    /// Lets pages be made by being touched again, if they were not; says whether they are now.
    fn unregister(&self) -> bool {
        let calls = self.calls.load(Ordering::SeqCst);
        if calls == NONE {
            return false;
        }
        let addresses = self.addresses();
        let mut range = uffdio_range {
            start: addresses.start as u64,
            len: addresses.len() as u64,
        };
        // SAFETY: the structure is what this request takes, and the descriptor is open as long as the slot has it. What is unregistered
        // is memory as any other.
        unsafe { libc::ioctl(calls, UFFDIO_UNREGISTER.into(), &raw mut range) == 0 }
    }

    fn take_chance(&self) -> bool {
        let less = |chances: u32| chances.checked_sub(1);
        let taken = self
            .chances
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        taken.is_ok()
    }
}

/// For a handler of SIGBUS: whether the page at this address was missing because a [`Filler`](super::Filler) was to make it, and is made
/// if it is touched again. The filler is of no use from now on. Does only what a signal handler may do.
///
/// A back-end brings this about that makes holes in RAM, which it has mapped.
pub fn make_missing(address: usize) -> bool {
    let has = |slot: &&Slot| slot.addresses().contains(&address);
    let slot = SLOTS.iter().find(has);
    slot.is_some_and(|slot| slot.take_chance() && slot.unregister())
}
