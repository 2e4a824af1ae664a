//! Whose a guest is that is being sent: when it is given up, when it stays, and when it has left.
//!
//! Of a guest that is handed to another process of this host, a word of shared memory says who may let it run
//! ([`Ownership`](vm_migration::ownership::Ownership)). So whatever lets it go on here, or ends it, claims it before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_api::control::{Refusal, RefusalKind, Reply, Response, VmInfo, VmState};
use ferry_api::migration::AfterSend;

use super::{Sending, Stage};
use crate::lifecycle::pause::Asker;
use crate::lifecycle::stop;
use crate::lifecycle::vm::{Activity, Phase, Waiters};
use crate::lifecycle::{Ending, Vmm};
use crate::migration::send::Go;
use crate::migration::{ArrivalV1, Meter};

/// How long Ferry waits for those who follow a migration, before it ends with it.
const LINGER: Duration = Duration::from_secs(1);

/// A migration whose guest has left, while what it had here is given back.
pub struct Departed {
    meter: Arc<Meter>,
    after: AfterSend,
    /// Why it is not where it went, either.
    loss: Option<Refusal>,
}

impl Vmm {
    /// Makes sure that no other process of this host can start the guest any more. False if one has.
    pub(in crate::lifecycle) fn claim_guest(&self) -> bool {
        let sending = self.sending.as_ref();
        let ownership = sending.and_then(|sending| sending.ownership.as_ref());
        ownership.is_none_or(|ownership| ownership.keep().is_ok())
    }

    /// The receiver has everything. From here on the guest is not this Ferry's.
    pub(super) fn give_guest_up(&mut self) {
        let Some(sending) = &mut self.sending else {
            return;
        };
        if sending.failure.is_some() {
            return;
        }
        if let Err(error) = sending.meter.commit() {
            return self.fail_migration(Refusal::failed(&error));
        }
        if let Some(pausing) = &sending.pausing {
            pausing.done();
        }
        sending.stage = Stage::HandedOver;
        if let Some(orders) = &sending.orders {
            // A job that has failed has said so.
            let _ = orders.send(Go::Commit);
        }
    }

    /// Gives the migration up, unless the guest is handed over. The guest goes on at once, and does not wait for the job's end.
    pub(in crate::lifecycle) fn fail_migration(&mut self, reason: Refusal) {
        let Some(sending) = &mut self.sending else {
            return;
        };
        let stage = sending.stage;
        sending.fail(reason.clone());
        match stage {
            Stage::Pausing => self.give_pause_up(reason),
            Stage::Writing => self.let_guest_stay(),
            Stage::Preparing
            | Stage::Rebooting
            | Stage::HandedOver
            | Stage::Unconfirmed
            | Stage::Settling => {}
        }
    }

    /// Resumes a guest that was to leave, if it ran before; unless another process has it.
    fn let_guest_stay(&mut self) {
        let is_ours = self.claim_guest();
        let Some(sending) = &mut self.sending else {
            return;
        };
        if !is_ours {
            // The end of the job says what has become of it.
            sending.stage = Stage::HandedOver;
            return;
        }
        sending.stage = Stage::Preparing;
        let (meter, boot, before) = (sending.meter.clone(), sending.boot, sending.before);
        let is_local = sending.ownership.is_some();
        sending.pausing = None;
        if let Some(Phase::Live(live)) = self.vm.as_ref().map(|vm| &vm.phase)
            && live.boot == boot
            && matches!(live.activity, Activity::Paused)
        {
            meter.guest_goes_on();
            match before {
                ArrivalV1::Running => self.resume(Asker::Migration),
                ArrivalV1::Paused if is_local => self.own_devices(&[]),
                ArrivalV1::Paused => {}
            }
        }
    }

    /// The job has ended, one way or the other.
    pub(super) fn on_sent(&mut self, outcome: Result<(), Refusal>) {
        let Some(sending) = &mut self.sending else {
            return;
        };
        let stage = sending.stage;
        sending.orders = None;
        if let Some(Phase::Live(live)) = self.vm.as_mut().map(|vm| &mut vm.phase) {
            live.machine.throttle(0);
        }
        if let Err(reason) = outcome {
            // Of two reasons the first one is the cause.
            let reason = sending.failure.get_or_insert(reason).clone();
            if sending.is_handed_over() && self.claim_guest() {
                tracing::warn!("the guest that was handed over goes on here");
            }
            if matches!(
                stage,
                Stage::Writing | Stage::HandedOver | Stage::Unconfirmed
            ) {
                self.let_guest_stay();
            }
            if let Some(sending) = self.sending.take_if(|it| it.is_handed_over()) {
                return self.guest_has_left(sending, Some(reason), Waiters::default());
            }
        }
        if let Some(sending) = &mut self.sending {
            sending.stage = Stage::Settling;
        }
        self.settle_migration();
    }

