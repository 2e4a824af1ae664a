//! The job that fills a new machine.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use ferry_api::config::{Timeouts, VmConfig};
use ferry_api::snapshot::{MemoryMode, Step};
use ferry_devices::vhost_user::{BackEndStateV1, StateLimits, VhostUserStateV1};
use ferry_devices::virtio::VirtioDevice;
use ferry_devices::virtio::pci::VirtioPci;
use vm_migration::directory::{self, Adoption, Reader};

use super::super::{BACK_END_SCHEMA, Error, Meter, back_end_section, differing};
use super::look::Found;
use crate::console::Console;
use crate::generation::Number;
use crate::hypervisor::Hypervisor;
use crate::lifecycle::Ready;
use crate::machine::saving::{MachineState, RestoreParts, Shell};
use crate::machine::{self, Machine};
use crate::memory::GuestRam;

impl Found {
    /// What a machine is filled with.
    pub fn into_content(self, memory: MemoryMode, meter: Arc<Meter>) -> Content {
        let Found {
            reader,
            config,
            machine,
            rests,
        } = self;
        Content {
            ram: Ram::Saved(reader),
            config,
            machine,
            rests,
            memory,
            meter,
        }
    }
}

/// What a machine is filled with.
pub struct Content {
    ram: Ram,
    config: VmConfig,
    machine: MachineState,
    /// In the order of the bus.
    rests: Vec<VhostUserStateV1>,
    memory: MemoryMode,
    pub meter: Arc<Meter>,
}

enum Ram {
    Saved(Reader),
    There(GuestRam, Source),
}

/// What a machine is filled with, its RAM being there.
pub struct Filled {
    ram: GuestRam,
    source: Source,
    machine: MachineState,
    /// In the order of the bus.
    rests: Vec<VhostUserStateV1>,
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
    /// Makes the snapshot's files RAM, in the memory modes that do so: what is wrong with them is to be found before anybody
    /// is connected to.
    ///
    /// # Errors
    /// The files cannot be a guest's RAM.
    pub fn map_ram(self) -> Result<Self, Error> {
        let reader = match (self.memory, self.ram) {
            (MemoryMode::OnDemand | MemoryMode::Adopt, Ram::Saved(reader)) => reader,
            (_, ram) => return Ok(Content { ram, ..self }),
        };
        self.meter.enter(Step::Ram);
        let total = bytes(&reader);
        let (ram, source) = match self.memory {
            MemoryMode::Adopt => adopt_ram(reader, &self.config)?,
            _ => (clone_ram(&reader, &self.config)?, Source::Kept(reader)),
        };
        self.meter.ram_is_mapped(total);
        Ok(Content {
            ram: Ram::There(ram, source),
            ..self
        })
    }

    /// Fills RAM.
    ///
    /// # Errors
    /// Something is damaged or does not fit.
    pub fn fill_ram(self) -> Result<Filled, Error> {
        let Content {
            ram,
            config,
            machine,
            rests,
            memory: _,
            meter,
        } = self.map_ram()?;
        let (ram, source) = match ram {
            Ram::There(ram, source) => (ram, source),
            Ram::Saved(reader) => {
                meter.enter(Step::Ram);
                let ram = copy_ram(&reader, &config, &meter)?;
                (ram, Source::Kept(reader))
            }
        };
        Ok(Filled {
            ram,
            source,
            machine,
            rests,
            meter,
        })
    }
}

impl Filled {
    /// Fills machine and back-ends. Nothing runs yet, and no back-end touches RAM.
    ///
    /// # Errors
    /// Something does not fit, or was damaged. Devices that have been given some of their state cannot be used again.
    pub fn fill(self, place: &Place<'_>) -> Result<(Machine, GuestRam), Error> {
        let Filled {
            ram,
            source,
            machine: state,
            rests,
            meter,
        } = self;
        meter.unless_cancelled()?;
        let saved = &source.reader().manifest().snapshot.devices;
        let differences = differing(saved, place.devices);
        if !differences.is_empty() {
            return Err(Error::Differences(differences));
        }
        let regions = ram.shared_regions();
        for device in place.devices {
            device.set_ram(regions.clone());
        }
        meter.enter(Step::Machine);
        let cpuids = state.vcpus.iter().map(|vcpu| &vcpu.cpuid);
        let machine = Machine::from_state(
            Shell::new(place.hypervisor, &ram, cpuids)?,
            &RestoreParts {
                devices: place.devices,
                shared: None,
                console: place.console,
            },
            &state,
        )?;
        meter.enter(Step::Devices);
        fill_devices(&machine, place, &rests, source.reader(), &meter)?;
        let number = Number::draw().map_err(machine::Error::from)?;
        // What was given up by now has used nothing up and written nothing, and from now on it is not given up any more.
        meter.commit()?;
        if let Source::Adopted(adoption) = source {
            // From here on RAM may be written to.
            adoption.consume()?;
        }
        // The first write of all: the guest is to know that there may be another one with the same random numbers.
        machine.new_generation(&number)?;
        Ok((machine, ram))
    }
}

fn bytes(reader: &Reader) -> u64 {
    let regions = &reader.manifest().memory;
    regions.iter().map(|region| region.bytes).sum()
}

fn copy_ram(reader: &Reader, config: &VmConfig, meter: &Meter) -> Result<GuestRam, Error> {
    meter.ram_begins(bytes(reader));
    let ram = GuestRam::new(&config.memory)?;
    for (region, part) in reader.manifest().memory.iter().zip(ram.parts()) {
        reader.load_ram(region, part.ram, meter)?;
    }
    meter.ram_ends();
    Ok(ram)
}

fn clone_ram(reader: &Reader, config: &VmConfig) -> Result<GuestRam, Error> {
    let regions = reader.manifest().memory.iter();
    let clones = regions.map(|region| reader.clone_ram(region, None));
    let clones = clones.collect::<Result<_, _>>()?;
    Ok(GuestRam::from_files(&config.memory, clones)?)
}

fn adopt_ram(reader: Reader, config: &VmConfig) -> Result<(GuestRam, Source), Error> {
    let adoption = reader.adopt()?;
    let files = adoption.files().iter().map(File::try_clone);
    let files = files
        .collect::<Result<_, _>>()
        .map_err(|source| directory::Error::Step {
            step: "share the RAM files of",
            path: adoption.reader().path().to_owned(),
            source,
        })?;
    let ram = GuestRam::from_files(&config.memory, files)?;
    Ok((ram, Source::Adopted(adoption)))
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
                std::thread::Builder::new()
                    .name("load".into())
                    .spawn_scoped(scope, move || {
                        fill_device(device, function, rest, place, reader, meter)
                    })
                    .map_err(Error::Thread)
            })
            .collect();
        let outcomes = threads
            .into_iter()
            .map(|thread| match thread.map(ScopedJoinHandle::join) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(error) => Err(error),
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
