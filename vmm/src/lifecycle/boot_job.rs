//! The job of a boot: all that takes long and waits for no back-end. It runs on a thread of its own, and ends soon after it
//! was cancelled.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;

use ferry_api::config::{Timeouts, VmConfig};
use ferry_api::snapshot::Step;
use vm_migration::link::Failure;
use vmm_sys_util::eventfd::EventFd;

use super::devices::Ready;
use super::{Error, system};
use crate::console::{Console, Output};
use crate::cpu::vcpu::GuestEnd;
use crate::events::{Event, EventSender};
use crate::hypervisor::Hypervisor;
use crate::machine::{Begin, Machine, Parts};
use crate::memory::GuestRam;
use crate::migration::{self, Adopt, Arrived, Farewell, Incoming, SerialPort};
use crate::payload::Payload;
use crate::snapshot::restore::{self, Place};

/// What a guest is loaded from and talks to beyond its devices. A reboot keeps both, a shutdown the console.
#[derive(Clone)]
pub struct Outside {
    /// Not of a guest that came out of a snapshot: what it was booted from may be gone, and is looked for when it is reset.
    pub payload: Option<Arc<Payload>>,
    pub console: Option<Arc<Console>>,
}

impl Outside {
    /// The serial port, if there is one.
    pub fn console(&self) -> Option<&Console> {
        self.console.as_deref()
    }
}

/// What a machine is filled with, instead of being booted.
pub enum Content {
    Snapshot(Box<restore::Content>),
    Migration(Box<Incoming>),
}

/// What a job has made.
pub struct Built {
    pub machine: Machine,
    pub ram: GuestRam,
    /// The devices that a guest has brought along, in the order of the bus; none if it was given its devices.
    pub adopted: Vec<Ready>,
    /// Of a guest that was received: what its sender is still to be told.
    pub farewell: Option<Farewell>,
}

impl Built {
    /// Makes a guest that was received this process's.
    ///
    /// # Errors
    /// Its sender has taken it back.
    pub fn take_guest(&self) -> Result<(), Error> {
        match &self.farewell {
            Some(farewell) => Ok(farewell.take(&self.ram)?),
            None => Ok(()),
        }
    }
}

/// What the job works with.
pub(super) struct Job {
    pub number: u64,
    pub config: VmConfig,
    /// What there is of the outside already.
    pub payload: Option<Arc<Payload>>,
    pub console: Option<Option<Arc<Console>>>,
    /// A machine is filled with that, and not loaded.
    pub content: Option<Content>,
    pub timeouts: Timeouts,
    /// The RAM of the guest before this one.
    pub old_ram: Option<GuestRam>,
    pub devices: Receiver<Vec<Ready>>,
    /// For a guest that brings its own.
    pub adopt: Box<Adopt>,
    pub cancel: Arc<AtomicBool>,
    pub escape: EventFd,
    pub events: EventSender,
}

/// What tells the vmm thread that the guest of a boot has ended.
pub(super) fn ended(boot: u64, events: &EventSender) -> impl Fn(GuestEnd) + Clone + Send + use<> {
    let events = events.clone();
    move |end| events.send(Event::GuestEnded { boot, end })
}

impl Job {
    /// Reports what it has found with [`Event::Checked`], then, unless that is an error, what it has made with
    /// [`Event::Built`].
    pub fn run(mut self) {
        let outcome = self.check();
        if let Err(error) = &outcome
            && let Some(Content::Migration(incoming)) = self.content.take()
        {
            incoming.refuse(Failure::new(ferry_api::chain(error)));
        }
        let outside = outcome.as_ref().ok().cloned();
        self.events.send(Event::Checked {
            boot: self.number,
            outcome,
        });
        // Without the outside there is nothing to be built, and the vmm thread has been told why.
        let Some(outside) = outside else { return };
        let (number, events) = (self.number, self.events.clone());
        let outcome = self.build(&outside).map(Box::new);
        // Who hears of the end may close the console, or open it again.
        drop(outside);
        events.send(Event::Built {
            boot: number,
            outcome,
        });
    }

