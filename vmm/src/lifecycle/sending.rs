//! A migration from the sender's owner's side: when the guest stands still, and whose it is.
//!
//! ```text
//!               Word::Ready           all at rest          Word::Complete             Word::Unconfirmed
//!   Preparing ─────────────▶ Pausing ────────────▶ Writing ──────────────▶ HandedOver ─────────────────▶ Unconfirmed
//!       │                       │                     │                        │ Ended(Ok)                 │      │
//!       └───── failed: the guest goes on here ────────┘                        ▼                           │      │
//!                                                                            gone ◀────────────────────────┘      │
//!                                                       the guest goes on here ◀── not started there, reclaimed ──┘
//! ```
//!
//! Whatever fails before the guest is handed over leaves it as it was before. From then on it goes on here only if it is known
//! not to run elsewhere ([`whose`]).

mod whose;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use ferry_api::control::{Refusal, RefusalKind, Reply, Request, Response};
use ferry_api::migration::{AfterSend, Carrier, Role, SendRequest};
use ferry_api::server::Pausing;
use vm_migration::ownership::Ownership;

use super::devices::Ready;
use super::pause::{Asker, Lent};
use super::stop;
use super::table::refusal;
use super::vm::{Activity, Live, Phase, VirtualMachine, Waiters};
use super::{Vmm, system};
use crate::events::Event;
use crate::migration::send::{Go, Job, Source, Stopped, Word};
use crate::migration::{ArrivalV1, Error, Lender, LentOutside, Meter, Service};

pub use whose::Departed;

/// A migration to another Ferry under way.
pub struct Sending {
    /// Which one it is.
    number: u64,
    /// Of which boot's guest.
    boot: u64,
    after: AfterSend,
    before: ArrivalV1,
    meter: Arc<Meter>,
    /// To the job. Gone when the job is given up.
    orders: Option<Sender<Go>>,
    /// Why it has failed already, while its job has still to end.
    failure: Option<Refusal>,
    stage: Stage,
    /// Who has the guest, if it is to be handed over within this host.
    ownership: Option<Arc<Ownership>>,
    /// Whether the receiver takes this process's place, too.
    carrier: Carrier,
    /// As long as whoever connects to this process waits until it is known which process answers.
    pausing: Option<Pausing>,
    /// Who wants the guest back.
    reclaimers: Waiters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Preparing,
    Pausing,
    /// As Preparing; the guest has ended, and is about to begin anew.
    Rebooting,
    Writing,
    /// The guest is not this Ferry's any more.
    HandedOver,
    /// The same, and nobody has said that it runs.
    Unconfirmed,
    /// The job has ended; the guest may be on its way back.
    Settling,
}

impl Sending {
    /// Whether it is the guest of this boot that is being sent.
    pub fn is_of(&self, boot: u64) -> bool {
        self.boot == boot
    }

    /// Whether the guest is, or may be, another Ferry's.
    pub fn is_handed_over(&self) -> bool {
        matches!(self.stage, Stage::HandedOver | Stage::Unconfirmed)
    }

    /// Makes it fail, unless the guest is handed over.
    fn fail(&mut self, reason: Refusal) {
        if self.is_handed_over() || self.stage == Stage::Settling {
            return;
        }
        self.meter.cancel_because(reason.chain.clone());
        self.failure.get_or_insert(reason);
        self.orders = None;
    }
}

/// What a job needs.
struct Prepared {
    devices: Vec<Ready>,
    /// For a hand-over.
    lender: Option<Lender>,
}

