//! The shape of vhost-user messages: header, request codes, payloads.
//!
//! The payloads are the `vhost` crate's types. Its header type is private, and its table of requests is
//! a closed one, so header and codes are Ferry's own. All numbers are in the host's byte order
//! (vhost-user specification, "Message Specification").

use std::fmt;

use vhost::vhost_user::message::FrontendReq;
use vm_memory::ByteValued;

use super::error::Violation;

/// Bytes in a header.
pub const HEADER_SIZE: usize = 12;

/// Bytes of payload beyond which no message of either side goes.
pub const MAX_PAYLOAD: u32 = 4096;

/// The protocol's version, in the two lowest bits of a header's flags.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// A request of the front-end, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestCode(pub u32);

impl From<FrontendReq> for RequestCode {
    fn from(request: FrontendReq) -> Self {
        RequestCode(request.into())
    }
}

impl fmt::Display for RequestCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match FrontendReq::try_from(self.0) {
            Ok(known) => write!(f, "{known:?}"),
            Err(_) => write!(f, "number {}", self.0),
        }
    }
}

impl fmt::Debug for RequestCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether the sender of a request wants to hear how it went (needs REPLY_ACK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledge {
    /// An answer comes by the nature of the request, or not at all.
    Natural,
    /// The other side answers with a `u64`, 0 for success.
    Requested,
}

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request's number, also in answers.
    pub code: u32,
    /// Version, reply, need-reply.
    pub flags: u32,
    /// Bytes of payload that follow.
    pub size: u32,
}

impl Header {
    /// The header of a request with `size` bytes of payload.
    pub fn request(code: RequestCode, acknowledge: Acknowledge, size: u32) -> Self {
        let flags = match acknowledge {
            Acknowledge::Natural => VERSION,
            Acknowledge::Requested => VERSION | NEED_REPLY,
        };
        Header {
            code: code.0,
            flags,
            size,
        }
    }

    /// The header of an answer with `size` bytes of payload.
    pub fn reply(code: u32, size: u32) -> Self {
        Header {
            code,
            flags: VERSION | REPLY,
            size,
        }
    }

    /// As it goes over the socket.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..4].copy_from_slice(&self.code.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }

    /// From the socket; nothing is checked yet.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Header {
            code: word(0),
            flags: word(4),
            size: word(8),
        }
    }

    /// Whether the sender wants an answer.
    pub fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// Checks that this is an answer to `request` of the expected `shape`.
    ///
    /// A need-reply flag in an answer means nothing; libvhost-user leaves it there.
    pub fn check_reply(&self, request: RequestCode, shape: ReplyShape) -> Result<(), Violation> {
        if self.code != request.0 {
            return Err(Violation::WrongRequest(RequestCode(self.code)));
        }
        if self.flags & !NEED_REPLY != VERSION | REPLY {
            return Err(Violation::WrongFlags(self.flags));
        }
        if !shape.sizes.contains(&self.size) {
            return Err(Violation::WrongSize(self.size));
        }
        Ok(())
    }

    /// Checks that this is a request of the back-end and not absurdly long.
    pub fn check_request(&self) -> Result<(), Violation> {
        if self.flags & !NEED_REPLY != VERSION {
            return Err(Violation::WrongFlags(self.flags));
        }
        if self.size > MAX_PAYLOAD {
            return Err(Violation::WrongSize(self.size));
        }
        Ok(())
    }
}

/// What an answer may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyShape {
    /// The sizes of payload that are legal, in bytes; the same size more than once does no harm.
    sizes: [u32; 3],
    /// The largest number of file descriptors.
    most_fds: usize,
}

impl ReplyShape {
    /// Exactly `size` bytes and no file descriptor.
    pub const fn exactly(size: u32) -> Self {
        ReplyShape {
            sizes: [size; 3],
            most_fds: 0,
        }
    }

    /// Exactly `size` bytes, and a file descriptor or none.
    pub const fn with_fd(size: u32) -> Self {
        ReplyShape {
            sizes: [size; 3],
            most_fds: 1,
        }
    }

    /// Nothing, `second` or `third` bytes, and no file descriptor.
    pub const fn empty_or(second: u32, third: u32) -> Self {
        ReplyShape {
            sizes: [0, second, third],
            most_fds: 0,
        }
    }

    /// Checks the number of file descriptors that came with an answer.
    pub fn check_fds(&self, count: usize) -> Result<(), Violation> {
        if count > self.most_fds {
            return Err(Violation::WrongFds(count));
        }
        Ok(())
    }
}

/// Reads a payload of exactly `T`'s size; `None` if `bytes` has another size.
pub fn payload<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    let target = value.as_mut_slice();
    if target.len() != bytes.len() {
        return None;
    }
    target.copy_from_slice(bytes);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header::request(
            FrontendReq::SET_MEM_TABLE.into(),
            Acknowledge::Requested,
            72,
        );
        assert_eq!(Header::decode(&header.encode()), header);
        assert!(header.needs_reply());
    }

    #[test]
    fn only_the_right_answer_passes() {
        let request = RequestCode::from(FrontendReq::GET_FEATURES);
        let shape = ReplyShape::exactly(8);
        let good = Header::reply(1, 8);
        assert_eq!(good.check_reply(request, shape), Ok(()));
        let kept_need_reply = Header {
            flags: good.flags | NEED_REPLY,
            ..good
        };
        assert_eq!(kept_need_reply.check_reply(request, shape), Ok(()));

        for bad in [
            Header { code: 2, ..good },
            Header { code: 0, ..good },
            Header { flags: 1, ..good },
            Header { flags: 4, ..good },
            Header { flags: 6, ..good },
            Header {
                flags: 0x15,
                ..good
            },
            Header { size: 0, ..good },
            Header { size: 9, ..good },
            Header {
                size: u32::MAX,
                ..good
            },
        ] {
            assert!(bad.check_reply(request, shape).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn requests_have_names() {
        assert_eq!(
            RequestCode::from(FrontendReq::GET_VRING_BASE).to_string(),
            "GET_VRING_BASE"
        );
        assert_eq!(RequestCode(45).to_string(), "number 45");
    }

    #[test]
    fn a_payload_has_exactly_its_size() {
        assert_eq!(payload::<u64>(&7u64.to_ne_bytes()), Some(7));
        assert_eq!(payload::<u64>(&[0; 7]), None);
        assert_eq!(payload::<u64>(&[0; 9]), None);
    }
}
