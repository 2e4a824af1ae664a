//! From a definition to a running guest.
//!
//! ```text
//!  job thread    check files, open console │ RAM, KVM          │ wait for devices │ build machine
//!                        │ Checked         │                   ▲ devices          │ Built
//!  vmm thread            ▼                 │                   │                  ▼
//!                connect to back-ends ─────┴── DeviceReady … ──┘              start vCPUs
//! ```
//!
//! What the user may have got wrong comes first, before anything is started: a back-end such as virtiofsd ends when
//! its front-end leaves, so it is not to be connected to for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use ferry_api::control::{Reply, Response, VmState};
use ferry_api::snapshot::{Start, Step};
use ferry_devices::vhost_user;
use vm_migration::Watch;

use super::boot_job::{Built, Content, Job, Outside, ended};
use super::devices::{self, Device, DeviceKey, Link, Ready};
use super::pause::Asker;
use super::stop::After;
use super::table::Situation;
use super::vm::{Activity, Live, Phase, Waiters};
use super::{Error, Vmm, system};
use crate::backends;
use crate::logging::chain;
use crate::machine::Begin;
use crate::memory::GuestRam;
use crate::migration::{self, ArrivalV1};
use crate::snapshot::Meter;

/// Bytes of the job's stack.
const STACK: usize = 512 << 10;

/// A boot under way.
pub struct Booting {
    pub left: VmState,
    pub cause: Cause,
    /// Which boot this is.
    number: u64,
    waiters: Waiters,
    /// Where the job gets its devices from; gone once it has them, or is to give up.
    devices: Option<Sender<Vec<Ready>>>,
    /// Whether the job is past its first part. Until then it may be opening the terminal.
    pub checked: bool,
    /// Why the boot has failed already, while its job has still to end …
    failure: Option<Error>,
    /// … and how long that is waited for.
    pub deadline: Option<Instant>,
    orders: Orders,
    /// What is to come instead of a running guest, and who waits for it.
    instead: Option<(After, Waiters)>,
}

/// The way to tell the job to give up, which it is told too when nobody waits for it any more.
enum Orders {
    Boot(Arc<AtomicBool>),
    Restore(Arc<Meter>),
    Receive(Arc<migration::Meter>),
}

impl Orders {
    /// False if it is too late for that.
    fn give_up(&self) -> bool {
        match self {
            Orders::Boot(cancel) => {
                cancel.store(true, Ordering::Relaxed);
                true
            }
            Orders::Restore(meter) => {
                meter.cancel();
                meter.cancelled()
            }
            Orders::Receive(meter) => {
                meter.cancel();
                meter.cancelled()
            }
        }
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Why a guest is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The command line or a client says so.
    Asked,
    /// The guest before it has been reset.
    Reset,
    /// It comes out of a snapshot, to do this.
    Restored(Start),
    /// It comes from another Ferry, to do this.
    Received(ArrivalV1),
}

impl Booting {
    pub fn situation(&self) -> Situation {
        match (&self.instead, self.cause) {
            (Some((After::Delete, _)), _) => Situation::Deleting,
            (Some(_), _) => Situation::ShuttingDown,
            (None, Cause::Reset) => Situation::Rebooting,
            (None, Cause::Asked) => Situation::Booting,
            (None, Cause::Restored(_)) => Situation::Restoring,
            (None, Cause::Received(_)) => Situation::Receiving,
        }
    }
}

impl Vmm {
    /// Starts a boot from the state `left`. `old_ram` is that of the guest before, if there was one.
    pub(super) fn boot(
        &mut self,
        left: VmState,
        cause: Cause,
        old_ram: Option<GuestRam>,
        waiters: Waiters,
    ) {
        self.boot_with(left, cause, old_ram, None, waiters);
    }

