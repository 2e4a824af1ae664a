//! A back-end that follows a script: it answers like an honest one, except where the script says otherwise.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::sys::poll::{self, Interest};
use crate::vhost_user::incoming::{Incoming, Progress};
use crate::vhost_user::message::{Header, RequestCode};
use crate::vhost_user::socket::Socket;
use crate::vhost_user::{Access, BackendSpec, Blk, Profile};

/// VERSION_1 and PROTOCOL_FEATURES, without which nothing works.
pub const LEAST_FEATURES: u64 = 1 << 32 | 1 << 30;

/// A request as the peer saw it.
#[derive(Debug)]
pub struct Seen {
    /// How many came before it.
    pub number: usize,
    pub code: RequestCode,
    pub needs_reply: bool,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Seen {
    pub fn is(&self, request: FrontendReq) -> bool {
        self.code == request.into()
    }
}

/// What the peer does about a request.
#[derive(Debug)]
pub enum Reaction {
    /// Answers as an honest back-end does.
    Honest,
    /// Does that later.
    Late(Duration),
    /// Nothing.
    Silence,
    /// Closes the connection.
    Close,
    /// Sends these bytes and as many file descriptors.
    Send(Vec<u8>, usize),
    /// Sends these bytes and these file descriptors.
    SendFds(Vec<u8>, Vec<OwnedFd>),
    /// Sends these bytes later.
    SendLate(Duration, Vec<u8>, Vec<OwnedFd>),
    /// Answers honestly, and sends these bytes after it.
    Extra(Vec<u8>),
}

pub type Script = Box<dyn FnMut(&Seen) -> Reaction + Send>;

/// What an honest answer says.
#[derive(Clone)]
pub struct Offer {
    pub features: u64,
    pub protocol: Protocol,
    pub queues: u64,
    pub config: Vec<u8>,
}

impl Default for Offer {
    fn default() -> Self {
        let mut config = vec![0; 60];
        config[0..8].copy_from_slice(&2048u64.to_le_bytes());
        config[20..24].copy_from_slice(&512u32.to_le_bytes());
        Offer {
            features: LEAST_FEATURES | 1 << 28 | 1 << 29,
            protocol: Protocol::MQ
                | Protocol::REPLY_ACK
                | Protocol::CONFIG
                | Protocol::BACKEND_REQ
                | Protocol::RESET_DEVICE,
            queues: 4,
            config,
        }
    }
}

/// A peer that listens and serves one client.
pub struct Peer {
    directory: TempDir,
    pub seen: Receiver<Seen>,
}

impl Peer {
    pub fn start(offer: Offer, script: Script) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("peer.sock")).unwrap();
        let (sender, seen) = channel();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            serve(&stream, &offer, script, &sender);
        });
        Peer { directory, seen }
    }

    pub fn honest() -> Self {
        Peer::start(Offer::default(), Box::new(|_| Reaction::Honest))
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("peer.sock")
    }

    /// A disk served by this peer.
    pub fn disk(&self) -> BackendSpec {
        BackendSpec {
            id: "disk0".into(),
            socket: self.socket(),
            num_queues: 1,
            queue_size: 16,
            profile: Profile::Blk(Blk {
                access: Access::ReadWrite,
            }),
        }
    }
}

/// A script that does `reaction` on the first `request`.
pub fn once(request: FrontendReq, reaction: Reaction) -> Script {
    let mut reaction = Some(reaction);
    Box::new(move |seen| match seen.is(request) {
        true => reaction.take().unwrap_or(Reaction::Honest),
        false => Reaction::Honest,
    })
}

/// A script that does `reaction` on the `n`th `request`, beginning with 1.
pub fn nth(request: FrontendReq, n: usize, reaction: Reaction) -> Script {
    let mut script = once(request, reaction);
    let mut seen_before = 0;
    Box::new(move |seen| {
        seen_before += usize::from(seen.is(request));
        match seen_before < n {
            true => Reaction::Honest,
            false => script(seen),
        }
    })
}

/// The answer to GET_VRING_BASE.
pub fn base_answer(queue: u32, base: u32) -> Vec<u8> {
    let payload = [queue, base].map(u32::to_ne_bytes).concat();
    answer(FrontendReq::GET_VRING_BASE.into(), &payload)
}

