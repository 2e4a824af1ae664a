//! One front-end's connection: what each message does, how it is answered, and how the answer is spoilt.

mod transfer;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use vhost::vhost_user::message::FrontendReq as Req;

use super::control::Remote;
use super::memory::{Logging, Memory, RegionInfo};
use super::ring::{Events, Finished, Ring};
use super::script::{Misbehaviour, Script};
use super::state::Transfer;
use super::wire::{self, Message, flags};
use super::{Options, Received, Shared, blk, feature, protocol};

/// In the payload of SET_VRING_KICK, CALL and ERR: no file descriptor comes with it.
const NO_FD: u64 = 1 << 8;

/// What is to become of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Open,
    /// It is to be closed, or is closed.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub struct Session {
    pub socket: UnixStream,
    pub channel: Option<UnixStream>,
    pub rings: Vec<Ring>,
    options: Arc<Options>,
    shared: Arc<Shared>,
    memory: Memory,
    protocol: u64,
    features: u64,
    /// State that is on its way, until CHECK_DEVICE_STATE.
    transfer: Option<Transfer>,
    remote: Remote,
    /// Answers nothing any more.
    silent: bool,
}

impl Session {
    pub fn new(
        socket: UnixStream,
        options: Arc<Options>,
        shared: Arc<Shared>,
        remote: Remote,
    ) -> Self {
        let mut rings = Vec::new();
        rings.resize_with(usize::from(options.rings), Ring::default);
        Session {
            socket,
            channel: None,
            rings,
            options,
            shared,
            memory: Memory::default(),
            protocol: 0,
            features: 0,
            transfer: None,
            remote,
            silent: false,
        }
    }

    /// Takes one message from the socket and deals with it.
    pub fn serve(&mut self, script: &mut Script) -> io::Result<Verdict> {
        let Some(mut message) = wire::receive(&mut self.socket)? else {
            return Ok(Verdict::Closed);
        };
        self.shared.record(Received {
            code: message.code,
            flags: message.flags,
            payload: message.payload.clone(),
            fds: message.fds.len(),
        });
        let wrong = script.next(message.code);
        match wrong {
            Some(Misbehaviour::Close) => return Ok(Verdict::Closed),
            Some(Misbehaviour::Late(delay)) => thread::sleep(delay),
            Some(Misbehaviour::NeverAnswer) => self.silent = true,
            _ => {}
        }
        // Whether this very message may be acknowledged depends on what was agreed on before it.
        let may_acknowledge = self.has(protocol::REPLY_ACK);
        if message.flags & flags::NEED_REPLY != 0 && !may_acknowledge {
            self.complain(
                &message,
                "wants an acknowledgement, but REPLY_ACK is not negotiated",
            );
        }
        let answer = match self.act(&mut message) {
            Answer::Payload(payload) => Some((payload, Vec::new())),
            Answer::WithFds(payload, fds) => Some((payload, fds)),
            Answer::Outcome(number)
                if message.flags & flags::NEED_REPLY != 0 && may_acknowledge =>
            {
                Some((number.to_ne_bytes().to_vec(), Vec::new()))
            }
            Answer::Outcome(_) => None,
        };
        if let Some((payload, fds)) = answer
            && !self.silent
        {
            let mut reply = Message::new(message.code, flags::VERSION | flags::REPLY, payload);
            reply.fds = fds;
            self.answer(reply, wrong)?;
        }
        Ok(Verdict::Open)
    }