    /// Starts a boot; with `content`, that of a machine which is filled with it.
    pub(super) fn boot_with(
        &mut self,
        left: VmState,
        cause: Cause,
        old_ram: Option<GuestRam>,
        content: Option<Content>,
        waiters: Waiters,
    ) {
        let escape = self
            .events
            .escape()
            .map_err(system("pass the escape key on"));
        let limits = backends::limits(&self.timeouts);
        let Some(vm) = &mut self.vm else { return };
        self.numbers += 1;
        let number = self.numbers;
        let (sender, devices) = channel();
        let brings_devices =
            matches!(&content, Some(Content::Migration(incoming)) if incoming.brings_devices());
        let cancel = Arc::new(AtomicBool::new(false));
        vm.phase = Phase::Booting(Booting {
            left,
            cause,
            number,
            waiters,
            devices: (!brings_devices).then_some(sender),
            checked: false,
            failure: None,
            deadline: None,
            orders: match &content {
                Some(Content::Snapshot(content)) => Orders::Restore(content.meter.clone()),
                Some(Content::Migration(incoming)) => Orders::Receive(incoming.meter.clone()),
                None => Orders::Boot(cancel.clone()),
            },
            instead: None,
        });
        let outside = vm.outside.as_ref();
        let started = escape.and_then(|escape| {
            let job = Job {
                number,
                config: vm.config.clone(),
                // After a shutdown the files may be others.
                payload: outside
                    .filter(|_| cause == Cause::Reset)
                    .and_then(|outside| outside.payload.clone()),
                content,
                timeouts: self.timeouts,
                console: outside.map(|outside| outside.console.clone()),
                old_ram,
                devices,
                adopt: devices::adopt(&vm.devices, number, limits, &self.events.sender()),
                cancel,
                escape,
                events: self.events.sender(),
            };
            std::thread::Builder::new()
                .name("boot".into())
                .stack_size(STACK)
                .spawn(move || job.run())
                .map_err(system("start a thread that boots the guest"))
        });
        if cause == Cause::Asked || cause == Cause::Reset {
            self.publish("vm", "booting", []);
        }
        if let Err(error) = started {
            self.end_boot(Err(error), None);
        }
    }

    /// The boot of this number, if it is the one under way.
    fn booting(&mut self, number: u64) -> Option<&mut Booting> {
        match &mut self.vm.as_mut()?.phase {
            Phase::Booting(booting) if booting.number == number => Some(booting),
            _ => None,
        }
    }

    pub(super) fn on_checked(&mut self, boot: u64, outcome: Result<Outside, Error>) {
        let Some(booting) = self.booting(boot) else {
            return;
        };
        booting.checked = true;
        let (cause, given_up) = (booting.cause, booting.failure.is_some());
        let connects = booting.devices.is_some();
        let outside = match outcome {
            Ok(outside) => outside,
            Err(error) => {
                let error = booting.failure.take().unwrap_or(error);
                return self.end_boot(Err(error), None);
            }
        };
        let events = self.events.sender();
        let limits = backends::limits(&self.timeouts);
        let Some(vm) = &mut self.vm else { return };
        vm.outside = Some(outside);
        if given_up || !connects {
            return;
        }
        // A guest that is reset has the devices it had, also those that have failed; a boot begins with good ones.
        let mut devices = vm
            .devices
            .iter_mut()
            .filter(|device| cause != Cause::Reset || device.ready().is_none());
        match devices.try_for_each(|device| device.connect(boot, limits, &events)) {
            Ok(()) => self.hand_devices_over(),
            Err(error) => {
                self.give_boot_up(error);
            }
        }
    }

    pub(super) fn on_device_ready(
        &mut self,
        key: DeviceKey,
        boot: u64,
        outcome: Result<Ready, vhost_user::Error>,
    ) {
        let events = self.events.sender();
        let limits = backends::limits(&self.timeouts);
        if let Some(device) = self.reserve.iter_mut().find(|device| device.key == key) {
            return device.started_in_reserve(boot, outcome);
        }
        let Some(vm) = &mut self.vm else { return };
        let number = match &vm.phase {
            Phase::Booting(booting) => Some(booting.number),
            _ => None,
        };
        // The last word of a connection that was given up, and maybe begun anew, does not count.
        let Some(device) = vm.device(key).filter(|device| device.is_starting_for(boot)) else {
            return;
        };
        match outcome {
            Ok(ready) => {
                device.connected(ready);
                self.hand_devices_over();
            }
            Err(error) => {
                device.link = Link::Down;
                let again = match number {
                    // It was begun for a boot before this one, and has not had this one's time.
                    Some(number) if number != boot => device.connect(number, limits, &events),
                    _ => Err(error.into()),
                };
                if let Err(error) = again {
                    self.give_boot_up(error);
                }
            }
        }
    }

