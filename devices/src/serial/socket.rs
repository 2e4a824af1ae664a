//! A listening unix socket as the far end.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::SerialError;

/// A socket to accept clients from, and its file.
pub struct Bound {
    /// Non-blocking.
    pub listener: UnixListener,
    /// Removed when dropped.
    pub file: SocketFile,
}

/// The socket's place in the file system. Dropping this removes it, unless something else stands there by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<Identity>,
}

#[derive(Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let metadata = path.symlink_metadata().ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && Identity::of(&self.path) == self.identity {
            // The directory may be gone: then there is nothing to remove.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on `path`, for this user alone. A socket that nobody listens on any more is replaced.
pub fn listen(path: &Path) -> Result<Bound, SerialError> {
    let open = |cause| SerialError::Open {
        path: path.to_owned(),
        cause,
    };
    if let Ok(metadata) = path.symlink_metadata() {
        if !metadata.file_type().is_socket() {
            let message = "there is a file of that name, and it is not a socket";
            return Err(open(io::Error::other(message)));
        }
        if has_listener(path).map_err(open)? {
            return Err(SerialError::InUse {
                path: path.to_owned(),
            });
        }
        std::fs::remove_file(path).map_err(open)?;
    }
    let socket = socket().map_err(open)?;
    // Before it has a name: the file is made with this mode, less the umask, and at no time with another.
    set_private(&socket).map_err(open)?;
    let address = Address::new(path).map_err(open)?;
    address.bind(&socket).map_err(open)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: Identity::of(path),
    };
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 1) }).map_err(open)?;
    Ok(Bound {
        listener: UnixListener::from(socket),
        file,
    })
}

fn has_listener(path: &Path) -> io::Result<bool> {
    let address = Address::new(path)?;
    match address.connect(&socket()?) {
        Ok(()) => Ok(true),
        // Somebody listens, and has clients waiting already.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_private(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) })
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A path as the address of a socket.
struct Address(libc::sockaddr_un);

impl Address {
    fn new(path: &Path) -> io::Result<Self> {
        // SAFETY: all zeros are a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = path.as_os_str().as_bytes();
        // One place is for the terminating zero byte.
        if bytes.len() >= address.sun_path.len() {
            let message = "the path is too long for a socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
            *place = *byte as libc::c_char;
        }
        Ok(Self(address))
    }

    fn bind(&self, socket: &OwnedFd) -> io::Result<()> {
        let length = size_of_val(&self.0) as libc::socklen_t;
        // SAFETY: the address is valid and of that length.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const self.0).cast(), length) })
    }

    fn connect(&self, socket: &OwnedFd) -> io::Result<()> {
        let length = size_of_val(&self.0) as libc::socklen_t;
        // SAFETY: the address is valid and of that length.
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const self.0).cast(), length) })
    }
}
