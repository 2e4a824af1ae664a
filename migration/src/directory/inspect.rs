//! What a snapshot says of itself, as text.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Error, Reader};
use crate::manifest::{After, Device, DeviceState, Manifest};

/// What is known of a snapshot without reading its state. Shows itself as lines of text.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The directory.
    pub path: PathBuf,
    /// The manifest.
    pub manifest: Manifest,
    /// What the files take on disk, in bytes.
    pub taken: u64,
}

/// Reads the manifest, and looks at the files.
///
/// # Errors
/// As [`Reader::open`].
pub fn inspect(path: &Path) -> Result<Inspection, Error> {
    Inspection::of(&Reader::open(path)?)
}

impl Inspection {
    pub(super) fn of(reader: &Reader) -> Result<Self, Error> {
        let manifest = reader.manifest().clone();
        let mut taken = 0;
        let ram = manifest.memory.iter().map(|r| (&r.file, r.bytes));
        let state = (&manifest.state.file, manifest.state.bytes);
        for (name, bytes) in ram.chain([state]) {
            let file = reader.file(name, bytes, libc::O_RDONLY)?;
            let metadata = file
                .metadata()
                .map_err(|source| Error::step("look at", &reader.path().join(name), source))?;
            taken += metadata.blocks() * 512;
        }
        Ok(Inspection {
            path: reader.path().to_owned(),
            manifest,
            taken,
        })
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Manifest {
            format,
            id,
            snapshot,
            memory,
            state,
        } = &self.manifest;
        let ram: u64 = memory.iter().map(|region| region.bytes).sum();
        let after = match snapshot.after {
            After::Paused => "stayed paused",
            After::Resume => "went on: its disks and shares may have changed since",
            After::Stop => "was stopped",
        };
        let cpu = &snapshot.cpu;
        writeln!(
            f,
            "snapshot  {} ({id}), format {format}",
            self.path.display()
        )?;
        writeln!(
            f,
            "written   {} by Ferry {}",
            snapshot.created, snapshot.ferry
        )?;
        writeln!(f, "paused    {} ms; the guest {after}", snapshot.paused_ms)?;
        writeln!(f, "cpus      {}, TSC {} kHz", cpu.count, cpu.tsc_khz)?;
        writeln!(f, "memory    {} MiB", ram >> 20)?;
        for region in memory {
            let end = region.guest_address + region.bytes;
            writeln!(
                f,
                "  {:<9} {:#x} to {end:#x}",
                region.file, region.guest_address
            )?;
        }
        writeln!(f, "on disk   {} MiB", self.taken.div_ceil(1 << 20))?;
        writeln!(f, "devices   {}", snapshot.devices.len())?;
        snapshot
            .devices
            .iter()
            .try_for_each(|device| show_device(f, device))?;
        writeln!(
            f,
            "sections  {}, {} bytes",
            state.sections.len(),
            state.bytes
        )?;
        for section in &state.sections {
            let (name, schema) = (&section.name, &section.schema);
            let (version, bytes) = (section.version, section.bytes);
            writeln!(f, "  {name:<20} {schema} {version}, {bytes} bytes")?;
        }
        Ok(())
    }
}

fn show_device(f: &mut fmt::Formatter<'_>, device: &Device) -> fmt::Result {
    write!(f, "  {:<9} virtio type {}", device.id, device.virtio_type)?;
    write!(f, ", {} queues", device.queues)?;
    if let Some(capacity) = device.capacity {
        write!(f, ", {capacity} bytes")?;
    }
    match device.state {
        DeviceState::Saved { bytes } => writeln!(f, ", state of {bytes} bytes"),
        DeviceState::Stateless => writeln!(f, ", stateless"),
    }
}
