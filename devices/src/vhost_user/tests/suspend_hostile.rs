//! A back-end that misbehaves at each message of a suspension and of what follows it.

use std::thread;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{Event, HANG, HIGH, LOW, TestRam, failure, next};
use super::peer::{Reaction, Script, answer, base_answer, nth};
use super::ring::Ring;
use super::suspend::{Disk, RESTART, outcome, resume, suspend};
use crate::chain;
use crate::vhost_user::{DeviceState, Error, Limits};
use crate::virtio::{Activation, ActivationFailed, VirtioDevice};

const QUICK: Limits = Limits {
    connect: HANG,
    request: Duration::from_secs(1),
    dead: Duration::from_millis(1500),
};

/// Each message of a suspension and of the resumption after it: how often it has been sent before.
const MESSAGES: [(FrontendReq, usize); 8] = [
    (FrontendReq::GET_FEATURES, 1),
    (FrontendReq::GET_VRING_BASE, 0),
    (FrontendReq::SET_VRING_NUM, 2),
    (FrontendReq::SET_VRING_BASE, 2),
    (FrontendReq::SET_VRING_ADDR, 2),
    (FrontendReq::SET_VRING_CALL, 2),
    (FrontendReq::SET_VRING_KICK, 2),
    (FrontendReq::SET_VRING_ENABLE, 2),
];

/// The device with two rings is suspended and resumed while its back-end follows `script`: one of the two fails, the
/// device has failed, and everybody is told once. Afterwards it answers, and is done with at once.
fn fails(script: Script, limits: Limits) -> Error {
    let ram = TestRam::new();
    let disk = Disk::scripted(script, limits, &ram);
    let rings = [Ring::new(&ram, 0, LOW), Ring::new(&ram, 1, HIGH)];
    disk.activate(&[&rings[0], &rings[1]]);
    let suspended = outcome(&suspend(&disk.device));
    let told = match suspended {
        Err(error) => error,
        Ok(()) => outcome(&resume(&disk.device)).unwrap_err(),
    };
    assert_eq!(chain(&failure(&disk.reports)), chain(&told));
    assert_eq!(next(&disk.events), Event::Failed);
    assert_eq!(disk.device.state(), DeviceState::Failed);
    assert_eq!(disk.device.rings(), []);

    outcome(&suspend(&disk.device)).unwrap();
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Failed);
    disk.device.activate(Activation {
        features: disk.device.features(),
        queues: vec![rings[0].queue.clone()],
    });
    assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
    disk.device.reset();
    assert_eq!(next(&disk.events), Event::ResetDone);
    assert!(disk.reports.try_recv().is_err());
    told
}

fn at_each_message(limits: Limits, words: &[&str], reaction: fn(FrontendReq) -> Reaction) {
    thread::scope(|scope| {
        for (request, before) in MESSAGES {
            let script = nth(request, before + 1, reaction(request));
            scope.spawn(move || {
                let line = chain(&fails(script, limits));
                assert!(line.contains("disk0"), "{request:?}: {line}");
                let says = |word: &&str| line.contains(word);
                assert!(words.iter().any(says), "{request:?}: {line}");
            });
        }
    });
}

#[test]
fn it_dies_at_each_message() {
    at_each_message(Limits::default(), &["closed the connection"], |_| {
        Reaction::Close
    });
}

#[test]
fn it_never_answers_at_each_message() {
    // Or the answer to the next request comes, which has been sent already.
    let words = [
        "taken for dead",
        "its answer is to request SET_VRING_",
        "of queue 1 when asked for queue 0",
    ];
    at_each_message(QUICK, &words, |_| Reaction::Silence);
}

#[test]
fn it_answers_something_else_at_each_message() {
    at_each_message(Limits::default(), &["violated"], |request| {
        Reaction::Send(answer(u32::from(request) + 1, &[0; 8]), 0)
    });
}

#[test]
fn it_refuses_to_go_on() {
    for message in RESTART {
        let request = MESSAGES
            .iter()
            .find(|(request, _)| format!("{request:?}") == message)
            .unwrap()
            .0;
        let refusal = answer(request.into(), &1u64.to_ne_bytes());
        let script = nth(request, 3, Reaction::Send(refusal, 0));
        let line = chain(&fails(script, Limits::default()));
        assert!(line.contains(&format!("refused {message}")), "{line}");
    }
}

#[test]
fn it_stopped_where_it_cannot_have_been() {
    // Of another queue, beyond what was made available, before what was used, and no index at all.
    let answers = [
        base_answer(1, 0),
        base_answer(0, 1),
        base_answer(0, 65535),
        base_answer(0, 65536),
    ];
    for bytes in answers {
        let script = nth(FrontendReq::GET_VRING_BASE, 1, Reaction::Send(bytes, 0));
        let line = chain(&fails(script, Limits::default()));
        assert!(line.contains("GET_VRING_BASE"), "{line}");
        assert!(line.contains("violated"), "{line}");
    }
}

#[test]
fn the_guest_cannot_make_it_look_guilty_by_nonsense() {
    let ram = TestRam::new();
    let script = nth(
        FrontendReq::GET_VRING_BASE,
        1,
        Reaction::Send(base_answer(0, 5), 0),
    );
    let disk = Disk::scripted(script, Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    ring.offer(ring.queue.size + 1);
    outcome(&suspend(&disk.device)).unwrap();
    outcome(&resume(&disk.device)).unwrap();
    disk.is_well();
}

#[test]
fn it_dies_while_it_is_suspended() {
    let ram = TestRam::new();
    let script = nth(FrontendReq::RESET_DEVICE, 1, Reaction::Close);
    let disk = Disk::scripted(script, Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    outcome(&suspend(&disk.device)).unwrap();
    disk.device.reset();
    assert_eq!(next(&disk.events), Event::ResetDone);
    assert!(chain(&failure(&disk.reports)).contains("RESET_DEVICE"));
    outcome(&resume(&disk.device)).unwrap();
}
