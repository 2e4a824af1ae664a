//! A restore from the owner's side.
//!
//! A job reads and checks the snapshot before there is a virtual machine, so that a damaged one costs nothing. Then it is
//! a boot with another content: [`boot`](super::boot) connects to back-ends, its job fills RAM and machine. In the end
//! the guest stands where it stood, paused; letting it go on is an ordinary resume.

use std::sync::Arc;
use std::time::Instant;

use ferry_api::control::{Reply, Response, VmState};
use ferry_api::snapshot::{Operation, RestoreRequest};

use super::boot::Cause;
use super::boot_job::Content;
use super::devices::Device;
use super::vm::{Phase, Waiters};
use super::{Error, Vmm, system};
use crate::events::Event;
use crate::logging::chain;
use crate::snapshot::restore::{Found, look};
use crate::snapshot::{self, Meter};

/// A snapshot that is being read.
pub struct Restoring {
    /// Which one it is.
    number: u64,
    request: RestoreRequest,
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
    /// Begins a restore. There is no virtual machine.
    pub(super) fn restore(&mut self, request: RestoreRequest, waiters: Waiters) {
        let events = self.events.sender();
        self.numbers += 1;
        let number = self.numbers;
        let meter = Arc::new(Meter::new(Operation::Restore, &request.source));
        let directory = request.source.display().to_string();
        self.publish("restore", "started", [("directory", directory)]);
        self.meter = Some(meter.clone());
        self.restoring = Some(Restoring {
            number,
            request: request.clone(),
            waiters,
            deleters: Waiters::default(),
            meter: meter.clone(),
            failure: None,
            deadline: None,
        });
        let work = move || {
            let outcome = look(&request, &meter).map(Box::new);
            events.send(Event::Found { number, outcome });
        };
        let started = std::thread::Builder::new()
            .name("restore".into())
            .spawn(work)
            .map_err(system("start a thread that reads the snapshot"));
        if let Err(error) = started {
            self.not_found(error);
        }
    }

    pub(super) fn on_found(&mut self, number: u64, outcome: Result<Box<Found>, snapshot::Error>) {
        let Some(restoring) = self.restoring.as_mut().filter(|it| it.number == number) else {
            return;
        };
        let found = match (restoring.failure.take(), outcome) {
            (Some(failure), _) => return self.not_found(failure),
            (None, Err(error)) => return self.not_found(error.into()),
            (None, Ok(found)) => found,
        };
        let Some(Restoring {
            request,
            waiters,
            meter,
            ..
        }) = self.restoring.take()
        else {
            return;
        };
        self.define(found.config.clone());
        let cause = Cause::Restored(request.start);
        let content = found.into_content(request.memory, meter);
        self.boot_with(
            VmState::Created,
            cause,
            None,
            Some(Content::Snapshot(Box::new(content))),
            waiters,
        );
    }

    /// Does not wait any longer for a job that was given up: what it still finds is nobody's any more.
    pub(super) fn on_restore_late(&mut self) {
        let failure = self.restoring.as_mut().and_then(|it| it.failure.take());
        self.not_found(failure.unwrap_or(Error::Cancelled("it took too long")));
    }

    /// A restore has ended before there was a virtual machine.
    fn not_found(&mut self, error: Error) {
        let Some(restoring) = self.restoring.take() else {
            return;
        };
        self.restore_failed(&error);
        // Whoever has deleted it does not want Ferry to end.
        let asked_by_client =
            restoring.waiters.asked_by_client() || restoring.deleters.asked_by_client();
        restoring.waiters.answer(&Err(error.refusal()));
        restoring.deleters.answer(&Ok(Response::Done));
        if !asked_by_client {
            self.end(Err(error));
        }
    }

    /// Notes that a restore has led to nothing.
    pub(super) fn restore_failed(&mut self, error: &Error) {
        if let Some(meter) = &self.meter {
            meter.end(Some(ferry_api::chain(error)));
        }
        self.publish("restore", "failed", [("reason", chain(error))]);
    }

    /// Notes that the guest is back.
    pub(super) fn restored(&mut self) {
        let Some(meter) = &self.meter else { return };
        meter.end(None);
        let directory = meter.directory().display().to_string();
        self.publish("restore", "finished", [("directory", directory)]);
    }

    /// Gives a restore up, if one is under way.
    pub(super) fn cancel_restore(&mut self, why: &'static str) {
        let deadline = Instant::now() + self.timeouts.request;
        if let Some(restoring) = &mut self.restoring {
            restoring.meter.cancel();
            restoring.failure.get_or_insert(Error::Cancelled(why));
            restoring.deadline.get_or_insert(deadline);
            return;
        }
        let Some(vm) = &mut self.vm else { return };
        if let Phase::Booting(booting) = &vm.phase
            && matches!(booting.cause, Cause::Restored(_))
        {
            vm.devices.iter_mut().for_each(Device::cancel);
            self.give_boot_up(Error::Cancelled(why));
        }
    }

    /// Forgets a restore, before there is a virtual machine.
    pub(super) fn leave_restore(&mut self, reply: Reply) {
        self.cancel_restore("vm.delete came");
        match &mut self.restoring {
            Some(restoring) => restoring.deleters.add(reply),
            None => reply.answer(Ok(Response::Done)),
        }
    }
}