    fn answer(&mut self, mut reply: Message, wrong: Option<Misbehaviour>) -> io::Result<()> {
        let code = reply.code;
        let mut times = 1;
        match wrong {
            Some(Misbehaviour::HalfHeader) => {
                self.silent = true;
                return wire::send(&self.socket, &reply.bytes()[..wire::HEADER / 2], &[]);
            }
            Some(Misbehaviour::WrongRequest) => reply.code += 1,
            Some(Misbehaviour::Longer(more)) => {
                reply
                    .payload
                    .resize(reply.payload.len() + more as usize, 0xaa);
                reply.size += more;
            }
            Some(Misbehaviour::Shorter(less)) => {
                let rest = reply.payload.len().saturating_sub(less as usize);
                reply.payload.truncate(rest);
                reply.size = rest as u32;
            }
            Some(Misbehaviour::ClaimsSize(size)) => reply.size = size,
            Some(Misbehaviour::Flags(flags)) => reply.flags = flags,
            Some(Misbehaviour::Fds(count)) => {
                for _ in 0..count {
                    reply.fds.push(File::open("/dev/null")?.into());
                }
            }
            Some(Misbehaviour::Refuse) => {
                let is_config = code == u32::from(Req::GET_CONFIG);
                reply = Message::new(
                    code,
                    reply.flags,
                    if is_config {
                        vec![]
                    } else {
                        1u64.to_ne_bytes().into()
                    },
                );
            }
            Some(Misbehaviour::Number(number)) => {
                reply = Message::new(code, reply.flags, number.to_ne_bytes().into());
            }
            Some(Misbehaviour::AnswerTwice) => times = 2,
            _ => {}
        }
        for _ in 0..times {
            wire::send(&self.socket, &reply.bytes(), &reply.fds)?;
        }
        Ok(())
    }

    fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    fn complain(&self, message: &Message, what: &str) {
        let name = super::request_name(message.code);
        self.shared.complain(format!("{name}: {what}"));
    }

    /// Does what a well-behaved back-end does.
    fn act(&mut self, message: &mut Message) -> Answer {
        let Ok(request) = Req::try_from(message.code) else {
            self.complain(message, "no such request");
            return Answer::Outcome(1);
        };
        match request {
            Req::GET_FEATURES => Answer::number(self.options.features),
            Req::SET_FEATURES => self.set_features(message),
            Req::GET_PROTOCOL_FEATURES => Answer::number(self.options.protocol),
            Req::SET_PROTOCOL_FEATURES => self.set_protocol_features(message),
            Req::SET_OWNER => Answer::OK,
            Req::GET_QUEUE_NUM => Answer::number(self.options.queue_num),
            Req::SET_MEM_TABLE => self.set_mem_table(message),
            Req::SET_LOG_BASE => self.set_log_base(message),
            Req::SET_BACKEND_REQ_FD => {
                self.channel = message.fds.pop().map(UnixStream::from);
                Answer::OK
            }
            Req::GET_CONFIG => self.get_config(message),
            Req::SET_CONFIG => Answer::OK,
            Req::RESET_DEVICE => self.reset_device(),
            Req::SET_DEVICE_STATE_FD => self.begin_transfer(message),
            Req::CHECK_DEVICE_STATE => self.check_transfer(message),
            Req::SET_VRING_NUM
            | Req::SET_VRING_BASE
            | Req::GET_VRING_BASE
            | Req::SET_VRING_ADDR
            | Req::SET_VRING_KICK
            | Req::SET_VRING_CALL
            | Req::SET_VRING_ERR
            | Req::SET_VRING_ENABLE => self.ring_message(request, message),
            _ => {
                self.complain(message, "not negotiated");
                Answer::Outcome(1)
            }
        }
    }

    fn set_features(&mut self, message: &Message) -> Answer {
        let features = message.number();
        if features & !self.options.features != 0 {
            self.complain(message, "accepts what was not offered");
        }
        let changed = (self.features ^ features) & !feature::LOG_ALL;
        if changed != 0 && self.rings.iter().any(|ring| ring.kick.is_some()) {
            self.complain(message, "changes more than LOG_ALL while a ring runs");
        }
        self.features = features;
        self.memory.logging = match features & feature::LOG_ALL {
            0 => Logging::Off,
            _ => Logging::On,
        };
        self.shared.accepted(features);
        Answer::OK
    }

