//! Orders of jobs: what only the worker can do about a device's state.
//!
//! The back-end is asked here; the state itself passes by on the job's thread. A job that is not interested any more has its
//! orders skipped. What a back-end answers after its time is over is thrown away when it comes, with any descriptor.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use vhost::vhost_user::message::FrontendReq;

use super::Worker;
use super::orders::Current;
use super::session::{Service, Session};
use crate::vhost_user::device::DeviceState;
use crate::vhost_user::error::{Cause, During, Error};
use crate::vhost_user::frontend::{Direction, Patience, StateFd};
use crate::vhost_user::inbox::Order;
use crate::vhost_user::message::RequestCode;
use crate::vhost_user::moving::{
    Begin, Begun, Check, RingStateV1, StateCause, StateStep, Stream, TransferError,
};

/// A move of state that is under way.
#[derive(Clone, Copy)]
pub(super) struct Moving {
    ticket: u64,
    direction: Direction,
}

impl Worker {
    /// Carries an order of a job out.
    pub(super) fn carry_out_for_job(&mut self, order: Order) -> Result<(), Cause> {
        match order {
            Order::Prepare(done) => {
                self.current = Some(Current::Owners(done));
                self.be_as_patient_as_for_requests();
                let outcome = self.prepare();
                self.answer_done(outcome)
            }
            Order::Unprepare(done) => {
                self.current = Some(Current::Owners(done));
                self.be_as_patient_as_for_requests();
                let outcome = self.unprepare_session();
                self.answer_done(outcome)
            }
            Order::StartLog(log, done) => {
                self.current = Some(Current::Owners(done));
                self.be_as_patient_as_for_requests();
                let outcome = self.start_log(log);
                self.answer_done(outcome)
            }
            Order::StopLog(done) => {
                self.current = Some(Current::Owners(done));
                self.be_as_patient_as_for_requests();
                let outcome = self.stop_log();
                self.answer_done(outcome)
            }
            Order::TellRam(done) => {
                self.current = Some(Current::Owners(done));
                self.be_as_patient_as_for_requests();
                let outcome = self.tell_ram_ahead();
                self.answer_done(outcome)
            }
            Order::SetUpRings(done) => {
                self.current = Some(Current::Owners(done));
                self.be_as_patient_as_for_requests();
                let outcome = self.set_up_rings();
                self.answer_done(outcome)
            }
            Order::Restore(restoring, done) => {
                self.current = Some(Current::Owners(done));
                let outcome = self.restore(*restoring);
                self.answer_done(outcome)
            }
            Order::BeginState(begin) if begin.given_up.load(Ordering::Acquire) => Ok(()),
            Order::BeginState(begin) => self.begin_state(begin),
            Order::CheckState(check) if check.given_up.load(Ordering::Acquire) => Ok(()),
            Order::CheckState(check) => self.check_state(check),
            Order::GiveUpLoad(source) => {
                self.give_up_load(source);
                Ok(())
            }
            // The owner's and the transport's are carried out elsewhere.
            Order::Activate(..)
            | Order::Reset(_)
            | Order::Suspend(_)
            | Order::Resume(_)
            | Order::Lend(_)
            | Order::Own(_) => Ok(()),
        }
    }

    /// The device must not be started any more, until it is reset or all of a state is there. It does not matter how far the load had
    /// come: what nobody has waited for counts for nothing. What was never to be loaded lacks nothing.
    fn give_up_load(&mut self, source: TransferError) {
        if !self.loads && self.refuse_unloaded().is_ok() {
            return;
        }
        let Some(session) = &mut self.session else {
            return;
        };
        session.service = Service::Unloaded;
        self.not_loaded = Some(source);
        self.moving = None;
        self.shared.set_stopped(Vec::new());
        self.shared.set_state(DeviceState::Changing);
    }

    fn be_as_patient_as_for_requests(&mut self) {
        let each = Patience::PerMessage(self.limits.request);
        self.frontend.set_patience(each);
    }

    /// Answers the job, unless the device is at its end.
    fn answer_done(&mut self, outcome: Result<(), Cause>) -> Result<(), Cause> {
        let outcome = self.told(outcome)?;
        self.answer(|current| current.done(outcome));
        Ok(())
    }

    /// What is told of an outcome that is not the device's end.
    pub(super) fn told<T>(&self, outcome: Result<T, Cause>) -> Result<Result<T, Error>, Cause> {
        match outcome {
            Err(cause) if cause.is_fatal() => Err(cause),
            outcome => Ok(outcome.map_err(|cause| self.shared.error_from(cause))),
        }
    }

    fn begin_state(&mut self, begin: Begin) -> Result<(), Cause> {
        self.current = Some(Current::Moving(begin.done));
        self.frontend.set_patience(Patience::Until(begin.until));
        self.moving = None;
        let begun = self
            .may_move(begin.direction)
            .and_then(|()| self.settle())
            .and_then(|()| self.ask_to_move(begin.direction, begin.theirs))
            .and_then(|fd| self.note_move(begin.direction, fd));
        let begun = self.told(begun)?;
        self.answer(|current| current.begun(begun));
        Ok(())
    }

