//! Pausing a guest with its devices, and resuming it.
//!
//! vCPUs stop first, because they feed the devices; then every device is suspended: its requests come to their end,
//! its rings stop. When the guest goes on, devices are told first, and vCPUs do not wait for them: what they ask of a
//! device waits in its doorbell. The devices' workers begin after the vCPUs, which on a busy processor would have to wait for them.
//!
//! The workers have the patience of the dead timeout, an attempt to pause has that of the request timeout. An attempt
//! that fails leaves nothing behind: devices are told to resume, which they do as soon as their back-ends have
//! answered what they owe, and the guest goes on at once.
//!
//! For a hand-over to another process devices lend their connections instead ([`Rest::Lent`]): rings go on, and interrupts wait in
//! the eventfds. That is asked of a guest that was paused before, too. The serial port lets go of its far end then.

use std::io;
use std::time::Instant;

use ferry_api::control::{Refusal, RefusalKind, Response};
use ferry_devices::serial;
use ferry_devices::vhost_user::{self, Live as LiveDevice};

use super::boot_job::Outside;
use super::devices::{Device, DeviceKey};
use super::vm::{Activity, Live, Phase, VirtualMachine, Waiters};
use super::{Vmm, system};
use crate::cpu::gate::NotParked;
use crate::events::{Event, EventSender};
use crate::logging::chain;
use crate::machine;
use crate::migration::ArrivalV1;

/// Who wants a guest to be paused or resumed.
pub enum Asker {
    Clients(Waiters),
    /// The snapshot under way, on its own behalf.
    Snapshot,
    /// The migration under way, on its own behalf.
    Migration,
    /// A restore, for those who wait for it.
    Restore(Waiters),
    /// The arrival of a guest, for those who wait for it.
    Arrival(Waiters),
}

/// What is asked of devices when a guest is to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// They stop.
    Suspended,
    /// They give out their connections; and what the guest did before.
    Lent(ArrivalV1),
}

impl Rest {
    fn ask(self, device: &mut Device, events: &EventSender) {
        match self {
            Rest::Suspended => device.suspend(events),
            Rest::Lent(_) => device.lend(events),
        }
    }
}

/// What devices and the serial port have given out.
#[derive(Default)]
pub struct Lent {
    pub connections: Vec<(DeviceKey, LiveDevice)>,
    /// What is left of the serial port's far end.
    pub serial: serial::Rest,
}

/// A pause or a resume under way.
pub struct Attempt {
    pub asker: Asker,
    pub deadline: Instant,
    rest: Rest,
    /// Devices that have not answered yet.
    waiting: Vec<DeviceKey>,
    /// Devices that still owe an answer to an attempt before, and have not been asked yet.
    queued: Vec<DeviceKey>,
    /// The number of the question to the serial port, until it has answered.
    serial: Option<u64>,
    lent: Lent,
    /// What has become of devices that could not be resumed.
    failures: Vec<String>,
}

impl Attempt {
    fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.queued.is_empty() && self.serial.is_none()
    }
}

impl Vmm {
    pub(super) fn pause(&mut self, asker: Asker) {
        self.publish("vm", "pausing", []);
        self.bring_to_rest(asker, Rest::Suspended);
    }

    /// Has a guest that runs, or is paused, stand still for a hand-over.
    pub(super) fn lend(&mut self, before: ArrivalV1) {
        self.bring_to_rest(Asker::Migration, Rest::Lent(before));
    }