    /// Answers as the `vhost` crate does.
    fn set_log_base(&mut self, message: &mut Message) -> Answer {
        if !self.has(protocol::LOG_SHMFD) {
            self.complain(message, "LOG_SHMFD is not negotiated");
        }
        if message.flags & flags::NEED_REPLY != 0 {
            self.complain(message, "has an answer of its own");
        }
        let (size, offset) = (message.u64_at(0), message.u64_at(8));
        let Some(file) = message.fds.pop().filter(|_| offset == 0) else {
            self.complain(message, "there is no log at its beginning");
            return Answer::number(1);
        };
        match self.memory.set_log(size, &file) {
            Ok(()) => Answer::Payload(message.payload.clone()),
            Err(error) => {
                self.complain(message, &error.to_string());
                Answer::number(1)
            }
        }
    }

    fn set_protocol_features(&mut self, message: &Message) -> Answer {
        let features = message.number();
        if features & !self.options.protocol != 0 {
            self.complain(message, "accepts what was not offered");
        }
        self.protocol = features;
        Answer::OK
    }

    fn set_mem_table(&mut self, message: &mut Message) -> Answer {
        self.memory.clear();
        let count = message.u32_at(0) as usize;
        if message.payload.len() != 8 + 32 * count || message.fds.len() != count {
            self.complain(message, "sizes and file descriptors do not match");
            return Answer::Outcome(1);
        }
        let fds = std::mem::take(&mut message.fds);
        for (i, fd) in fds.iter().enumerate() {
            if let Err(error) = self.memory.add(region(message, 8 + 32 * i), fd) {
                self.complain(message, &format!("region {i} cannot be mapped: {error}"));
                return Answer::Outcome(1);
            }
        }
        Answer::OK
    }

    fn get_config(&mut self, message: &Message) -> Answer {
        if !self.has(protocol::CONFIG) {
            self.complain(message, "CONFIG is not negotiated");
        }
        let (offset, size) = (message.u32_at(0) as usize, message.u32_at(4) as usize);
        let config = self.shared.config(&self.options);
        let Some(part) = config.get(offset..offset + size) else {
            return Answer::Payload(vec![]);
        };
        let mut payload = message.payload[..12].to_vec();
        payload.extend_from_slice(part);
        Answer::Payload(payload)
    }

    fn reset_device(&mut self) -> Answer {
        for ring in &mut self.rings {
            *ring = Ring::default();
        }
        self.features = 0;
        self.memory.logging = Logging::Off;
        Answer::OK
    }

    fn ring_message(&mut self, request: Req, message: &mut Message) -> Answer {
        let is_event = matches!(
            request,
            Req::SET_VRING_KICK | Req::SET_VRING_CALL | Req::SET_VRING_ERR
        );
        let index = match is_event {
            true => (message.number() & 0xff) as usize,
            false => message.u32_at(0) as usize,
        };
        let value = message.u32_at(4);
        let event = message.fds.pop();
        if is_event && event.is_some() == (message.number() & NO_FD != 0) {
            self.complain(
                message,
                "whether a file descriptor comes is not what the payload says",
            );
        }
        if let Some(complaint) = self.check_ring(request, index) {
            self.complain(message, &complaint);
        }
        let Some(ring) = self.rings.get_mut(index) else {
            return Answer::Outcome(1);
        };
        match request {
            Req::SET_VRING_NUM => ring.size = value as u16,
            Req::SET_VRING_BASE => ring.next_available = value as u16,
            Req::SET_VRING_ADDR => {
                if self.protocol & protocol::LOG_SHMFD != 0 && value & 1 == 0 {
                    let complaint = format!("SET_VRING_ADDR: ring {index} is not to be logged");
                    self.shared.complain(complaint);
                }
                ring.user_addresses =
                    Some([message.u64_at(8), message.u64_at(16), message.u64_at(24)]);
            }
            Req::SET_VRING_KICK => ring.kick = Ring::event(event),
            Req::SET_VRING_CALL => ring.call = Ring::event(event),
            Req::SET_VRING_ENABLE => ring.enabled = value != 0,
            Req::GET_VRING_BASE => {
                ring.kick = None;
                let mut payload = message.payload[..4].to_vec();
                payload.extend_from_slice(&u32::from(ring.next_available).to_ne_bytes());
                return Answer::Payload(payload);
            }
            _ => {}
        }
        Answer::OK
    }

