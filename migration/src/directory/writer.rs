//! Writing a snapshot.

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Error, MANIFEST, NEW_MANIFEST, STATE, Use, lock, open_directory};
use crate::manifest::{Description, Manifest, Region, State};
use crate::ram::{self, BlockSums, RamPart, Watch};
use crate::stream::{FORMAT_VERSION, StreamId, StreamSummary, StreamWriter};
use crate::sys;

/// Where the sections of a snapshot are written. It may be written by one thread while another one saves RAM.
pub type StateWriter = StreamWriter<BufWriter<File>>;

/// Collects pieces of the stream, so that small ones cost no call each.
const BUFFER: usize = 64 << 10;

/// A snapshot that is being written. Unless it is [published](Writer::publish), what it has written is removed again.
///
/// ```text
///   create ─▶ begin_state ─▶ … sections, save_ram … ─▶ finish_state ─▶ publish
/// ```
///
/// The guest has to be stopped until `finish_state` at the latest, and may go on while `publish` waits for the disk.
pub struct Writer {
    path: PathBuf,
    directory: File,
    id: StreamId,
    /// Whether the directory itself is this writer's.
    origin: Origin,
    files: Vec<(CString, File)>,
    memory: Vec<(Region, BlockSums)>,
    state: Option<StreamSummary>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Made,
    Given,
    /// Nothing is to be removed any more.
    Published,
}

