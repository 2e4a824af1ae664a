//! The back-end channel: requests from the back-end to Ferry (SET_BACKEND_REQ_FD).
//!
//! Ferry knows one of them, CONFIG_CHANGE; every other is answered with an error if an answer is wanted, and ignored if not.
//! A back-end may close the channel at any time (common libraries do so at once when their device has
//! no use for it): that ends the channel and nothing else. Whatever breaks the protocol here is
//! a violation like one on the main socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vhost::vhost_user::message::BackendReq;

use super::error::{Cause, During, Violation};
use super::incoming::{Incoming, Message, Progress, ReadError};
use super::message::Header;
use super::socket::Socket;

/// Messages taken in one go, so that a back-end that floods the channel cannot keep the worker here.
const BATCH: usize = 16;

/// Ferry's end of the channel.
#[derive(Debug)]
pub struct BackendChannel {
    socket: Socket,
    incoming: Incoming,
    config_changed: bool,
}

/// Whether there is more to come on the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// The back-end may send more.
    Open,
    /// The back-end has closed its end.
    Closed,
}

impl BackendChannel {
    /// `socket` is Ferry's end of a pair; the other one is with the back-end only.
    pub fn new(socket: Socket) -> Self {
        BackendChannel {
            socket,
            incoming: Incoming::default(),
            config_changed: false,
        }
    }

    /// Whether the back-end has announced a change of the configuration space since the last call.
    pub fn take_config_changed(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    /// Another descriptor of the same channel, for another process.
    pub fn copied(&self) -> io::Result<OwnedFd> {
        self.socket.copied()
    }

    /// Whether a part of a request has been read, and the rest has not come.
    pub fn is_amid(&self) -> bool {
        self.incoming.has_begun()
    }

    /// Takes and answers what has arrived, without waiting.
    pub fn serve(&mut self) -> Result<ChannelState, Cause> {
        for _ in 0..BATCH {
            let progress = self
                .incoming
                .advance(&self.socket, Header::check_request)
                .map_err(|error| match error {
                    ReadError::Violation(reason) => violation(During::BackendChannel, reason),
                    ReadError::Io(source) => Cause::Io {
                        step: "read the back-end channel",
                        source,
                    },
                })?;
            match progress {
                Progress::Waiting => return Ok(ChannelState::Open),
                Progress::Closed => return Ok(ChannelState::Closed),
                Progress::Complete(message) => {
                    if self.handle(&message)? == ChannelState::Closed {
                        return Ok(ChannelState::Closed);
                    }
                }
            }
        }
        Ok(ChannelState::Open)
    }

    fn handle(&mut self, message: &Message) -> Result<ChannelState, Cause> {
        let header = message.header;
        let during = During::BackendRequest(header.code);
        // BACKEND_SEND_FD is never negotiated, so no request may have any.
        if !message.fds.is_empty() {
            return Err(violation(during, Violation::WrongFds(message.fds.len())));
        }
        let answer = if header.code == u32::from(BackendReq::CONFIG_CHANGE_MSG) {
            if header.size != 0 {
                return Err(violation(during, Violation::WrongSize(header.size)));
            }
            self.config_changed = true;
            0u64
        } else {
            tracing::debug!(
                request = header.code,
                "unknown request on a back-end channel"
            );
            1
        };
        if !header.needs_reply() {
            return Ok(ChannelState::Open);
        }
        self.answer(header.code, answer)
    }

    /// Answers are so small that a socket that does not take one whole is one that nobody reads.
    fn answer(&mut self, code: u32, value: u64) -> Result<ChannelState, Cause> {
        let mut bytes = Header::reply(code, 8).encode().to_vec();
        bytes.extend_from_slice(&value.to_ne_bytes());
        match self.socket.try_send(&bytes, &[]) {
            Ok(sent) if sent == bytes.len() => Ok(ChannelState::Open),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ChannelState::Closed),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(Cause::Io {
                step: "answer on the back-end channel",
                source: error,
            }),
            _ => Err(violation(
                During::BackendRequest(code),
                Violation::AnswersUnread,
            )),
        }
    }
}

impl AsRawFd for BackendChannel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn violation(during: During, reason: Violation) -> Cause {
    Cause::Violation { during, reason }
}