    /// Ends a migration whose job has ended, unless its guest is still on its way back.
    pub(in crate::lifecycle) fn settle_migration(&mut self) {
        if let Some(Phase::Live(live)) = self.vm.as_ref().map(|vm| &vm.phase)
            && matches!(live.activity, Activity::Resuming(_))
            && self.sending.as_ref().is_some_and(|it| it.is_of(live.boot))
        {
            return;
        }
        let Some(sending) = self.sending.take_if(|it| it.stage == Stage::Settling) else {
            return;
        };
        match sending.failure {
            None => self.guest_has_left(sending, None, Waiters::default()),
            Some(reason) => {
                let text = reason.chain.join(": ");
                tracing::warn!("the migration has failed: {text}");
                sending.meter.end(Some(reason.chain));
                self.publish("migration", "migration-failed", [("reason", text)]);
                sending.reclaimers.answer(&Ok(Response::Done));
            }
        }
    }

    /// Another process has started the guest that was about to be ended here.
    pub(in crate::lifecycle) fn guest_is_away(&mut self, waiters: Waiters) {
        match self.sending.take() {
            Some(sending) => self.guest_has_left(sending, None, waiters),
            None => waiters.answer(&Ok(Response::Done)),
        }
    }

    /// `loss` is why it has ended where it went; `waiters` are told when nothing of it is left here.
    pub(super) fn guest_has_left(
        &mut self,
        sending: Sending,
        loss: Option<Refusal>,
        waiters: Waiters,
    ) {
        sending.meter.arrived();
        // If it is lost, clients hear of it here.
        if let (None, Some(pausing)) = (&loss, sending.pausing) {
            pausing.leave();
            self.succeeded = self.last_words(sending.before);
        }
        let gone = "the guest runs elsewhere after all";
        sending
            .reclaimers
            .answer(&Err(Refusal::new(RefusalKind::Failed, gone)));
        self.departed = Some(Departed {
            meter: sending.meter,
            after: sending.after,
            loss,
        });
        match sending.ownership {
            Some(_) => self.leave_guest(waiters),
            None => self.stop_guest(stop::After::Delete, waiters),
        }
    }

    /// What this process says of its guest as long as it is still asked.
    fn last_words(&self, arrival: ArrivalV1) -> Option<Box<VmInfo>> {
        let Ok(Response::Info(mut info)) = self.describe() else {
            return None;
        };
        info.transition = None;
        info.state = match arrival {
            ArrivalV1::Running => VmState::Running,
            ArrivalV1::Paused => VmState::Paused,
        };
        Some(info)
    }

    /// Ends a migration whose guest runs elsewhere, once nothing of it is left here: from then on another one can come.
    pub(in crate::lifecycle) fn settle_departure(&mut self) {
        let Some(departed) = self.departed.take_if(|_| self.vm.is_none()) else {
            return;
        };
        let Departed { meter, after, loss } = departed;
        match loss {
            None => {
                meter.end(None);
                let downtime = meter.progress().downtime.unwrap_or_default();
                let properties = [("downtime_us", downtime.as_micros().to_string())];
                self.publish("migration", "migration-finished", properties);
            }
            Some(reason) => {
                let text = reason.chain.join(": ");
                tracing::error!("the guest is lost: {text}");
                self.leaves_as = Ending::Lost;
                meter.end(Some(reason.chain));
                self.publish("migration", "migration-failed", [("reason", text)]);
            }
        }
        if after == AfterSend::Exit {
            self.leaves_at = Some(match self.succeeded {
                // Nobody can ask any more.
                Some(_) => Instant::now(),
                None => Instant::now() + LINGER,
            });
        }
    }

    /// Takes a guest back that nobody has confirmed to run elsewhere.
    pub(in crate::lifecycle) fn reclaim_guest(&mut self, reply: Reply) {
        let Some(sending) = &mut self.sending else {
            return;
        };
        if sending.stage != Stage::Unconfirmed {
            let reason = "the guest is just being handed over, and the answer is still due";
            return reply.answer(Err(Refusal::new(RefusalKind::Failed, reason)));
        }
        tracing::warn!("the guest is to be taken back, although it may run elsewhere");
        sending.reclaimers.add(reply);
        if let Some(orders) = &sending.orders {
            let _ = orders.send(Go::Reclaim);
        }
    }
}
