//! A migration from the receiver's owner's side.
//!
//! A job waits for a sender before there is a virtual machine. Then it is a boot with another content: [`boot`](super::boot)
//! connects to back-ends, its job fills RAM and machine, up to the commit. What comes before that leaves nothing but
//! the connections to back-ends, for the next attempt.

use std::sync::Arc;
use std::time::Instant;

use ferry_api::control::{Refusal, RefusalKind, Reply, Response, VmState};
use ferry_api::migration::{Phase as Step, ReceiveRequest, Role};
use vm_migration::link::Failure;

use super::boot::Cause;
use super::boot_job::Content;
use super::pause::Asker;
use super::vm::Waiters;
use super::{Error, Vmm, system};
use crate::events::Event;
use crate::migration::{self, ArrivalV1, Farewell, Incoming, Meter, Service, listen};

/// A sender that is waited for.
pub struct Receiving {
    /// Which one it is.
    number: u64,
    waiters: Waiters,
    /// Who wants it to be forgotten instead.
    deleters: Waiters,
    meter: Arc<Meter>,
    /// Why it has failed already, while its job has still to end.
    failure: Option<Error>,
    /// How long the job's end is waited for then.
    pub deadline: Option<Instant>,
}

impl Vmm {
    /// Begins to wait for a sender. There is no virtual machine.
    pub(super) fn receive_migration(&mut self, request: ReceiveRequest, waiters: Waiters) {
        let events = self.events.sender();
        self.numbers += 1;
        let number = self.numbers;
        let url = request.receiver.clone();
        let meter = Arc::new(Meter::new(Role::Receive, url.clone()));
        self.migration = Some(meter.clone());
        self.receiving = Some(Receiving {
            number,
            waiters,
            deleters: Waiters::default(),
            meter: meter.clone(),
            failure: None,
            deadline: None,
        });
        let (attempts, timeouts) = (self.attempts.clone(), self.timeouts);
        let work = move || {
            // The address may be the same.
            attempts.stop_answering();
            let ready = || events.send(Event::Listening { number });
            let outcome = listen(&request, &timeouts, &attempts, &meter, ready).map(Box::new);
            events.send(Event::Incoming { number, outcome });
        };
        let started = std::thread::Builder::new()
            .name("migration".into())
            .spawn(work)
            .map_err(system("start a thread that waits for a sender"));
        if let Err(error) = started {
            self.not_received(error);
        }
    }

    pub(super) fn on_listening(&mut self, number: u64) {
        if let Some(receiving) = self.receiving.as_ref().filter(|it| it.number == number) {
            let url = receiving.meter.url().to_string();
            self.publish("migration", "receive-ready", [("url", url)]);
        }
    }

    pub(super) fn on_incoming(
        &mut self,
        number: u64,
        outcome: Result<Box<Incoming>, migration::Error>,
    ) {
        let Some(receiving) = self.receiving.as_mut().filter(|it| it.number == number) else {
            return;
        };
        let incoming = match (receiving.failure.take(), outcome) {
            (Some(failure), Ok(incoming)) => {
                incoming.refuse(migration::Error::Cancelled.failure());
                return self.not_received(failure);
            }
            (Some(failure), Err(_)) => return self.not_received(failure),
            (None, Err(error)) => return self.not_received(error.into()),
            (None, Ok(incoming)) => incoming,
        };
        let Some(Receiving { waiters, .. }) = self.receiving.take() else {
            return;
        };
        self.publish("migration", "receive-started", []);
        self.define(incoming.config.clone());
        self.boot_with(
            VmState::Created,
            Cause::Received(incoming.arrival()),
            None,
            Some(Content::Migration(incoming)),
            waiters,
        );
    }

    /// Does not wait any longer for a job that was given up: what it still finds is nobody's any more.
    pub(super) fn on_receive_late(&mut self) {
        let failure = self.receiving.as_mut().and_then(|it| it.failure.take());
        self.not_received(failure.unwrap_or(Error::Cancelled("it took too long")));
    }

    /// A migration has ended before there was a virtual machine.
    fn not_received(&mut self, error: Error) {
        let Some(receiving) = self.receiving.take() else {
            return;
        };
        self.receive_failed(&error);
        receiving.waiters.answer(&Err(error.refusal()));
        receiving.deleters.answer(&Ok(Response::Done));
    }

    /// Notes that nobody was received.
    pub(super) fn receive_failed(&mut self, error: &Error) {
        // Some of it may be a sender's words, of any length.
        let failure = Failure::new(ferry_api::chain(error));
        let reasons: Vec<String> = failure.texts().map(str::to_owned).collect();
        let reason = reasons.join(": ");
        if let Some(meter) = &self.migration {
            meter.end(Some(reasons));
        }
        tracing::warn!("no guest has been received: {reason}");
        self.publish("migration", "receive-failed", [("reason", reason)]);
    }

    /// The guest is here, and stands still.
    pub(super) fn received(&mut self, arrival: ArrivalV1, farewell: Farewell, waiters: Waiters) {
        let mut farewell = farewell;
        let meter = farewell.meter().clone();
        meter.enter(Step::Resume);
        let service = farewell.take_service();
        let started = farewell.started();
        // Those who tell the sender have to wait for a processor that the guest has: it does not stand still for that.
        let arrived = || {
            meter.guest_goes_on();
            meter.enter(Step::Release);
        };
        match arrival {
            // Who waits may ask for the next thing only once the devices go on, too.
            ArrivalV1::Running => self.resume_noting(Asker::Arrival(waiters), arrived),
            ArrivalV1::Paused => {
                self.own_devices(&[]);
                arrived();
                waiters.answer(&Ok(Response::Done));
            }
        }
        started.tell();
        if let Some(service) = service {
            self.take_place(service);
        }
        meter.end(None);
        self.publish("migration", "receive-finished", []);
    }

    /// Is reached from now on as the process was that the guest comes from.
    fn take_place(&mut self, service: Service) {
        let Service { socket, monitor } = service;
        if let Some(reception) = &self.reception {
            reception.move_to(socket);
        }
        if let (Some(log), Some(monitor)) = (&self.log, monitor)
            && let Err(error) = log.take_monitor(monitor)
        {
            tracing::warn!("the event monitor takes no events of this process: {error}");
        }
    }

    /// Gives a migration up, if one is being received.
    pub(super) fn cancel_receiving(&mut self, why: &'static str) -> Result<Response, Refusal> {
        let deadline = Instant::now() + self.timeouts.request;
        if let Some(receiving) = &mut self.receiving {
            receiving.meter.cancel();
            receiving.failure.get_or_insert(Error::Cancelled(why));
            receiving.deadline.get_or_insert(deadline);
            return Ok(Response::Done);
        }
        match self.give_boot_up(Error::Cancelled(why)) {
            true => Ok(Response::Done),
            false => {
                let reason = "the guest has been handed over to this Ferry already";
                Err(Refusal::new(RefusalKind::Failed, reason))
            }
        }
    }

    /// Forgets a migration, before there is a virtual machine.
    pub(super) fn leave_receiving(&mut self, reply: Reply) {
        // There is no virtual machine yet, so this cannot be refused.
        let _ = self.cancel_receiving("vm.delete came");
        match &mut self.receiving {
            Some(receiving) => receiving.deleters.add(reply),
            None => reply.answer(Ok(Response::Done)),
        }
    }
}