    /// Gives the job its devices, once all are there.
    fn hand_devices_over(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let Phase::Booting(booting) = &mut vm.phase else {
            return;
        };
        let ready: Option<Vec<Ready>> = vm
            .devices
            .iter()
            .map(|device| device.ready().cloned())
            .collect();
        if let Some(ready) = ready
            && let Some(devices) = booting.devices.take()
        {
            // A job that has failed has said so.
            let _ = devices.send(ready);
        }
    }

    /// Makes the boot fail. Its end, and what comes then, waits a while for its job's end. Connections that are being
    /// made are made: the next boot is to find them, and a back-end such as virtiofsd would end with its connection.
    ///
    /// A restore that is past the point of no return can only be followed by something else: its snapshot may be used up
    /// already, so that the guest is nowhere but here. Then this says false.
    pub(super) fn give_boot_up(&mut self, error: Error) -> bool {
        let deadline = Instant::now() + self.timeouts.request;
        let Some(Phase::Booting(booting)) = self.vm.as_mut().map(|vm| &mut vm.phase) else {
            return false;
        };
        if let Orders::Receive(meter) = &booting.orders {
            meter.cancel_because(ferry_api::chain(&error));
        }
        if !booting.orders.give_up() && booting.instead.is_none() {
            return false;
        }
        booting.devices = None;
        booting.failure.get_or_insert(error);
        booting.deadline.get_or_insert(deadline);
        true
    }

    /// Does not wait any longer for a job that was given up; what it still makes is thrown away when it comes.
    pub(super) fn on_boot_late(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let Phase::Booting(booting) = &mut vm.phase else {
            return;
        };
        let failure = booting.failure.take();
        let error = failure.unwrap_or(Error::Cancelled("it took too long"));
        self.end_boot(Err(error), None);
    }

    /// Gives the boot up because a client wants something else. Connections that are being made are given up with it,
    /// because they may be long in coming.
    pub(super) fn replace_boot(&mut self, after: After, reply: Reply) {
        let request = match after {
            After::Delete | After::Reserve => "vm.delete came",
            After::Shutdown | After::Restart => "vm.shutdown came",
        };
        let Some(vm) = &mut self.vm else { return };
        vm.devices.iter_mut().for_each(Device::cancel);
        if let Phase::Booting(booting) = &mut vm.phase {
            let mut waiters = booting
                .instead
                .take()
                .map(|(_, waiters)| waiters)
                .unwrap_or_default();
            waiters.add(reply);
            booting.instead = Some((after, waiters));
        }
        self.give_boot_up(Error::Cancelled(request));
    }

    pub(super) fn on_built(&mut self, boot: u64, outcome: Result<Built, Error>) {
        let Some(booting) = self.booting(boot) else {
            return throw_away(outcome.ok());
        };
        match (booting.failure.take(), outcome) {
            (Some(failure), outcome) => self.end_boot(Err(failure), outcome.ok()),
            (None, outcome) => self.end_boot(outcome, None),
        }
    }

