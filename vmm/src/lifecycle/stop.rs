//! From a guest that has ended to what comes next.
//!
//! First every device stops its queues, so that no back-end writes into RAM that is given to someone else. Then a job
//! gives the RAM back and, before a definition is forgotten, closes the console; both may take long.

use std::time::Instant;

use ferry_api::control::{Refusal, RefusalKind, Reply, Response, VmState};

use super::boot::Cause;
use super::devices::{DeviceKey, Link};
use super::pause::Asker;
use super::table::Situation;
use super::vm::{Activity, Phase, Waiters};
use super::{Error, Vmm, system};
use crate::events::Event;
use crate::memory::GuestRam;

/// The nice value of a job that others go before: it has a tenth of a processor that others want all of, and so an end.
const LOW_PRIORITY: i32 = 10;

/// What comes after a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Another one, on the same RAM size, devices and connections.
    Restart,
    /// Nothing; the definition and the connections stay.
    Shutdown,
    /// Nothing, and nothing stays.
    Delete,
    /// Nothing; the connections stay in reserve. The guest has not arrived.
    Reserve,
}

/// Devices coming to rest, or the job at work.
pub struct Stopping {
    pub left: VmState,
    after: After,
    waiters: Waiters,
    stage: Stage,
}

enum Stage {
    Quietening {
        /// Which stop it is: word of an earlier one is none of this.
        number: u64,
        waiting: Vec<DeviceKey>,
        /// When clients are told that it takes longer; none once they have been.
        answer_at: Option<Instant>,
        deadline: Instant,
        ram: Option<GuestRam>,
    },
    /// Which job it is.
    Cleaning(u64),
}

impl Stopping {
    pub fn situation(&self) -> Situation {
        match self.after {
            After::Restart => Situation::Rebooting,
            After::Shutdown => Situation::ShuttingDown,
            After::Delete | After::Reserve => Situation::Deleting,
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Quietening {
                answer_at,
                deadline,
                ..
            } => Some(answer_at.unwrap_or(deadline)),
            Stage::Cleaning(_) => None,
        }
    }
}

impl Vmm {
    /// Takes the machine apart, and stops its devices.
    ///
    /// One that another process of this host has started is not this Ferry's to end: it is only forgotten here.
    pub(super) fn stop_guest(&mut self, after: After, waiters: Waiters) {
        if !self.claim_guest() {
            return self.guest_is_away(waiters);
        }
        let Some(vm) = &mut self.vm else { return };
        let left = vm.state();
        let phase = std::mem::replace(&mut vm.phase, Phase::Shutdown);
        let Phase::Live(live) = phase else {
            vm.phase = phase;
            return;
        };
        let asker = match live.activity {
            Activity::Pausing(attempt) | Activity::Resuming(attempt) => Some(attempt.asker),
            Activity::Running | Activity::Paused => None,
        };
        live.machine.stop();
        let ram = Some(live.ram);
        self.keep_serial();
        if let Some(asker) = asker {
            self.tell_of_end(asker);
        }
        let event = match after {
            After::Restart => "rebooting",
            After::Shutdown => "shutting-down",
            After::Delete | After::Reserve => "deleting",
        };
        self.publish("vm", event, []);
        self.guest_of_snapshot_ended();
        self.guest_of_migration_ended(after);
        self.quieten_devices(left, after, ram, waiters);
    }

    /// Forgets a guest that another process has with all it had: its devices are not told anything, and its RAM is left alone.
    pub(super) fn leave_guest(&mut self, waiters: Waiters) {
        let Some(vm) = &mut self.vm else { return };
        let left = vm.state();
        let phase = std::mem::replace(&mut vm.phase, Phase::Shutdown);
        let Phase::Live(live) = phase else {
            vm.phase = phase;
            return;
        };
        live.ram.disown();
        live.machine.stop();
        // The other process has descriptors of its own.
        vm.devices.clear();
        self.clean_up(left, After::Delete, Some(live.ram), waiters);
    }

