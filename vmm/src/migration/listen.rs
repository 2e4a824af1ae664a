//! The receiver's job until a sender is there and has described its guest. There is no virtual machine yet.

use std::sync::Arc;

use ferry_api::config::{SerialConfig, Timeouts, VmConfig};
use ferry_api::migration::{MigrationUrl, Openness, Phase, ReceiveRequest};
use vm_migration::link::{
    DESCRIPTION_MOST, Failure, Last, Link, Listener, Message, Outcome, Purpose, Tls,
};
use vm_migration::stream::Saved;

use super::describe::{ArrivalV1, GuestV1};
use super::local::{HandOverV1, Lead, Parts, SerialPort};
use super::{Attempts, Error, Meter, address, most_idle};
use crate::backends;
use crate::hypervisor::Hypervisor;
use crate::machine;
use crate::machine::saving::{check_frequencies, check_processors};
use crate::memory::GuestRam;
use crate::snapshot::Renaming;

/// A guest that is on its way here.
pub struct Incoming {
    /// For the other connections, and for senders that ask.
    pub(super) listener: Listener,
    pub(super) link: Link,
    pub(super) guest: GuestV1,
    /// The definition, with the sockets that were asked for.
    pub config: VmConfig,
    pub(super) connections: u16,
    /// Of a hand-over.
    pub(super) parts: Option<Parts>,
    pub(super) attempts: Arc<Attempts>,
    /// The most bytes of state that one back-end may have.
    pub(super) state_most: u64,
    pub meter: Arc<Meter>,
    /// RAM of a guest that has not come, until the sender knows why.
    pub(super) remains: Option<GuestRam>,
}

/// Waits for a sender, and compares what it describes with what is asked for and with this host. Whoever asks meanwhile what
/// has become of an attempt is told. `listening` is called once a sender can come.
pub fn listen(
    request: &ReceiveRequest,
    timeouts: &Timeouts,
    attempts: &Arc<Attempts>,
    meter: &Arc<Meter>,
    listening: impl FnOnce(),
) -> Result<Incoming, Error> {
    let tls = request.tls.as_deref().map(Tls::load).transpose()?;
    let mut listener = Listener::bind(&address(&request.receiver), tls.as_ref())?;
    if !listener.is_loopback() && tls.is_none() && request.openness == Openness::Loopback {
        return Err(Error::Open);
    }
    listener.set_silence(timeouts.request);
    listening();
    let (mut link, connections) = wait_for_sender(&mut listener, attempts, meter)?;
    link.set_idle(most_idle(timeouts));
    meter.set_attempt(link.attempt().to_string());
    meter.enter(Phase::Connect);
    match receive_description(&mut link, request, meter) {
        Ok(Announced {
            guest,
            config,
            parts,
        }) => Ok(Incoming {
            listener,
            link,
            guest,
            config,
            connections,
            parts,
            attempts: attempts.clone(),
            state_most: request.state_most,
            meter: meter.clone(),
            remains: None,
        }),
        Err(error) => {
            link.give_up(&error.failure());
            Err(error)
        }
    }
}

fn wait_for_sender(
    listener: &mut Listener,
    attempts: &Attempts,
    meter: &Meter,
) -> Result<(Link, u16), Error> {
    loop {
        let mut link = listener.accept(meter, None)?;
        match link.purpose() {
            // It would change what is said of the first one.
            Purpose::Migrate { .. } | Purpose::HandOver
                if attempts.outcome(link.attempt()) != Outcome::Unknown =>
            {
                let _ = link.refuse("there has been an attempt with this number already");
            }
            Purpose::Migrate { connections } => {
                link.accept_it()?;
                return Ok((link, connections));
            }
            Purpose::Ask => attempts.answer(link),
            Purpose::HandOver => {
                link.accept_it()?;
                return Ok((link, 1));
            }
            Purpose::Join { .. } => {
                let _ = link.refuse("there is no migration that it could be a part of");
            }
        }
    }
}

/// What a sender says of its guest, and has brought.
struct Announced {
    guest: GuestV1,
    /// The definition that the guest gets here.
    config: VmConfig,
    parts: Option<Parts>,
}

