//! The job that fills a new machine.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use ferry_api::config::{Timeouts, VmConfig};
use ferry_api::snapshot::{MemoryMode, Step};
use ferry_devices::vhost_user::{BackEndStateV1, StateLimits, VhostUserStateV1};
use ferry_devices::virtio::VirtioDevice;
use ferry_devices::virtio::pci::VirtioPci;
use vm_migration::directory::{self, Adoption, Reader};
use vm_migration::manifest::{Manifest, differences};

use super::super::{BACK_END_SCHEMA, Error, Meter, back_end_section, describe};
use super::look::Found;
use crate::console::Console;
use crate::generation::Number;
use crate::hypervisor::Hypervisor;
use crate::lifecycle::Ready;
use crate::machine::saving::RestoreParts;
use crate::machine::{self, Machine};
use crate::memory::GuestRam;

impl Found {
    /// What a machine is filled with.
    pub fn into_content(self, memory: MemoryMode, meter: Arc<Meter>) -> Content {
        Content {
            found: self,
            memory,
            meter,
        }
    }
}

/// What a machine is filled with.
pub struct Content {
    found: Found,
    memory: MemoryMode,
    pub meter: Arc<Meter>,
}

/// What it is filled into.
pub struct Place<'a> {
    pub hypervisor: &'a Hypervisor,
    /// In the order of the bus.
    pub devices: &'a [Ready],
    pub console: Option<&'a Console>,
    pub timeouts: &'a Timeouts,
}

/// The snapshot while its RAM comes to life.
enum Source {
    Kept(Reader),
    Adopted(Adoption),
}

impl Source {
    fn reader(&self) -> &Reader {
        match self {
            Source::Kept(reader) => reader,
            Source::Adopted(adoption) => adoption.reader(),
        }
    }
}

impl Content {
    /// Fills RAM, machine and back-ends. Nothing runs yet, and no back-end touches RAM.
    ///
    /// # Errors
    /// Something does not fit, or was damaged. Devices that have been given some of their state cannot be used again.
    pub fn fill(self, place: &Place<'_>) -> Result<(Machine, GuestRam), Error> {
        let Content {
            found,
            memory,
            meter,
        } = self;
        let Found {
            reader,
            config,
            machine: state,
            rests,
        } = found;
        compare(reader.manifest(), place.devices)?;
        meter.enter(Step::Ram);
        let (ram, source) = fill_ram(reader, &config, memory, &meter)?;
        let regions = ram.shared_regions();
        for device in place.devices {
            device.set_ram(regions.clone());
        }
        meter.enter(Step::Machine);
        let machine = Machine::from_state(
            &RestoreParts {
                hypervisor: place.hypervisor,
                ram: &ram,
                devices: place.devices,
                console: place.console,
            },
            &state,
        )?;
        meter.enter(Step::Devices);
        fill_devices(&machine, place, &rests, source.reader(), &meter)?;
        let number = Number::draw().map_err(machine::Error::from)?;
        meter.unless_cancelled()?;
        if let Source::Adopted(adoption) = source {
            // From here on RAM may be written to.
            adoption.consume()?;
        }
        // The first write of all: the guest is to know that there may be another one with the same random numbers.
        machine.new_generation(&number)?;
        Ok((machine, ram))
    }
}

/// Refuses devices that the guest would not know again.
fn compare(manifest: &Manifest, devices: &[Ready]) -> Result<(), Error> {
    let saved = &manifest.snapshot.devices;
    let present: Vec<_> = devices
        .iter()
        .map(|device| {
            let saved = saved.iter().find(|saved| saved.id == device.id());
            describe::present(device, saved)
        })
        .collect();
    let differences = differences(saved, &present);
    match differences.is_empty() {
        true => Ok(()),
        false => Err(Error::Differences(differences)),
    }
}