    /// Stops all devices, and goes on when they are at rest. `ram` is that of the guest that is no more.
    pub(super) fn quieten_devices(
        &mut self,
        left: VmState,
        after: After,
        ram: Option<GuestRam>,
        waiters: Waiters,
    ) {
        let events = self.events.sender();
        // A worker answers an unfinished suspend and the reset within the dead timeout each, whatever its back-end
        // does; the rest is for busy machines.
        let deadline = Instant::now() + 2 * self.timeouts.dead + self.timeouts.request;
        let Some(vm) = &mut self.vm else { return };
        self.numbers += 1;
        for device in &vm.devices {
            device.quieten(self.numbers, &events);
        }
        let waiting = vm
            .devices
            .iter()
            .filter(|device| device.ready().is_some())
            .map(|device| device.key)
            .collect();
        vm.phase = Phase::Stopping(Stopping {
            left,
            after,
            waiters,
            stage: Stage::Quietening {
                number: self.numbers,
                waiting,
                answer_at: Some(Instant::now() + self.timeouts.request),
                deadline,
                ram,
            },
        });
        self.go_on_if_quiet();
    }

    /// A pause or a resume has come to nothing, because there is no guest any more.
    fn tell_of_end(&mut self, asker: Asker) {
        let ended = Error::Ended;
        match asker {
            Asker::Clients(waiters) | Asker::Arrival(waiters) => {
                waiters.answer(&Err(ended.refusal()));
            }
            Asker::Restore(waiters) => {
                self.restore_failed(&ended);
                waiters.answer(&Err(ended.refusal()));
            }
            // A snapshot is told by itself that its guest has ended.
            // As is a migration.
            Asker::Snapshot | Asker::Migration => {}
        }
    }

    pub(super) fn on_device_quiet(&mut self, key: DeviceKey, stop: u64) {
        if let Some(Phase::Stopping(Stopping {
            stage: Stage::Quietening {
                number, waiting, ..
            },
            ..
        })) = self.vm.as_mut().map(|vm| &mut vm.phase)
            && *number == stop
        {
            waiting.retain(|&other| other != key);
            self.go_on_if_quiet();
        }
    }

    /// Devices have not come to rest in time: first the clients are told, then the devices are not waited for any longer.
    pub(super) fn on_not_quiet(&mut self) {
        let Some(Phase::Stopping(Stopping {
            after,
            stage: Stage::Quietening { answer_at, .. },
            ..
        })) = self.vm.as_mut().map(|vm| &mut vm.phase)
        else {
            return;
        };
        // A guest that has not come, or has gone, has no requests that could come to their end.
        let is_elsewhere = *after == After::Reserve || self.departed.is_some();
        match answer_at.take() {
            Some(_) if is_elsewhere => self.close_late_devices(),
            Some(_) => self.tell_of_delay(),
            None => self.leave_devices_alone(),
        }
    }

    /// Closes the connections of devices that have not come to rest, so that the next guest can come.
    fn close_late_devices(&mut self) {
        let limit = self.timeouts.request;
        let Some(vm) = &mut self.vm else { return };
        let Phase::Stopping(Stopping {
            stage: Stage::Quietening { waiting, .. },
            ..
        }) = &mut vm.phase
        else {
            return;
        };
        let late = vm.devices.iter_mut().filter(|it| waiting.contains(&it.key));
        for device in late {
            tracing::warn!(
                device = device.spec.id,
                "not reset by the back-end within {limit:?}; the connection is closed"
            );
            device.link = Link::Down;
        }
        waiting.clear();
        self.go_on_if_quiet();
    }

    /// Answers who waits: what they have asked for is done, but later than they should wait.
    fn tell_of_delay(&mut self) {
        let limit = self.timeouts.request;
        let Some(vm) = &mut self.vm else { return };
        let Phase::Stopping(Stopping {
            after,
            waiters,
            stage: Stage::Quietening { waiting, .. },
            ..
        }) = &mut vm.phase
        else {
            return;
        };
        let late = vm.devices.iter().filter(|it| waiting.contains(&it.key));
        let ids: Vec<&str> = late.map(|device| device.spec.id.as_str()).collect();
        let consequence = match after {
            After::Restart => {
                "the guest has ended, and starts again once its devices have come to rest"
            }
            After::Shutdown => {
                "the guest has ended, and is shut down once its devices have come to rest"
            }
            After::Delete | After::Reserve => {
                "the guest has ended, and is deleted once its devices have come to rest"
            }
        };
        let reason = format!(
            "{}: not reset by the back-end within {limit:?}; given up after {:?}",
            ids.join(", "),
            self.timeouts.dead
        );
        waiters.answer_early(&Err(Refusal {
            kind: RefusalKind::Failed,
            chain: vec![consequence.to_owned(), reason],
        }));
    }

