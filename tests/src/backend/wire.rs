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
    let (bytes, fds) = receive_first(socket, &mut header)?;
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

/// As many descriptors as come with one message at most.
const FDS_MOST: usize = 32;

/// Room for [`FDS_MOST`] descriptors and their header, as aligned as the header wants it.
#[repr(C, align(8))]
struct Control([u8; 256]);

/// The first bytes of a message, and the descriptors that come with them. These are closed on exec from the beginning:
/// a test starts other processes meanwhile, and a pipe's end in one of them would keep the pipe open.
fn receive_first(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control([0; 256]);
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeros is a valid value: no name, no parts, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: `message` points to `part`, which covers `bytes`, and to `control`, with their sizes; all live until after
    // the call.
    let count =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok((count, descriptors(&message)))
}

/// The descriptors in what the kernel has just filled in.
fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled in the control data and its length, which is that of a buffer that still lives.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: the macros give aligned headers inside of the control data only.
        let entry = unsafe { *header };
        if (entry.cmsg_level, entry.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: this only computes with sizes.
            let before = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (entry.cmsg_len - before) / size_of::<RawFd>();
            for index in 0..count.min(FDS_MOST) {
                // SAFETY: the data that belongs to the header holds `count` descriptors, not necessarily aligned.
                let fd = unsafe {
                    let data = libc::CMSG_DATA(header).cast::<RawFd>();
                    data.add(index).read_unaligned()
                };
                fds.push(own(fd));
            }
        }
        // SAFETY: as with the first one.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    fds
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us in recvmsg(), and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