fn fill_ram(
    reader: Reader,
    config: &VmConfig,
    memory: MemoryMode,
    meter: &Meter,
) -> Result<(GuestRam, Source), Error> {
    let regions = &reader.manifest().memory;
    let total = regions.iter().map(|region| region.bytes).sum();
    match memory {
        MemoryMode::Copy => {
            meter.ram_begins(total);
            let ram = GuestRam::new(&config.memory)?;
            for (region, part) in regions.iter().zip(ram.parts()) {
                reader.load_ram(region, part.ram, meter)?;
            }
            meter.ram_ends();
            Ok((ram, Source::Kept(reader)))
        }
        MemoryMode::OnDemand => {
            let clones = regions.iter().map(|region| reader.clone_ram(region, None));
            let ram = GuestRam::from_files(&config.memory, clones.collect::<Result<_, _>>()?)?;
            meter.ram_is_mapped(total);
            Ok((ram, Source::Kept(reader)))
        }
        MemoryMode::Adopt => {
            let adoption = reader.adopt()?;
            let files = adoption.files().iter().map(File::try_clone);
            let files =
                files
                    .collect::<Result<_, _>>()
                    .map_err(|source| directory::Error::Step {
                        step: "share the RAM files of",
                        path: adoption.reader().path().to_owned(),
                        source,
                    })?;
            let ram = GuestRam::from_files(&config.memory, files)?;
            meter.ram_is_mapped(total);
            Ok((ram, Source::Adopted(adoption)))
        }
    }
}

/// Gives every device its rings, and its back-end what it held; all devices at the same time, because back-ends take their
/// time.
fn fill_devices(
    machine: &Machine,
    place: &Place<'_>,
    rests: &[VhostUserStateV1],
    reader: &Reader,
    meter: &Meter,
) -> Result<(), Error> {
    let devices = place.devices.iter().zip(machine.functions()).zip(rests);
    let carriers = place.devices.iter().zip(rests);
    meter.expect_devices(
        carriers
            .filter(|(_, rest)| rest.back_end == BackEndStateV1::Carried)
            .map(|(device, _)| device.id().to_owned()),
    );
    std::thread::scope(|scope| {
        let threads: Vec<_> = devices
            .map(|((device, function), rest)| {
                scope.spawn(move || fill_device(device, function, rest, place, reader, meter))
            })
            .collect();
        let outcomes = threads.into_iter().map(|thread| match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // All are waited for, also when one has failed.
        outcomes.fold(Ok(()), Result::and)
    })
}

fn fill_device(
    device: &Ready,
    function: &VirtioPci,
    rest: &VhostUserStateV1,
    place: &Place<'_>,
    reader: &Reader,
    meter: &Meter,
) -> Result<(), Error> {
    let limit = place.timeouts.request;
    let (sender, receiver) = channel();
    let activation = match rest.rings.is_empty() {
        true => None,
        false => function.activation(),
    };
    device.restore(activation, rest, move |outcome| {
        let _ = sender.send(outcome);
    });
    let late = || Error::Late {
        device: device.id().to_owned(),
        limit,
    };
    meter
        .wait(&receiver, Instant::now() + limit)?
        .ok_or_else(late)??;
    if rest.back_end == BackEndStateV1::Absent {
        return Ok(());
    }
    let watch = meter.device(device.id());
    let limits = StateLimits {
        reply: limit,
        silence: limit,
        // It was capped when it was saved.
        most: u64::MAX,
    };
    let mut section = reader.section(&back_end_section(device.id()))?;
    let damaged = |source| {
        Error::Directory(directory::Error::State {
            path: reader.path().join(&reader.manifest().state.file),
            source,
        })
    };
    let section = section.open().map_err(damaged)?;
    let mut loading = device.begin_load(&limits);
    section.load_chunks(BACK_END_SCHEMA, limits.most, |data| {
        loading.write(data, &watch).map_err(Error::from)
    })?;
    loading.finish(&watch)?;
    watch.checked();
    Ok(())
}
