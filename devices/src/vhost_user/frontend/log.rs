//! The message by which a back-end is given the dirty log.

use vhost::vhost_user::message::FrontendReq;

use super::{Frontend, parse};
use crate::vhost_user::connection::{Question, Request};
use crate::vhost_user::dirty_log::DirtyLog;
use crate::vhost_user::error::Cause;
use crate::vhost_user::message::{Acknowledge, ReplyShape, RequestCode};

impl Frontend {
    /// Gives the back-end the log to note in what it writes to guest RAM (needs LOG_SHMFD), in place of any other. Which it does
    /// while LOG_ALL is among the accepted features.
    ///
    /// The specification wants an answer and does not say which. The `vhost` crate, with it virtiofsd, repeats the 16 bytes of the
    /// request; libvhost-user, with it qemu-storage-daemon, the first 8 of them, the size; others send 8 zeros, or nothing. An
    /// acknowledgement is not asked for: it would be a second answer.
    pub fn set_log_base(&mut self, log: &DirtyLog) -> Result<(), Cause> {
        let code = RequestCode::from(FrontendReq::SET_LOG_BASE);
        let (size, offset) = (log.bytes(), 0u64);
        let payload = [size, offset].map(u64::to_ne_bytes);
        let request = Request {
            code,
            payload: payload.as_flattened(),
            fds: &[log.file()],
        };
        let question = Question {
            request,
            acknowledge: Acknowledge::Natural,
            shape: ReplyShape::empty_or(8, 16),
        };
        let reply = self.connection.ask(question, self.patience.for_next())?;
        if reply.payload.len() != 8 {
            return Ok(());
        }
        match parse::<u64>(code, &reply.payload)? {
            0 => Ok(()),
            said if said == size => Ok(()),
            _ => Err(Cause::Refused { request: code }),
        }
    }
}
