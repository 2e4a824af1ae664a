//! Signals while something is under way that is to be given up in an orderly manner: Ctrl-C, SIGTERM, a terminal that goes.
//!
//! The first one is noted. Those that come right after it are taken for the same: `timeout` and service managers send
//! theirs to a process and then to all of its group. A later one ends ferryctl at once. Whatever ferryctl runs meanwhile has
//! the ordinary handling: handlers do not outlive `execve`.

use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};

static NOTED: AtomicI32 = AtomicI32::new(0);
/// When the first one came, in milliseconds of the monotonic clock; 0 before.
static FIRST: AtomicI64 = AtomicI64::new(0);

const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
/// For so many milliseconds, signals are the same one.
const SAME: i64 = 300;

/// The handler: nothing in here but what a handler may do (signal-safety(7)).
extern "C" fn note(signal: libc::c_int) {
    let now = monotonic().max(1);
    match FIRST.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => NOTED.store(signal, Ordering::Relaxed),
        Err(first) if now - first < SAME => {}
        // Until the handler has returned, the signal waits.
        Err(_) => end_by(signal),
    }
}

fn monotonic() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: It writes to `time` alone.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

/// Notes signals from now on, until it is dropped.
#[derive(Debug)]
pub struct Signals(());

impl Signals {
    /// Begins to note them, save those that ferryctl was started to ignore.
    pub fn note() -> Self {
        for signal in SIGNALS {
            if set(signal, note as *const () as libc::sighandler_t) == Some(libc::SIG_IGN) {
                set(signal, libc::SIG_IGN);
            }
        }
        Signals(())
    }

    /// The signal that has come, if one has.
    pub fn noted(&self) -> Option<libc::c_int> {
        match NOTED.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for signal in SIGNALS {
            if set(signal, libc::SIG_DFL) == Some(libc::SIG_IGN) {
                set(signal, libc::SIG_IGN);
            }
        }
    }
}

/// Has `signal` handled, and says how it was handled before.
fn set(signal: libc::c_int, handler: libc::sighandler_t) -> Option<libc::sighandler_t> {
    // SAFETY: All zeros are a valid `sigaction`, with an empty mask.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    action.sa_sigaction = handler;
    // SAFETY: Both point to valid structures, and the handler does only what handlers may do.
    match unsafe { libc::sigaction(signal, &action, &mut before) } {
        0 => Some(before.sa_sigaction),
        _ => None,
    }
}

/// Ends ferryctl as the signal does by itself, so that who has started it sees why.
pub fn end_by(signal: libc::c_int) {
    set(signal, libc::SIG_DFL);
    // SAFETY: It takes no pointers.
    unsafe { libc::raise(signal) };
}

/// Sends a signal to a process that was started here and not waited for yet; to its whole group if it leads one.
pub fn send(process: u32, whole: Whole, signal: libc::c_int) {
    let Ok(process) = libc::pid_t::try_from(process) else {
        return;
    };
    let target = match whole {
        Whole::Group => -process,
        Whole::Process => process,
    };
    // SAFETY: It takes no pointers. One that has ended in between takes no harm.
    unsafe { libc::kill(target, signal) };
}

/// To whom a signal goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// To one process.
    Process,
    /// To all in the group that it leads.
    Group,
}
