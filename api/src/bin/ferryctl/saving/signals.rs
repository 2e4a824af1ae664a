//! Ctrl-C and SIGTERM while something is under way that is to be given up in an orderly manner.
//!
//! The first one is noted, the second one ends ferryctl at once. Whatever ferryctl runs meanwhile has the ordinary
//! handling: handlers do not outlive `execve`.

use std::sync::atomic::{AtomicI32, Ordering};

static NOTED: AtomicI32 = AtomicI32::new(0);

const SIGNALS: [libc::c_int; 2] = [libc::SIGINT, libc::SIGTERM];

extern "C" fn note(signal: libc::c_int) {
    NOTED.store(signal, Ordering::Relaxed);
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

/// Has `signal` handled, and says how it was handled before. A handler is used once.
fn set(signal: libc::c_int, handler: libc::sighandler_t) -> Option<libc::sighandler_t> {
    // SAFETY: All zeros are a valid `sigaction`, with an empty mask.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESETHAND;
    // SAFETY: Both point to valid structures, and the handler does nothing but store to an atomic.
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
