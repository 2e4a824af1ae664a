//! Messages on a socket, without any opinion on what is right: this back-end must also be able to
//! send what no library would.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes in a header.
pub const HEADER: usize = 12;

/// Header flags (vhost-user specification, "Header").
pub mod flags {
    /// The protocol's version.
    pub const VERSION: u32 = 1;
    /// This is an answer.
    pub const REPLY: u32 = 1 << 2;
    /// The sender wants an answer.
    pub const NEED_REPLY: u32 = 1 << 3;
}

/// A message as it came or is to go.
#[derive(Debug)]
pub struct Message {
    /// The request's number.
    pub code: u32,
    /// Header flags.
    pub flags: u32,
    /// The payload's size as the header gives it; [`Message::payload`] may have another one.
    pub size: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// What came, or is to go, with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// A request or an answer with a payload of the right size.
    pub fn new(code: u32, flags: u32, payload: Vec<u8>) -> Self {
        let size = payload.len() as u32;
        Message {
            code,
            flags,
            size,
            payload,
            fds: Vec::new(),
        }
    }

    /// The payload as one number; 0 if it is none.
    pub fn number(&self) -> u64 {
        self.u64_at(0)
    }

    /// The number at a byte offset; 0 beyond the end.
    pub fn u64_at(&self, offset: usize) -> u64 {
        self.payload.get(offset..offset + 8).map_or(0, |bytes| {
            u64::from_ne_bytes(bytes.try_into().unwrap_or_default())
        })
    }

    /// The number at a byte offset; 0 beyond the end.
    pub fn u32_at(&self, offset: usize) -> u32 {
        self.payload.get(offset..offset + 4).map_or(0, |bytes| {
            u32::from_ne_bytes(bytes.try_into().unwrap_or_default())
        })
    }

    /// Header and payload as they go over the socket.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        for word in [self.code, self.flags, self.size] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// Receives one message; `None` when the other side has closed.
pub fn receive(socket: &mut UnixStream) -> io::Result<Option<Message>> {
    let mut header = [0; HEADER];
    let mut raw_fds: [RawFd; 32] = [-1; 32];
    let mut part = [libc::iovec {
        iov_base: header.as_mut_ptr().cast(),
        iov_len: HEADER,
    }];
    // SAFETY: the only element of `part` covers `header` exactly, which lives until after the call.
    let (bytes, count) = unsafe { socket.recv_with_fds(&mut part, &mut raw_fds) }
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let fds = raw_fds[..count].iter().map(|fd| own(*fd)).collect();
    if bytes == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut header[bytes..])?;
    let word = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let size = word(8);
    if size > 1 << 16 {
        return Err(io::Error::other(format!("a message with {size} bytes")));
    }
    let mut payload = vec![0; size as usize];
    socket.read_exact(&mut payload)?;
    Ok(Some(Message {
        code: word(0),
        flags: word(4),
        size,
        payload,
        fds,
    }))
}

/// Sends bytes with file descriptors.
pub fn send(socket: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let raw_fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = socket
        .send_with_fds(&[bytes], &raw_fds)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    match sent == bytes.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us in recvmsg(), and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
