//! A snapshot from the owner's side: when the guest stands still for it, and what becomes of the guest.
//!
//! ```text
//!               Word::Ready            all at rest             Word::Taken               Word::Ended
//!   Preparing ──────────────▶ Pausing ─────────────▶ Writing ──────────────▶ Publishing ─────────────▶ Settling ─▶ gone
//!       │                        │                      │                                                 ▲
//!       └────────────────────────┴──────────────────────┴── failed: the job is given up, and ends ────────┘
//! ```
//!
//! Whatever fails, the guest is left as it was before: it goes on if it ran, and stays paused if it was. The client is
//! answered when both the job and the guest's way back have come to their end.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use ferry_api::control::{Refusal, RefusalKind, Reply, Response};
use ferry_api::snapshot::{After, Operation, PauseBy, SnapshotRequest, Step};
use ferry_devices::virtio::VirtioDevice;
use vm_migration::{Saveability, manifest};

use super::devices::Ready;
use super::pause::Asker;
use super::stop;
use super::vm::{Activity, Live, Phase, Waiters};
use super::{Vmm, system};
use crate::events::Event;
use crate::snapshot::save::{Go, Job, Still, Word};
use crate::snapshot::{Error, Meter};

/// A snapshot under way.
pub struct Saving {
    /// Which one it is.
    number: u64,
    /// Of which boot's guest.
    boot: u64,
    reply: Reply,
    after: After,
    before: Before,
    pub meter: Arc<Meter>,
    /// To the job. Gone when the job has got all that it gets, or is given up.
    orders: Option<Sender<Go>>,
    /// Why it has failed already, while its job has still to end.
    failure: Option<Refusal>,
    stage: Stage,
}

/// What the guest did before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Running,
    Paused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Preparing,
    Pausing,
    Writing,
    Publishing,
    /// The job has ended; the guest may be on its way back.
    Settling,
}

impl Saving {
    /// Whether it is the guest of this boot that is being saved.
    pub fn is_of(&self, boot: u64) -> bool {
        self.boot == boot
    }

    /// What becomes of the guest if all goes well.
    fn fate(&self) -> manifest::After {
        match (self.after, self.before) {
            (After::Resume, _) | (After::AsBefore, Before::Running) => manifest::After::Resume,
            (After::Pause, _) | (After::AsBefore, Before::Paused) => manifest::After::Paused,
            (After::Stop, _) => manifest::After::Stop,
        }
    }

    /// Makes it fail, unless all that it needs of the guest is written.
    fn fail(&mut self, reason: Refusal) {
        if matches!(self.stage, Stage::Publishing | Stage::Settling) {
            return;
        }
        self.failure.get_or_insert(reason);
        self.orders = None;
        self.meter.cancel();
    }
}

