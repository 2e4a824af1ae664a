//! The vmm thread: owner of the virtual machine from its start to its end.
//!
//! ```text
//!  connecting ──all ready──▶ building ──▶ running ──▶ ended ──▶ exit status
//!       │                        ▲           │ reset
//!       │ a device is not        │           ▼
//!       ▼                        └── devices quiet, RAM emptied
//!  exit status 1 or 2
//! ```
//!
//! The thread itself waits for events only. Whatever a back-end has to answer is waited for by that device's own
//! worker, which reports here.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use ferry_api::config::{Timeouts, VmConfig};
use ferry_devices::power::{PowerRequest, ResetSource};
use ferry_devices::vhost_user::{self, DeviceObserver, VhostUserDevice};
use ferry_devices::virtio::{ActivationFailed, TransportEvents, VirtioDevice};

use crate::backends;
use crate::cli::OnReset;
use crate::console::{self, Console};
use crate::cpu::vcpu::{self, GuestEnd};
use crate::events::{Event, EventSender, Events};
use crate::hypervisor::{self, Hypervisor};
use crate::machine::{self, Machine, Parts};
use crate::memory::{self, GuestRam};
use crate::payload::{self, Payload};

/// A device that is ready to be put on a bus.
pub type Ready = Arc<VhostUserDevice>;

/// How a run has ended in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest has powered itself off.
    PowerOff,
    /// The operator has ended it.
    Quit,
    /// The guest wanted a reset, and [`OnReset::Exit`] was asked for.
    Reset(ResetSource),
    /// The guest's processor gave up.
    TripleFault,
}

/// Why a guest could not be started or run on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Device(#[from] vhost_user::Error),
    #[error(transparent)]
    Payload(#[from] payload::Error),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Console(#[from] console::Error),
    #[error("cannot {step}")]
    System {
        step: &'static str,
        source: io::Error,
    },
    #[error("the guest crashed: {0}")]
    Crash(String),
    #[error("the device {0} did not come to rest before the reboot")]
    NotQuiet(String),
}

impl Error {
    /// Whether it is the user's to mend: exit status 2.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Payload(_) => true,
            Error::Device(error) => error.is_unreachable(),
            Error::Console(error) => error.is_usage(),
            _ => false,
        }
    }
}

fn system(step: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { step, source }
}

/// What to run, and how.
pub struct Plan {
    pub vm: VmConfig,
    pub timeouts: Timeouts,
    pub on_reset: OnReset,
}

/// Runs a guest from nothing to its end.
pub fn run(plan: &Plan) -> Result<Ending, Error> {
    // Everything that the user may have got wrong comes before anything is started.
    let payload = Payload::open(&plan.vm.payload, &plan.vm.memory)?;
    let events = &Events::new().map_err(system("take over the signals"))?;
    let escape = events.escape().map_err(system("pass the escape key on"))?;
    let console = Console::open(&plan.vm.serial, escape)?;
    vcpu::install_kick_handler().map_err(system("handle the signal that stops vCPUs"))?;
    let ram = GuestRam::new(&plan.vm.memory)?;
    // Back-ends negotiate while KVM is being opened.
    let connecting = Connecting::start(plan, &ram, events)?;
    let hypervisor = Hypervisor::open()?;
    let Some(devices) = connecting.wait(events)? else {
        return Ok(Ending::Quit);
    };
    let mut parts = Parts {
        hypervisor: &hypervisor,
        config: &plan.vm,
        ram,
        payload: &payload,
        devices: &devices,
        console: console.as_ref(),
    };
    for boot in 0.. {
        let source = match run_once(&parts, boot, events)? {
            End::Quit(why) => {
                tracing::info!("ended by {why}");
                return Ok(Ending::Quit);
            }
            End::Guest(GuestEnd::TripleFault) => {
                tracing::warn!("the guest's processor gave up: triple fault");
                return Ok(Ending::TripleFault);
            }
            End::Guest(GuestEnd::Crash(reason)) => return Err(Error::Crash(reason)),
            End::Guest(GuestEnd::Request(PowerRequest::Off)) => {
                tracing::info!("the guest has powered off");
                return Ok(Ending::PowerOff);
            }
            End::Guest(GuestEnd::Request(PowerRequest::Reset(source))) => source,
        };
        tracing::info!("the guest asked for a reset through {source}");
        if plan.on_reset == OnReset::Exit {
            return Ok(Ending::Reset(source));
        }
        if let Some(ending) = quieten(&devices, &plan.timeouts, events)? {
            return Ok(ending);
        }
        parts.ram = renew(&parts, &plan.vm)?;
        if let Some(console) = &console {
            console.port().reset();
        }
    }
    // Only after more boots than there are numbers.
    Ok(Ending::Quit)
}