    /// What a strict back-end would find wrong with the order of messages.
    fn check_ring(&self, request: Req, index: usize) -> Option<String> {
        let Some(ring) = self.rings.get(index) else {
            return Some(format!("ring {index} of {}", self.rings.len()));
        };
        let complaint = match request {
            Req::SET_VRING_NUM | Req::SET_VRING_BASE | Req::SET_VRING_ADDR
                if ring.kick.is_some() =>
            {
                "the ring runs"
            }
            Req::SET_VRING_ADDR if ring.size == 0 => "the ring has no size yet",
            Req::SET_VRING_KICK if ring.user_addresses.is_none() => "the ring has no addresses yet",
            Req::SET_VRING_KICK if ring.call.is_none() => {
                "the ring starts without a call, interrupts can be lost"
            }
            Req::SET_VRING_KICK if self.features == 0 => {
                "the ring starts before the features are accepted"
            }
            Req::SET_VRING_KICK if self.shared.store.is_incomplete() => {
                "the ring starts without the state that is due"
            }
            Req::SET_VRING_KICK => return self.check_base(index),
            Req::SET_VRING_ENABLE if self.features & feature::PROTOCOL_FEATURES == 0 => {
                "needs PROTOCOL_FEATURES"
            }
            Req::GET_VRING_BASE if ring.kick.is_none() => "the ring does not run",
            _ => return None,
        };
        Some(format!("ring {index}: {complaint}"))
    }

    /// Everything before a stop has been completed here, so a ring starts with nothing in flight.
    fn check_base(&self, index: usize) -> Option<String> {
        let ring = self.rings.get(index)?;
        let used = ring.used_index(&self.memory)?;
        let base = ring.next_available;
        (base != used).then(|| {
            format!("ring {index}: the base is {base}, but the used ring's index is {used}")
        })
    }

    /// Serves all requests of a ring; at most a handful when they are being held back.
    pub fn serve_ring(&mut self, index: usize) {
        let events = match self.features & feature::EVENT_IDX {
            0 => Events::ByFlag,
            _ => Events::ByIndex,
        };
        let ring = &mut self.rings[index];
        if !ring.runs() {
            return;
        }
        let mut disk = self.shared.disk();
        loop {
            let mut finished = Vec::new();
            while let Some(chain) = ring.take(&self.memory, events) {
                let written = blk::serve(&self.memory, &mut disk, &chain);
                let head = chain.head;
                finished.push(Finished { head, written });
            }
            if finished.is_empty() {
                return;
            }
            self.shared.count_requests(finished.len());
            // A device may complete in any order, so this one does.
            finished.reverse();
            ring.give_back(&self.memory, events, &finished);
        }
    }
}

/// What a request leads to, before anything is spoilt.
enum Answer {
    /// The request's own answer.
    Payload(Vec<u8>),
    /// The request's own answer, and what comes with it.
    WithFds(Vec<u8>, Vec<OwnedFd>),
    /// The request has no answer of its own; this goes into an acknowledgement.
    Outcome(u64),
}

impl Answer {
    const OK: Answer = Answer::Outcome(0);

    fn number(number: u64) -> Self {
        Answer::Payload(number.to_ne_bytes().to_vec())
    }
}

fn region(message: &Message, at: usize) -> RegionInfo {
    RegionInfo {
        guest: message.u64_at(at),
        size: message.u64_at(at + 8),
        user: message.u64_at(at + 16),
        offset: message.u64_at(at + 24),
    }
}
