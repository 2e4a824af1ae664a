//! A unix stream socket that never waits by itself, and carries file descriptors.
//!
//! Sending and receiving use `MSG_DONTWAIT`, so that a socket inherited from elsewhere needs no flags of its own.
//! Received file descriptors are close-on-exec from the start, are owned at once (so none can leak), and
//! are at most [`MAX_FDS`] per call: the kernel throws away what does not fit and says so.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use crate::sys::unix;

/// The most file descriptors that one message may carry in either direction (the protocol's limit
/// for memory tables, and for messages of the back-end).
pub const MAX_FDS: usize = 8;

/// Room for a control message with [`MAX_FDS`] file descriptors, aligned as control messages are: a header
/// of 16 bytes and 4 bytes for each.
const CONTROL_WORDS: usize = (16 + MAX_FDS * size_of::<RawFd>()).div_ceil(8);

type Control = [u64; CONTROL_WORDS];

/// A connected unix stream socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// What one call to [`Socket::try_recv`] brought.
#[derive(Debug)]
pub struct Received {
    /// Bytes received; 0: the other side has closed.
    pub len: usize,
    /// File descriptors received with them.
    pub fds: Vec<OwnedFd>,
    /// Whether there were more file descriptors than [`MAX_FDS`].
    pub truncated: bool,
}

impl Socket {
    /// Connects to a listener without waiting for it: a listener whose backlog is full is `WouldBlock`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        unix::connect(path).map(Socket::from)
    }

    /// A connected pair: one end as a [`Socket`], the other to be given away.
    pub fn pair() -> io::Result<Ends> {
        let mut raw: [RawFd; 2] = [-1; 2];
        // SAFETY: `raw` has room for the two descriptors that socketpair() writes.
        let result = unsafe {
            libc::socketpair(
                libc::AF_UNIX,
                libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
                0,
                raw.as_mut_ptr(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both descriptors have just been made and belong to nobody else.
        let [ours, theirs] = raw.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Ends {
            ours: Socket { fd: ours },
            theirs,
        })
    }

    /// Sends as much of `bytes` as the socket takes now, and `fds` with the first of them.
    /// `fds` must not be given again when the rest is sent.
    pub fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        if fds.len() > MAX_FDS {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut control: Control = [0; CONTROL_WORDS];
        let mut vector = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut message = empty_message();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        if !fds.is_empty() {
            attach_fds(&mut message, &mut control, fds);
        }
        retry(|| {
            // SAFETY: `message` points to `vector`, `bytes` and `control`, which outlive the call.
            unsafe {
                libc::sendmsg(
                    self.fd.as_raw_fd(),
                    &raw const message,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            }
        })
    }

    /// Receives what there is now, at most `buffer`'s length.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut control: Control = [0; CONTROL_WORDS];
        let mut vector = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let mut message = empty_message();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>();
        let len = retry(|| {
            // SAFETY: `message` points to `vector`, `buffer` and `control`, which outlive the call and
            // have the lengths given.
            unsafe {
                libc::recvmsg(
                    self.fd.as_raw_fd(),
                    &raw mut message,
                    libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
                )
            }
        })?;
        Ok(Received {
            len,
            fds: take_fds(&message),
            truncated: message.msg_flags & libc::MSG_CTRUNC != 0,
        })
    }
}

impl Socket {
    /// Another descriptor of the same socket, for another process.
    pub fn copied(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<OwnedFd> for Socket {
    /// `fd` is a connected unix stream socket.
    fn from(fd: OwnedFd) -> Self {
        Socket { fd }
    }
}

/// The two ends of a socket pair.
#[derive(Debug)]
pub struct Ends {
    /// The end that stays here.
    pub ours: Socket,
    /// The end that is given away.
    pub theirs: OwnedFd,
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn empty_message() -> libc::msghdr {
    // SAFETY: a msghdr of zeros is a valid value: no address, no vectors, no control data.
    unsafe { mem::zeroed() }
}

/// Puts `fds` (at most [`MAX_FDS`]) as one SCM_RIGHTS message into `control` and hangs that onto `message`.
fn attach_fds(message: &mut libc::msghdr, control: &mut Control, fds: &[BorrowedFd<'_>]) {
    debug_assert!(fds.len() <= MAX_FDS);
    let data_length = (fds.len() * size_of::<RawFd>()) as libc::c_uint;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE only computes.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(data_length) } as usize;
    // SAFETY: `control` is aligned for a cmsghdr and has room for MAX_FDS descriptors, so that
    // the first header and its data lie within it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(data_length) as usize;
        let data: *mut RawFd = libc::CMSG_DATA(header).cast();
        for (index, fd) in fds.iter().enumerate() {
            ptr::write_unaligned(data.add(index), fd.as_raw_fd());
        }
    }
}

/// Takes ownership of all file descriptors that recvmsg() has put into `message`'s control data.
fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: recvmsg() has filled the control data and set its length; the CMSG macros walk it within that
    // length. Each descriptor in it was made for this process by this call and belongs to nobody else.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let length = (*header)
                    .cmsg_len
                    .saturating_sub(libc::CMSG_LEN(0) as usize);
                let data: *const RawFd = libc::CMSG_DATA(header).cast();
                for index in 0..length / size_of::<RawFd>() {
                    let fd = ptr::read_unaligned(data.add(index));
                    fds.push(OwnedFd::from_raw_fd(fd));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}
