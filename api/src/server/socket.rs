//! The socket that the server listens on: who may connect, whom it takes the place of, and that it goes away.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::text::{self, SyntaxError};

/// Clients that may wait to be accepted.
const BACKLOG: libc::c_int = 128;
/// How long another Ferry may take to look at the same directory.
const LOCK: Duration = Duration::from_secs(2);

/// Where the server listens: a path, `path=P` or `fd=N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketPlace {
    /// A unix socket to be made.
    Path(PathBuf),
    /// A unix socket that this process was given, and that listens already.
    Fd(RawFd),
}

/// A text that names no place for a socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongPlace {
    /// It is not of the form `key=value`.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// It is neither of the three forms.
    #[error("there is no `{0}`; write PATH, path=PATH or fd=NUMBER")]
    Other(String),
    /// The path does not fit into a socket's address.
    #[error("{path} is {length} bytes long; a socket's path has at most 107", length = path.len())]
    Long {
        /// The path.
        path: String,
    },
}

impl FromStr for SocketPlace {
    type Err = WrongPlace;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut items = text::split(text)?;
        let item = items.pop().unwrap_or_default();
        let wrong = || WrongPlace::Other(text.to_owned());
        if !items.is_empty() {
            return Err(wrong());
        }
        let path = match (item.key.as_str(), item.value) {
            ("path", Some(path)) if !path.is_empty() => path,
            ("fd", Some(number)) => {
                let number = text::whole_number(&number).ok_or_else(wrong)?;
                let fd = RawFd::try_from(number).map_err(|_| wrong())?;
                return Ok(SocketPlace::Fd(fd));
            }
            (_, None) => item.key,
            _ => return Err(wrong()),
        };
        match path.len() {
            ..=107 => Ok(SocketPlace::Path(path.into())),
            _ => Err(WrongPlace::Long { path }),
        }
    }
}

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("another process serves {}: end it, or use another path", .0.display())]
    Live(PathBuf),
    /// There is a file that Ferry does not touch.
    #[error("{} is there, and it is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// A descriptor that is of no use.
    #[error("file descriptor {fd} {reason}")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// Why it is not.
        reason: &'static str,
    },
    /// The system refuses.
    #[error("cannot {step} {place}")]
    System {
        /// What was tried.
        step: &'static str,
        /// The path, or the descriptor's number.
        place: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// A unix socket that listens. Dropped, it removes its file, if it is still the same one.
#[derive(Debug)]
pub struct ServerSocket {
    listener: UnixListener,
    file: Option<SocketFile>,
}

/// A socket's place in the file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    /// Where it is; absolute if it is for another process.
    pub path: PathBuf,
    /// The number of the file system's device.
    pub device: u64,
    /// The file's number.
    pub inode: u64,
}

/// A socket that listens, for another process of this host, which goes on with it.
#[derive(Debug)]
pub struct LentSocket {
    /// The socket itself.
    pub listener: OwnedFd,
    /// Its place, unless this process was given it without one.
    pub file: Option<SocketFile>,
}

impl ServerSocket {
    /// Listens at `place`. The socket is the user's alone (mode 0600) from the moment it appears; one that a process left
    /// behind is replaced.
    ///
    /// # Errors
    /// Somebody listens there, there is another file, or the system refuses.
    pub fn open(place: &SocketPlace) -> Result<Self, SocketError> {
        match place {
            SocketPlace::Path(path) => Self::bind(path),
            SocketPlace::Fd(fd) => Self::inherit(*fd),
        }
    }

