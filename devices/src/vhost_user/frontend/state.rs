//! The messages by which a back-end is asked to move its state.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::FrontendReq;

use super::{Frontend, contents, parse};
use crate::vhost_user::connection::{Question, Request};
use crate::vhost_user::error::Cause;
use crate::vhost_user::message::{Acknowledge, ReplyShape, RequestCode};

/// The one phase in which state is moved: while the device is suspended (vhost-user specification, "Migrating back-end state").
const PHASE_STOPPED: u32 = 0;

/// In the answer to SET_DEVICE_STATE_FD: an error if not zero.
const STATE_ERROR: u64 = 0xff;
/// In the same: no file descriptor comes with it.
const STATE_NO_FD: u64 = 1 << 8;

/// Which way a back-end's state goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// Out of the back-end.
    Save = 0,
    /// Into the back-end.
    Load = 1,
}

/// Over which file descriptor a back-end's state goes.
#[derive(Debug)]
pub enum StateFd {
    /// The back-end uses the end that it was given.
    Given,
    /// The back-end wants this one to be used instead.
    Returned(OwnedFd),
}

impl Frontend {
    /// Asks the back-end to move its state over a descriptor (needs DEVICE_STATE; all rings are stopped): its end, `theirs`, or
    /// one that it returns, which must be used instead.
    pub fn set_device_state_fd(
        &mut self,
        direction: Direction,
        theirs: OwnedFd,
    ) -> Result<StateFd, Cause> {
        let code = RequestCode::from(FrontendReq::SET_DEVICE_STATE_FD);
        let payload = [direction as u32, PHASE_STOPPED].map(u32::to_ne_bytes);
        let request = Request {
            code,
            payload: payload.as_flattened(),
            fds: &[],
        };
        let question = Question {
            request,
            acknowledge: Acknowledge::Natural,
            shape: ReplyShape::with_fd(8),
        };
        let patience = self.patience.for_next();
        let reply = self.connection.ask_giving(question, theirs, patience)?;
        let said: u64 = parse(code, &reply.payload)?;
        let returned = reply.fds.into_iter().next();
        let impossible = |what: &str| Err(contents(code, format!("it answered {said:#x} {what}")));
        match (said & STATE_ERROR, said & STATE_NO_FD, returned) {
            (0, 0, Some(fd)) => Ok(StateFd::Returned(fd)),
            (0, 0, None) => {
                impossible("and did not return the file descriptor that this announces")
            }
            (0, _, None) => Ok(StateFd::Given),
            (0, _, Some(_)) => impossible("and returned a file descriptor all the same"),
            (_, _, Some(_)) => impossible("(an error) and returned a file descriptor"),
            (_, _, None) => Err(Cause::Refused { request: code }),
        }
    }

    /// Asks how moving the state went (needs DEVICE_STATE), after its last byte: [`Cause::Refused`] if not well.
    pub fn check_device_state(&mut self) -> Result<(), Cause> {
        match self.get_u64(FrontendReq::CHECK_DEVICE_STATE)? {
            0 => Ok(()),
            _ => Err(Cause::Refused {
                request: FrontendReq::CHECK_DEVICE_STATE.into(),
            }),
        }
    }
}
