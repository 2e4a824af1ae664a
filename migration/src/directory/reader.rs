//! Reading a snapshot.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{CONSUMED, Error, MANIFEST, Use, lock, open_directory};
use crate::manifest::{self, MANIFEST_MOST, Manifest, Region, Section};
use crate::ram::{self, BlockSums, RamPart, Watch};
use crate::stream::{
    self, Cause, Label, Place, Saved, SectionReader, SectionSummary, StreamReader,
};
use crate::sys;

/// A complete snapshot, and its manifest. As long as it lives, nobody can use the snapshot up.
pub struct Reader {
    pub(super) path: PathBuf,
    pub(super) directory: File,
    manifest: Manifest,
}

impl Reader {
    /// Reads and checks the manifest, and that the files are as long as it says.
    ///
    /// # Errors
    /// The directory holds no snapshot, one that was used up, or a damaged one; or it is in use.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let directory = open_directory(path)?;
        lock(&directory, path, Use::Reading)?;
        let manifest = read_manifest(&directory, path)?;
        let reader = Reader {
            path: path.to_owned(),
            directory,
            manifest,
        };
        let Manifest { state, memory, .. } = &reader.manifest;
        reader.file(&state.file, state.bytes, libc::O_RDONLY)?;
        for region in memory {
            reader.file(&region.file, region.bytes, libc::O_RDONLY)?;
        }
        Ok(reader)
    }

    /// What the snapshot says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of the state, from its beginning to its end.
    ///
    /// # Errors
    /// The file cannot be opened, or does not belong to the manifest.
    pub fn state(&self) -> Result<StreamReader<BufReader<File>>, Error> {
        let state = &self.manifest.state;
        let file = self.file(&state.file, state.bytes, libc::O_RDONLY)?;
        let stream = StreamReader::new(BufReader::with_capacity(BUFFER, file))
            .map_err(|source| self.state_error(source))?;
        match stream.id() == self.manifest.id {
            true => Ok(stream),
            false => Err(self.state_error(stream::Error {
                place: Place::Header,
                cause: Cause::NotOfManifest,
            })),
        }
    }

    /// One section by its name, to be read in any order, and by several threads at once.
    ///
    /// # Errors
    /// There is none of this name, or the file cannot be opened.
    pub fn section(&self, name: &str) -> Result<StateSection, Error> {
        let state = &self.manifest.state;
        let Some(section) = state.sections.iter().find(|section| section.name == name) else {
            return Err(self.state_error(stream::Error {
                place: Place::Section(name.to_owned()),
                cause: Cause::Missing,
            }));
        };
        let mut file = self.file(&state.file, state.bytes, libc::O_RDONLY)?;
        file.seek(SeekFrom::Start(section.offset))
            .map_err(|source| Error::step("read", &self.path.join(&state.file), source))?;
        let input = BufReader::with_capacity(BUFFER, file);
        let summary = SectionSummary::from(section);
        Ok(StateSection {
            stream: StreamReader::one_section(input, self.manifest.id, summary),
            name: name.to_owned(),
        })
    }

    /// The value in a section.
    ///
    /// # Errors
    /// There is no such section, or it is damaged, or holds something else.
    pub fn load<T: Saved>(&self, name: &str) -> Result<T, Error> {
        let mut section = self.section(name)?;
        let value = section.stream.load(name);
        value.map_err(|source| self.state_error(source))
    }

    /// That there are exactly the sections of these names, apart from the checksums of RAM.
    ///
    /// # Errors
    /// One is missing, or unknown.
    pub fn must_have(&self, names: &[&str]) -> Result<(), Error> {
        let Manifest { state, memory, .. } = &self.manifest;
        let there = |name: &str| state.sections.iter().any(|section| section.name == name);
        let known = |name: &str| {
            names.contains(&name) || memory.iter().any(|region| region.section == name)
        };
        let missing = names.iter().find(|name| !there(name));
        let unknown = state.sections.iter().find(|section| !known(&section.name));
        let (name, cause) = match (missing, unknown) {
            (Some(name), _) => ((*name).to_owned(), Cause::Missing),
            (None, Some(section)) => (section.name.clone(), Cause::Unknown),
            (None, None) => return Ok(()),
        };
        Err(self.state_error(stream::Error {
            place: Place::Section(name),
            cause,
        }))
    }

    /// Copies a region into new RAM, checking each block: memory mode `copy`.
    ///
    /// # Errors
    /// The region is damaged or cannot be read, RAM not be written; or it was cancelled.
    pub fn load_ram(
        &self,
        region: &Region,
        ram: RamPart<'_>,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        let sums = self.sums(region)?;
        let file = self.file(&region.file, region.bytes, libc::O_RDONLY)?;
        ram::load(&file, &sums, ram, watch).map_err(|source| Error::Ram {
            path: self.path.join(&region.file),
            source,
        })
    }

    /// A clone of a region that can be guest RAM: memory mode `ondemand`. It is made in the snapshot's directory, without a
    /// name, or in another one on the same file system.
    ///
    /// # Errors
    /// The file system cannot clone, or has too little room.
    pub fn clone_ram(&self, region: &Region, directory: Option<&Path>) -> Result<File, Error> {
        let file = self.file(&region.file, region.bytes, libc::O_RDONLY)?;
        let directory = directory.unwrap_or(&self.path);
        ram::clone_for_guest(&file, directory, region.bytes).map_err(|source| Error::Mapped {
            path: self.path.join(&region.file),
            source,
        })
    }

    pub(super) fn sums(&self, region: &Region) -> Result<BlockSums, Error> {
        let mut section = self.section(&region.section)?;
        let sums = section
            .open()
            .and_then(|section| BlockSums::read(section, region.bytes));
        sums.map_err(|source| self.state_error(source))
    }

    pub(super) fn state_error(&self, source: stream::Error) -> Error {
        Error::State {
            path: self.path.join(&self.manifest.state.file),
            source,
        }
    }

    /// Opens a file that must have this length.
    pub(super) fn file(&self, name: &str, bytes: u64, flags: libc::c_int) -> Result<File, Error> {
        let path = self.path.join(name);
        let c_name = CString::new(name).unwrap_or_default();
        let file = open_regular(&self.directory, &c_name, flags)
            .map_err(|source| Error::step("open", &path, source))?;
        let metadata = file.metadata();
        let found = metadata
            .map_err(|source| Error::step("look at", &path, source))?
            .len();
        match found == bytes {
            true => Ok(file),
            false => Err(Error::Length {
                path,
                found,
                expected: bytes,
            }),
        }
    }
}