impl Vmm {
    /// Begins a snapshot of a guest that runs or is paused.
    pub(super) fn save(&mut self, request: SnapshotRequest, reply: Reply) {
        if self.saving.is_some() {
            let reason = "a snapshot of the guest before this one is still on its way to disk";
            return reply.answer(Err(Refusal::new(RefusalKind::Failed, reason)));
        }
        let devices = match self.saveable_devices() {
            Ok(devices) => devices,
            Err(error) => return reply.answer(Err(Refusal::failed(&error))),
        };
        let events = self.events.sender();
        let Some(vm) = &self.vm else { return };
        let Phase::Live(live) = &vm.phase else { return };
        let before = match live.activity {
            Activity::Paused => Before::Paused,
            _ => Before::Running,
        };
        self.numbers += 1;
        let number = self.numbers;
        let (orders, receiver) = channel();
        let meter = Arc::new(Meter::new(Operation::Snapshot, &request.destination));
        let saving = Saving {
            number,
            boot: live.boot,
            reply,
            after: request.after,
            before,
            meter: meter.clone(),
            orders: Some(orders),
            failure: None,
            stage: Stage::Preparing,
        };
        let job = Job {
            prepare: before == Before::Running && request.pause == PauseBy::Ferry,
            after: saving.fate(),
            request,
            config: vm.config.clone(),
            devices,
            timeouts: self.timeouts,
            meter: meter.clone(),
            orders: receiver,
            say: move |word| events.send(Event::Saving { number, word }),
        };
        self.meter = Some(meter.clone());
        self.saving = Some(saving);
        let directory = meter.directory().display().to_string();
        self.publish("snapshot", "started", [("directory", directory)]);
        let started = std::thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || job.run())
            .map_err(system("start a thread that saves the guest"));
        if let Err(error) = started {
            self.on_saved(Err(error.refusal()));
        }
    }

    /// All devices, in the order of the bus, unless one cannot be saved.
    pub(super) fn saveable_devices(&self) -> Result<Vec<Ready>, Error> {
        let devices = self.vm.iter().flat_map(|vm| &vm.devices);
        let unsupported = |device: &str, reason: &str| Error::Unsupported {
            device: device.to_owned(),
            reason: reason.to_owned(),
        };
        devices
            .map(|device| match device.ready() {
                None => Err(unsupported(
                    &device.spec.id,
                    "there is no connection to its back-end",
                )),
                Some(ready) => match ready.saveability() {
                    Saveability::Saved | Saveability::Stateless => Ok(ready.clone()),
                    Saveability::Unsupported(reason) => Err(unsupported(ready.id(), &reason)),
                },
            })
            .collect()
    }

    pub(super) fn on_saving(&mut self, number: u64, word: Word) {
        let Some(saving) = self
            .saving
            .as_mut()
            .filter(|saving| saving.number == number)
        else {
            return;
        };
        match word {
            Word::Step(step) => {
                self.publish("snapshot", "step", [("step", step.name().to_owned())]);
            }
            // The job finds out by itself.
            Word::Ready if saving.failure.is_some() => {}
            Word::Ready if saving.before == Before::Paused => self.write_state(),
            Word::Ready => {
                saving.stage = Stage::Pausing;
                saving.meter.guest_stops();
                self.pause(Asker::Snapshot);
            }
            Word::Taken => self.on_taken(),
            Word::Failed(reason) => self.fail_snapshot(reason),
            Word::Ended(outcome) => self.on_saved(outcome.map_err(|error| Refusal::failed(&error))),
        }
    }

    /// The pause that a snapshot has asked for has ended.
    pub(super) fn on_paused_for_snapshot(&mut self, outcome: Result<(), Refusal>) {
        match outcome {
            Ok(()) => self.write_state(),
            Err(reason) => {
                if let Some(saving) = &mut self.saving {
                    saving.meter.guest_goes_on();
                    saving.fail(reason);
                    saving.stage = Stage::Preparing;
                }
            }
        }
    }

    /// Hands the job the guest, which stands still.
    fn write_state(&mut self) {
        let Some(Phase::Live(Live { machine, ram, .. })) = self.vm.as_ref().map(|vm| &vm.phase)
        else {
            return;
        };
        let Some(saving) = self.saving.as_mut().filter(|it| it.failure.is_none()) else {
            return;
        };
        match machine.save() {
            Ok(state) => {
                saving.stage = Stage::Writing;
                let still = Still {
                    machine: state,
                    ram: ram.clone(),
                };
                if let Some(orders) = &saving.orders {
                    // A job that has failed has said so.
                    let _ = orders.send(Go::Paused(Box::new(still)));
                }
            }
            Err(error) => self.fail_snapshot(Refusal::failed(&error)),
        }
    }

    /// Gives the snapshot up, unless it is too late for that. The guest goes on at once, and does not wait for the job's
    /// end: what it reads of RAM from then on is thrown away.
    fn fail_snapshot(&mut self, reason: Refusal) {
        let Some(saving) = &mut self.saving else {
            return;
        };
        let (stage, before) = (saving.stage, saving.before);
        saving.fail(reason.clone());
        match stage {
            Stage::Pausing => self.give_pause_up(reason),
            Stage::Writing if before == Before::Running => self.let_guest_go_on(),
            _ => {}
        }
    }

    /// All that is needed of the guest is written.
    fn on_taken(&mut self) {
        let Some(saving) = &mut self.saving else {
            return;
        };
        if saving.failure.is_some() {
            return;
        }
        saving.stage = Stage::Publishing;
        saving.meter.enter(Step::Publish);
        if let Some(orders) = saving.orders.take() {
            // A job that has failed has said so.
            let _ = orders.send(Go::Publish);
        }
        if saving.before == Before::Running && saving.fate() == manifest::After::Resume {
            self.let_guest_go_on();
        }
    }

    /// Resumes a guest that a snapshot has paused.
    fn let_guest_go_on(&mut self) {
        let Some(saving) = &self.saving else { return };
        let (meter, boot) = (saving.meter.clone(), saving.boot);
        if let Some(Phase::Live(live)) = self.vm.as_ref().map(|vm| &vm.phase)
            && live.boot == boot
            && matches!(live.activity, Activity::Paused)
        {
            meter.guest_goes_on();
            self.resume(Asker::Snapshot);
        }
    }

    /// The job has ended, one way or the other.
    fn on_saved(&mut self, outcome: Result<(), Refusal>) {
        let Some(saving) = &mut self.saving else {
            return;
        };
        let never_stopped = matches!(saving.stage, Stage::Preparing | Stage::Pausing);
        saving.stage = Stage::Settling;
        saving.orders = None;
        if let Err(reason) = outcome {
            // Of two reasons the first one is the cause.
            saving.failure.get_or_insert(reason);
        }
        match (&saving.failure, saving.before) {
            (Some(_), Before::Running) => {
                self.let_guest_go_on();
                if never_stopped {
                    self.unprepare();
                }
            }
            (Some(_), Before::Paused) => {}
            // One that was paused has waited for the snapshot to be complete.
            (None, _) if saving.fate() == manifest::After::Resume => self.let_guest_go_on(),
            (None, _) => {}
        }
        self.settle_snapshot();
    }

    /// Takes back what back-ends were told ahead of a pause that never came.
    fn unprepare(&self) {
        for device in self.vm.iter().flat_map(|vm| &vm.devices) {
            if let Some(ready) = device.ready() {
                // What goes wrong is the device's failure, of which the owner is told anyway.
                ready.unprepare(|_| {});
            }
        }
    }

    /// Ends a snapshot whose job has ended, unless its guest is still on its way back.
    pub(super) fn settle_snapshot(&mut self) {
        if let Some(Phase::Live(live)) = self.vm.as_ref().map(|vm| &vm.phase)
            && matches!(live.activity, Activity::Resuming(_))
            && self.saving.as_ref().is_some_and(|it| it.is_of(live.boot))
        {
            return;
        }
        let Some(saving) = self.saving.take_if(|it| it.stage == Stage::Settling) else {
            return;
        };
        match saving.failure {
            None => self.snapshot_succeeded(saving),
            Some(reason) => {
                let guest = self.has_guest(saving.boot).then_some(saving.before);
                self.snapshot_failed(saving.reply, guest, &saving.meter, reason);
            }
        }
    }

    /// Whether the guest of this boot is still there.
    fn has_guest(&self, boot: u64) -> bool {
        matches!(self.vm.as_ref().map(|vm| &vm.phase),
            Some(Phase::Live(live)) if live.boot == boot)
    }

    fn snapshot_succeeded(&mut self, saving: Saving) {
        saving.meter.end(None);
        let directory = saving.meter.directory().display().to_string();
        let paused_ms = saving.meter.paused().as_millis().to_string();
        let properties = [("directory", directory), ("paused_ms", paused_ms)];
        self.publish("snapshot", "finished", properties);
        match saving.after {
            After::Stop if self.has_guest(saving.boot) => {
                self.stop_guest(stop::After::Shutdown, Waiters::from(saving.reply));
            }
            _ => saving.reply.answer(Ok(Response::Done)),
        }
    }

    fn snapshot_failed(
        &mut self,
        reply: Reply,
        guest: Option<Before>,
        meter: &Meter,
        mut reason: Refusal,
    ) {
        let text = reason.chain.join(": ");
        tracing::warn!("the snapshot has failed: {text}");
        meter.end(Some(reason.chain.clone()));
        let paused_ms = meter.paused().as_millis().to_string();
        let properties = [("reason", text), ("paused_ms", paused_ms)];
        self.publish("snapshot", "failed", properties);
        let outermost = match guest {
            Some(Before::Running) => "the guest could not be saved, and goes on",
            Some(Before::Paused) => "the guest could not be saved, and stays paused",
            None => "the guest could not be saved",
        };
        reason.chain.insert(0, outermost.to_owned());
        reply.answer(Err(reason));
    }

    /// The guest that is being saved has ended.
    pub(super) fn guest_of_snapshot_ended(&mut self) {
        if let Some(saving) = &mut self.saving {
            saving.meter.guest_goes_on();
            saving.fail(Refusal::new(
                RefusalKind::Failed,
                "the guest has ended meanwhile",
            ));
        }
        self.settle_snapshot();
    }

    /// Gives a snapshot up because a client says so.
    pub(super) fn cancel_snapshot(&mut self) -> Result<Response, Refusal> {
        let Some(saving) = &mut self.saving else {
            return Ok(Response::Done);
        };
        if matches!(saving.stage, Stage::Publishing | Stage::Settling) {
            return Err(Refusal::new(
                RefusalKind::Failed,
                "it is too late: everything is written, and on its way to disk",
            ));
        }
        self.fail_snapshot(Refusal::new(RefusalKind::Failed, "vm.cancel came"));
        Ok(Response::Done)
    }

    /// Lets a snapshot go on that holds the guest.
    pub(super) fn release_hold(&mut self) -> Result<Response, Refusal> {
        let held = self
            .saving
            .as_ref()
            .filter(|saving| saving.meter.progress().step == Step::Hold)
            .and_then(|saving| saving.orders.as_ref())
            .is_some_and(|orders| orders.send(Go::Released).is_ok());
        match held {
            true => Ok(Response::Done),
            false => Err(Refusal::new(
                RefusalKind::Failed,
                "the snapshot does not hold the guest now",
            )),
        }
    }
}
