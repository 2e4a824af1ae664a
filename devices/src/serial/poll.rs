//! Waiting for several file descriptors at once.

use std::io;
use std::os::fd::AsRawFd;

/// What to wait for on a file descriptor.
#[derive(Clone, Copy, Debug)]
pub enum Interest {
    /// Bytes to read, a connection to accept, or the end.
    Read,
    /// Room for bytes, or nobody to take them any more.
    Write,
    /// That the other side has gone away.
    HangUp,
}

/// A file descriptor to wait for; none is never ready.
pub fn entry(fd: Option<&impl AsRawFd>, interest: Interest) -> libc::pollfd {
    libc::pollfd {
        // poll(2) skips negative descriptors.
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: match interest {
            Interest::Read => libc::POLLIN,
            Interest::Write => libc::POLLOUT,
            Interest::HangUp => 0,
        },
        revents: 0,
    }
}

/// Whether what an entry waits for has come.
pub fn ready(entry: &libc::pollfd) -> bool {
    entry.revents != 0
}

/// Waits until at least one entry is ready.
pub fn wait(entries: &mut [libc::pollfd]) -> io::Result<()> {
    let count = entries.len() as libc::nfds_t;
    loop {
        // SAFETY: `entries` holds `count` valid entries for the time of the call.
        if unsafe { libc::poll(entries.as_mut_ptr(), count, -1) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
