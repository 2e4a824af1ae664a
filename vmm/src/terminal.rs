//! Ferry's own terminal while the guest's serial port leads to it.
//!
//! In raw mode every key goes to the guest: no echo, no line editing, no signals from keys. The
//! terminal is put back when [`RawMode`] is dropped, and by [`restore`] where nothing is dropped any
//! more: in a panic (Ferry's release build aborts), and before `process::exit`.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

/// What to go back to, while a terminal is raw.
static SAVED: Mutex<Option<Saved>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

struct Saved {
    terminal: OwnedFd,
    settings: libc::termios,
}

/// The terminal is raw as long as this lives.
#[derive(Debug)]
#[must_use = "the terminal is put back when this is dropped"]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal on standard input raw; `None` if there is none.
    pub fn enter() -> io::Result<Option<Self>> {
        Self::enter_on(io::stdin().as_fd())
    }

    fn enter_on(terminal: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        if !terminal.is_terminal() {
            return Ok(None);
        }
        let terminal = terminal.try_clone_to_owned()?;
        let settings = attributes(&terminal)?;
        let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.is_some() {
            return Err(io::Error::other("a terminal is raw already"));
        }
        set_attributes(&terminal, &raw(settings))?;
        *saved = Some(Saved { terminal, settings });
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
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(saved) = saved {
        // Nothing can be done about a terminal that has gone away.
        let _ = set_attributes(&saved.terminal, &saved.settings);
    }
}

/// As [`restore`], but for a signal handler: nothing is waited for, so that the terminal stays raw if it is just being made so.
pub fn restore_in_handler() {
    if let Ok(saved) = SAVED.try_lock()
        && let Some(saved) = &*saved
    {
        let _ = set_attributes(&saved.terminal, &saved.settings);
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

fn attributes(terminal: &OwnedFd) -> io::Result<libc::termios> {
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: `settings` has room for a termios, which the call fills in when it succeeds.
    if unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded.
    Ok(unsafe { settings.assume_init() })
}

fn set_attributes(terminal: &OwnedFd, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` is a valid termios, which the call only reads.
    if unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;

    use super::*;

    /// Both sides of a new pseudo-terminal.
    struct Pty {
        _master: File,
        terminal: OwnedFd,
    }

    impl Pty {
        fn new() -> Self {
            let (mut master, mut terminal) = (-1, -1);
            let null = std::ptr::null_mut();
            // SAFETY: the descriptors are valid to write to, and the rest may be null.
            let code = unsafe {
                libc::openpty(
                    &raw mut master,
                    &raw mut terminal,
                    null,
                    null.cast(),
                    null.cast(),
                )
            };
            assert_eq!(code, 0);
            // SAFETY: both descriptors are new and nobody else's.
            unsafe {
                Self {
                    _master: File::from_raw_fd(master),
                    terminal: OwnedFd::from_raw_fd(terminal),
                }
            }
        }

        fn local_flags(&self) -> u32 {
            attributes(&self.terminal).unwrap().c_lflag
        }
    }

    // One test, because there is one terminal.
    #[test]
    fn the_terminal_is_put_back_however_it_ends() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(RawMode::enter_on(reader.as_fd()).unwrap().is_none());

        let pty = Pty::new();
        let before = pty.local_flags();
        assert_ne!(before & (libc::ECHO | libc::ISIG), 0);

        let raw = RawMode::enter_on(pty.terminal.as_fd()).unwrap();
        assert_eq!(
            pty.local_flags() & (libc::ECHO | libc::ICANON | libc::ISIG),
            0
        );
        assert!(RawMode::enter_on(pty.terminal.as_fd()).is_err());
        drop(raw);
        assert_eq!(pty.local_flags(), before);

        // A panic that nothing unwinds from, as in the release build.
        let raw = RawMode::enter_on(pty.terminal.as_fd()).unwrap();
        std::mem::forget(raw);
        assert_ne!(pty.local_flags(), before);
        assert!(std::thread::spawn(|| panic!("on purpose")).join().is_err());
        assert_eq!(pty.local_flags(), before);
    }
}