impl Vmm {
    /// Begins to send a guest that runs or is paused. The client is answered at once.
    pub(super) fn send_migration(&mut self, request: SendRequest, reply: Reply) {
        if self.saving.is_some() || self.sending.is_some() {
            let reason = "a snapshot or migration before this one is still coming to its end";
            return reply.answer(Err(Refusal::new(RefusalKind::Failed, reason)));
        }
        let Prepared { devices, lender } = match self.prepare_sending(request.carrier) {
            Ok(prepared) => prepared,
            Err(refusal) => return reply.answer(Err(refusal)),
        };
        let ownership = lender.as_ref().map(|lender| lender.ownership.clone());
        let events = self.events.sender();
        let Some(vm) = &self.vm else { return };
        let Phase::Live(live) = &vm.phase else { return };
        let before = match live.activity {
            Activity::Paused => ArrivalV1::Paused,
            _ => ArrivalV1::Running,
        };
        self.numbers += 1;
        let number = self.numbers;
        let (orders, receiver) = channel();
        let url = request.destination.clone();
        let meter = Arc::new(Meter::new(Role::Send, url.clone()));
        let sending = Sending {
            number,
            boot: live.boot,
            after: request.after,
            before,
            meter: meter.clone(),
            orders: Some(orders),
            failure: None,
            stage: Stage::Preparing,
            ownership,
            carrier: request.carrier,
            pausing: None,
            reclaimers: Waiters::default(),
        };
        let job = Job {
            config: vm.config.clone(),
            cpuids: live.machine.cpuids().to_vec(),
            devices,
            source: Source {
                ram: live.ram.clone(),
                loggable: live.machine.loggable(),
            },
            arrival: before,
            timeouts: self.timeouts,
            lender,
            meter: meter.clone(),
            orders: receiver,
            say: move |word| events.send(Event::Sending { number, word }),
            request,
        };
        self.migration = Some(meter);
        self.sending = Some(sending);
        self.publish("migration", "migration-started", [("url", url.to_string())]);
        let started = std::thread::Builder::new()
            .name("migration".into())
            .spawn(move || job.run())
            .map_err(system("start a thread that sends the guest"));
        match started {
            Ok(_) => reply.answer(Ok(Response::Done)),
            Err(error) => {
                reply.answer(Err(error.refusal()));
                self.on_sent(Err(error.refusal()));
            }
        }
    }

    /// The devices, if all of them can go.
    fn prepare_sending(&self, carrier: Carrier) -> Result<Prepared, Refusal> {
        match carrier {
            Carrier::Contents => {
                let devices = self.saveable_devices();
                Ok(Prepared {
                    devices: devices.map_err(|error| Refusal::failed(&error))?,
                    lender: None,
                })
            }
            Carrier::Descriptors | Carrier::Process => {
                let devices = self.vm.iter().flat_map(|vm| &vm.devices);
                let devices = devices.map(|device| {
                    let error = match device.ready().map(|ready| (ready, ready.error())) {
                        Some((ready, None)) => return Ok(ready.clone()),
                        Some((_, error)) => error,
                        None => None,
                    };
                    Err(Refusal::failed(&Error::Unconnected {
                        device: device.spec.id.clone(),
                        source: error.map(Box::new),
                    }))
                });
                Ok(Prepared {
                    devices: devices.collect::<Result<_, _>>()?,
                    lender: Some(
                        self.lender(carrier)
                            .map_err(|error| Refusal::failed(&error))?,
                    ),
                })
            }
        }
    }

    fn lender(&self, carrier: Carrier) -> Result<Lender, Error> {
        let ownership = Ownership::new().map_err(Error::Ownership)?;
        let console = self.vm.as_ref().and_then(VirtualMachine::console);
        let outside = self
            .service(carrier)
            .and_then(|service| LentOutside::new(console, service))
            .map_err(Error::Outside)?;
        Ok(Lender::new(Arc::new(ownership), outside))
    }

    /// Through what this process is reached, if another one is to take its place.
    fn service(&self, carrier: Carrier) -> io::Result<Option<Service>> {
        let (Carrier::Process, Some(reception)) = (carrier, &self.reception) else {
            return Ok(None);
        };
        let monitor = match &self.log {
            Some(log) => log.lend_monitor()?,
            None => None,
        };
        Ok(Some(Service {
            socket: reception.lend()?,
            monitor,
        }))
    }

