//! Waiting for several file descriptors at once.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// What to wait for on a file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, a connection to accept, or the end.
    Read,
    /// Room for bytes, or nobody to take them any more.
    Write,
    /// Either.
    ReadOrWrite,
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
            Interest::ReadOrWrite => libc::POLLIN | libc::POLLOUT,
            Interest::HangUp => 0,
        },
        revents: 0,
    }
}

/// Whether what an entry waits for has come.
pub fn ready(entry: &libc::pollfd) -> bool {
    entry.revents != 0
}

/// Waits until at least one entry is ready, or until `deadline` has come, which is no error: look at the entries.
pub fn wait(entries: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<()> {
    let count = entries.len() as libc::nfds_t;
    loop {
        let timeout = deadline.map_or(-1, milliseconds_until);
        // SAFETY: `entries` holds `count` valid entries for the time of the call.
        if unsafe { libc::poll(entries.as_mut_ptr(), count, timeout) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether there is something to read at once.
pub fn is_readable(fd: &impl AsRawFd) -> bool {
    let mut entries = [entry(Some(fd), Interest::Read)];
    wait(&mut entries, Some(Instant::now())).is_ok() && ready(&entries[0])
}

/// Rounded up: waking before the deadline would only turn another round.
fn milliseconds_until(deadline: Instant) -> libc::c_int {
    let left: Duration = deadline.saturating_duration_since(Instant::now());
    libc::c_int::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_what_is_ready_says_so_and_none_never_is() {
        let (mut near, far) = UnixStream::pair().unwrap();
        assert!(!is_readable(&far));
        near.write_all(b"x").unwrap();
        assert!(is_readable(&far));
        let mut entries = [
            entry(Some(&far), Interest::Read),
            entry(Some(&near), Interest::Read),
            entry(Some(&near), Interest::ReadOrWrite),
            entry(None::<&UnixStream>, Interest::Read),
        ];
        wait(&mut entries, None).unwrap();
        assert_eq!(
            entries.map(|entry| ready(&entry)),
            [true, false, true, false]
        );
    }

    #[test]
    fn a_deadline_ends_the_wait_and_not_before_it_has_come() {
        let (near, _far) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + Duration::from_millis(3);
        let mut entries = [entry(Some(&near), Interest::Read)];
        wait(&mut entries, Some(deadline)).unwrap();
        assert!(Instant::now() >= deadline);
        assert!(!ready(&entries[0]));
    }
}