    fn bind(path: &Path) -> Result<Self, SocketError> {
        let error = |step: &'static str| {
            move |cause| SocketError::System {
                step,
                place: path.display().to_string(),
                cause,
            }
        };
        // Two Ferrys that start at once would else each take the other's new socket for one left behind.
        let _lock = lock_directory(path);
        remove_stale(path)?;
        let socket = socket().map_err(error("make a socket for"))?;
        // The kernel gives this mode, less the umask, to the file that bind makes: it is never open to others.
        // SAFETY: fchmod takes any descriptor and touches no memory.
        if unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) } != 0 {
            return Err(error("protect")(io::Error::last_os_error()));
        }
        bind(&socket, path).map_err(error("bind a socket to"))?;
        // SAFETY: listen takes any descriptor and touches no memory.
        if unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) } != 0 {
            return Err(error("listen on")(io::Error::last_os_error()));
        }
        let metadata = fs::symlink_metadata(path).map_err(error("look at"))?;
        Ok(ServerSocket {
            listener: UnixListener::from(socket),
            file: Some(SocketFile {
                path: path.to_owned(),
                device: metadata.dev(),
                inode: metadata.ino(),
            }),
        })
    }

    fn inherit(fd: RawFd) -> Result<Self, SocketError> {
        let wrong = |reason| SocketError::Descriptor { fd, reason };
        if fd < 3 {
            return Err(wrong("is standard input, output or error"));
        }
        let option = |name| socket_option(fd, name);
        match option(libc::SO_DOMAIN) {
            Ok(libc::AF_UNIX) => {}
            Ok(_) => return Err(wrong("is not a unix socket")),
            Err(_) => return Err(wrong("is not an open socket")),
        }
        if !matches!(option(libc::SO_TYPE), Ok(libc::SOCK_STREAM)) {
            return Err(wrong("is a unix socket for packets, and not for a stream"));
        }
        if !matches!(option(libc::SO_ACCEPTCONN), Ok(1)) {
            return Err(wrong("is a socket that does not listen"));
        }
        // A duplicate: whose the number itself is, is not known.
        // SAFETY: fcntl with this command takes any descriptor and touches no memory.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(SocketError::System {
                step: "duplicate",
                place: format!("file descriptor {fd}"),
                cause: io::Error::last_os_error(),
            });
        }
        // SAFETY: the descriptor is new, and belongs to no one else.
        let copy = unsafe { OwnedFd::from_raw_fd(copy) };
        Ok(ServerSocket {
            listener: UnixListener::from(copy),
            file: None,
        })
    }

    /// The same socket, for another process.
    pub(super) fn lend(&self) -> io::Result<LentSocket> {
        let file = self.file.as_ref().map(|file| {
            io::Result::Ok(SocketFile {
                path: std::path::absolute(&file.path)?,
                ..*file
            })
        });
        Ok(LentSocket {
            listener: self.listener.as_fd().try_clone_to_owned()?,
            file: file.transpose()?,
        })
    }

    /// One that another process has lent for good.
    pub(super) fn of_another(lent: LentSocket) -> Self {
        let LentSocket { listener, file } = lent;
        ServerSocket {
            listener: UnixListener::from(listener),
            file,
        }
    }

    /// Leaves the file to another process.
    pub(super) fn leave(&mut self) {
        self.file = None;
    }

    /// The socket, for the runtime.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

impl Drop for ServerSocket {
    fn drop(&mut self) {
        let Some(file) = &self.file else {
            return;
        };
        let ours = fs::symlink_metadata(&file.path)
            .is_ok_and(|metadata| metadata.dev() == file.device && metadata.ino() == file.inode);
        if ours {
            let _ = fs::remove_file(&file.path);
        }
    }
}

/// Removes a socket on which nobody listens.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let error = |step| {
        move |cause| SocketError::System {
            step,
            place: path.display().to_string(),
            cause,
        }
    };
    match fs::symlink_metadata(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(error("look at")(cause)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match connect(path) {
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(error("remove the socket left behind at"))
        }
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            Err(error("connect to what listens at")(cause))
        }
        // Also one that has no time for us (EAGAIN), or speaks another protocol (EPROTOTYPE).
        _ => Err(SocketError::Live(path.to_owned())),
    }
}

/// Connects without waiting for a listener that does not accept.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket()?;
    let address = address(path)?;
    // SAFETY: `address` is a valid sockaddr_un of this length.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(UnixStream::from(socket)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let address = address(path)?;
    // SAFETY: `address` is a valid sockaddr_un of this length.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    let bytes = path.as_os_str().as_encoded_bytes();
    // SAFETY: zero bytes are a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(address)
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket touches no memory.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    match fd {
        ..0 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor is new, and belongs to no one else.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

fn socket_option(fd: RawFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` has `length` bytes, and the options asked for are integers.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps other Ferrys from looking at sockets in the same directory. Where it cannot be had, there is none.
fn lock_directory(path: &Path) -> Option<File> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = File::open(directory).ok()?;
    let deadline = Instant::now() + LOCK;
    // The lock goes with the descriptor.
    while directory.try_lock().is_err() {
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(directory)
}
