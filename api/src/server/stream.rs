//! A connection's bytes, between tokio and hyper, with the phase that they show.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use super::table::{Entry, Phase};

/// How much is read at once, in bytes.
const READ: usize = 4096;

/// A client's connection.
#[derive(Debug)]
pub struct Stream {
    inner: UnixStream,
    entry: Rc<Entry>,
}

impl Stream {
    /// `entry` follows what the bytes show.
    pub fn new(inner: UnixStream, entry: Rc<Entry>) -> Self {
        Stream { inner, entry }
    }

    /// The client has closed the whole connection, and not only its sending half.
    fn hung_up(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.inner.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: `poll` is one valid pollfd; a timeout of zero does not wait.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
        ready < 0 || poll.revents & (libc::POLLHUP | libc::POLLERR) != 0
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut space = [0; READ];
        let length = cursor.remaining().min(READ);
        let mut buffer = ReadBuf::new(&mut space[..length]);
        match Pin::new(&mut this.inner).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        let read = buffer.filled();
        let phase = this.entry.phase();
        if read.is_empty() && length > 0 {
            // A client may close its sending half as soon as it has sent its request, and still wants the answer.
            if matches!(phase, Phase::Answering | Phase::Writing) && !this.hung_up() {
                return Poll::Pending;
            }
        } else if phase == Phase::Idle {
            this.entry.enter(Phase::Receiving);
        }
        cursor.put_slice(read);
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(context);
        // Hyper flushes once all that it has is written.
        if flushed.is_ready() && this.entry.phase() == Phase::Writing {
            this.entry.enter(Phase::Idle);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}