/// One life of the guest, from its first instruction to its reset or end.
fn run_once(parts: &Parts<'_>, boot: u64, events: &Events) -> Result<End, Error> {
    let mut machine = Machine::build(parts)?;
    let sender = events.sender();
    machine.start(move |end| sender.send(Event::GuestEnded { boot, end }))?;
    let end = wait_for_end(boot, events)?;
    machine.stop();
    Ok(end)
}

/// RAM for the next guest, which devices are told of.
///
/// It is not the old one emptied: a back-end that was given up may wake later and write into what it still has mapped. And
/// huge pages that were given back could be taken by someone else; new ones are reserved.
fn renew(parts: &Parts<'_>, config: &VmConfig) -> Result<GuestRam, Error> {
    parts
        .ram
        .discard()
        .map_err(system("give back the guest's RAM for its reboot"))?;
    let ram = GuestRam::new(&config.memory)?;
    let regions = ram.shared_regions();
    for device in parts.devices {
        device.set_ram(regions.clone());
    }
    Ok(ram)
}

enum End {
    Guest(GuestEnd),
    Quit(&'static str),
}

fn wait_for_end(current: u64, events: &Events) -> Result<End, Error> {
    loop {
        match events.next(None).map_err(system("wait for events"))? {
            // Two processors may end the same guest, but only the first ends it: the other's word must not end the
            // next one.
            Some(Event::GuestEnded { boot, end }) if boot == current => {
                return Ok(End::Guest(end));
            }
            Some(Event::GuestEnded { .. }) => {}
            Some(Event::Quit(why)) => return Ok(End::Quit(why)),
            // The device's worker has logged what happened, and the guest knows from the device's status.
            Some(Event::DeviceReady { .. } | Event::DeviceQuiet { .. }) | None => {}
        }
    }
}

/// Stops every device, so that no back-end writes into the next guest's RAM.
fn quieten(
    devices: &[Arc<VhostUserDevice>],
    timeouts: &Timeouts,
    events: &Events,
) -> Result<Option<Ending>, Error> {
    for (index, device) in devices.iter().enumerate() {
        device.attach(Arc::new(Quietener {
            index,
            events: events.sender(),
        }));
        device.reset();
    }
    let mut waiting: Vec<usize> = (0..devices.len()).collect();
    // A worker answers within the dead timeout, whatever its back-end does; the rest is for busy machines.
    let deadline = Instant::now() + 2 * timeouts.dead;
    while let Some(&first) = waiting.first() {
        match events
            .next(Some(deadline))
            .map_err(system("wait for events"))?
        {
            Some(Event::DeviceQuiet { index }) => waiting.retain(|&other| other != index),
            Some(Event::Quit(_)) => return Ok(Some(Ending::Quit)),
            Some(_) => {}
            None => return Err(Error::NotQuiet(devices[first].id().to_string())),
        }
    }
    Ok(None)
}

/// Stands in for the transport while there is none.
struct Quietener {
    index: usize,
    events: EventSender,
}

impl TransportEvents for Quietener {
    fn activated(&self, _: Result<(), ActivationFailed>) {}

    fn reset_done(&self) {
        self.events.send(Event::DeviceQuiet { index: self.index });
    }

    fn config_changed(&self) {}

    fn failed(&self) {}
}

/// Devices on their way to being ready.
struct Connecting {
    count: usize,
}

impl Connecting {
    fn start(plan: &Plan, ram: &GuestRam, events: &Events) -> Result<Self, Error> {
        let specs = backends::specs(&plan.vm);
        let limits = backends::limits(&plan.timeouts);
        let count = specs.len();
        let regions = ram.shared_regions();
        for (index, spec) in specs.into_iter().enumerate() {
            let observer = Observer {
                index,
                events: events.sender(),
            };
            VhostUserDevice::start(spec, limits, regions.clone(), Arc::new(observer))
                .map_err(system("start a thread for a device"))?;
        }
        Ok(Connecting { count })
    }

    /// Every worker reports within its own deadlines. None if the operator has lost patience.
    fn wait(self, events: &Events) -> Result<Option<Vec<Ready>>, Error> {
        let mut ready: Vec<Option<Ready>> = vec![None; self.count];
        while ready.iter().any(Option::is_none) {
            match events.next(None).map_err(system("wait for events"))? {
                Some(Event::DeviceReady { index, outcome }) => ready[index] = Some(outcome?),
                Some(Event::Quit(_)) => return Ok(None),
                _ => {}
            }
        }
        Ok(Some(ready.into_iter().flatten().collect()))
    }
}

/// Passes what happens to a device on to the vmm thread.
struct Observer {
    index: usize,
    events: EventSender,
}

impl DeviceObserver for Observer {
    fn ready(&self, _id: &str, outcome: Result<Ready, vhost_user::Error>) {
        self.events.send(Event::DeviceReady {
            index: self.index,
            outcome,
        });
    }

    // The worker has logged what happened, and the guest knows from the device's status.
    fn failed(&self, _id: &str, _error: &vhost_user::Error) {}
}