    fn check(&mut self) -> Result<Outside, Error> {
        self.content = match self.content.take() {
            Some(Content::Snapshot(content)) => {
                Some(Content::Snapshot(Box::new(content.map_ram()?)))
            }
            other => other,
        };
        let payload = match self.payload.take() {
            Some(payload) => Some(payload),
            None if self.content.is_some() => None,
            None => {
                let payload = Payload::open(&self.config.payload, &self.config.memory)?;
                Some(Arc::new(payload))
            }
        };
        let console = match self.console.take() {
            Some(console) => console,
            None => self.open_console()?.map(Arc::new),
        };
        Ok(Outside { payload, console })
    }

    fn open_console(&mut self) -> Result<Option<Console>, Error> {
        let escape = self
            .escape
            .try_clone()
            .map_err(system("pass the escape key on"))?;
        let brought = match &mut self.content {
            Some(Content::Migration(incoming)) => incoming.take_serial(),
            _ => None,
        };
        if let Some(SerialPort::Kept(far_end)) = brought {
            return Ok(Some(Console::on_lent(far_end, escape)?));
        }
        let output = match self.content {
            Some(_) => Output::GoesOn,
            None => Output::Begins,
        };
        let console = Console::open(&self.config.serial, output, escape)?;
        if let (Some(console), Some(SerialPort::Replaced(far_end))) = (&console, brought) {
            console.replace(far_end)?;
        }
        Ok(console)
    }

    fn build(mut self, outside: &Outside) -> Result<Built, Error> {
        match (self.content.take(), &outside.payload) {
            (Some(Content::Snapshot(content)), _) => self.fill(*content, outside),
            (Some(Content::Migration(incoming)), _) => self.receive(*incoming, outside),
            (None, Some(payload)) => self.load(payload, outside),
            (None, None) => Err(Error::Cancelled("there is nothing to boot")),
        }
    }

    /// Brings a saved guest back.
    fn fill(self, content: restore::Content, outside: &Outside) -> Result<Built, Error> {
        let hypervisor = Hypervisor::open()?;
        let filled = content.fill_ram()?;
        filled.meter.enter(Step::Connect);
        let devices = self.receive_devices()?;
        let (machine, ram) = filled.fill(&Place {
            hypervisor: &hypervisor,
            devices: &devices,
            console: outside.console.as_deref(),
            timeouts: &self.timeouts,
        })?;
        Ok(Built {
            machine,
            ram,
            adopted: Vec::new(),
            farewell: None,
        })
    }

    /// Takes a guest from another Ferry.
    fn receive(self, incoming: Incoming, outside: &Outside) -> Result<Built, Error> {
        let ended = ended(self.number, &self.events);
        let Arrived {
            machine,
            ram,
            adopted,
            farewell,
        } = incoming.fill(&migration::Place {
            devices: &self.devices,
            adopt: &*self.adopt,
            start: &move |machine| machine.start(Begin::Parked, ended.clone()),
            console: outside.console.as_deref(),
            timeouts: &self.timeouts,
        })?;
        Ok(Built {
            machine,
            ram,
            adopted,
            farewell: Some(farewell),
        })
    }

    fn receive_devices(&self) -> Result<Vec<Ready>, Error> {
        let given_up = || Error::Cancelled("its devices are not there");
        self.devices.recv().map_err(|_| given_up())
    }

    /// Boots a new guest.
    fn load(self, payload: &Payload, outside: &Outside) -> Result<Built, Error> {
        if let Some(old) = &self.old_ram {
            // The next guest's RAM is not the old one emptied: a back-end that was given up may wake later and write
            // into what it still has mapped. And huge pages that were given back could be taken by someone else.
            old.discard()
                .map_err(system("give back the RAM of the guest before"))?;
        }
        let ram = GuestRam::new(&self.config.memory)?;
        ram.prefault(&self.config.memory, &self.cancel);
        let hypervisor = Hypervisor::open()?;
        let devices = self.receive_devices()?;
        let regions = ram.shared_regions();
        for device in &devices {
            device.set_ram(regions.clone());
        }
        if let Some(console) = &outside.console {
            console.port().reset();
        }
        let machine = Machine::build(&Parts {
            hypervisor: &hypervisor,
            config: &self.config,
            ram: &ram,
            payload,
            devices: &devices,
            console: outside.console.as_deref(),
        })?;
        Ok(Built {
            machine,
            ram,
            adopted: Vec::new(),
            farewell: None,
        })
    }
}
