//! Orders: each is carried out as a whole before the next one, and its giver is answered exactly once, also when the device
//! fails in between.

use std::sync::Arc;
use std::time::Instant;

use super::{Worker, clear};
use crate::sys::poll::{self, Interest};
use crate::vhost_user::device::DeviceState;
use crate::vhost_user::error::{Cause, Error};
use crate::vhost_user::frontend::Patience;
use crate::vhost_user::inbox::{Done, Order};
use crate::vhost_user::live::Live;
use crate::vhost_user::moving::Begun;
use crate::vhost_user::shared::Shared;
use crate::virtio::{Activation, ActivationFailed, TransportEvents};

/// Who is to be told how the order that is being carried out has ended.
pub(super) enum Current {
    Activation(Arc<dyn TransportEvents>),
    Reset(Arc<dyn TransportEvents>),
    Owners(Done),
    Moving(Done<Begun>),
    Lending(Done<Live>),
}

impl Current {
    /// Answers for a device that has failed; returns whether the transport knows by that.
    pub fn fail(self, error: &Error) -> bool {
        match self {
            Current::Activation(transport) => transport.activated(Err(ActivationFailed)),
            Current::Reset(transport) => transport.reset_done(),
            Current::Owners(done) => {
                done.tell(Err(error.clone()));
                return false;
            }
            Current::Moving(done) => {
                done.tell(Err(error.clone()));
                return false;
            }
            Current::Lending(done) => {
                done.tell(Err(error.clone()));
                return false;
            }
        }
        true
    }

    fn activated(self, outcome: Result<(), ActivationFailed>) {
        if let Current::Activation(transport) = self {
            transport.activated(outcome);
        }
    }

    fn reset(self) {
        if let Current::Reset(transport) = self {
            transport.reset_done();
        }
    }

    pub fn done(self, outcome: Result<(), Error>) {
        if let Current::Owners(done) = self {
            done.tell(outcome);
        }
    }

    fn lent(self, outcome: Result<Live, Error>) {
        if let Current::Lending(done) = self {
            done.tell(outcome);
        }
    }

    pub fn begun(self, outcome: Result<Begun, Error>) {
        if let Current::Moving(done) = self {
            done.tell(outcome);
        }
    }
}

impl Worker {
    /// Carries an order out. An error is the device's end, and then whoever gave the order is still to be told.
    pub(super) fn carry_out(&mut self, order: Order) -> Result<(), Cause> {
        // The guest waits for most of them, and for all that an order has to ask of the back-end.
        let by_then = Patience::Until(Instant::now() + self.limits.dead);
        self.frontend.set_patience(by_then);
        match order {
            Order::Activate(activation, transport) => {
                self.current = Some(Current::Activation(transport));
                self.shared.set_state(DeviceState::Changing);
                let outcome = self.activate(activation)?;
                self.answer(|current| current.activated(outcome));
            }
            Order::Reset(transport) => {
                self.current = Some(Current::Reset(transport));
                self.shared.set_state(DeviceState::Changing);
                self.reset()?;
                self.answer(Current::reset);
            }
            Order::Suspend(done) => {
                self.current = Some(Current::Owners(done));
                let outcome = self.suspend()?;
                let outcome = outcome.map_err(|cause| self.shared.error_from(cause));
                self.answer(|current| current.done(outcome));
            }
            Order::Resume(done) => {
                self.current = Some(Current::Owners(done));
                match self.lent {
                    true => self.go_on()?,
                    false => self.resume()?,
                }
                self.answer(|current| current.done(Ok(())));
            }
            Order::Lend(done) => {
                self.current = Some(Current::Lending(done));
                let outcome = self.lend();
                let outcome = self.told(outcome)?;
                self.answer(|current| current.lent(outcome));
            }
            Order::Own(done) => {
                self.current = Some(Current::Owners(done));
                self.lent = false;
                self.answer(|current| current.done(Ok(())));
            }
            of_a_job => self.carry_out_for_job(of_a_job)?,
        }
        let each = Patience::PerMessage(self.limits.request);
        self.frontend.set_patience(each);
        Ok(())
    }

    pub(super) fn answer(&mut self, say: impl FnOnce(Current)) {
        if let Some(current) = self.current.take() {
            say(current);
        }
    }

    /// Starts the rings. Where that fails and the connection lives on, the guest may reset the device and try again.
    fn activate(&mut self, activation: Activation) -> Result<Result<(), ActivationFailed>, Cause> {
        match self.start_rings(activation) {
            Ok(()) => {
                self.shared.counters.activations.add();
                self.shared.set_state(DeviceState::Active);
                Ok(Ok(()))
            }
            Err(cause) if cause.is_fatal() => Err(cause),
            Err(cause) => {
                self.log_refusal(cause, "the device could not be activated");
                self.shared.set_state(DeviceState::Idle);
                Ok(Err(ActivationFailed))
            }
        }
    }

    /// Stops the rings and puts the back-end's device into its initial state. A back-end
    /// that cannot be stopped would go on writing to guest memory, so here a late answer is the device's end.
    fn reset(&mut self) -> Result<(), Cause> {
        // Whoever resets a device has made sure that no other process has it.
        self.lent = false;
        if let Some(mut session) = self.session.take() {
            let result = self
                .settle_load()
                .and_then(|()| self.end_session(&mut session));
            if let Err(cause) = result {
                self.session = Some(session);
                return Err(cause.late_is_dead());
            }
            self.note_former(&session);
        }
        self.moving = None;
        self.loads = false;
        self.not_loaded = None;
        self.shared.set_stopped(Vec::new());
        self.shared.set_rings(Default::default());
        self.shared.counters.resets.add();
        self.shared.set_state(DeviceState::Idle);
        Ok(())
    }
}

/// What is left to do for a device that has failed: answering. Nothing of it is left that could touch guest
/// memory on anybody's order, so that it is as good as suspended, and as good as resumed.
pub(super) fn serve_failed(shared: &Shared) {
    loop {
        while let Some(order) = shared.next_order() {
            match order {
                Order::Activate(_, transport) => transport.activated(Err(ActivationFailed)),
                Order::Reset(transport) => transport.reset_done(),
                Order::Suspend(done) | Order::Resume(done) | Order::Own(done) => {
                    done.tell(Ok(()));
                }
                other => {
                    let error = shared.error();
                    let error = error.unwrap_or_else(|| shared.error_from(Cause::Poisoned));
                    other.refuse(&error);
                }
            }
        }
        shared.clear_writes();
        let mut entries = [
            poll::entry(Some(&*shared.stop), Interest::Read),
            poll::entry(Some(&shared.wake), Interest::Read),
        ];
        if poll::wait(&mut entries, None).is_err() || poll::ready(&entries[0]) {
            return;
        }
        clear(&shared.wake);
    }
}
