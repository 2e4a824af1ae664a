//! A virtual machine: its definition, and what there is of it at present.

use std::time::Instant;

use ferry_api::config::VmConfig;
use ferry_api::control::{Answer, Refusal, Reply, VmState};

use super::boot::Booting;
use super::boot_job::Outside;
use super::devices::{Device, DeviceKey};
use super::pause::Attempt;
use super::stop::Stopping;
use super::table::Situation;
use crate::backends;
use crate::console::Console;
use crate::machine::Machine;
use crate::memory::GuestRam;

/// A virtual machine.
pub struct VirtualMachine {
    pub config: VmConfig,
    /// In the order of the bus.
    pub devices: Vec<Device>,
    /// What the guest is connected to and loaded from, from the first boot on.
    pub outside: Option<Outside>,
    pub phase: Phase,
}

/// What there is of a virtual machine.
pub enum Phase {
    /// The definition alone.
    Created,
    /// The definition, the connections and the console.
    Shutdown,
    /// A job makes a machine.
    Booting(Booting),
    /// There is a machine with a guest in it.
    Live(Live),
    /// The machine is gone, and devices are coming to rest.
    Stopping(Stopping),
}

/// A machine with a guest in it.
pub struct Live {
    /// Before the RAM, which it uses.
    pub machine: Box<Machine>,
    pub ram: GuestRam,
    /// Which boot this is. Word of an earlier one must not end it.
    pub boot: u64,
    pub activity: Activity,
}

/// What a guest does.
pub enum Activity {
    Running,
    Pausing(Attempt),
    Paused,
    Resuming(Attempt),
}

/// Clients that wait for the same thing; or none, when the guest or the command line wants it.
#[derive(Debug, Default)]
pub struct Waiters {
    waiting: Vec<Waiting>,
    asked_by_client: bool,
}

#[derive(Debug)]
struct Waiting {
    reply: Reply,
    /// What it is told in the end, whatever becomes of what the others want.
    refusal: Option<Refusal>,
}

impl Waiters {
    pub fn add(&mut self, reply: Reply) {
        self.waiting.push(Waiting {
            reply,
            refusal: None,
        });
        self.asked_by_client = true;
    }

    /// What those that wait so far want has failed; they are told when `others` have what they want.
    pub fn fail_behind(mut self, refusal: &Refusal, others: &mut Waiters) {
        for waiting in &mut self.waiting {
            waiting.refusal.get_or_insert_with(|| refusal.clone());
        }
        others.waiting.append(&mut self.waiting);
    }

    /// Whether a client has asked, though it may have been answered already.
    pub fn asked_by_client(&self) -> bool {
        self.asked_by_client
    }

    pub fn answer(mut self, answer: &Answer) {
        self.answer_early(answer);
    }

    /// Answers those that wait so far, while what they want goes on.
    pub fn answer_early(&mut self, answer: &Answer) {
        for Waiting { reply, refusal } in self.waiting.drain(..) {
            reply.answer(match refusal {
                Some(refusal) => Err(refusal),
                None => answer.clone(),
            });
        }
    }
}

impl From<Reply> for Waiters {
    fn from(reply: Reply) -> Self {
        let mut waiters = Waiters::default();
        waiters.add(reply);
        waiters
    }
}

impl VirtualMachine {
    /// A definition of which nothing exists yet.
    /// Devices that are `kept` lend it their connections, as far as it has the same ones.
    pub fn new(config: VmConfig, kept: Vec<Device>, next_key: &mut u64) -> Self {
        let mut vm = VirtualMachine {
            config,
            devices: kept,
            outside: None,
            phase: Phase::Created,
        };
        vm.follow_definition(next_key);
        vm
    }

    /// Makes `devices` what the definition says. Those that stay as they were keep their connections.
    pub fn follow_definition(&mut self, next_key: &mut u64) {
        let mut before = std::mem::take(&mut self.devices);
        for spec in backends::specs(&self.config) {
            let kept = before.iter().position(|device| device.spec == spec);
            self.devices.push(match kept {
                Some(index) => before.swap_remove(index),
                None => {
                    *next_key += 1;
                    Device::new(DeviceKey(*next_key), spec)
                }
            });
        }
    }

    /// The device of this key, unless it has been removed since.
    pub fn device(&mut self, key: DeviceKey) -> Option<&mut Device> {
        self.devices.iter_mut().find(|device| device.key == key)
    }

    /// Its serial port, once there has been a boot.
    pub fn console(&self) -> Option<&Console> {
        self.outside.as_ref()?.console()
    }

    pub fn situation(&self) -> Situation {
        match &self.phase {
            Phase::Created => Situation::Created,
            Phase::Shutdown => Situation::Shutdown,
            Phase::Booting(booting) => booting.situation(),
            Phase::Stopping(stopping) => stopping.situation(),
            Phase::Live(live) => match live.activity {
                Activity::Running => Situation::Running,
                Activity::Pausing(_) => Situation::Pausing,
                Activity::Paused => Situation::Paused,
                Activity::Resuming(_) => Situation::Resuming,
            },
        }
    }

    /// The state that clients are shown: during a transition, the one that is being left.
    pub fn state(&self) -> VmState {
        match &self.phase {
            Phase::Created => VmState::Created,
            Phase::Shutdown => VmState::Shutdown,
            Phase::Booting(booting) => booting.left,
            Phase::Stopping(stopping) => stopping.left,
            Phase::Live(live) => match live.activity {
                Activity::Paused => VmState::Paused,
                // While it is being resumed, its vCPUs run already.
                Activity::Running | Activity::Pausing(_) | Activity::Resuming(_) => {
                    VmState::Running
                }
            },
        }
    }

    /// When something has to be done although nothing has happened.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Stopping(stopping) => stopping.deadline(),
            Phase::Live(live) => match &live.activity {
                Activity::Pausing(attempt) | Activity::Resuming(attempt) => Some(attempt.deadline),
                Activity::Running | Activity::Paused => None,
            },
            Phase::Booting(booting) => booting.deadline,
            Phase::Created | Phase::Shutdown => None,
        }
    }
}
