//! The jobs that bring a saved guest back: one that only reads, and one that fills a new machine.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use ferry_api::config::{BackendConfig, Timeouts, VmConfig};
use ferry_api::snapshot::{MemoryMode, RestoreRequest, Step};
use ferry_devices::vhost_user::{BackEndStateV1, StateLimits, VhostUserStateV1};
use ferry_devices::virtio::VirtioDevice;
use ferry_devices::virtio::pci::VirtioPci;
use vm_migration::directory::{self, Adoption, Reader};
use vm_migration::manifest::{Manifest, differences};
use vm_migration::stream::{self, StreamReader};

use super::{
    BACK_END_SCHEMA, CONFIG, ConfigStateV1, Error, Meter, back_end_section, describe,
    device_section,
};
use crate::console::Console;
use crate::hypervisor::Hypervisor;
use crate::layout;
use crate::lifecycle::Ready;
use crate::machine::saving::{MachineState, RestoreParts, check_host};
use crate::machine::{self, Machine};
use crate::memory::GuestRam;

/// A snapshot that is sound, as far as that can be said without its devices and without reading its RAM.
pub struct Found {
    reader: Reader,
    /// The definition, with the sockets that were asked for.
    pub config: VmConfig,
    machine: MachineState,
    /// In the order of the bus.
    rests: Vec<VhostUserStateV1>,
}

/// Reads a snapshot, all but its RAM, and compares it with what is asked for and with this host.
pub fn look(request: &RestoreRequest, meter: &Meter) -> Result<Found, Error> {
    let mut found = read(&request.source)?;
    meter.unless_cancelled()?;
    rename_sockets(&mut found.config, request)?;
    let hypervisor = Hypervisor::open().map_err(machine::Error::from)?;
    check_host(hypervisor.kvm(), &found.machine)?;
    Ok(found)
}

/// Reads and checks a snapshot, all but its RAM.
fn read(directory: &Path) -> Result<Found, Error> {
    let reader = Reader::open(directory)?;
    reader.check_sections()?;
    let mut stream = reader.state()?;
    let (saved, machine) = read_values(&mut stream).map_err(|source| directory::Error::State {
        path: reader.path().join(&reader.manifest().state.file),
        source,
    })?;
    let rests = machine
        .functions
        .iter()
        .map(|function| reader.load(&device_section(&function.id)))
        .collect::<Result<Vec<VhostUserStateV1>, _>>()?;
    must_have_all(&reader, &machine, &rests)?;
    let config = VmConfig::from_json(&saved.json)
        .map_err(|error| Error::Config(ferry_api::chain(&error).join(": ")))?;
    check_layout(reader.manifest(), &config)?;
    Ok(Found {
        reader,
        config,
        machine,
        rests,
    })
}

fn read_values(
    stream: &mut StreamReader<BufReader<File>>,
) -> Result<(ConfigStateV1, MachineState), stream::Error> {
    Ok((stream.load(CONFIG)?, MachineState::read(stream)?))
}

