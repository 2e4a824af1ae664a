//! The front-end's messages, typed.
//!
//! One method for each message, named after it (what is said of rings is said together: [`Frontend::tell_of_rings`]). Each sends its message over the [`Connection`] and checks what the
//! answer says; none waits longer than [`Frontend::set_patience`] says. Where REPLY_ACK is negotiated, every
//! message without an answer of its own asks for an acknowledgement.

mod log;
mod rings;
mod state;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserConfigFlags, VhostUserMemory, VhostUserMemoryRegion,
};
use vm_memory::ByteValued;

pub use self::rings::RingMessage;
pub use self::state::{Direction, StateFd};
use super::connection::{Connection, Question, Reply, Request};
use super::error::{Cause, During, Violation};
use super::memory::{RamRegion, token};
use super::message::{Acknowledge, ReplyShape, RequestCode, payload};
use super::socket::MAX_FDS;

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
        let question = Question {
            request: Request {
                code,
                payload: bytes,
                fds: &[],
            },
            acknowledge: Acknowledge::Natural,
            shape,
        };
        let reply = self.connection.ask(question, self.patience.for_next())?;
        Ok(reply.payload)
    }

    /// A request without an answer of its own.
    fn set(
        &mut self,
        code: FrontendReq,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Cause> {
        self.set_all(&[Request {
            code: code.into(),
            payload: bytes,
            fds,
        }])
    }

    /// Requests without answers of their own, all of which are sent before the first acknowledgement is awaited. An error is the
    /// first one's that is not acknowledged; the back-end has read the other ones all the same, unless it closed the connection.
    fn set_all(&mut self, requests: &[Request<'_>]) -> Result<(), Cause> {
        let patience = self.patience;
        if !self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            let mut requests = requests.iter();
            return requests
                .try_for_each(|request| self.connection.tell(*request, patience.for_next()));
        }
        let questions: Vec<_> = requests
            .iter()
            .map(|request| Question {
                request: *request,
                acknowledge: Acknowledge::Requested,
                shape: ReplyShape::exactly(8),
            })
            .collect();
        let acknowledged = |request, reply: Reply| match parse::<u64>(request, &reply.payload)? {
            0 => Ok(()),
            _ => Err(Cause::Refused { request }),
        };
        self.connection
            .ask_all(&questions, || patience.for_next(), acknowledged)
    }
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
