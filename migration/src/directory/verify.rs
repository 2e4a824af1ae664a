//! Reading everything in a snapshot, to see whether it is as it was written.

use std::fmt;
use std::fs::File;
use std::path::Path;

use super::{Error, Inspection, Reader};
use crate::manifest::{Manifest, Region, Section};
use crate::ram::{self, BlockSums, Watch};
use crate::stream;

/// What was found. Shows itself as lines of text.
#[derive(Clone, Debug)]
pub struct Verification {
    /// What the snapshot says of itself.
    pub inspection: Inspection,
    /// What is not right, nothing for a sound snapshot.
    pub damages: Vec<Damage>,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The section or file: `section fs0/back-end`, `ram0`.
    pub part: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.what)
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Manifest { memory, state, .. } = &self.inspection.manifest;
        let (sections, regions) = (state.sections.len(), memory.len());
        let path = self.inspection.path.display();
        match self.damages.len() {
            0 => writeln!(
                f,
                "{path} is sound: {sections} sections, {regions} regions of RAM"
            ),
            number => {
                writeln!(f, "{path} is damaged in {number} places")?;
                self.damages
                    .iter()
                    .try_for_each(|damage| writeln!(f, "  {damage}"))
            }
        }
    }
}

/// Reads all sections and all RAM of a snapshot and checks them. `watch` is told of the
/// RAM only.
///
/// # Errors
/// There is no snapshot, or its manifest or the lengths of its files are wrong; a file cannot be read; or it was cancelled.
/// Damage elsewhere is not an error but an answer.
pub fn verify(path: &Path, watch: &dyn Watch) -> Result<Verification, Error> {
    let reader = Reader::open(path)?;
    let inspection = Inspection::of(&reader)?;
    let mut damages = Vec::new();
    let sums = check_state(&reader, &mut damages, watch)?;
    for (region, sums) in reader.manifest().memory.iter().zip(sums) {
        let file = reader.file(&region.file, region.bytes, libc::O_RDONLY)?;
        damages.extend(check_ram(&reader, region, &file, sums, watch)?);
    }
    Ok(Verification {
        inspection,
        damages,
    })
}

impl Reader {
    /// Checks all sections, and not the RAM: what a restore in one of the mapped memory modes does first.
    ///
    /// # Errors
    /// A section is damaged, or cannot be read; or it was cancelled.
    pub fn check_sections(&self, watch: &dyn Watch) -> Result<(), Error> {
        let mut damages = Vec::new();
        let path = || self.path().join(&self.manifest().state.file);
        check_state(self, &mut damages, watch)?;
        match damages.first() {
            None => Ok(()),
            Some(damage) => Err(Error::step(
                "use the damaged state in",
                &path(),
                std::io::Error::other(damage.to_string()),
            )),
        }
    }
}

/// Reads every section by itself, so that all damages are found; returns the checksums of each region that can be had.
fn check_state(
    reader: &Reader,
    damages: &mut Vec<Damage>,
    watch: &dyn Watch,
) -> Result<Vec<Option<BlockSums>>, Error> {
    let Manifest { memory, state, .. } = reader.manifest();
    let mut sums = vec![None; memory.len()];
    let mut damaged = |part: String, what: String| damages.push(Damage { part, what });
    let mut begins = match reader.state() {
        Ok(stream) => stream.position(),
        Err(Error::State { source, .. }) => {
            damaged("the state's header".into(), chain(&source.cause));
            stream::HEADER_BYTES
        }
        Err(error) => return Err(error),
    };
    for section in &state.sections {
        let part = || format!("section {}", section.name);
        let region = memory
            .iter()
            .position(|region| region.section == section.name);
        let checked = check_section(reader, section, region.map(|index| &memory[index]), watch)?;
        if watch.cancelled() {
            return Err(reader.state_error(stream::Error {
                place: stream::Place::Section(section.name.clone()),
                cause: stream::Cause::Cancelled,
            }));
        }
        match checked {
            Ok(checked) => {
                if section.offset != begins {
                    damaged(part(), "it is not where the one before it ends".into());
                }
                begins = checked.end;
                if let Some(index) = region {
                    sums[index] = checked.sums;
                }
            }
            Err(error) => {
                damaged(part(), chain(&error.cause));
                // The next one is taken to be where the manifest says.
                let next = state.sections.iter().map(|section| section.offset);
                begins = next
                    .filter(|offset| *offset > section.offset)
                    .min()
                    .unwrap_or(state.bytes.saturating_sub(stream::END_BYTES));
            }
        }
    }
    if let Err(what) = check_end(reader, begins)? {
        damaged("the state's end".into(), what);
    }
    Ok(sums)
}

struct Checked {
    end: u64,
    sums: Option<BlockSums>,
}

fn check_section(
    reader: &Reader,
    section: &Section,
    region: Option<&Region>,
    watch: &dyn Watch,
) -> Result<Result<Checked, stream::Error>, Error> {
    let mut file = reader.section(&section.name)?;
    let checked = file.open().and_then(|section| match region {
        Some(region) => BlockSums::read(section, region.bytes).map(Some),
        None => section.skip_watched(watch).map(|_| None),
    });
    match checked {
        Ok(sums) => Ok(Ok(Checked {
            end: file.end(),
            sums,
        })),
        Err(error) => Ok(Err(error)),
    }
}

/// What stands at the end of the state follows from the manifest.
fn check_end(reader: &Reader, begins: u64) -> Result<Result<(), String>, Error> {
    use std::os::unix::fs::FileExt;

    let Manifest { id, state, .. } = reader.manifest();
    let digests = state.sections.iter().map(|section| section.digest.0);
    let (digest, expected) = stream::expected_end(*id, digests, begins);
    let mut found = vec![0; expected.len()];
    let file = reader.file(&state.file, state.bytes, libc::O_RDONLY)?;
    if digest != state.digest.0 || begins + expected.len() as u64 != state.bytes {
        return Ok(Err("it is not what the manifest describes".into()));
    }
    file.read_exact_at(&mut found, begins)
        .map_err(|source| Error::step("read", &reader.path().join(&state.file), source))?;
    match found == expected {
        true => Ok(Ok(())),
        false => Ok(Err("it is damaged".into())),
    }
}

fn check_ram(
    reader: &Reader,
    region: &Region,
    file: &File,
    sums: Option<BlockSums>,
    watch: &dyn Watch,
) -> Result<Option<Damage>, Error> {
    let damage = |what| Damage {
        part: region.file.clone(),
        what,
    };
    let Some(sums) = sums else {
        let what = format!(
            "without the section {} it cannot be checked",
            region.section
        );
        return Ok(Some(damage(what)));
    };
    let bad = ram::verify(file, &sums, watch).map_err(|source| Error::Ram {
        path: reader.path().join(&region.file),
        source,
    })?;
    if bad.count == 0 {
        return Ok(None);
    }
    let guest = |offset: &u64| format!("{:#x}", region.guest_address + offset);
    let first: Vec<_> = bad.first.iter().map(guest).collect();
    let more = match bad.count as usize > first.len() {
        true => ", …",
        false => "",
    };
    let (count, first) = (bad.count, first.join(", "));
    Ok(Some(damage(format!(
        "{count} blocks of 1 MiB are damaged, at guest addresses {first}{more}"
    ))))
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