    fn bring_to_rest(&mut self, asker: Asker, rest: Rest) {
        let deadline = Instant::now() + self.timeouts.request;
        let events = self.events.sender();
        self.numbers += 1;
        let number = self.numbers;
        let Some(vm) = &mut self.vm else { return };
        let Phase::Live(live) = &mut vm.phase else {
            return;
        };
        if let Err(error) = live.machine.park() {
            if let (Asker::Migration, machine::Error::NotParked(NotParked::GuestEnded)) =
                (&asker, &error)
            {
                // What comes of that is about to be known.
                return;
            }
            let reason = Refusal::failed(&error);
            self.publish("vm", "pause-failed", [("reason", reason.chain.join(": "))]);
            self.tell_paused(asker, Err(reason));
            return;
        }
        let mut attempt = Attempt {
            asker,
            deadline,
            rest,
            waiting: Vec::new(),
            queued: Vec::new(),
            serial: None,
            lent: Lent::default(),
            failures: Vec::new(),
        };
        if let (Rest::Lent(_), Some(console)) =
            (rest, vm.outside.as_ref().and_then(Outside::console))
        {
            attempt.serial = Some(number);
            let events = events.clone();
            console.lend(move |outcome| events.send(Event::SerialLent { number, outcome }));
        }
        for device in vm
            .devices
            .iter_mut()
            .filter(|device| device.ready().is_some())
        {
            if device.owed > 0 {
                attempt.queued.push(device.key);
            } else {
                rest.ask(device, &events);
                attempt.waiting.push(device.key);
            }
        }
        // While the devices' workers are at it.
        let unwired = match rest {
            Rest::Suspended => Ok(()),
            Rest::Lent(_) => live.machine.unwire_interrupts(),
        };
        live.activity = Activity::Pausing(attempt);
        match unwired {
            Ok(()) => self.end_attempt_if_done(),
            Err(error) => self.give_pause_up(Refusal::failed(&error)),
        }
    }

    pub(super) fn resume(&mut self, asker: Asker) {
        self.resume_noting(asker, || {});
    }

    /// The same; `released` is called when the vCPUs have been let go, and before anything else goes on.
    pub(super) fn resume_noting(&mut self, asker: Asker, released: impl FnOnce()) {
        let deadline = Instant::now() + self.timeouts.request;
        self.publish("vm", "resuming", []);
        let waiting = self.release(&[], released);
        let Some(vm) = &mut self.vm else { return };
        if let Phase::Live(live) = &mut vm.phase {
            live.activity = Activity::Resuming(Attempt {
                asker,
                deadline,
                rest: Rest::Suspended,
                waiting,
                queued: Vec::new(),
                serial: None,
                lent: Lent::default(),
                failures: Vec::new(),
            });
        }
        self.end_attempt_if_done();
    }

    /// Tells all devices but `except` to resume, then lets the vCPUs go on: what the guest asks of a device whose rings do not run
    /// yet waits in its doorbell. Returns the devices that will answer.
    fn release(&mut self, except: &[DeviceKey], released: impl FnOnce()) -> Vec<DeviceKey> {
        let events = self.events.sender();
        let Some(vm) = &mut self.vm else {
            return Vec::new();
        };
        let Phase::Live(live) = &mut vm.phase else {
            return Vec::new();
        };
        let asked = vm
            .devices
            .iter_mut()
            .rev()
            .filter(|device| device.ready().is_some() && !except.contains(&device.key));
        let told: Vec<_> = asked
            .map(|device| (device.key, device.resume(&events)))
            .collect();
        // What it held back comes before anything that the guest says now.
        if let Some(console) = vm.outside.as_ref().and_then(Outside::console) {
            console.serve();
        }
        live.machine.release();
        released();
        // Their workers begin.
        told.into_iter().map(|(key, _rouse)| key).collect()
    }

    /// Has the devices of a paused guest, but for `except`, be this process's and stay as they are.
    pub(super) fn own_devices(&mut self, except: &[DeviceKey]) {
        let events = self.events.sender();
        let Some(vm) = &mut self.vm else { return };
        if let Phase::Live(live) = &mut vm.phase {
            live.activity = Activity::Paused;
        }
        if let Some(console) = vm.console() {
            console.serve();
        }
        let devices = vm.devices.iter_mut();
        devices
            .filter(|device| !except.contains(&device.key))
            .for_each(|device| device.own(&events));
    }

    pub(super) fn on_device_suspended(
        &mut self,
        key: DeviceKey,
        outcome: Result<(), vhost_user::Error>,
    ) {
        if self.device_answered(key) {
            self.on_device_at_rest(key, outcome);
        }
    }

