//! Where the serial port leads, and what is opened for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::escape::Escape;
use super::socket::SocketFile;
use super::{SerialError, pty, socket, stdio};

/// Where the serial port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere: output is thrown away.
    Null,
    /// Standard input and output.
    Tty,
    /// A new pseudo-terminal.
    Pty,
    /// A file, which is emptied first; or a FIFO, which need not have a reader yet.
    File(PathBuf),
    /// The same, but what is in the file stays.
    FileGoesOn(PathBuf),
    /// A unix socket, on which one client at a time is served.
    Socket(PathBuf),
}

/// What [`open`] has made.
pub struct Opened {
    /// What the serial thread serves; absent if there is nothing to do.
    pub line: Option<Line>,
    /// The pseudo-terminal's path.
    pub pty: Option<PathBuf>,
    /// The socket's file, which goes away with the serial port.
    pub socket: Option<SocketFile>,
}

/// The far end, as the serial thread sees it. Its descriptors are non-blocking where that is possible.
#[derive(Debug)]
pub struct Line {
    /// Where input comes from.
    pub input: Option<File>,
    /// Where output goes.
    pub output: Option<File>,
    /// What happens to input that the guest does not take.
    pub excess: Excess,
    /// What happens when writing fails.
    pub failure: Failure,
    /// Keys for Ferry among those for the guest.
    pub escape: Option<Escape>,
    /// Where the next client comes from.
    pub listener: Option<UnixListener>,
    /// The other side of a pseudo-terminal. As long as it is open, clients can come and go.
    pub keep: Option<OwnedFd>,
}

/// What happens to input that the guest does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// It is not read; whoever sends it waits.
    Waits,
    /// It is read, because there may be a Ctrl-A x in it. A bounded amount is kept.
    IsRead,
}

/// What happens when writing fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The far end has gone for good.
    Ends,
    /// The client has gone; there may be another one.
    WaitsForClient,
    /// A full disk may get room again: the bytes are lost, and the next ones are tried.
    Loses,
}

impl Line {
    /// A far end without anything.
    pub fn new(failure: Failure) -> Self {
        Self {
            input: None,
            output: None,
            excess: Excess::Waits,
            failure,
            escape: None,
            listener: None,
            keep: None,
        }
    }
}

/// Opens the far end.
pub fn open(sink: &Sink) -> Result<Opened, SerialError> {
    let mut opened = Opened {
        line: None,
        pty: None,
        socket: None,
    };
    match sink {
        Sink::Null => {}
        Sink::Tty => opened.line = Some(stdio::open()?),
        Sink::Pty => {
            let pty = pty::open()?;
            opened.line = Some(pty.line);
            opened.pty = Some(pty.path);
        }
        Sink::File(path) | Sink::FileGoesOn(path) => {
            let mut options = OpenOptions::new();
            match sink {
                Sink::FileGoesOn(_) => options.append(true),
                _ => options.truncate(true),
            };
            opened.line = Some(file(options, path).map_err(|cause| SerialError::Open {
                path: path.clone(),
                cause,
            })?);
        }
        Sink::Socket(path) => {
            let bound = socket::listen(path)?;
            let mut line = Line::new(Failure::WaitsForClient);
            line.listener = Some(bound.listener);
            opened.line = Some(line);
            opened.socket = Some(bound.file);
        }
    }
    Ok(opened)
}

fn file(mut options: OpenOptions, path: &Path) -> io::Result<Line> {
    let fifo = path
        .metadata()
        .is_ok_and(|metadata| metadata.file_type().is_fifo());
    let file = options
        .write(true)
        // Opened for reading as well, a FIFO keeps what is written before there is a reader.
        .read(fifo)
        .create(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let mut line = Line::new(Failure::Loses);
    line.output = Some(file);
    Ok(line)
}

/// A second descriptor of the same open file.
pub fn duplicate(fd: impl AsFd) -> io::Result<File> {
    fd.as_fd().try_clone_to_owned().map(File::from)
}
