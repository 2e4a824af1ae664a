//! A connected socket that never blocks by itself, with or without TLS on it, and waiting for it.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};

use super::handles::Handles;
use super::tls::{Handshake, Session};
use crate::pages::{Piece, Staged};
use crate::watch::Watch;

/// How often a wait looks whether it was cancelled.
pub(super) const TICK: Duration = Duration::from_millis(20);
/// After this time without traffic the kernel asks whether the other side is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How much a unix socket may hold, which the kernel's limit cuts.
const UNIX_BUFFER: usize = 1 << 20;

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Read,
    Write,
    Both,
}

/// Why a wait ended.
pub(super) enum Waited {
    Ready,
    /// The deadline has passed.
    Late,
    Cancelled,
}

/// What follows the head of a frame.
pub(super) enum Rest<'a> {
    Bytes(&'a [u8]),
    /// Pages that the kernel borrows.
    Lent(Staged<'a>),
}

pub(super) struct Transport {
    socket: Socket,
    is_unix: bool,
    tls: Option<Box<Session>>,
    /// Where descriptors can come.
    handles: Option<Handles>,
}

impl Transport {
    /// Of a socket that is connected.
    pub(super) fn new(socket: Socket, tls: Option<Session>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let is_unix = socket.local_addr()?.is_unix();
        match is_unix {
            // TCP finds the right size by itself.
            true => {
                socket.set_send_buffer_size(UNIX_BUFFER)?;
                socket.set_recv_buffer_size(UNIX_BUFFER)?;
            }
            false => {
                socket.set_tcp_nodelay(true)?;
                let keep_alive = socket2::TcpKeepalive::new()
                    .with_time(KEEP_ALIVE)
                    .with_interval(KEEP_ALIVE);
                socket.set_tcp_keepalive(&keep_alive)?;
            }
        }
        let tls = tls.map(Box::new);
        Ok(Transport {
            socket,
            is_unix,
            tls,
            handles: None,
        })
    }

    /// What has arrived; 0 bytes is the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match (&mut self.tls, &mut self.handles) {
            (None, None) => retried(|| (&self.socket).read(buffer)),
            (None, Some(handles)) => retried(|| handles.receive(&self.socket, buffer)),
            (Some(session), _) => session.read(&self.socket, buffer),
        }
    }

    /// Whether bytes come as they are, and nothing beside them: then they can be received anywhere.
    pub(super) fn is_plain(&self) -> bool {
        self.tls.is_none() && self.handles.is_none()
    }

    /// As [`Transport::read`], behind the first `there` bytes of a piece of RAM. Only where the transport is plain.
    pub(super) fn read_into(&self, piece: &Piece<'_>, there: usize) -> io::Result<usize> {
        debug_assert!(self.is_plain());
        retried(|| piece.receive(&self.socket, there))
    }

    /// Whether pages can be lent to the kernel. Over TCP it may hold on to them even when the other side has them.
    pub(super) fn borrows(&self) -> bool {
        self.is_unix && self.is_plain()
    }

    /// Lends pages to the kernel, as many as it takes, and leaves the others.
    pub(super) fn lend(&self, pages: &mut Staged<'_>) -> io::Result<()> {
        let mut at = pages.at;
        // Here the kernel cannot be told not to send a SIGPIPE; who begins in Rust ignores it.
        let lent = retried(|| {
            let bytes = pages.bytes.len();
            let lent = rustix::fs::sendfile(&self.socket, pages.file, Some(&mut at), bytes);
            Ok(lent?)
        })?;
        if lent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        *pages = pages.rest(lent);
        Ok(())
    }

    /// Sends descriptors with the next byte.
    pub(super) fn give(&mut self, handles: Vec<OwnedFd>) {
        self.handles.get_or_insert_default().give(handles);
    }

    /// Takes descriptors that come from now on.
    pub(super) fn expect_handles(&mut self) {
        self.handles.get_or_insert_default();
    }

    /// Takes so many of the descriptors that have come.
    pub(super) fn take_handles(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        self.handles.as_mut()?.take(count)
    }

    /// Takes as much as there is room for.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (&mut self.tls, &mut self.handles) {
            (None, None) => send(&self.socket, slices),
            (None, Some(handles)) => retried(|| handles.send(&self.socket, slices)),
            (Some(session), _) => session.write(&self.socket, slices),
        }
    }

    /// How far TLS has come.
    pub(super) fn handshake(&self) -> Handshake {
        match &self.tls {
            None => Handshake::Absent,
            Some(session) => session.handshake(),
        }
    }

    /// Whether something that was taken is not with the kernel yet.
    pub(super) fn has_pending(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_pending())
    }

    /// Hands the kernel what is pending.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(session) => session.flush(&self.socket),
        }
    }

    /// Says that nothing more comes.
    pub(super) fn shut(&mut self) {
        let _ = self.flush();
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    pub(super) fn poll_entry(&self, want: Want) -> libc::pollfd {
        let read = libc::POLLIN | libc::POLLRDHUP;
        let events = match want {
            Want::Read if self.has_pending() => read | libc::POLLOUT,
            Want::Read => read,
            Want::Write => libc::POLLOUT,
            Want::Both => read | libc::POLLOUT,
        };
        poll_entry(self.socket.as_raw_fd(), events)
    }

    /// Waits until the socket is ready, in small steps. An error of the socket is for the next read or write to find.
    pub(super) fn wait(
        &self,
        want: Want,
        watch: &dyn Watch,
        deadline: Instant,
    ) -> io::Result<Waited> {
        loop {
            if watch.cancelled() {
                return Ok(Waited::Cancelled);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if poll(&mut [self.poll_entry(want)], left.min(TICK))? {
                return Ok(Waited::Ready);
            }
            if left.is_zero() {
                return Ok(Waited::Late);
            }
        }
    }

    /// Whether a read would find something, or the end.
    pub(super) fn has_input(&self) -> bool {
        if self.tls.as_ref().is_some_and(|tls| tls.has_input()) {
            return true;
        }
        let mut entry = [poll_entry(
            self.socket.as_raw_fd(),
            libc::POLLIN | libc::POLLRDHUP,
        )];
        poll(&mut entry, Duration::ZERO).unwrap_or(true)
    }
}

/// Writes without a SIGPIPE.
pub(super) fn send(socket: &Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let socket = SockRef::from(socket);
    retried(|| socket.send_vectored_with_flags(slices, libc::MSG_NOSIGNAL))
}

fn retried(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            result => return result,
        }
    }
}

pub(super) fn poll_entry(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// Whether one of them is ready in time. A signal counts as: not yet.
pub(super) fn poll(entries: &mut [libc::pollfd], timeout: Duration) -> io::Result<bool> {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: the entries are as many as is said, and the time is a valid one that outlives the call.
    let ready = unsafe {
        libc::ppoll(
            entries.as_mut_ptr(),
            entries.len() as libc::nfds_t,
            &timeout,
            std::ptr::null(),
        )
    };
    match ready {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        ready => Ok(ready > 0),
    }
}
