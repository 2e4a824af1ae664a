//! A pseudo-terminal as the far end.

use std::ffi::{CStr, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::SerialError;
use super::sink::{Failure, Line, duplicate};

/// A new pseudo-terminal.
pub struct Pty {
    /// What the serial thread serves.
    pub line: Line,
    /// What clients open.
    pub path: PathBuf,
}

/// Makes a pseudo-terminal in raw mode. Its client side stays open here, too, so that output before
/// the first client and between two of them is kept, and a client that leaves is no hang-up.
pub fn open() -> Result<Pty, SerialError> {
    make().map_err(|cause| SerialError::Setup {
        what: "a pseudo-terminal",
        cause,
    })
}

fn make() -> io::Result<Pty> {
    let master = File::from(open_master()?);
    let path = unlock(&master)?;
    let client = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(&path)?;
    set_raw(&client)?;

    let line = line(master, client.into())?;
    Ok(Pty { line, path })
}

/// A pseudo-terminal that another process has made, of which there are both sides.
pub fn of_another(master: File, client: OwnedFd) -> io::Result<Pty> {
    let path = path_of(&master)?;
    Ok(Pty {
        line: line(master, client)?,
        path,
    })
}

fn line(master: File, client: OwnedFd) -> io::Result<Line> {
    let mut line = Line::new(Failure::Ends);
    line.input = Some(duplicate(&master)?);
    line.output = Some(master);
    line.keep = Some(client);
    Ok(line)
}

fn open_master() -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::posix_openpt(flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets clients open their side, and returns its path.
fn unlock(master: &File) -> io::Result<PathBuf> {
    let fd = master.as_raw_fd();
    // SAFETY: `fd` is an open pseudo-terminal.
    if unsafe { libc::grantpt(fd) } != 0 || unsafe { libc::unlockpt(fd) } != 0 {
        return Err(io::Error::last_os_error());
    }
    path_of(master)
}

fn path_of(master: &File) -> io::Result<PathBuf> {
    let fd = master.as_raw_fd();
    let mut name = [0_u8; 128];
    // SAFETY: `name` has room for as many bytes as the call is told.
    let code = unsafe { libc::ptsname_r(fd, name.as_mut_ptr().cast(), name.len()) };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code));
    }
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    Ok(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

fn set_raw(client: &File) -> io::Result<()> {
    let mut settings = std::mem::MaybeUninit::<libc::termios>::uninit();
    // SAFETY: `settings` has room for a termios, which the call fills in when it succeeds.
    if unsafe { libc::tcgetattr(client.as_raw_fd(), settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded.
    let mut settings = unsafe { settings.assume_init() };
    // SAFETY: both calls get a valid termios.
    let code = unsafe {
        libc::cfmakeraw(&raw mut settings);
        libc::tcsetattr(client.as_raw_fd(), libc::TCSANOW, &raw const settings)
    };
    match code {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