/// The bytes of an answer.
pub fn answer(code: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Header::reply(code, payload.len() as u32).encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads whole messages from a socket, waiting for them; `None` when it is closed.
pub fn read_message(socket: &Socket, incoming: &mut Incoming) -> Option<Seen> {
    loop {
        match incoming.advance(socket, |_| Ok(())).ok()? {
            Progress::Closed => return None,
            Progress::Waiting => {
                let mut entries = [poll::entry(Some(socket), Interest::Read)];
                poll::wait(&mut entries, None).unwrap();
            }
            Progress::Complete(message) => {
                return Some(Seen {
                    number: 0,
                    code: RequestCode(message.header.code),
                    needs_reply: message.header.needs_reply(),
                    payload: message.payload,
                    fds: message.fds,
                });
            }
        }
    }
}

pub fn send(stream: &UnixStream, bytes: &[u8], fd_count: usize) {
    let fds: Vec<RawFd> = vec![stream.as_raw_fd(); fd_count];
    // The other side may be gone already.
    let _ = stream.send_with_fds(&[bytes], &fds);
}

fn give(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let _ = stream.send_with_fds(&[bytes], &fds);
}

fn serve(stream: &UnixStream, offer: &Offer, mut script: Script, sender: &Sender<Seen>) {
    let socket = Socket::from(OwnedFd::from(stream.try_clone().unwrap()));
    let mut incoming = Incoming::default();
    let mut number = 0;
    while let Some(mut seen) = read_message(&socket, &mut incoming) {
        seen.number = number;
        number += 1;
        let reaction = script(&seen);
        let honest = honest_answer(offer, &seen);
        if seen.is(FrontendReq::SET_DEVICE_STATE_FD) {
            // As long as they are open, a pipe has no end.
            seen.fds.clear();
        }
        let _ = sender.send(seen);
        let say = |bytes: Option<Vec<u8>>| {
            if let Some(bytes) = bytes {
                send(stream, &bytes, 0);
            }
        };
        match reaction {
            Reaction::Honest => say(honest),
            Reaction::Late(delay) => {
                thread::sleep(delay);
                say(honest);
            }
            Reaction::Silence => {}
            Reaction::Close => return,
            Reaction::Send(bytes, fds) => send(stream, &bytes, fds),
            Reaction::SendFds(bytes, fds) => give(stream, &bytes, &fds),
            Reaction::SendLate(delay, bytes, fds) => {
                thread::sleep(delay);
                give(stream, &bytes, &fds);
            }
            Reaction::Extra(bytes) => {
                let mut both = honest.unwrap_or_default();
                both.extend_from_slice(&bytes);
                say(Some(both));
            }
        }
    }
}

fn honest_answer(offer: &Offer, seen: &Seen) -> Option<Vec<u8>> {
    let code = seen.code.0;
    let number = |value: u64| Some(answer(code, &value.to_ne_bytes()));
    match FrontendReq::try_from(code).unwrap() {
        FrontendReq::GET_FEATURES => number(offer.features),
        FrontendReq::GET_PROTOCOL_FEATURES => number(offer.protocol.bits()),
        FrontendReq::GET_QUEUE_NUM => number(offer.queues),
        FrontendReq::GET_VRING_BASE => Some(answer(code, &seen.payload)),
        FrontendReq::GET_CONFIG => Some(answer(code, &config_answer(offer, &seen.payload))),
        FrontendReq::SET_DEVICE_STATE_FD => number(0x100),
        FrontendReq::CHECK_DEVICE_STATE => number(0),
        _ if seen.needs_reply => number(0),
        _ => None,
    }
}

/// As an honest back-end: all that was asked for, or nothing.
fn config_answer(offer: &Offer, asked: &[u8]) -> Vec<u8> {
    let size = u32::from_ne_bytes(asked[4..8].try_into().unwrap()) as usize;
    if size > offer.config.len() {
        return Vec::new();
    }
    let mut bytes = asked[..12].to_vec();
    bytes.extend_from_slice(&offer.config[..size]);
    bytes
}

/// How often each request has been seen so far.
pub fn count(seen: &Receiver<Seen>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for seen in seen.try_iter() {
        *counts.entry(seen.code.to_string()).or_default() += 1;
    }
    counts
}
