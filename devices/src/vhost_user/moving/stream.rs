//! The descriptor over which state goes: an end of a pipe of Ferry's, or whatever the back-end returns in its place.
//!
//! What a back-end returns it may hold as well, with all flags of the open file in common. So none of them is relied on:
//! a pipe is opened anew, which gives an open file of Ferry's own, a socket is told not to wait with every call, and a file
//! in memory never waits for anybody. Everything else (a file system's server could be the back-end) is refused.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use crate::sys::poll::{self, Interest};
use crate::vhost_user::error::Violation;
use crate::vhost_user::frontend::Direction;

/// What a pipe is to hold, in bytes; the most that the system gives everybody.
const PIPE_SIZE: libc::c_int = 1 << 20;

/// One end of the way.
#[derive(Debug)]
pub enum Stream {
    /// A pipe that does not wait, or a file in memory.
    File(File),
    /// A stream socket.
    Socket(OwnedFd),
}

/// A new pipe.
pub struct Pipe {
    /// The end that stays here.
    pub ours: Stream,
    /// The end for the back-end.
    pub theirs: OwnedFd,
}

impl Stream {
    /// A pipe by which state goes in `direction`.
    pub fn pipe(direction: Direction) -> io::Result<Pipe> {
        let (reader, writer) = io::pipe()?;
        let (ours, theirs) = match direction {
            Direction::Save => (OwnedFd::from(reader), OwnedFd::from(writer)),
            Direction::Load => (OwnedFd::from(writer), OwnedFd::from(reader)),
        };
        // SAFETY: the call works on an open pipe and has no memory arguments. Nobody else has this end's open file.
        if unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        enlarge(&ours);
        Ok(Pipe {
            ours: Stream::File(ours.into()),
            theirs,
        })
    }

    /// What a back-end has returned for state to go in `direction`.
    ///
    /// # Errors
    /// It cannot be used for that.
    pub fn returned(fd: OwnedFd, direction: Direction) -> Result<Self, Violation> {
        let usable = match direction {
            Direction::Save => [libc::O_RDONLY, libc::O_RDWR],
            Direction::Load => [libc::O_WRONLY, libc::O_RDWR],
        };
        // SAFETY: the call works on an open descriptor and has no memory arguments.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 || !usable.contains(&(flags & libc::O_ACCMODE)) || flags & libc::O_PATH != 0 {
            return Err(Violation::Contents(format!(
                "the file descriptor that it returned cannot be {}",
                match direction {
                    Direction::Save => "read",
                    Direction::Load => "written",
                }
            )));
        }
        if is_stream_socket(&fd) {
            return Ok(Stream::Socket(fd));
        }
        if is_in_memory(&fd) {
            return Ok(Stream::File(fd.into()));
        }
        if is_pipe(&fd)
            && let Ok(file) = reopen(&fd, direction)
        {
            enlarge(&file);
            return Ok(Stream::File(file));
        }
        Err(Violation::Contents(
            "the file descriptor that it returned is no pipe, stream socket or file in memory"
                .into(),
        ))
    }

    /// Reads what there is now; 0 is the end.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        repeat(|| match self {
            Stream::File(file) => (&mut &*file).read(buffer),
            Stream::Socket(fd) => receive(fd, buffer),
        })
    }

    /// Writes what there is room for now.
    pub fn try_write(&self, data: &[u8]) -> io::Result<usize> {
        repeat(|| match self {
            // Nobody reads: an error, as the standard library has the signal ignored from the program's start.
            Stream::File(file) => (&mut &*file).write(data),
            Stream::Socket(fd) => send(fd, data),
        })
    }

    /// Waits for something to read or room to write, or until `until`; returns whether there is.
    pub fn wait(&self, interest: Interest, until: Instant) -> io::Result<bool> {
        let mut entries = [poll::entry(Some(self), interest)];
        poll::wait(&mut entries, Some(until))?;
        Ok(poll::ready(&entries[0]))
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Stream::File(file) => file.as_raw_fd(),
            Stream::Socket(fd) => fd.as_raw_fd(),
        }
    }
}

fn repeat(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is as long as is said.
    let got = unsafe {
        libc::recv(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

fn send(fd: &OwnedFd, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the data is as long as is said.
    let sent = unsafe {
        libc::send(
            fd.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Gives a pipe more room, if the system has it.
fn enlarge(pipe: &impl AsRawFd) {
    // SAFETY: the call works on an open descriptor and has no memory arguments.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_SIZE) };
}

fn is_stream_socket(fd: &OwnedFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `kind` has room for what the call writes, as `length` says.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    result == 0 && kind == libc::SOCK_STREAM
}

/// Only files in memory have seals to ask for.
fn is_in_memory(fd: &OwnedFd) -> bool {
    // SAFETY: the call works on an open descriptor and has no memory arguments.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) >= 0 }
}

/// Asked for without any file system's being disturbed.
fn is_pipe(fd: &OwnedFd) -> bool {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // SAFETY: the path is an empty C string, and `status` is large enough for what the call writes.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            libc::STATX_TYPE,
            status.as_mut_ptr(),
        )
    };
    // SAFETY: all zeros are a valid value, and the call at most overwrites it with another.
    let status = unsafe { status.assume_init() };
    result == 0 && libc::mode_t::from(status.stx_mode) & libc::S_IFMT == libc::S_IFIFO
}

/// A pipe's end once more, as an open file that nobody else has.
fn reopen(pipe: &OwnedFd, direction: Direction) -> io::Result<File> {
    OpenOptions::new()
        .read(direction == Direction::Save)
        .write(direction == Direction::Load)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", pipe.as_raw_fd()))
}
