//! The files a guest boots from.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, ReadVolatile, VolatileMemoryError,
};

use super::Error;

/// A regular file that stays open, so that a rebooting guest finds it again even if it has been replaced or removed.
#[derive(Debug)]
pub struct BootFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl BootFile {
    /// Opens a regular file.
    ///
    /// # Errors
    /// [`Error::Open`]. A FIFO or a device is refused, and not waited for.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::Open {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if metadata.is_dir() {
            return Err(fail(io::ErrorKind::IsADirectory.into()));
        }
        if !metadata.is_file() {
            return Err(fail(io::Error::other("not a regular file")));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size: metadata.len(),
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in it when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads `len` bytes from `offset` on; `what` names them in an error.
    pub fn read(&self, offset: u64, len: usize, what: &'static str) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|source| self.read_error(what, source))?;
        Ok(bytes)
    }

    /// Reads up to `most` bytes from the start.
    pub fn head(&self, most: usize) -> Result<Vec<u8>, Error> {
        let len = self.size.min(most as u64) as usize;
        self.read(0, len, "the start")
    }

    /// Reads a part of the file straight into guest RAM, without a copy in between.
    pub fn load(
        &self,
        ram: &GuestMemoryMmap,
        span: Span,
        to: GuestAddress,
        what: &'static str,
    ) -> Result<(), Error> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(span.offset))
            .map_err(|source| self.read_error(what, source))?;
        // Not `read_exact_volatile_from`: it takes a read of less than asked for as the end, and Linux reads at most
        // 2 GiB at once.
        for slice in GuestMemoryBackend::get_slices(ram, to, span.len as usize) {
            let mut slice = slice.map_err(|source| Error::Ram { what, source })?;
            file.read_exact_volatile(&mut slice)
                .map_err(|error| match error {
                    VolatileMemoryError::IOError(source) => self.read_error(what, source),
                    other => Error::Ram {
                        what,
                        source: other.into(),
                    },
                })?;
        }
        Ok(())
    }

    fn read_error(&self, what: &'static str, source: io::Error) -> Error {
        Error::Read {
            path: self.path.clone(),
            what,
            source,
        }
    }

    /// The file contradicts itself.
    pub fn damaged(&self, why: impl Into<String>) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            why: why.into(),
        }
    }

    /// The file is something else.
    pub fn not_a_kernel(&self, is: &'static str) -> Error {
        Error::NotAKernel {
            path: self.path.clone(),
            is,
        }
    }
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The initial RAM file system.
#[derive(Debug)]
pub struct Initramfs(BootFile);

impl Initramfs {
    /// Opens it. Its contents are the kernel's affair.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::InitramfsEmpty`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = BootFile::open(path)?;
        if file.size() == 0 {
            return Err(Error::InitramfsEmpty {
                path: path.to_owned(),
            });
        }
        Ok(Self(file))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// Reads it into guest RAM.
    pub(super) fn load(&self, ram: &GuestMemoryMmap, to: GuestAddress) -> Result<(), Error> {
        self.0.load(
            ram,
            Span {
                offset: 0,
                len: self.size(),
            },
            to,
            "the initramfs",
        )
    }
}
