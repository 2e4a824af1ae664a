//! One connection for one request, on which nothing waits longer than its limits.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::error::{ClientError, WireError};
use super::head::{HEAD_MOST, Head};
use super::{ANSWER_MOST, Limits, Reply};

/// How much is read at once, in bytes.
const PIECE: usize = 16 << 10;

/// A connection for one request, and when that began.
pub struct Connection {
    stream: UnixStream,
    socket: PathBuf,
    limits: Limits,
    began: Instant,
    /// Whether some of the answer is there.
    answering: bool,
}

/// What one read has led to.
enum Piece {
    Bytes,
    End,
}

impl Connection {
    /// Connects to `socket`, for a request whose time began then.
    pub fn open(socket: &Path, limits: Limits, began: Instant) -> Result<Self, ClientError> {
        let limit = limits.connect.min(limits.total);
        let left = limits.total.saturating_sub(began.elapsed());
        let stream =
            connect(socket, limit.min(left)).map_err(|cause| match is_timeout(&cause) {
                true => ClientError::TimedOut {
                    socket: socket.to_owned(),
                    step: "taken the connection",
                    limit,
                },
                false => ClientError::Connect {
                    socket: socket.to_owned(),
                    cause,
                },
            })?;
        Ok(Self {
            stream,
            socket: socket.to_owned(),
            limits,
            began,
            answering: false,
        })
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<(), ClientError> {
        while !bytes.is_empty() {
            let left = self.left("read the request")?;
            let sent = self
                .stream
                .set_write_timeout(Some(left))
                .and_then(|()| self.stream.write(bytes));
            match sent {
                Ok(0) => return Err(self.closed(None)),
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => {
                    return Err(self.timed_out("read the request", self.limits.total));
                }
                Err(error) => return Err(self.closed(Some(error))),
            }
        }
        Ok(())
    }

    /// Receives the whole answer.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        let mut bytes = Vec::new();
        let head = loop {
            match Head::parse(&bytes).map_err(|cause| self.wire(cause))? {
                Some(head) => break head,
                None => match self.piece(&mut bytes, HEAD_MOST)? {
                    Piece::Bytes => {}
                    Piece::End if bytes.is_empty() => return Err(self.closed(None)),
                    Piece::End => return Err(self.wire(WireError::TruncatedHead)),
                },
            }
        };
        let length = match usize::try_from(head.body) {
            Ok(length) if length <= ANSWER_MOST => length,
            _ => {
                let (length, most) = (head.body, ANSWER_MOST);
                return Err(self.wire(WireError::LongBody { length, most }));
            }
        };
        let mut body = bytes.split_off(head.length);
        while body.len() < length {
            if let Piece::End = self.piece(&mut body, length)? {
                let received = body.len();
                return Err(self.wire(WireError::Truncated { received, length }));
            }
        }
        body.truncate(length);
        Ok(Reply {
            status: head.status,
            body,
        })
    }

    /// Reads once to the end of `bytes`, which never gets longer than `most`.
    fn piece(&mut self, bytes: &mut Vec<u8>, most: usize) -> Result<Piece, ClientError> {
        let old = bytes.len();
        bytes.resize(old + most.saturating_sub(old).min(PIECE), 0);
        let read = self.read(&mut bytes[old..]);
        bytes.truncate(old + *read.as_ref().unwrap_or(&0));
        Ok(match read? {
            0 => Piece::End,
            _ => Piece::Bytes,
        })
    }

    fn read(&mut self, room: &mut [u8]) -> Result<usize, ClientError> {
        loop {
            let left = self.left("answered")?;
            let limit = match self.answering {
                true => left.min(self.limits.silence),
                false => left,
            };
            let read = self
                .stream
                .set_read_timeout(Some(limit))
                .and_then(|()| self.stream.read(room));
            match read {
                Ok(read) => {
                    self.answering |= read > 0;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) && limit < left => {
                    return Err(self.timed_out("gone on with its answer", limit));
                }
                Err(error) if is_timeout(&error) => {
                    return Err(self.timed_out("answered", self.limits.total));
                }
                Err(error) => return Err(self.closed(Some(error))),
            }
        }
    }

    /// The time that is left, never zero, which the system would take for "no limit".
    fn left(&self, step: &'static str) -> Result<Duration, ClientError> {
        match self.limits.total.checked_sub(self.began.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(self.timed_out(step, self.limits.total)),
        }
    }

    fn timed_out(&self, step: &'static str, limit: Duration) -> ClientError {
        ClientError::TimedOut {
            socket: self.socket.clone(),
            step,
            limit,
        }
    }

    fn closed(&self, cause: Option<io::Error>) -> ClientError {
        ClientError::Closed {
            socket: self.socket.clone(),
            cause,
        }
    }

    fn wire(&self, cause: WireError) -> ClientError {
        ClientError::Wire {
            socket: self.socket.clone(),
            cause,
        }
    }
}

/// Connects within `limit`. A listener whose queue is full would otherwise hold the caller for as long as it likes;
/// for unix sockets, the limit on sending is the one that holds here (unix(7), socket(7)).
fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
    socket.connect(&address)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
