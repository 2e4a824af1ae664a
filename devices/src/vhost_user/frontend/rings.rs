//! The messages about rings. Those of several rings are sent together: a guest that is to be stopped, or to go on, waits for each answer.

use std::os::fd::{AsRawFd, BorrowedFd};

use vhost::vhost_user::message::{
    FrontendReq, VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::ByteValued;
use vmm_sys_util::eventfd::EventFd;

use super::{Frontend, contents, parse};
use crate::vhost_user::connection::{Question, Request};
use crate::vhost_user::error::Cause;
use crate::vhost_user::memory::token;
use crate::vhost_user::message::{Acknowledge, ReplyShape, RequestCode};
use crate::vhost_user::negotiated::RingLog;
use crate::vhost_user::rings::Parts;
use crate::virtio::ActiveQueue;

/// Something that a back-end is told of a ring.
#[derive(Clone, Copy, Debug)]
pub enum RingMessage<'a> {
    /// SET_VRING_NUM: how many descriptors the ring of this index has.
    Num(u16, u16),
    /// SET_VRING_BASE: the index of the next buffer to be taken from the available ring of this index.
    Base(u16, u16),
    /// SET_VRING_ADDR: where the parts of a ring lie, as address tokens; they are aligned and in guest RAM. Never for a ring that
    /// runs: a completion could be lost. So the flag that has the used ring logged is given from the beginning; it counts
    /// while LOG_ALL is accepted.
    Addr(Parts, RingLog),
    /// SET_VRING_CALL: the eventfd by which the back-end is to say that buffers have been used.
    Call(&'a ActiveQueue),
    /// SET_VRING_KICK: the eventfd by which the guest says that there are buffers. Back-ends start the ring.
    Kick(&'a ActiveQueue),
    /// SET_VRING_ENABLE: the back-end may process the buffers of the ring of this index.
    Enable(u16),
}

impl<'a> RingMessage<'a> {
    fn code(&self) -> FrontendReq {
        match self {
            RingMessage::Num(..) => FrontendReq::SET_VRING_NUM,
            RingMessage::Base(..) => FrontendReq::SET_VRING_BASE,
            RingMessage::Addr(..) => FrontendReq::SET_VRING_ADDR,
            RingMessage::Call(_) => FrontendReq::SET_VRING_CALL,
            RingMessage::Kick(_) => FrontendReq::SET_VRING_KICK,
            RingMessage::Enable(_) => FrontendReq::SET_VRING_ENABLE,
        }
    }

    fn payload(&self) -> Vec<u8> {
        match *self {
            RingMessage::Num(index, number) | RingMessage::Base(index, number) => {
                state(index, number)
            }
            RingMessage::Enable(index) => state(index, 1),
            RingMessage::Addr(ring, log) => address(&ring, log),
            RingMessage::Call(queue) | RingMessage::Kick(queue) => {
                u64::from(queue.index).to_ne_bytes().to_vec()
            }
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'a>> {
        match self {
            RingMessage::Call(queue) => Some(borrow(&queue.call)),
            RingMessage::Kick(queue) => Some(borrow(&queue.kick)),
            _ => None,
        }
    }
}

impl Frontend {
    /// Tells the back-end all of this, in this order. An error is the first message's that is refused; the back-end has read the
    /// ones behind it all the same. So nothing that starts a ring may be told together with what must be right before.
    pub fn tell_of_rings(&mut self, messages: &[RingMessage<'_>]) -> Result<(), Cause> {
        let parts: Vec<_> = messages
            .iter()
            .map(|message| (message.code(), message.payload(), message.fd()))
            .collect();
        let requests: Vec<_> = parts
            .iter()
            .map(|(code, payload, fd)| Request {
                code: (*code).into(),
                payload,
                fds: fd.as_slice(),
            })
            .collect();
        self.set_all(&requests)
    }

    /// Stops rings; returns for each the index of the next buffer that the back-end would have taken.
    pub fn get_vring_bases(&mut self, indexes: &[u16]) -> Result<Vec<u16>, Cause> {
        let code = RequestCode::from(FrontendReq::GET_VRING_BASE);
        let payloads: Vec<_> = indexes.iter().map(|index| state(*index, 0)).collect();
        let questions: Vec<_> = payloads
            .iter()
            .map(|payload| Question {
                request: Request {
                    code,
                    payload,
                    fds: &[],
                },
                acknowledge: Acknowledge::Natural,
                shape: ReplyShape::exactly(8),
            })
            .collect();
        let patience = self.patience;
        let (mut asked, mut bases) = (indexes.iter(), Vec::new());
        self.connection.ask_all(
            &questions,
            || patience.for_next(),
            |code, reply| {
                if let Some(index) = asked.next() {
                    bases.push(base(code, *index, &reply.payload)?);
                }
                Ok(())
            },
        )?;
        Ok(bases)
    }
}

fn base(code: RequestCode, index: u16, answer: &[u8]) -> Result<u16, Cause> {
    let answer: VhostUserVringState = parse(code, answer)?;
    let (of, base) = (answer.index, answer.num);
    match u16::try_from(base) {
        Ok(base) if of == u32::from(index) => Ok(base),
        _ => Err(contents(
            code,
            format!("it answered index {base} of queue {of} when asked for queue {index}"),
        )),
    }
}

fn state(index: u16, number: u16) -> Vec<u8> {
    let state = VhostUserVringState::new(u32::from(index), u32::from(number));
    state.as_slice().to_vec()
}

fn address(ring: &Parts, log: RingLog) -> Vec<u8> {
    let flags = match log {
        RingLog::Offered => VhostUserVringAddrFlags::VHOST_VRING_F_LOG,
        RingLog::Absent => VhostUserVringAddrFlags::empty(),
    };
    let address = VhostUserVringAddr::new(
        u32::from(ring.index),
        flags,
        token(ring.descriptors),
        token(ring.used),
        token(ring.available),
        // Where the used ring lies in guest-physical memory, for logging; not used without the flag.
        ring.used.0,
    );
    address.as_slice().to_vec()
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open as long as `event` lives, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
