//! A listening unix socket as the far end.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::SerialError;
use crate::sys::unix;

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
    let socket = unix::socket().map_err(open)?;
    // Before it has a name: the file is made with this mode, less the umask, and at no time with another.
    unix::set_mode(&socket, 0o600).map_err(open)?;
    unix::bind(&socket, path).map_err(open)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: Identity::of(path),
    };
    unix::listen(&socket, 1).map_err(open)?;
    Ok(Bound {
        listener: UnixListener::from(socket),
        file,
    })
}

fn has_listener(path: &Path) -> io::Result<bool> {
    match unix::connect(path) {
        Ok(_) => Ok(true),
        // Somebody listens, and has clients waiting already.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}