    fn leave_devices_alone(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        if let Phase::Stopping(Stopping {
            stage: Stage::Quietening { waiting, .. },
            ..
        }) = &mut vm.phase
        {
            for key in waiting.drain(..) {
                let device = vm.devices.iter().find(|device| device.key == key);
                // What its back-end may still write goes into RAM that no guest has any more.
                tracing::error!(
                    device = device.map(|device| device.spec.id.as_str()),
                    "the device has not come to rest; it is left alone"
                );
            }
            self.go_on_if_quiet();
        }
    }

    fn go_on_if_quiet(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        match std::mem::replace(&mut vm.phase, Phase::Shutdown) {
            Phase::Stopping(Stopping {
                left,
                after,
                waiters,
                stage: Stage::Quietening { waiting, ram, .. },
            }) if waiting.is_empty() => match after {
                After::Restart => self.boot(left, Cause::Reset, ram, waiters),
                After::Shutdown | After::Delete | After::Reserve => {
                    self.clean_up(left, after, ram, waiters);
                }
            },
            other => vm.phase = other,
        }
    }

    /// Starts the job that gives back what a guest had. It ends in [`Event::Cleaned`].
    /// `left` is the state that is being left.
    pub(super) fn clean_up(
        &mut self,
        left: VmState,
        after: After,
        ram: Option<GuestRam>,
        waiters: Waiters,
    ) {
        let events = self.events.sender();
        self.numbers += 1;
        let number = self.numbers;
        let Some(vm) = &mut self.vm else { return };
        let console = match after {
            After::Delete | After::Reserve => vm.outside.take(),
            After::Restart | After::Shutdown => None,
        };
        vm.phase = Phase::Stopping(Stopping {
            left,
            after,
            waiters,
            stage: Stage::Cleaning(number),
        });
        // A guest that has gone on elsewhere on this host is not to feel what it has left behind.
        let gives_way = self.departed.is_some();
        let work = move || {
            if gives_way {
                // Where the system refuses, it is done all the same.
                let _ = rustix::process::setpriority_process(None, LOW_PRIORITY);
            }
            drop(console);
            if let Some(Err(error)) = ram.as_ref().map(GuestRam::discard) {
                tracing::warn!("the guest's RAM could not be given back: {error}");
            }
            drop(ram);
            events.send(Event::Cleaned { number });
        };
        let started = std::thread::Builder::new()
            .name("clean-up".into())
            .spawn(work)
            .map_err(system("start a thread that cleans up"));
        if let Err(error) = started {
            self.end(Err(error));
        }
    }

    pub(super) fn on_cleaned(&mut self, number: u64) {
        let Some(vm) = &mut self.vm else { return };
        let Phase::Stopping(stopping) = std::mem::replace(&mut vm.phase, Phase::Shutdown) else {
            return;
        };
        if !matches!(stopping.stage, Stage::Cleaning(current) if current == number) {
            vm.phase = Phase::Stopping(stopping);
            return;
        }
        match stopping.after {
            After::Restart => self.boot(stopping.left, Cause::Reset, None, stopping.waiters),
            // A deletion took the place of a shutdown that had begun: the console is still to be closed.
            After::Delete if vm.outside.is_some() => {
                self.clean_up(stopping.left, After::Delete, None, stopping.waiters);
            }
            After::Shutdown => {
                self.publish("vm", "shutdown", []);
                stopping.waiters.answer(&Ok(Response::Done));
            }
            After::Reserve => {
                self.reserve = vm.devices.drain(..).collect();
                self.vm = None;
                stopping.waiters.answer(&Ok(Response::Done));
            }
            After::Delete => {
                // Closes the connections.
                self.vm = None;
                self.publish("vm", "deleted", []);
                stopping.waiters.answer(&Ok(Response::Done));
            }
        }
    }

    /// Changes what comes after a guest that is being stopped.
    pub(super) fn replace_stop(&mut self, after: After, reply: Reply) {
        let Some(Phase::Stopping(stopping)) = self.vm.as_mut().map(|vm| &mut vm.phase) else {
            return;
        };
        let reboots = stopping.after == After::Restart;
        if reboots {
            let given_up = Refusal::new(
                RefusalKind::Failed,
                "the reboot was given up: the guest is to be shut down",
            );
            stopping.waiters.answer_early(&Err(given_up));
        }
        stopping.after = after;
        stopping.waiters.add(reply);
        // This client is told of a delay, too.
        if let Stage::Quietening { answer_at, .. } = &mut stopping.stage {
            answer_at.get_or_insert(Instant::now() + self.timeouts.request);
        }
        if reboots {
            self.guest_of_migration_ended(after);
        }
    }
}
