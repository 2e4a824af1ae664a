//! Ferry's own terminal while the guest's serial port leads to it.
//!
//! In raw mode every key goes to the guest: no echo, no line editing, no signals from keys. The
//! terminal is put back when [`RawMode`] is dropped, and by [`restore`] where nothing is dropped any
//! more: in a panic (Ferry's release build aborts), and before `process::exit`.

use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, Once, PoisonError};

/// The settings to go back to, while the terminal is raw.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

/// The terminal is raw as long as this lives.
#[derive(Debug)]
#[must_use = "the terminal is put back when this is dropped"]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal on standard input raw; `None` if there is none.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let original = attributes(stdin.as_raw_fd())?;
        let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.is_some() {
            return Err(io::Error::other("the terminal is raw already"));
        }
        set_attributes(stdin.as_raw_fd(), &raw(original))?;
        *saved = Some(original);
        drop(saved);
        PANIC_HOOK.call_once(restore_on_panic);
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back, if it is raw. May be called at any time, from any thread.
pub fn restore() {
    let original = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(original) = original {
        // Nothing can be done about a terminal that has gone away.
        let _ = set_attributes(io::stdin().as_raw_fd(), &original);
    }
}

fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}

/// Raw for input. Output keeps its processing: a line break of Ferry's own messages would otherwise
/// not go back to the first column.
fn raw(mut settings: libc::termios) -> libc::termios {
    settings.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON);
    settings.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    settings.c_cc[libc::VMIN] = 1;
    settings.c_cc[libc::VTIME] = 0;
    settings
}

fn attributes(fd: i32) -> io::Result<libc::termios> {
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: `settings` has room for a termios, which the call fills in when it succeeds.
    if unsafe { libc::tcgetattr(fd, settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded.
    Ok(unsafe { settings.assume_init() })
}

fn set_attributes(fd: i32, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` is a valid termios, which the call only reads.
    if unsafe { libc::tcsetattr(fd, libc::TCSANOW, settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
