//! The job that reads a snapshot, before there is a virtual machine.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ferry_api::config::VmConfig;
use ferry_api::snapshot::RestoreRequest;
use ferry_devices::vhost_user::{BackEndStateV1, VhostUserStateV1};
use vm_migration::Watch;
use vm_migration::directory::{self, Reader};
use vm_migration::manifest::Manifest;
use vm_migration::stream::{self, StreamReader};

use super::super::{
    CONFIG, ConfigStateV1, Error, Meter, Renaming, back_end_section, device_section,
};
use crate::hypervisor::Hypervisor;
use crate::layout;
use crate::machine;
use crate::machine::saving::{MachineState, check_frequency, check_host};

/// A snapshot that is sound, as far as that can be said without its devices and without reading its RAM.
pub struct Found {
    pub(super) reader: Reader,
    /// The definition, with the sockets that were asked for.
    pub config: VmConfig,
    pub(super) machine: MachineState,
    /// In the order of the bus.
    pub(super) rests: Vec<VhostUserStateV1>,
}

/// Reads a snapshot, all but its RAM, and compares it with what is asked for and with this host.
pub fn look(request: &RestoreRequest, meter: &Meter) -> Result<Found, Error> {
    let read = read(&request.source, meter);
    // Whatever it has led to.
    meter.unless_cancelled()?;
    let mut found = read?;
    let renaming = Renaming {
        sockets: &request.sockets,
        serial: request.serial.as_ref(),
    };
    renaming.apply(&mut found.config)?;
    let hypervisor = Hypervisor::open().map_err(machine::Error::from)?;
    check_host(hypervisor.kvm(), &found.machine)?;
    check_frequency(hypervisor.kvm(), &found.machine)?;
    Ok(found)
}

/// Reads and checks a snapshot, all but its RAM.
pub(super) fn read(directory: &Path, watch: &dyn Watch) -> Result<Found, Error> {
    let reader = Reader::open(directory)?;
    reader.check_sections(watch)?;
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