    pub(super) fn on_device_lent(
        &mut self,
        key: DeviceKey,
        outcome: Result<Box<LiveDevice>, vhost_user::Error>,
    ) {
        if !self.device_answered(key) {
            return;
        }
        let outcome = match (outcome, self.activity()) {
            // The answer to an attempt before this one is of no use to it.
            (Ok(live), Some(Activity::Pausing(attempt))) if attempt.waiting.contains(&key) => {
                attempt.lent.connections.push((key, *live));
                Ok(())
            }
            (outcome, _) => outcome.map(drop),
        };
        self.on_device_at_rest(key, outcome);
    }

    pub(super) fn on_serial_lent(&mut self, number: u64, outcome: io::Result<serial::Rest>) {
        let Some(Activity::Pausing(attempt)) = self.activity() else {
            return;
        };
        if attempt.serial.take_if(|it| *it == number).is_none() {
            return;
        }
        match outcome {
            Ok(rest) => {
                attempt.lent.serial = rest;
                self.end_attempt_if_done();
            }
            Err(error) => {
                let error = system("hand the serial port over")(error);
                self.give_pause_up(error.refusal());
            }
        }
    }

    /// The serial port's far end stays here, or comes back.
    pub(super) fn keep_serial(&self) {
        if let Some(console) = self.vm.as_ref().and_then(VirtualMachine::console) {
            console.serve();
        }
    }

    fn on_device_at_rest(&mut self, key: DeviceKey, outcome: Result<(), vhost_user::Error>) {
        let Some(Activity::Pausing(attempt)) = self.activity() else {
            // The answer to an attempt that has been given up; the resume behind it is still to be answered.
            return;
        };
        let waiting = attempt.waiting.len();
        attempt.waiting.retain(|&other| other != key);
        match outcome {
            Ok(()) => self.end_attempt_if_done(),
            Err(_) if attempt.waiting.len() == waiting => {}
            Err(error) => self.give_pause_up(Refusal::failed(&error)),
        }
    }

    pub(super) fn on_device_resumed(
        &mut self,
        key: DeviceKey,
        outcome: Result<(), vhost_user::Error>,
    ) {
        if !self.device_answered(key) {
            return;
        }
        if let Some(Activity::Resuming(attempt)) = self.activity() {
            attempt.waiting.retain(|&other| other != key);
            attempt
                .failures
                .extend(outcome.err().map(|error| chain(&error)));
            self.end_attempt_if_done();
        }
    }

    /// Notes an answer; one that owes no more is asked what it could not be asked before. False if there is no such
    /// device any more.
    fn device_answered(&mut self, key: DeviceKey) -> bool {
        let events = self.events.sender();
        let Some(vm) = &mut self.vm else { return false };
        let Some(device) = vm.devices.iter_mut().find(|device| device.key == key) else {
            return false;
        };
        device.owed = device.owed.saturating_sub(1);
        if let Phase::Live(Live {
            activity: Activity::Pausing(attempt),
            ..
        }) = &mut vm.phase
            && device.owed == 0
            && let Some(index) = attempt.queued.iter().position(|&other| other == key)
        {
            attempt.queued.swap_remove(index);
            attempt.waiting.push(key);
            attempt.rest.ask(device, &events);
        }
        true
    }

    fn activity(&mut self) -> Option<&mut Activity> {
        match &mut self.vm.as_mut()?.phase {
            Phase::Live(live) => Some(&mut live.activity),
            _ => None,
        }
    }

    fn end_attempt_if_done(&mut self) {
        let Some(activity) = self.activity() else {
            return;
        };
        let (next, event) = match activity {
            Activity::Pausing(attempt) if attempt.is_done() => (Activity::Paused, "paused"),
            Activity::Resuming(attempt) if attempt.is_done() => (Activity::Running, "resumed"),
            _ => return,
        };
        if let Activity::Resuming(attempt) = activity
            && !attempt.failures.is_empty()
        {
            let reason = std::mem::take(&mut attempt.failures).join("; ");
            return self.give_resume_up(reason);
        }
        let before = std::mem::replace(activity, next);
        if !matches!(&before, Activity::Pausing(attempt) if attempt.rest != Rest::Suspended) {
            self.publish("vm", event, []);
        }
        match before {
            Activity::Pausing(attempt) => self.tell_paused(attempt.asker, Ok(attempt.lent)),
            Activity::Resuming(attempt) => self.tell_resumed(attempt.asker, Ok(())),
            Activity::Running | Activity::Paused => {}
        }
    }

