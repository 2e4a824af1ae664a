//! The user's terminal in raw mode, so that every key reaches the machine behind it.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};

/// Raw mode, until dropped.
pub struct RawTerminal {
    before: Option<libc::termios>,
}

impl RawTerminal {
    /// Switches standard input to raw mode, if it is a terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter() -> Result<Self> {
        let mut settings = MaybeUninit::uninit();
        // SAFETY: tcgetattr writes one termios, for which there is room.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) } != 0 {
            return Ok(Self { before: None });
        }
        // SAFETY: tcgetattr succeeded, so it has filled the structure in.
        let before: libc::termios = unsafe { settings.assume_init() };
        let mut raw = before;
        // SAFETY: cfmakeraw only changes the structure it is given.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        set(&raw)?;
        Ok(Self {
            before: Some(before),
        })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone; there is nobody left to tell.
            let _ = set(before);
        }
    }
}

fn set(settings: &libc::termios) -> Result<()> {
    // SAFETY: the structure came from tcgetattr and is only read.
    let result = unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot change the terminal's mode");
    }
    Ok(())
}
