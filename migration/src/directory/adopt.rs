//! Memory mode `adopt`: the RAM files of a snapshot become the RAM of a guest, and the snapshot is used up.

use std::fs::File;

use super::reader::read_manifest;
use super::{CONSUMED, Error, MANIFEST, Reader, Use, lock};
use crate::manifest::{Manifest, Region};
use crate::{ram, sys};

/// A snapshot about to be used up. Its files can be mapped, but **nothing may write to them** before
/// [`Adoption::consume`]: no vCPU runs, and no vring of a back-end is started. Dropped before that, the snapshot is as it was.
pub struct Adoption {
    reader: Reader,
    files: Vec<File>,
}

impl Reader {
    /// Opens the RAM files for a guest and sets space aside for their holes.
    ///
    /// # Errors
    /// Somebody else reads the snapshot; a file cannot be written to, or there is too little room for its holes.
    pub fn adopt(self) -> Result<Adoption, Error> {
        lock(&self.directory, &self.path, Use::Changing)?;
        // Between the shared lock and this one it may have been used up.
        let now = read_manifest(&self.directory, &self.path)?;
        if now != *self.manifest() {
            return Err(Error::Vanished {
                path: self.path.clone(),
            });
        }
        let open = |region: &Region| {
            let file = self.file(&region.file, region.bytes, libc::O_RDWR)?;
            ram::reserve(&file, region.bytes).map_err(|source| Error::Mapped {
                path: self.path.join(&region.file),
                source,
            })?;
            Ok(file)
        };
        let files = self.manifest().memory.iter().map(open);
        let files = files.collect::<Result<_, Error>>()?;
        Ok(Adoption {
            reader: self,
            files,
        })
    }
}

impl Adoption {
    /// What the snapshot says of itself.
    pub fn manifest(&self) -> &Manifest {
        self.reader.manifest()
    }

    /// The snapshot, whose sections can still be read.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The RAM files, in the order of the manifest's regions.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Marks the snapshot as used up, on disk, and gives the files away. To be called right before the guest starts.
    ///
    /// # Errors
    /// It cannot be marked. The guest must not start then.
    pub fn consume(self) -> Result<Vec<File>, Error> {
        let Reader {
            path, directory, ..
        } = &self.reader;
        sys::rename_at(directory, MANIFEST, CONSUMED)
            .and_then(|()| directory.sync_all())
            .map_err(|source| Error::step("mark as used up the snapshot in", path, source))?;
        Ok(self.files)
    }
}