fn receive_description(
    link: &mut Link,
    request: &ReceiveRequest,
    meter: &Meter,
) -> Result<Announced, Error> {
    let mut bytes = Vec::new();
    let mut handles = Vec::new();
    loop {
        match link.receive(meter)? {
            Message::Describe { piece, last } => {
                // The link has a limit of its own to all pieces.
                debug_assert!(bytes.len() as u64 <= DESCRIPTION_MOST);
                bytes.extend_from_slice(piece);
                if last == Last::Yes {
                    break;
                }
            }
            // All of them come at once.
            Message::Handles { count } if handles.is_empty() => {
                handles = link.take_handles(count)?
            }
            Message::Handles { .. } => return Err(Error::Mismatch("number of descriptors")),
            _ => {}
        }
    }
    let (guest, parts) = match link.purpose() {
        Purpose::HandOver => {
            let description = HandOverV1::read(HandOverV1::VERSION, &bytes)?;
            let lead = match request.serial {
                Some(_) => Lead::Other,
                None => Lead::Same,
            };
            let parts = Parts::new(&description, handles, lead)?;
            if !request.sockets.is_empty() {
                return Err(Error::Sockets);
            }
            (description.guest, Some(parts))
        }
        _ => (GuestV1::read(GuestV1::VERSION, &bytes)?, None),
    };
    let config = definition(&guest, request)?;
    let hypervisor = Hypervisor::open().map_err(machine::Error::from)?;
    check_processors(hypervisor.kvm(), &guest.cpuids)?;
    let frequencies: Vec<u32> = guest.tsc_khz.into_iter().collect();
    check_frequencies(hypervisor.kvm(), &frequencies)?;
    Ok(Announced {
        guest,
        config,
        parts,
    })
}

/// The definition that the guest gets here.
fn definition(guest: &GuestV1, request: &ReceiveRequest) -> Result<VmConfig, Error> {
    let mut config = VmConfig::from_json(&guest.config).map_err(Error::Definition)?;
    if usize::from(config.cpus.boot_vcpus) != guest.cpuids.len() {
        return Err(Error::Mismatch("number of processors"));
    }
    let devices = guest.devices.iter().map(|device| device.id.as_str());
    if !devices.eq(backends::specs(&config).iter().map(|spec| spec.id.as_str())) {
        return Err(Error::Mismatch("list of devices"));
    }
    let (size, here) = (config.memory.size, host_ram());
    if size > here {
        return Err(Error::TooMuchRam { size, here });
    }
    if let (MigrationUrl::Tcp { .. }, None, SerialConfig::File(path) | SerialConfig::Socket(path)) =
        (&request.receiver, &request.serial, &config.serial)
    {
        return Err(Error::Serial(path.display().to_string()));
    }
    let renaming = Renaming {
        sockets: &request.sockets,
        serial: request.serial.as_ref(),
    };
    renaming.apply(&mut config)?;
    Ok(config)
}

/// Bytes of RAM that this host has: a sender could ask for any size.
fn host_ram() -> u64 {
    // SAFETY: all bytes zero are a valid value, and the call fills in what it is given.
    let (info, result) = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        let result = libc::sysinfo(&mut info);
        (info, result)
    };
    match result {
        0 => info.totalram * u64::from(info.mem_unit),
        _ => u64::MAX,
    }
}

impl Incoming {
    /// What the guest does when it is here.
    pub fn arrival(&self) -> ArrivalV1 {
        self.guest.arrival
    }

    /// Whether the guest brings its devices' connections along.
    pub fn brings_devices(&self) -> bool {
        self.parts.is_some()
    }

    /// The far end that a serial port brings along.
    pub fn take_serial(&mut self) -> Option<SerialPort> {
        self.parts.as_mut()?.outside.take_serial()
    }

    /// Tells the sender that its guest is not wanted any more. Nobody waits until it has heard it.
    pub fn refuse(self: Box<Self>, failure: Failure) {
        let work = move || self.link.give_up(&failure);
        let started = std::thread::Builder::new()
            .name("refusal".into())
            .spawn(work);
        if let Err(error) = started {
            tracing::warn!("a sender is not told that its guest is not wanted: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