/// That nothing is missing, and that there is nothing that nobody would look at.
fn must_have_all(
    reader: &Reader,
    machine: &MachineState,
    rests: &[VhostUserStateV1],
) -> Result<(), Error> {
    let mut names = machine.section_names();
    names.push(CONFIG.to_owned());
    for (function, rest) in machine.functions.iter().zip(rests) {
        names.push(device_section(&function.id));
        if rest.back_end == BackEndStateV1::Carried {
            names.push(back_end_section(&function.id));
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Ok(reader.must_have(&names)?)
}

fn rename_sockets(config: &mut VmConfig, request: &RestoreRequest) -> Result<(), Error> {
    let disks = config.disks.iter_mut().map(|disk| &mut disk.backend);
    let shares = config.fs.iter_mut().map(|share| &mut share.backend);
    let others = config.vhost_user.iter_mut().map(|other| &mut other.backend);
    let mut all: Vec<&mut BackendConfig> = disks.chain(shares).chain(others).collect();
    for (id, socket) in &request.sockets {
        match all.iter_mut().find(|backend| backend.id == *id) {
            Some(backend) => backend.socket.clone_from(socket),
            None => return Err(Error::NoSuchDevice(id.clone())),
        }
    }
    Ok(())
}

fn check_layout(manifest: &Manifest, config: &VmConfig) -> Result<(), Error> {
    let saved = manifest
        .memory
        .iter()
        .map(|region| (region.guest_address, region.bytes));
    let expected = layout::ram_regions(config.memory.size);
    let expected = expected
        .iter()
        .map(|range| (range.start, range.end - range.start));
    match saved.eq(expected) {
        true => Ok(()),
        false => Err(Error::Layout),
    }
}

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
        meter.unless_cancelled()?;
        if let Source::Adopted(adoption) = source {
            // From here on RAM may be written to.
            adoption.consume()?;
        }
        // The first write of all: the guest is to know that there may be another one with the same random numbers.
        machine.new_generation()?;
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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use vm_migration::stream::encode;

    use super::*;

    /// A guest that Ferry 0.1 has saved: two vCPUs, a disk on qemu-storage-daemon, a share on virtiofsd 1.14 with an open
    /// file. Its RAM is left out.
    fn golden() -> (TempDir, Found) {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
        let directory = TempDir::new().unwrap();
        for name in ["manifest.json", "state"] {
            std::fs::copy(kept.join(name), directory.path().join(name)).unwrap();
        }
        let ram = File::create(directory.path().join("ram0")).unwrap();
        ram.set_len(64 << 20).unwrap();
        let found = read(directory.path()).unwrap();
        (directory, found)
    }

    #[test]
    fn a_snapshot_of_every_version_is_read() {
        let (_directory, found) = golden();
        let ids: Vec<&str> = found
            .machine
            .functions
            .iter()
            .map(|it| it.id.as_str())
            .collect();
        assert_eq!(ids, ["disk0", "fs0"]);
        assert_eq!(found.machine.vcpus.len(), 2);
        assert!(found.machine.serial.is_some());
        assert_eq!(found.config.disks[0].backend.id, "disk0");
        assert_eq!(found.config.fs[0].tag, "home");
        let carried: Vec<bool> = found
            .rests
            .iter()
            .map(|rest| rest.back_end == BackEndStateV1::Carried)
            .collect();
        assert_eq!(carried, [false, true]);
        assert!(found.rests.iter().all(|rest| !rest.rings.is_empty()));
    }

    /// Whoever changes a struct that is saved has to give it a new version, and keep the old one for reading.
    #[test]
    fn what_is_read_would_be_written_as_it_was() {
        let (_directory, found) = golden();
        let Found {
            reader,
            config: _,
            machine,
            rests,
        } = found;
        let mut stream = reader.state().unwrap();
        let mut section = |name: &str| {
            let mut section = stream.section(name).unwrap();
            let bytes = section.read_all(1 << 20).unwrap();
            section.finish().unwrap();
            bytes
        };
        section(CONFIG);
        for (index, vcpu) in machine.vcpus.iter().enumerate() {
            assert!(section(&format!("vcpu/{index}")) == encode(vcpu).unwrap());
        }
        assert!(section("chips") == encode(&machine.chips).unwrap());
        assert!(section("clock") == encode(&machine.clock).unwrap());
        assert!(section("generation") == encode(&machine.generation).unwrap());
        assert!(section("pci") == encode(&machine.pci).unwrap());
        assert!(section("serial") == encode(machine.serial.as_ref().unwrap()).unwrap());
        for function in &machine.functions {
            assert!(section(&format!("pci/{}", function.id)) == encode(&function.state).unwrap());
        }
        for (function, rest) in machine.functions.iter().zip(&rests) {
            assert!(section(&device_section(&function.id)) == encode(rest).unwrap());
        }
    }
}