    /// Ends the boot. `unwanted` has been built although the boot has failed.
    fn end_boot(&mut self, outcome: Result<Built, Error>, mut unwanted: Option<Built>) {
        let sender = self.events.sender();
        let Some(vm) = &mut self.vm else { return };
        let phase = std::mem::replace(&mut vm.phase, Phase::Shutdown);
        let Phase::Booting(booting) = phase else {
            vm.phase = phase;
            return;
        };
        let boot = booting.number;
        let (begin, activity) = match booting.cause {
            Cause::Asked | Cause::Reset => (Begin::Running, Activity::Running),
            Cause::Restored(_) | Cause::Received(_) => (Begin::Parked, Activity::Paused),
        };
        let started = outcome.and_then(|mut built| {
            let started = match built.machine.is_started() {
                true => Ok(()),
                false => built.machine.start(begin, ended(boot, &sender)),
            };
            match started
                .map_err(Error::from)
                .and_then(|()| built.take_guest())
            {
                Ok(()) => Ok(built),
                Err(error) => {
                    unwanted = Some(built);
                    Err(error)
                }
            }
        });
        match started {
            Ok(Built {
                machine,
                ram,
                adopted,
                farewell,
            }) => {
                for (device, ready) in vm.devices.iter_mut().zip(adopted) {
                    device.connected(ready);
                }
                vm.phase = Phase::Live(Live {
                    machine: Box::new(machine),
                    ram,
                    boot,
                    activity,
                });
                self.boots += 1;
                match (booting.cause, farewell) {
                    (Cause::Received(arrival), Some(farewell)) => {
                        self.received(arrival, farewell, booting.waiters);
                    }
                    (cause, _) => self.booted(cause, booting.waiters),
                }
            }
            Err(error) => {
                let left = booting.left;
                if left == VmState::Created {
                    vm.phase = Phase::Created;
                    // Its console is opened by the boot that succeeds.
                    vm.outside = None;
                }
                let ram = unwanted.map(|built| {
                    drop(built.machine);
                    drop(built.adopted);
                    built.ram
                });
                self.boot_failed(left, error, booting, ram);
            }
        }
    }

    /// There is a guest.
    fn booted(&mut self, cause: Cause, waiters: Waiters) {
        match cause {
            Cause::Asked | Cause::Reset | Cause::Received(_) => {
                if let Cause::Reset = cause {
                    self.guest_of_migration_rebooted();
                }
                self.publish("vm", "booted", []);
                waiters.answer(&Ok(Response::Done));
            }
            Cause::Restored(Start::Paused) => {
                self.restored();
                waiters.answer(&Ok(Response::Done));
            }
            Cause::Restored(Start::Running) => {
                if let Some(meter) = &self.meter {
                    meter.enter(Step::Resume);
                }
                self.resume(Asker::Restore(waiters));
            }
        }
    }

    /// `ram` is that of the guest that is not to be.
    fn boot_failed(
        &mut self,
        left: VmState,
        error: Error,
        booting: Booting,
        ram: Option<GuestRam>,
    ) {
        let Booting {
            cause,
            waiters,
            instead,
            ..
        } = booting;
        if let Cause::Reset = cause {
            self.guest_of_migration_ended(After::Shutdown);
        }
        // Whoever has asked for something else does not want Ferry to end.
        let asked_by_client = waiters.asked_by_client() || instead.is_some();
        if let Cause::Received(_) = cause {
            self.receive_failed(&error);
            let (after, mut deleters) = instead.unwrap_or((After::Reserve, Waiters::default()));
            waiters.fail_behind(&error.refusal(), &mut deleters);
            return self.quieten_devices(left, after, ram, deleters);
        }
        if let Cause::Restored(_) = cause {
            self.restore_failed(&error);
            // Nobody has defined anything, so nothing stays; and who hears of it may try again at once.
            let (_, mut deleters) = instead.unwrap_or((After::Delete, Waiters::default()));
            waiters.fail_behind(&error.refusal(), &mut deleters);
            self.clean_up(left, After::Delete, ram, deleters);
        } else {
            self.publish("vm", "boot-failed", [("reason", chain(&error))]);
            waiters.answer(&Err(error.refusal()));
            if let Some((after, waiters)) = instead {
                return self.clean_up(left, after, ram, waiters);
            }
            throw_away(ram);
        }
        if !asked_by_client {
            self.end(Err(error));
        }
    }
}

/// Drops something that may hold much RAM, which takes long, where nobody waits for it.
fn throw_away<T: Send + 'static>(unwanted: Option<T>) {
    let Some(unwanted) = unwanted else { return };
    let thread = std::thread::Builder::new().name("throw-away".into());
    if let Err(error) = thread.spawn(move || drop(unwanted)) {
        tracing::debug!("what a boot has left was dropped at once: {error}");
    }
}
