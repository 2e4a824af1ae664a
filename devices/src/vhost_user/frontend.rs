//! The front-end's messages, typed.
//!
//! One method for each message, named after it. Each sends its message over the [`Connection`] and checks what the
//! answer says; none waits longer than [`Frontend::set_patience`] says. Where REPLY_ACK is negotiated, every
//! message without an answer of its own asks for an acknowledgement.

mod log;
mod state;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserConfigFlags, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::ByteValued;
use vmm_sys_util::eventfd::EventFd;

pub use self::state::{Direction, StateFd};
use super::connection::{Connection, Request};
use super::error::{Cause, During, Violation};
use super::memory::{RamRegion, token};
use super::message::{Acknowledge, ReplyShape, RequestCode, payload};
use super::negotiated::RingLog;
use super::rings::Parts;
use super::socket::MAX_FDS;
use crate::virtio::ActiveQueue;

/// Bytes of a GET_CONFIG or SET_CONFIG payload before the configuration space itself.
const CONFIG_HEADER: usize = size_of::<VhostUserConfig>();

/// The largest part of a configuration space that one message can carry, in bytes; also the largest that
/// common back-ends know.
pub const MAX_CONFIG: u32 = 256;

/// How long messages may take.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// Each message may take as long.
    PerMessage(Duration),
    /// All messages together may take until then.
    Until(Instant),
}

impl Patience {
    fn for_next(self) -> Duration {
        match self {
            Patience::PerMessage(duration) => duration,
            Patience::Until(deadline) => deadline.saturating_duration_since(Instant::now()),
        }
    }
}

/// Ferry's side of a connection to a back-end.
#[derive(Debug)]
pub struct Frontend {
    connection: Connection,
    /// The protocol features in use; empty until they have been negotiated.
    protocol: VhostUserProtocolFeatures,
    patience: Patience,
}

impl Frontend {
    /// A front-end over `connection`. `protocol` is empty for a new connection.
    pub fn new(
        connection: Connection,
        protocol: VhostUserProtocolFeatures,
        patience: Patience,
    ) -> Self {
        Frontend {
            connection,
            protocol,
            patience,
        }
    }

    /// The connection itself, to be polled while nothing is being asked.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// How long the following messages may take.
    pub fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// The back-end's virtio feature bits.
    pub fn get_features(&mut self) -> Result<u64, Cause> {
        self.get_u64(FrontendReq::GET_FEATURES)
    }

    /// Accepts virtio feature bits, VHOST_USER_F_PROTOCOL_FEATURES among them.
    pub fn set_features(&mut self, features: u64) -> Result<(), Cause> {
        self.set(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[])
    }

    /// The back-end's protocol feature bits, unfiltered.
    pub fn get_protocol_features(&mut self) -> Result<u64, Cause> {
        self.get_u64(FrontendReq::GET_PROTOCOL_FEATURES)
    }

    /// Uses `features` from the next message on. (This one is never acknowledged: back-ends
    /// differ on whether REPLY_ACK applies to it already.)
    pub fn set_protocol_features(
        &mut self,
        features: VhostUserProtocolFeatures,
    ) -> Result<(), Cause> {
        self.set(
            FrontendReq::SET_PROTOCOL_FEATURES,
            &features.bits().to_ne_bytes(),
            &[],
        )?;
        self.protocol = features;
        Ok(())
    }

    /// Claims the back-end.
    pub fn set_owner(&mut self) -> Result<(), Cause> {
        self.set(FrontendReq::SET_OWNER, &[], &[])
    }

    /// How many queues the back-end has (needs MQ).
    pub fn get_queue_num(&mut self) -> Result<u64, Cause> {
        self.get_u64(FrontendReq::GET_QUEUE_NUM)
    }

