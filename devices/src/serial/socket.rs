//! A listening unix socket as the far end.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::SerialError;
use super::lending::SocketFileV1;
use crate::sys::unix;

/// A socket to accept clients from, and its file.
pub struct Bound {
    /// Non-blocking.
    pub listener: UnixListener,
    /// Removed when dropped.
    pub file: SocketFile,
}

/// The socket's place in the file system. Dropping this removes it, unless something else stands there by then, or it is another
/// process's.
#[derive(Debug)]
pub struct SocketFile {
    pub(super) path: PathBuf,
    pub(super) identity: Option<Identity>,
    is_ours: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl SocketFile {
    /// One that is another process's.
    pub fn of_another(file: &SocketFileV1) -> Self {
        let SocketFileV1 {
            path,
            device,
            inode,
        } = file;
        SocketFile {
            path: path.clone(),
            identity: Some(Identity {
                device: *device,
                inode: *inode,
            }),
            is_ours: false.into(),
        }
    }

    /// It is this process's.
    pub fn keep(&self) {
        self.is_ours.store(true, Ordering::Relaxed);
    }

    /// It is another process's.
    pub fn leave(&self) {
        self.is_ours.store(false, Ordering::Relaxed);
    }
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
        let ours = self.is_ours.load(Ordering::Relaxed) && self.identity.is_some();
        if ours && Identity::of(&self.path) == self.identity {
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
        is_ours: true.into(),
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
