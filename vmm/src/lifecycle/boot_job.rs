//! The job of a boot: all that takes long and waits for no back-end. It runs on a thread of its own, and ends soon after it
//! was cancelled.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;

use ferry_api::config::VmConfig;
use vmm_sys_util::eventfd::EventFd;

use super::devices::Ready;
use super::{Error, system};
use crate::console::Console;
use crate::events::{Event, EventSender};
use crate::hypervisor::Hypervisor;
use crate::machine::{Machine, Parts};
use crate::memory::GuestRam;
use crate::payload::Payload;

/// What a guest is loaded from and talks to beyond its devices. A reboot keeps both, a shutdown the console.
#[derive(Clone)]
pub struct Outside {
    pub payload: Arc<Payload>,
    pub console: Option<Arc<Console>>,
}

/// What a job has made.
pub struct Built {
    pub machine: Machine,
    pub ram: GuestRam,
}

/// What the job works with.
pub(super) struct Job {
    pub number: u64,
    pub config: VmConfig,
    /// What there is of the outside already.
    pub payload: Option<Arc<Payload>>,
    pub console: Option<Option<Arc<Console>>>,
    /// The RAM of the guest before this one.
    pub old_ram: Option<GuestRam>,
    pub devices: Receiver<Vec<Ready>>,
    pub cancel: Arc<AtomicBool>,
    pub escape: EventFd,
    pub events: EventSender,
}

impl Job {
    /// Reports what it has found with [`Event::Checked`], then, unless that is an error, what it has made with
    /// [`Event::Built`].
    pub fn run(mut self) {
        let outcome = self.check();
        let outside = outcome.as_ref().ok().cloned();
        self.events.send(Event::Checked {
            boot: self.number,
            outcome,
        });
        // Without the outside there is nothing to be built, and the vmm thread has been told why.
        let Some(outside) = outside else { return };
        let (number, events) = (self.number, self.events.clone());
        let outcome = self.build(&outside);
        // Who hears of the end may close the console, or open it again.
        drop(outside);
        events.send(Event::Built {
            boot: number,
            outcome,
        });
    }

    fn check(&mut self) -> Result<Outside, Error> {
        let payload = match self.payload.take() {
            Some(payload) => payload,
            None => Arc::new(Payload::open(&self.config.payload, &self.config.memory)?),
        };
        let console = match self.console.take() {
            Some(console) => console,
            None => {
                let escape = self
                    .escape
                    .try_clone()
                    .map_err(system("pass the escape key on"))?;
                Console::open(&self.config.serial, escape)?.map(Arc::new)
            }
        };
        Ok(Outside { payload, console })
    }

    fn build(self, outside: &Outside) -> Result<Built, Error> {
        if let Some(old) = self.old_ram {
            // The next guest's RAM is not the old one emptied: a back-end that was given up may wake later and write
            // into what it still has mapped. And huge pages that were given back could be taken by someone else.
            old.discard()
                .map_err(system("give back the RAM of the guest before"))?;
        }
        let ram = GuestRam::new(&self.config.memory)?;
        ram.prefault(&self.config.memory, &self.cancel);
        let hypervisor = Hypervisor::open()?;
        let Ok(devices) = self.devices.recv() else {
            return Err(Error::Cancelled("its devices are not there"));
        };
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
            payload: &outside.payload,
            devices: &devices,
            console: outside.console.as_deref(),
        })?;
        Ok(Built { machine, ram })
    }
}