    /// Tells the back-end the whole of guest RAM, at most 8 regions.
    pub fn set_mem_table(&mut self, ram: &[RamRegion]) -> Result<(), Cause> {
        let mut bytes = VhostUserMemory::new(ram.len() as u32).as_slice().to_vec();
        for region in ram {
            let region = VhostUserMemoryRegion::new(
                region.guest.0,
                region.size,
                token(region.guest),
                region.offset,
            );
            bytes.extend_from_slice(region.as_slice());
        }
        let fds: Vec<BorrowedFd<'_>> = ram.iter().map(|region| region.file.as_fd()).collect();
        if fds.is_empty() || fds.len() > MAX_FDS {
            return Err(Cause::BadSetup {
                reason: format!(
                    "a memory table holds 1 to {MAX_FDS} regions, not {}",
                    fds.len()
                ),
            });
        }
        self.set(FrontendReq::SET_MEM_TABLE, &bytes, &fds)
    }

    /// The number of descriptors in a ring.
    pub fn set_vring_num(&mut self, index: u16, size: u16) -> Result<(), Cause> {
        self.set_ring_state(FrontendReq::SET_VRING_NUM, index, size)
    }

    /// The index of the next buffer the back-end is to take from the available ring.
    pub fn set_vring_base(&mut self, index: u16, base: u16) -> Result<(), Cause> {
        self.set_ring_state(FrontendReq::SET_VRING_BASE, index, base)
    }

    /// Where the parts of a ring lie, as address tokens; they are aligned and in guest RAM. Never for a ring that runs: a
    /// completion could be lost. So the flag that has the used ring logged is given from the beginning; it counts
    /// while LOG_ALL is accepted.
    pub fn set_vring_addr(&mut self, ring: &Parts, log: RingLog) -> Result<(), Cause> {
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
        self.set(FrontendReq::SET_VRING_ADDR, address.as_slice(), &[])
    }

    /// Gives the back-end the eventfd by which the guest says that there are buffers. Back-ends start the ring.
    pub fn set_vring_kick(&mut self, queue: &ActiveQueue) -> Result<(), Cause> {
        self.set_vring_event(FrontendReq::SET_VRING_KICK, queue.index, &queue.kick)
    }

    /// Gives the back-end the eventfd by which it is to say that buffers have been used.
    pub fn set_vring_call(&mut self, queue: &ActiveQueue) -> Result<(), Cause> {
        self.set_vring_event(FrontendReq::SET_VRING_CALL, queue.index, &queue.call)
    }

    fn set_vring_event(
        &mut self,
        code: FrontendReq,
        index: u16,
        event: &EventFd,
    ) -> Result<(), Cause> {
        self.set(code, &u64::from(index).to_ne_bytes(), &[borrow(event)])
    }

    /// Lets the back-end process a ring's buffers.
    pub fn enable_vring(&mut self, index: u16) -> Result<(), Cause> {
        self.set_ring_state(FrontendReq::SET_VRING_ENABLE, index, 1)
    }

    /// Stops a ring; returns the index of the next buffer that the back-end would have taken.
    pub fn get_vring_base(&mut self, index: u16) -> Result<u16, Cause> {
        let code = RequestCode::from(FrontendReq::GET_VRING_BASE);
        let state = VhostUserVringState::new(u32::from(index), 0);
        let bytes = self.get(code, state.as_slice(), ReplyShape::exactly(8))?;
        let answer: VhostUserVringState = parse(code, &bytes)?;
        let (of, base) = (answer.index, answer.num);
        match u16::try_from(base) {
            Ok(base) if of == u32::from(index) => Ok(base),
            _ => Err(contents(
                code,
                format!("it answered index {base} of queue {of} when asked for queue {index}"),
            )),
        }
    }

