//! A connection's bytes, between tokio and hyper, with the phase that they show.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use super::response;
use super::table::{Entry, Phase};
use super::{FIELDS_MOST, HEAD_MOST};

/// How much is read at once, in bytes.
const READ: usize = 4096;

/// A client's connection.
#[derive(Debug)]
pub struct Stream {
    inner: UnixStream,
    entry: Rc<Entry>,
    /// What is written in place of hyper's own refusal, as far as it is not written yet.
    refusal: Option<Vec<u8>>,
    reading: Reading,
    head: HeadSize,
}

/// How much of a request's head has arrived.
#[derive(Clone, Copy, Debug, Default)]
struct HeadSize {
    bytes: usize,
    lines: usize,
}

impl HeadSize {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.lines += bytes.iter().filter(|&&byte| byte == b'\n').count();
    }

    /// Whether hyper takes no head of this size, whatever it says.
    fn is_too_much(self) -> bool {
        // The request's line, the fields, and an empty line.
        self.bytes >= HEAD_MOST || self.lines >= FIELDS_MOST + 2
    }
}

/// What hyper knows of the end of what the client sends.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    /// All there is to know.
    Open,
    /// Not that it has come.
    EndHidden,
}

impl Stream {
    /// `entry` follows what the bytes show.
    pub fn new(inner: UnixStream, entry: Rc<Entry>) -> Self {
        Stream {
            inner,
            entry,
            refusal: None,
            reading: Reading::Open,
            head: HeadSize::default(),
        }
    }

    /// What the client gets in place of hyper's own refusal, which has this status.
    fn refusal(&self, status: u16) -> Vec<u8> {
        match status {
            414 | 431 if self.head.is_too_much() => {
                response::unread(431, "the request's head is too long")
            }
            // The same status stands for a length that no body can have.
            414 | 431 => response::unread(413, "the request's body is too long"),
            _ => response::unread(400, "the request is not HTTP/1.1"),
        }
    }

    /// Says that a request could not be read, if hyper has not: it has nothing to say to HTTP/2, and to a head without an
    /// end. There is room for that at once, or the client is none that reads.
    pub fn refuse_unread(&mut self) {
        let nothing_said = self.refusal.is_none() && self.entry.phase() == Phase::Head;
        if nothing_said && !self.hung_up() {
            let _ = self.inner.try_write(&self.refusal(400));
        }
    }

    /// Writes all of Ferry's refusal, and nothing of hyper's.
    fn poll_refusal(
        &mut self,
        context: &mut Context<'_>,
        replaced: usize,
    ) -> Poll<io::Result<usize>> {
        while let Some(rest) = self.refusal.as_mut().filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.inner).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => drop(rest.drain(..written)),
                other => return other,
            }
        }
        Poll::Ready(Ok(replaced))
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
            // A client may close its sending half as soon as it has sent its request, and still wants the answer. Hyper
            // would give it up.
            let has_asked = matches!(phase, Phase::Body | Phase::Answering | Phase::Writing);
            if has_asked && !this.hung_up() {
                this.reading = Reading::EndHidden;
                this.entry.note_said_all();
                return Poll::Pending;
            }
        } else if phase == Phase::Idle {
            this.entry.enter(Phase::Head);
            this.head = HeadSize::default();
        }
        if this.entry.phase() == Phase::Head {
            this.head.add(read);
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
        let this = self.get_mut();
        let before_any_answer = matches!(this.entry.phase(), Phase::Idle | Phase::Head);
        if this.refusal.is_none() && before_any_answer {
            this.refusal = response::status_of(bytes).map(|status| this.refusal(status));
        }
        match this.refusal {
            Some(_) => this.poll_refusal(context, bytes.len()),
            None => Pin::new(&mut this.inner).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(context);
        // Hyper flushes once all that it has is written.
        if flushed.is_ready() && this.entry.phase() == Phase::Writing {
            this.entry.enter(Phase::Idle);
            if this.reading == Reading::EndHidden {
                // For hyper to read once more, and this time to find the end.
                context.waker().wake_by_ref();
            }
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}