    /// Whether the device stands as it must for its state to be moved.
    fn may_move(&self, direction: Direction) -> Result<(), Cause> {
        if !self.negotiated.offers_device_state() {
            return Err(Cause::Unusable {
                reason:
                    "it does not offer DEVICE_STATE, so that the state it holds cannot be moved"
                        .into(),
            });
        }
        let service = self.session.as_ref().map(|session| session.service);
        let suspended = self.shared.state() == DeviceState::Suspended;
        match (direction, service) {
            (Direction::Save, Some(Service::Complete)) if suspended => Ok(()),
            (Direction::Save, _) => Err(Cause::NotAtRest {
                reason: "it is not suspended, or its driver has not started it".into(),
            }),
            (Direction::Load, Some(Service::Unloaded)) => Ok(()),
            (Direction::Load, _) => Err(Cause::BadState {
                reason: "the device is not being restored, or has its state already".into(),
            }),
        }
    }

    fn ask_to_move(&mut self, direction: Direction, theirs: OwnedFd) -> Result<StateFd, Cause> {
        self.loads |= direction == Direction::Load;
        let result = self.frontend.set_device_state_fd(direction, theirs);
        self.unsettled = match &result {
            Ok(_) => true,
            Err(cause) => is_late(cause, FrontendReq::SET_DEVICE_STATE_FD),
        };
        result
    }

    fn ask_how_it_went(&mut self) -> Result<(), Cause> {
        let result = self.frontend.check_device_state();
        self.unsettled &= match &result {
            Ok(()) | Err(Cause::Refused { .. }) => false,
            // Once it has been asked, nothing else is asked before it has answered.
            Err(cause) => !is_late(cause, FrontendReq::CHECK_DEVICE_STATE),
        };
        result
    }

    /// Waits for the end of a load that has been given up. Not with what is being loaded still on its way is a back-end reset, nor
    /// given other memory: in virtiofsd, what a reset had cleared would be filled again.
    pub(super) fn settle_load(&mut self) -> Result<(), Cause> {
        match self.loads {
            true => self.settle(),
            false => Ok(()),
        }
    }

    /// Waits for the end of a move that has been given up, by asking how it went. In virtiofsd, a save that still goes on while
    /// the next one is prepared or begun takes from that what it has collected: the state lacks files then, and its check says nothing.
    /// Not done when a move is given up, because a guest that goes on need not wait for that.
    pub(super) fn settle(&mut self) -> Result<(), Cause> {
        if !self.unsettled {
            return Ok(());
        }
        match self.ask_how_it_went() {
            Err(Cause::Refused { .. }) => Ok(()),
            other => other,
        }
    }

    fn note_move(&mut self, direction: Direction, fd: StateFd) -> Result<Begun, Cause> {
        let returned = match fd {
            StateFd::Given => None,
            StateFd::Returned(fd) => {
                let returned = Stream::returned(fd, direction);
                Some(returned.map_err(|reason| Cause::Violation {
                    during: During::Request(RequestCode::from(FrontendReq::SET_DEVICE_STATE_FD)),
                    reason,
                })?)
            }
        };
        self.moves += 1;
        let ticket = self.moves;
        self.moving = Some(Moving { ticket, direction });
        Ok(Begun { returned, ticket })
    }

    fn check_state(&mut self, check: Check) -> Result<(), Cause> {
        self.current = Some(Current::Owners(check.done));
        self.frontend.set_patience(Patience::Until(check.until));
        let of_this = |moving: &mut Moving| moving.ticket == check.ticket;
        let outcome = match self.moving.take_if(of_this) {
            None => Err(Cause::GivenUp),
            Some(moving) => self
                .ask_how_it_went()
                .map(|()| self.note_success(moving.direction)),
        };
        self.answer_done(outcome)
    }

    fn note_success(&mut self, direction: Direction) {
        if direction == Direction::Save {
            return;
        }
        if let Some(session) = &mut self.session {
            session.service = Service::Complete;
        }
        self.not_loaded = None;
        self.publish_stopped();
        self.shared.set_state(DeviceState::Suspended);
    }

    /// Lets everybody see where the rings of a session that is suspended are to go on.
    pub(super) fn publish_stopped(&self) {
        let complete = |session: &&Session| session.service == Service::Complete;
        let session = self.session.as_ref().filter(complete);
        let rings = session.map_or(&[][..], |session| &session.rings);
        let stopped = rings.iter().filter_map(|ring| {
            let index = ring.place.index;
            ring.stopped_at.map(|base| RingStateV1 { index, base })
        });
        self.shared.set_stopped(stopped.collect());
    }

    /// A device whose back-end lacks its state must not be let start.
    pub(super) fn refuse_unloaded(&self) -> Result<(), Cause> {
        match &self.session {
            Some(session) if session.service == Service::Unloaded => Err(Cause::NotLoaded {
                source: self.not_loaded.clone().unwrap_or_else(|| TransferError {
                    device: self.shared.spec.id.clone(),
                    socket: self.shared.spec.socket.clone(),
                    step: StateStep::Begin,
                    cause: StateCause::GivenUp.into(),
                }),
            }),
            _ => Ok(()),
        }
    }
}

/// Whether it is the answer to this request that is owed.
fn is_late(cause: &Cause, to: FrontendReq) -> bool {
    matches!(cause, Cause::Late { request, .. } if *request == RequestCode::from(to))
}