    /// The first `size` bytes of the configuration space (needs CONFIG); [`Cause::Refused`] if the back-end
    /// does not have as many.
    pub fn get_config(&mut self, size: u32) -> Result<Vec<u8>, Cause> {
        let code = RequestCode::from(FrontendReq::GET_CONFIG);
        let head = VhostUserConfig::new(0, size, VhostUserConfigFlags::empty());
        let mut bytes = head.as_slice().to_vec();
        bytes.resize(CONFIG_HEADER + size as usize, 0);
        let shape = ReplyShape::empty_or(CONFIG_HEADER as u32, CONFIG_HEADER as u32 + size);
        let mut answer = self.get(code, &bytes, shape)?;
        if answer.len() <= CONFIG_HEADER {
            return Err(Cause::Refused { request: code });
        }
        let config = answer.split_off(CONFIG_HEADER);
        let head: VhostUserConfig = parse(code, &answer)?;
        let (offset, said) = (head.offset, head.size);
        if said == 0 {
            return Err(Cause::Refused { request: code });
        }
        if offset != 0 || said != size {
            return Err(contents(
                code,
                format!("it answered {said} bytes at {offset} when asked for {size} bytes at 0"),
            ));
        }
        Ok(config)
    }

    /// Writes into the configuration space (needs CONFIG).
    pub fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), Cause> {
        let head = VhostUserConfig::new(offset, data.len() as u32, VhostUserConfigFlags::WRITABLE);
        let mut bytes = head.as_slice().to_vec();
        bytes.extend_from_slice(data);
        self.set(FrontendReq::SET_CONFIG, &bytes, &[])
    }

    /// Gives the back-end its end of the back-end channel (needs BACKEND_REQ).
    pub fn set_backend_req_fd(&mut self, theirs: BorrowedFd<'_>) -> Result<(), Cause> {
        self.set(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs])
    }

    /// Puts the device into its initial state (needs RESET_DEVICE). The rings must have been stopped before.
    pub fn reset_device(&mut self) -> Result<(), Cause> {
        self.set(FrontendReq::RESET_DEVICE, &[], &[])
    }

    /// Returns when the back-end has processed everything sent before.
    pub fn fence(&mut self) -> Result<(), Cause> {
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            return Ok(());
        }
        self.get_features().map(drop)
    }

    fn set_ring_state(&mut self, code: FrontendReq, index: u16, number: u16) -> Result<(), Cause> {
        let state = VhostUserVringState::new(u32::from(index), u32::from(number));
        self.set(code, state.as_slice(), &[])
    }

    fn get_u64(&mut self, code: FrontendReq) -> Result<u64, Cause> {
        let code = code.into();
        let bytes = self.get(code, &[], ReplyShape::exactly(8))?;
        parse(code, &bytes)
    }

    /// A request with an answer of its own.
    fn get(
        &mut self,
        code: RequestCode,
        bytes: &[u8],
        shape: ReplyShape,
    ) -> Result<Vec<u8>, Cause> {
        let request = Request {
            code,
            payload: bytes,
            fds: &[],
        };
        let patience = self.patience.for_next();
        let reply = self
            .connection
            .ask(request, Acknowledge::Natural, shape, patience)?;
        Ok(reply.payload)
    }

    /// A request without an answer of its own.
    fn set(
        &mut self,
        code: FrontendReq,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Cause> {
        let code = code.into();
        let request = Request {
            code,
            payload: bytes,
            fds,
        };
        let patience = self.patience.for_next();
        if !self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            return self.connection.tell(request, patience);
        }
        let shape = ReplyShape::exactly(8);
        let reply = self
            .connection
            .ask(request, Acknowledge::Requested, shape, patience)?;
        match parse::<u64>(code, &reply.payload)? {
            0 => Ok(()),
            _ => Err(Cause::Refused { request: code }),
        }
    }
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor stays open as long as `event` lives, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

fn parse<T: ByteValued + Default>(code: RequestCode, bytes: &[u8]) -> Result<T, Cause> {
    payload(bytes).ok_or(Cause::Violation {
        during: During::Request(code),
        reason: Violation::WrongSize(bytes.len() as u32),
    })
}

fn contents(code: RequestCode, what: String) -> Cause {
    Cause::Violation {
        during: During::Request(code),
        reason: Violation::Contents(what),
    }
}
