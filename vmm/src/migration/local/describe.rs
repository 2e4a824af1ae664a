//! What a process is told that a guest is about to be handed to, and the descriptors that go with it, in the order of [`Parts`].

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use vm_migration::ownership::{Ownership, Process};
use vm_migration::stream::Saved;

use super::outside::{Brought, Lead, LentOutside, OutsideV1};
use crate::memory::GuestRam;
use crate::migration::Error;
use crate::migration::describe::GuestV1;

/// A guest that is handed over, described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HandOverV1 {
    pub guest: GuestV1,
    /// How many files its RAM is.
    pub ram_files: u8,
    /// What goes along.
    pub outside: OutsideV1,
}

impl Saved for HandOverV1 {
    const SCHEMA: &'static str = "hand-over";
    const VERSION: u16 = 1;
}

/// What comes as descriptors.
pub struct Parts {
    /// The sender.
    pub process: Process,
    /// Who has the guest.
    pub ownership: Ownership,
    /// By ascending address.
    pub ram: Vec<File>,
    /// What comes along.
    pub outside: Brought,
}

impl Parts {
    /// Those that `description` announces.
    pub fn new(description: &HandOverV1, handles: Vec<OwnedFd>, lead: Lead) -> Result<Self, Error> {
        let HandOverV1 {
            guest: _,
            ram_files,
            outside,
        } = description;
        let ram_files = usize::from(*ram_files);
        let expected = 2 + ram_files + outside.descriptors();
        if handles.len() != expected {
            return Err(Error::Mismatch("number of descriptors"));
        }
        let mut handles = handles.into_iter();
        let mut next = || {
            handles
                .next()
                .ok_or(Error::Mismatch("number of descriptors"))
        };
        Ok(Parts {
            process: Process::new(next()?),
            ownership: Ownership::from_file(next()?.into()).map_err(Error::Ownership)?,
            ram: handles.by_ref().take(ram_files).map(File::from).collect(),
            outside: Brought::new(outside, handles.collect(), lead)?,
        })
    }

    /// The same on their way out.
    pub fn handles<'a>(
        process: &'a Process,
        ownership: &'a Ownership,
        ram: &'a GuestRam,
        outside: &'a LentOutside,
    ) -> Vec<BorrowedFd<'a>> {
        let files = ram.parts().into_iter().map(|part| part.ram.file.as_fd());
        [process.handle(), ownership.handle()]
            .into_iter()
            .chain(files)
            .chain(outside.handles())
            .collect()
    }
}