    pub(super) fn on_sending(&mut self, number: u64, word: Word) {
        let Some(sending) = self.sending.as_mut().filter(|it| it.number == number) else {
            return;
        };
        match word {
            Word::Round { number, remaining } => {
                let properties = [
                    ("iteration", number.to_string()),
                    ("remaining_bytes", remaining.to_string()),
                ];
                self.publish("migration", "migration-memory-iteration", properties);
            }
            Word::Throttle(percent) => {
                if let Some(Phase::Live(live)) = self.vm.as_mut().map(|vm| &mut vm.phase) {
                    live.machine.throttle(percent);
                }
            }
            Word::Following(boot) => {
                if sending.stage == Stage::Rebooting && sending.boot == boot {
                    sending.stage = Stage::Preparing;
                }
            }
            // The job finds out by itself.
            Word::Ready if sending.failure.is_some() => {}
            Word::Ready => {
                let is_local = sending.ownership.is_some();
                match sending.before {
                    // The job is told when it has begun anew.
                    _ if sending.stage == Stage::Rebooting => {}
                    ArrivalV1::Paused if !is_local => self.hand_state_over(Lent::default()),
                    before => {
                        if before == ArrivalV1::Running {
                            sending.meter.guest_stops();
                        }
                        sending.stage = Stage::Pausing;
                        match is_local {
                            true => self.lend(before),
                            false => self.pause(Asker::Migration),
                        }
                    }
                }
            }
            Word::Complete => self.give_guest_up(),
            Word::Unconfirmed => {
                sending.stage = Stage::Unconfirmed;
                self.publish("migration", "migration-unconfirmed", []);
            }
            Word::Failed(reason) => self.fail_migration(reason),
            Word::Ended(Err(error)) if error.is_loss() => {
                let loss = Refusal::failed(&error);
                if let Some(sending) = self.sending.take() {
                    self.guest_has_left(sending, Some(loss), Waiters::default());
                }
            }
            Word::Ended(outcome) => {
                let outcome = outcome.map_err(|error: Error| Refusal::failed(&error));
                self.on_sent(outcome);
            }
        }
    }

    /// The pause that a migration has asked for has ended.
    pub(super) fn on_paused_for_migration(&mut self, outcome: Result<Lent, Refusal>) {
        match outcome {
            Ok(lent) => self.hand_state_over(lent),
            Err(reason) => {
                if let Some(sending) = &mut self.sending {
                    sending.meter.guest_goes_on();
                    sending.fail(reason);
                    sending.stage = Stage::Preparing;
                }
            }
        }
    }

    /// Hands the job the state of the guest, which stands still.
    fn hand_state_over(&mut self, lent: Lent) {
        let Some(vm) = &self.vm else { return };
        let Phase::Live(Live { machine, .. }) = &vm.phase else {
            return;
        };
        let Some(sending) = self.sending.as_mut().filter(|it| it.failure.is_none()) else {
            return;
        };
        sending.stage = Stage::Writing;
        match machine.save() {
            Ok(state) => {
                if let (Carrier::Process, Some(reception)) = (sending.carrier, &self.reception) {
                    // It has happened by the time that the receiver has everything.
                    sending.pausing = Some(reception.pause());
                }
                let place = |key| vm.devices.iter().position(|device| device.key == key);
                let Lent {
                    mut connections,
                    serial,
                } = lent;
                connections.sort_by_key(|(key, _)| place(*key));
                let stopped = Stopped {
                    machine: state,
                    lent: connections.into_iter().map(|(_, live)| live).collect(),
                    serial,
                };
                if let Some(orders) = &sending.orders {
                    // A job that has failed has said so.
                    let _ = orders.send(Go::Paused(Box::new(stopped)));
                }
            }
            Err(error) => self.fail_migration(Refusal::failed(&error)),
        }
    }

