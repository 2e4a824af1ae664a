//! Unix sockets whose making, binding and connecting never waits, and whose mode is known before they have a name.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A stream socket that is neither bound nor connected: non-blocking, and closed on exec.
pub fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects to a listener without waiting for it: a listener whose backlog is full is `WouldBlock`.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let address = Address::new(path)?;
    let socket = socket()?;
    let length = size_of_val(&address.0) as libc::socklen_t;
    // SAFETY: the address is valid and of that length.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address.0).cast(), length) })?;
    Ok(socket)
}

/// Gives `socket` its name, and its file the mode that the socket has, less the umask.
pub fn bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let address = Address::new(path)?;
    let length = size_of_val(&address.0) as libc::socklen_t;
    // SAFETY: the address is valid and of that length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address.0).cast(), length) })
}

/// Lets clients connect, of which `waiting` may not be accepted yet.
pub fn listen(socket: &OwnedFd, waiting: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), waiting) })
}

/// Sets the mode that the file will have.
pub fn set_mode(socket: &OwnedFd, mode: libc::mode_t) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), mode) })
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A path as the address of a socket.
struct Address(libc::sockaddr_un);

impl Address {
    fn new(path: &Path) -> io::Result<Self> {
        // SAFETY: all zeros are a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let invalid = |message| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        let bytes = path.as_os_str().as_bytes();
        // A zero byte at the beginning would be another kind of name.
        if bytes.is_empty() || bytes.contains(&0) {
            return invalid("the path is not one of a socket");
        }
        // One place is for the terminating zero byte.
        if bytes.len() >= address.sun_path.len() {
            return invalid("the path is too long for a socket");
        }
        for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
            *place = *byte as libc::c_char;
        }
        Ok(Self(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_no_sockets_are_refused() {
        for path in ["", "a\0b", &"x".repeat(108)] {
            let error = connect(Path::new(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
        let longest = "x".repeat(107);
        let error = connect(Path::new(&longest)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