impl Writer {
    /// Makes the directory, or takes an empty one, a mount point too (`lost+found` is nothing).
    ///
    /// # Errors
    /// It cannot be made or opened, is not empty, or is used by another writer.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let id = StreamId::draw()
            .map_err(|source| Error::step("find an id for the snapshot in", path, source))?;
        Self::create_with_id(path, id)
    }

    pub(super) fn create_with_id(path: &Path, id: StreamId) -> Result<Self, Error> {
        let origin = match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => Origin::Made,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Origin::Given,
            Err(source) => return Err(Error::step("make the directory", path, source)),
        };
        let directory = open_directory(path)?;
        lock(&directory, path, Use::Changing)?;
        if let Some(found) = first_entry(path)? {
            return Err(Error::NotEmpty {
                path: path.to_owned(),
                found,
            });
        }
        Ok(Writer {
            path: path.to_owned(),
            directory,
            id,
            origin,
            files: Vec::new(),
            memory: Vec::new(),
            state: None,
        })
    }

    /// The id of the snapshot.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins the file of the state, once.
    ///
    /// # Errors
    /// It cannot be made or written, or was begun before.
    pub fn begin_state(&mut self) -> Result<StateWriter, Error> {
        let file = self.make(STATE)?;
        let output = BufWriter::with_capacity(BUFFER, file);
        StreamWriter::new(output, self.id).map_err(|source| self.state_error(source))
    }

    /// Saves a region of RAM, in the order of addresses. Its checksums become the section `__ram0`, `__ram1`, … of the
    /// state.
    ///
    /// # Errors
    /// RAM cannot be read, the file not be made or written; or it was cancelled.
    pub fn save_ram(
        &mut self,
        guest_address: u64,
        ram: RamPart<'_>,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        let name = format!("ram{}", self.memory.len());
        let file = self.make(&c_string(&name))?;
        let sums = ram::save(ram, &file, watch).map_err(|source| Error::Ram {
            path: self.path.join(&name),
            source,
        })?;
        let region = Region {
            section: format!("__{name}"),
            file: name,
            guest_address,
            bytes: ram.bytes,
        };
        self.memory.push((region, sums));
        Ok(())
    }

    /// Ends the state, behind the checksums of RAM. All RAM must have been saved.
    ///
    /// # Errors
    /// The file cannot be written, or a section of it was given up.
    pub fn finish_state(&mut self, mut state: StateWriter) -> Result<(), Error> {
        for (region, sums) in &self.memory {
            sums.write(&mut state, &region.section)
                .map_err(|source| self.state_error(source))?;
        }
        let (_, summary) = state.finish().map_err(|source| self.state_error(source))?;
        self.state = Some(summary);
        Ok(())
    }

    /// Waits until everything is on disk, and then makes it a snapshot.
    ///
    /// # Errors
    /// A step failed: there is no snapshot. If only the last one did, which makes the name of the manifest durable, it is
    /// removed again.
    pub fn publish(mut self, description: Description) -> Result<Manifest, Error> {
        let Some(state) = self.state.take() else {
            let source = io::Error::other("its end was not written");
            return Err(Error::step("publish", &self.path.join("state"), source));
        };
        let manifest = Manifest {
            format: FORMAT_VERSION,
            id: self.id,
            snapshot: description,
            memory: self
                .memory
                .iter()
                .map(|(region, _)| region.clone())
                .collect(),
            state: State::new("state", &state),
        };
        let bytes = manifest.to_bytes().map_err(|source| Error::Manifest {
            path: self.path.join("manifest.json"),
            source,
        })?;
        for (name, file) in &self.files {
            self.synced(name, file)?;
        }
        let mut file = self.make(NEW_MANIFEST)?;
        file.write_all(&bytes)
            .map_err(|source| self.error("write", NEW_MANIFEST, source))?;
        self.synced(NEW_MANIFEST, &file)?;
        self.sync_directory()?;
        sys::rename_at(&self.directory, NEW_MANIFEST, MANIFEST)
            .map_err(|source| self.error("give the manifest its name", MANIFEST, source))?;
        if let Some(last) = self.files.last_mut() {
            last.0 = MANIFEST.to_owned();
        }
        self.sync_directory()?;
        self.sync_parent()?;
        self.still_there()?;
        self.origin = Origin::Published;
        Ok(manifest)
    }

    fn make(&mut self, name: &CStr) -> Result<File, Error> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let opened = sys::open_at(&self.directory, name, flags)
            .and_then(|file| Ok((file.try_clone()?, file)));
        let (file, ours) = opened.map_err(|source| self.error("make the file", name, source))?;
        self.files.push((name.to_owned(), ours));
        Ok(file)
    }

    fn synced(&self, name: &CStr, file: &File) -> Result<(), Error> {
        file.sync_all()
            .map_err(|source| self.error("write to disk", name, source))
    }

    fn sync_directory(&self) -> Result<(), Error> {
        self.directory
            .sync_all()
            .map_err(|source| Error::step("write to disk", &self.path, source))
    }

    /// The name of a directory that was made is in the one above it.
    fn sync_parent(&self) -> Result<(), Error> {
        if self.origin != Origin::Made {
            return Ok(());
        }
        let above = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        let above = above.unwrap_or(Path::new("."));
        open_directory(above)?
            .sync_all()
            .map_err(|source| Error::step("write to disk", above, source))
    }

    fn still_there(&self) -> Result<(), Error> {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let ours = self.directory.metadata().map(identity);
        match (fs::metadata(&self.path).map(identity), ours) {
            (Ok(there), Ok(ours)) if there == ours => Ok(()),
            _ => Err(Error::Vanished {
                path: self.path.clone(),
            }),
        }
    }

    fn state_error(&self, source: crate::stream::Error) -> Error {
        Error::State {
            path: self.path.join("state"),
            source,
        }
    }

    fn error(&self, step: &'static str, name: &CStr, source: io::Error) -> Error {
        Error::step(step, &self.path.join(&*name.to_string_lossy()), source)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.origin == Origin::Published {
            return;
        }
        // The manifest, if there is one, goes first. What cannot be removed is no snapshot without it.
        for (name, _) in self.files.drain(..).rev() {
            let _ = sys::unlink_at(&self.directory, &name);
        }
        let _ = self.directory.sync_all();
        if self.origin == Origin::Made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn first_entry(path: &Path) -> Result<Option<String>, Error> {
    let list = |source| Error::step("list the directory", path, source);
    for entry in fs::read_dir(path).map_err(list)? {
        let name = entry.map_err(list)?.file_name();
        if name != "lost+found" {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Of a name that was made here, and so holds no zero byte.
fn c_string(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}