    fn tell_paused(&mut self, asker: Asker, outcome: Result<Lent, Refusal>) {
        match asker {
            Asker::Clients(waiters) | Asker::Restore(waiters) | Asker::Arrival(waiters) => {
                waiters.answer(&outcome.map(|_| Response::Done));
            }
            Asker::Snapshot => self.on_paused_for_snapshot(outcome.map(drop)),
            Asker::Migration => self.on_paused_for_migration(outcome),
        }
    }

    /// For a snapshot, a restore and an arrival the guest's running is what counts: of a late device there is the event `resumed`.
    fn tell_resumed(&mut self, asker: Asker, outcome: Result<(), Refusal>) {
        match asker {
            Asker::Clients(waiters) => waiters.answer(&outcome.map(|()| Response::Done)),
            Asker::Restore(waiters) => {
                self.restored();
                waiters.answer(&Ok(Response::Done));
            }
            Asker::Arrival(waiters) => waiters.answer(&Ok(Response::Done)),
            Asker::Snapshot => self.settle_snapshot(),
            Asker::Migration => self.settle_migration(),
        }
    }

    /// The deadline of a pause or a resume has passed.
    pub(super) fn on_attempt_late(&mut self) {
        let limit = self.timeouts.request;
        let Some(vm) = &mut self.vm else { return };
        let Phase::Live(live) = &mut vm.phase else {
            return;
        };
        let late = |attempt: &Attempt| -> String {
            let keys = attempt.waiting.iter().chain(&attempt.queued);
            let late = keys.filter_map(|key| vm.devices.iter().find(|device| device.key == *key));
            let serial = attempt.serial.map(|_| "the serial port");
            let ids: Vec<&str> = late
                .map(|device: &Device| device.spec.id.as_str())
                .chain(serial)
                .collect();
            ids.join(", ")
        };
        match &mut live.activity {
            Activity::Pausing(attempt) => {
                let reason = format!(
                    "{}: not brought to rest by the back-end within {limit:?}; works on once the \
                     back-end answers",
                    late(attempt)
                );
                self.give_pause_up(Refusal::new(RefusalKind::Failed, reason));
            }
            Activity::Resuming(attempt) => {
                let mut reasons = std::mem::take(&mut attempt.failures);
                reasons.push(format!(
                    "{}: not restarted by the back-end within {limit:?}; works again once the \
                     back-end answers",
                    late(attempt)
                ));
                self.give_resume_up(reasons.join("; "));
            }
            Activity::Running | Activity::Paused => {}
        }
    }

    /// Ends a resume without all devices; the guest runs already.
    fn give_resume_up(&mut self, reason: String) {
        let Some(activity) = self.activity() else {
            return;
        };
        match std::mem::replace(activity, Activity::Running) {
            Activity::Resuming(attempt) => {
                tracing::warn!("the guest has been resumed, but not all of its devices: {reason}");
                self.publish("vm", "resumed", [("without", reason.clone())]);
                let chain = vec![
                    "the guest runs again, but not all of its devices do".to_owned(),
                    reason,
                ];
                let kind = RefusalKind::Failed;
                self.tell_resumed(attempt.asker, Err(Refusal { kind, chain }));
            }
            other => *activity = other,
        }
    }

    /// Undoes a pause: the guest goes on.
    pub(super) fn give_pause_up(&mut self, mut reason: Refusal) {
        let Some(activity) = self.activity() else {
            return;
        };
        match std::mem::replace(activity, Activity::Running) {
            Activity::Pausing(attempt) if attempt.rest == Rest::Lent(ArrivalV1::Paused) => {
                self.own_devices(&attempt.queued);
                self.tell_paused(attempt.asker, Err(reason));
            }
            Activity::Pausing(attempt) => {
                // One that has not been asked has a resume before it already.
                self.release(&attempt.queued, || {});
                let text = reason.chain.join(": ");
                self.publish("vm", "pause-failed", [("reason", text)]);
                let outermost = "the guest could not be paused, and goes on".to_owned();
                reason.chain.insert(0, outermost);
                self.tell_paused(attempt.asker, Err(reason));
            }
            other => *activity = other,
        }
    }
}
