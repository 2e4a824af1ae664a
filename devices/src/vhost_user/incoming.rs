//! Reading one message at a time from a socket, in whatever pieces it comes.
//!
//! Nothing is allocated before the header has been checked, and the header's check bounds the payload.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;

use super::error::Violation;
use super::message::{HEADER_SIZE, Header};
use super::socket::{MAX_FDS, Socket};

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// Its header, checked by the reader's caller.
    pub header: Header,
    /// As many bytes as the header says.
    pub payload: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// How far a message has come.
#[derive(Debug)]
pub enum Progress {
    /// More of it has to come.
    Waiting,
    /// The other side has closed.
    Closed,
    /// It is complete.
    Complete(Message),
}

/// Why a message could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// What came is not legal.
    Violation(Violation),
    /// The system call failed.
    Io(io::Error),
}

impl From<Violation> for ReadError {
    fn from(violation: Violation) -> Self {
        ReadError::Violation(violation)
    }
}

/// A message that is being received.
#[derive(Debug, Default)]
pub struct Incoming {
    raw_header: [u8; HEADER_SIZE],
    /// Bytes of `raw_header` received.
    header_len: usize,
    /// The header and room for the payload, once the header is there and checked.
    body: Option<Body>,
    fds: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Body {
    header: Header,
    payload: Vec<u8>,
    /// Bytes of `payload` received.
    len: usize,
}

impl Incoming {
    /// Whether a part of a message is there.
    pub fn has_begun(&self) -> bool {
        self.header_len > 0
    }

    /// Reads on without waiting. `check` sees the header before room for its payload is made.
    pub fn advance(
        &mut self,
        socket: &Socket,
        check: impl Fn(&Header) -> Result<(), Violation>,
    ) -> Result<Progress, ReadError> {
        loop {
            let Some(body) = &self.body else {
                if self.header_len == HEADER_SIZE {
                    let header = Header::decode(&self.raw_header);
                    check(&header)?;
                    self.body = Some(Body {
                        header,
                        payload: vec![0; header.size as usize],
                        len: 0,
                    });
                    continue;
                }
                match self.read_more(socket)? {
                    Step::Advanced => continue,
                    Step::Blocked => return Ok(Progress::Waiting),
                    Step::Closed => return Ok(Progress::Closed),
                }
            };
            if body.len == body.payload.len() {
                return Ok(self.take());
            }
            match self.read_more(socket)? {
                Step::Advanced => {}
                Step::Blocked => return Ok(Progress::Waiting),
                Step::Closed => return Ok(Progress::Closed),
            }
        }
    }

    fn take(&mut self) -> Progress {
        match mem::take(self) {
            Incoming {
                raw_header: _,
                header_len: _,
                body: Some(body),
                fds,
            } => Progress::Complete(Message {
                header: body.header,
                payload: body.payload,
                fds,
            }),
            Incoming { body: None, .. } => Progress::Waiting,
        }
    }

    /// One read into the part that is incomplete.
    fn read_more(&mut self, socket: &Socket) -> Result<Step, ReadError> {
        let (target, filled) = match &mut self.body {
            Some(body) => (&mut body.payload[body.len..], &mut body.len),
            None => (
                &mut self.raw_header[self.header_len..],
                &mut self.header_len,
            ),
        };
        let received = match socket.try_recv(target) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Blocked),
            // How a peer that has gone shows when it left something unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Ok(Step::Closed);
            }
            Err(error) => return Err(ReadError::Io(error)),
        };
        if received.truncated || self.fds.len() + received.fds.len() > MAX_FDS {
            return Err(Violation::TooManyFds.into());
        }
        if received.len == 0 {
            return Ok(Step::Closed);
        }
        *filled += received.len;
        self.fds.extend(received.fds);
        Ok(Step::Advanced)
    }
}

enum Step {
    Advanced,
    Blocked,
    Closed,
}
