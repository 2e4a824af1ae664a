//! The back-end channel.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use vhost::vhost_user::message::{BackendReq, FrontendReq};

use super::harness::{Event, HANG, Observer, TestRam, Transport, failure, next, started};
use super::peer::{Offer, Peer, Reaction, Script, send};
use crate::chain;
use crate::vhost_user::backend_channel::{BackendChannel, ChannelState};
use crate::vhost_user::message::{HEADER_SIZE, Header};
use crate::vhost_user::socket::Socket;
use crate::vhost_user::{Cause, Limits, VhostUserDevice, Violation};
use crate::virtio::VirtioDevice;

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

fn request(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        code,
        flags,
        size: payload.len() as u32,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn config_change(flags: u32) -> Vec<u8> {
    request(BackendReq::CONFIG_CHANGE_MSG.into(), flags, &[])
}

struct Pair {
    channel: BackendChannel,
    backend: UnixStream,
}

fn pair() -> Pair {
    let (ours, backend) = UnixStream::pair().unwrap();
    backend.set_read_timeout(Some(HANG)).unwrap();
    Pair {
        channel: BackendChannel::new(Socket::from(OwnedFd::from(ours))),
        backend,
    }
}

fn read_answer(mut backend: &UnixStream) -> u64 {
    let mut bytes = [0; HEADER_SIZE + 8];
    backend.read_exact(&mut bytes).unwrap();
    let header = Header::decode(bytes[..HEADER_SIZE].try_into().unwrap());
    assert_eq!(header.flags, VERSION | 4);
    assert_eq!(header.size, 8);
    u64::from_ne_bytes(bytes[HEADER_SIZE..].try_into().unwrap())
}

#[test]
fn a_change_of_configuration_is_taken_and_answered() {
    let mut pair = pair();
    pair.backend
        .write_all(&config_change(VERSION | NEED_REPLY))
        .unwrap();
    assert_eq!(pair.channel.serve().unwrap(), ChannelState::Open);
    assert!(pair.channel.take_config_changed());
    assert!(!pair.channel.take_config_changed());
    assert_eq!(read_answer(&pair.backend), 0);
}

#[test]
fn an_unknown_request_is_refused_if_an_answer_is_wanted() {
    let mut pair = pair();
    pair.backend
        .write_all(&request(6, VERSION, &[0; 16]))
        .unwrap();
    pair.backend
        .write_all(&request(99, VERSION | NEED_REPLY, &[0; 300]))
        .unwrap();
    assert_eq!(pair.channel.serve().unwrap(), ChannelState::Open);
    assert!(!pair.channel.take_config_changed());
    assert_ne!(read_answer(&pair.backend), 0);
}

#[test]
fn what_breaks_the_protocol_is_a_violation() {
    let cases = [
        (config_change(2), Violation::WrongFlags(2)),
        (config_change(VERSION | 4), Violation::WrongFlags(5)),
        (request(2, VERSION, &[0]), Violation::WrongSize(1)),
        (
            Header {
                code: 2,
                flags: VERSION,
                size: u32::MAX,
            }
            .encode()
            .to_vec(),
            Violation::WrongSize(u32::MAX),
        ),
    ];
    for (bytes, expected) in cases {
        let mut pair = pair();
        pair.backend.write_all(&bytes).unwrap();
        let cause = pair.channel.serve().unwrap_err();
        assert!(
            matches!(&cause, Cause::Violation { reason, .. } if *reason == expected),
            "{cause:?} is not {expected:?}"
        );
    }
    let mut with_fd = pair();
    send(&with_fd.backend, &config_change(VERSION), 1);
    assert!(matches!(
        with_fd.channel.serve().unwrap_err(),
        Cause::Violation {
            reason: Violation::WrongFds(1),
            ..
        }
    ));
}

#[test]
fn a_closed_channel_is_seen() {
    let mut pair = pair();
    drop(pair.backend);
    assert_eq!(pair.channel.serve().unwrap(), ChannelState::Closed);
}

#[test]
fn a_back_end_that_does_not_read_its_answers_is_stopped() {
    let mut pair = pair();
    pair.backend.set_nonblocking(true).unwrap();
    let question = request(99, VERSION | NEED_REPLY, &[]);
    for _ in 0..100_000 {
        // Full: it is to be emptied first.
        let _ = pair.backend.write(&question);
        match pair.channel.serve() {
            Ok(_) => {}
            Err(Cause::Violation {
                reason: Violation::AnswersUnread,
                ..
            }) => return,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the answers went somewhere");
}

/// A script that hands the back-end's end of the channel over.
fn catch_channel(sender: std::sync::mpsc::Sender<UnixStream>) -> Script {
    let sender = Mutex::new(sender);
    Box::new(move |seen| {
        if seen.is(FrontendReq::SET_BACKEND_REQ_FD) {
            let fd = seen.fds[0].try_clone().unwrap();
            sender.lock().unwrap().send(UnixStream::from(fd)).unwrap();
        }
        Reaction::Honest
    })
}

fn disk_with_channel(ram: &TestRam, script: impl FnOnce(Script) -> Script) -> Disk {
    let (sender, channels) = channel();
    let peer = Peer::start(Offer::default(), script(catch_channel(sender)));
    let (observer, reports) = Observer::new();
    VhostUserDevice::start(
        peer.disk(),
        Limits::default(),
        Arc::clone(&ram.regions),
        observer,
    )
    .unwrap();
    let device = started(&reports).unwrap();
    let channel = channels.recv_timeout(HANG).unwrap();
    channel.set_read_timeout(Some(HANG)).unwrap();
    // The peer's record holds copies of the channel too.
    drop(peer);
    Disk {
        device,
        channel,
        reports,
    }
}

struct Disk {
    device: Arc<VhostUserDevice>,
    channel: UnixStream,
    reports: std::sync::mpsc::Receiver<super::harness::Report>,
}

#[test]
fn a_violation_on_the_channel_fails_the_device() {
    let ram = TestRam::new();
    let mut disk = disk_with_channel(&ram, |script| script);
    disk.channel.write_all(&[0xff; 64]).unwrap();
    let error = failure(&disk.reports);
    assert!(
        chain(&error).contains("back-end channel"),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_back_end_that_awaits_an_answer_before_it_answers_is_not_a_deadlock() {
    let ram = TestRam::new();
    let asked = Arc::new(Mutex::new(None::<UnixStream>));
    let channel_of_peer = Arc::clone(&asked);
    let disk = disk_with_channel(&ram, |mut script| {
        Box::new(move |seen| {
            if seen.is(FrontendReq::SET_FEATURES)
                && let Some(mut channel) = channel_of_peer.lock().unwrap().take()
            {
                channel
                    .write_all(&config_change(VERSION | NEED_REPLY))
                    .unwrap();
                assert_eq!(read_answer(&channel), 0);
            }
            script(seen)
        })
    });
    *asked.lock().unwrap() = Some(disk.channel);
    let (transport, events) = Transport::new();
    disk.device.attach(transport);
    disk.device.activate(crate::virtio::Activation {
        features: disk.device.features(),
        queues: Vec::new(),
    });
    assert_eq!(next(&events), Event::Activated(Ok(())));
}

#[test]
fn a_channel_that_the_back_end_closes_is_no_failure() {
    let ram = TestRam::new();
    let disk = disk_with_channel(&ram, |script| script);
    drop(disk.channel);
    thread::yield_now();
    let (transport, events) = Transport::new();
    disk.device.attach(transport);
    disk.device.activate(crate::virtio::Activation {
        features: disk.device.features(),
        queues: Vec::new(),
    });
    assert_eq!(next(&events), Event::Activated(Ok(())));
    disk.device.reset();
    assert_eq!(next(&events), Event::ResetDone);
    assert!(disk.reports.try_recv().is_err());
}

/// Announces a change of the configuration space, as a back-end to which this channel was given.
pub fn announce(channel: OwnedFd) -> UnixStream {
    let backend = UnixStream::from(channel);
    (&backend).write_all(&config_change(VERSION)).unwrap();
    backend
}