    /// Whether a guest that runs is on its way to another process of this host.
    pub(super) fn is_handing_over_what_runs(&self) -> bool {
        self.sending.as_ref().is_some_and(|sending| {
            let is_to_go_on = sending.before == ArrivalV1::Running && sending.ownership.is_some();
            is_to_go_on
                && match sending.stage {
                    Stage::Writing => true,
                    // Whoever asks now has connected before, and may have heard of a guest that runs. A receiver that hangs is
                    // found out in time.
                    Stage::HandedOver => sending.carrier == Carrier::Process,
                    _ => false,
                }
        })
    }

    /// The guest that is being sent has ended here; `after` says what comes.
    pub(super) fn guest_of_migration_ended(&mut self, after: stop::After) {
        if let Some(sending) = self.sending.take_if(|it| it.is_handed_over()) {
            // Nobody wants to know any more what has become of it; and when its job still finds out, there may be another guest.
            let reason = "the guest was given up here while it was not known whether it runs there";
            sending.meter.end(Some(vec![reason.to_owned()]));
            self.publish(
                "migration",
                "migration-failed",
                [("reason", reason.to_owned())],
            );
            sending
                .reclaimers
                .answer(&Err(Refusal::new(RefusalKind::Failed, reason)));
            return;
        }
        if let Some(sending) = &mut self.sending {
            let early = matches!(sending.stage, Stage::Preparing | Stage::Pausing);
            let reason = match (after, sending.before) {
                (stop::After::Restart, ArrivalV1::Running)
                    if early && sending.failure.is_none() =>
                {
                    // It goes on with the next one.
                    sending.stage = Stage::Rebooting;
                    return;
                }
                // The next one runs, and the receiver was told of one that does not.
                (stop::After::Restart, ArrivalV1::Paused) => {
                    "the guest was paused, and was rebooted meanwhile: it runs here, and can be sent as one that does"
                }
                (stop::After::Restart, ArrivalV1::Running) => {
                    "the guest was rebooted while it was to stand still: it runs here, and can be sent again"
                }
                _ => "the guest has ended meanwhile",
            };
            sending.meter.guest_goes_on();
            sending.fail(Refusal::new(RefusalKind::Failed, reason));
        }
        self.settle_migration();
    }

    /// The guest that is being sent has begun anew.
    pub(super) fn guest_of_migration_rebooted(&mut self) {
        let Some(Phase::Live(live)) = self.vm.as_ref().map(|vm| &vm.phase) else {
            return;
        };
        if let Some(sending) = &mut self.sending
            && sending.stage == Stage::Rebooting
        {
            // Until the job follows.
            sending.boot = live.boot;
            let source = Source {
                ram: live.ram.clone(),
                loggable: live.machine.loggable(),
            };
            if let Some(orders) = &sending.orders {
                // A job that has failed has said so.
                let _ = orders.send(Go::Rebooted(live.boot, source));
            }
        }
    }

    /// Gives a migration up because a client says so.
    pub(super) fn cancel_sending(&mut self) -> Result<Response, Refusal> {
        if self.sending.is_none() {
            let (situation, request) = (self.situation(), Request::CancelMigration);
            return Err(refusal(situation, &request, RefusalKind::Failed));
        }
        let reason = Refusal::new(RefusalKind::Failed, "vm.migration-cancel came");
        self.fail_migration(reason);
        Ok(Response::Done)
    }

    /// How the last migration stands.
    pub(super) fn migration(&mut self) -> Result<Response, Refusal> {
        if self.vm.is_none()
            && let Some(leaves_at) = &mut self.leaves_at
        {
            // It has been seen.
            *leaves_at = Instant::now();
        }
        match &self.migration {
            Some(meter) => Ok(Response::Migration(Box::new(meter.progress()))),
            None => Err(Refusal::new(
                RefusalKind::NotFound,
                "there has been no migration",
            )),
        }
    }
}
