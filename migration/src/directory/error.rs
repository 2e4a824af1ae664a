//! What can be wrong with a snapshot directory.

use std::io;
use std::path::{Path, PathBuf};

use crate::{manifest, ram, stream};

/// A snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step failed.
    #[error("cannot {step} {}", path.display())]
    Step {
        /// The step, as in "cannot …".
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Somebody else is at it.
    #[error("{} is in use by another snapshot or restore", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A snapshot goes into a new directory, or an empty one.
    #[error("{} is not empty, it holds {found:?}; name a new directory or an empty one", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// Something in it.
        found: String,
    },
    /// The directory was removed or moved while the snapshot was written into it.
    #[error("{} was removed or replaced while the snapshot was written", path.display())]
    Vanished {
        /// The directory.
        path: PathBuf,
    },
    /// There is no manifest.
    #[error("{} is no snapshot, or was never completed: it has no manifest.json", path.display())]
    NotASnapshot {
        /// The directory.
        path: PathBuf,
    },
    /// Its RAM has become a guest's.
    #[error("the snapshot in {} was used up by a restore with memory mode `adopt`", path.display())]
    Consumed {
        /// The directory.
        path: PathBuf,
    },
    /// The manifest is not right.
    #[error("{}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: manifest::Error,
    },
    /// A file is not as long as the manifest says.
    #[error("{} has {found} bytes, and the manifest says {expected}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// How long it is.
        found: u64,
        /// How long it should be.
        expected: u64,
    },
    /// The state is not right.
    #[error("{}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: stream::Error,
    },
    /// A region of RAM could not be moved.
    #[error("{}", path.display())]
    Ram {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ram::Error,
    },
    /// A RAM file cannot become a guest's RAM.
    #[error("{}", path.display())]
    Mapped {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ram::MappedError,
    },
}

impl Error {
    pub(super) fn step(step: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Step {
            step,
            path: path.to_owned(),
            source,
        }
    }
}