const BUFFER: usize = 64 << 10;

/// One section of a snapshot, with a file of its own.
pub struct StateSection {
    stream: StreamReader<BufReader<File>>,
    name: String,
}

impl StateSection {
    /// Reads its header.
    ///
    /// # Errors
    /// The section is damaged.
    pub fn open(&mut self) -> Result<SectionReader<'_, BufReader<File>>, stream::Error> {
        self.stream.section(&self.name)
    }

    /// Where it ends in the file, once it was read.
    pub(super) fn end(&self) -> u64 {
        self.stream.position()
    }
}

impl From<&Section> for SectionSummary {
    fn from(section: &Section) -> Self {
        SectionSummary {
            label: Label {
                name: section.name.clone(),
                form: section.form,
                schema: section.schema.clone(),
                version: section.version,
            },
            offset: section.offset,
            bytes: section.bytes,
            digest: section.digest.0,
        }
    }
}

/// Anything but a regular file is refused: reading it could wait for ever.
fn open_regular(directory: &File, name: &CStr, flags: libc::c_int) -> io::Result<File> {
    let file = sys::open_at(directory, name, flags)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

pub(super) fn read_manifest(directory: &File, path: &Path) -> Result<Manifest, Error> {
    let name = path.join("manifest.json");
    let file = match open_regular(directory, MANIFEST, libc::O_RDONLY) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = path.to_owned();
            return match open_regular(directory, CONSUMED, libc::O_RDONLY) {
                Ok(_) => Err(Error::Consumed { path }),
                Err(_) => Err(Error::NotASnapshot { path }),
            };
        }
        Err(source) => return Err(Error::step("open", &name, source)),
    };
    let mut bytes = Vec::new();
    file.take(MANIFEST_MOST as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::step("read", &name, source))?;
    Manifest::from_bytes(&bytes)
        .map_err(|source: manifest::Error| Error::Manifest { path: name, source })
}
