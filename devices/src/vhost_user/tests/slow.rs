//! A back-end that is slow, and one that says no.

use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;
use vm_memory::GuestAddress;

use super::harness::{Event, HANG, LOW, Observer, TestRam, Transport, failure, next, started};
use super::peer::{Offer, Peer, Reaction, answer, count, once};
use super::ring::Ring;
use crate::chain;
use crate::vhost_user::{DeviceState, Limits, VhostUserDevice};
use crate::virtio::{Activation, ActivationFailed, ActiveQueue, VirtioDevice};

const IMPATIENT: Limits = Limits {
    connect: HANG,
    request: Duration::from_millis(600),
    dead: HANG,
};

const LATE: Reaction = Reaction::Late(Duration::from_millis(1200));

struct Disk {
    peer: Peer,
    device: Arc<VhostUserDevice>,
    events: std::sync::mpsc::Receiver<Event>,
    reports: std::sync::mpsc::Receiver<super::harness::Report>,
    activation: Activation,
}

fn disk(peer: Peer, limits: Limits, ram: &TestRam) -> Disk {
    let (observer, reports) = Observer::new();
    VhostUserDevice::start(peer.disk(), limits, Arc::clone(&ram.regions), observer).unwrap();
    let device = started(&reports).unwrap();
    let (transport, events) = Transport::new();
    device.attach(transport);
    let activation = Activation {
        features: device.features(),
        queues: vec![Ring::new(ram, 0, LOW).queue.clone()],
    };
    Disk {
        peer,
        device,
        events,
        reports,
        activation,
    }
}

#[test]
fn activation_and_reset_wait_for_late_answers() {
    for request in [
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_MEM_TABLE,
        FrontendReq::SET_VRING_KICK,
        FrontendReq::SET_VRING_ENABLE,
        FrontendReq::GET_VRING_BASE,
        FrontendReq::RESET_DEVICE,
    ] {
        let ram = TestRam::new();
        let peer = Peer::start(Offer::default(), once(request, LATE));
        let disk = disk(peer, IMPATIENT, &ram);
        disk.device.activate(disk.activation.clone());
        assert_eq!(next(&disk.events), Event::Activated(Ok(())), "{request:?}");
        disk.device.reset();
        assert_eq!(next(&disk.events), Event::ResetDone, "{request:?}");
        assert_eq!(disk.device.state(), DeviceState::Idle, "{request:?}");
        assert!(disk.reports.try_recv().is_err());
    }
}

#[test]
fn a_late_answer_at_the_start_is_the_end_of_the_start() {
    let ram = TestRam::new();
    let peer = Peer::start(Offer::default(), once(FrontendReq::GET_FEATURES, LATE));
    let (observer, reports) = Observer::new();
    VhostUserDevice::start(peer.disk(), IMPATIENT, Arc::clone(&ram.regions), observer).unwrap();
    let error = started(&reports).unwrap_err();
    assert!(!error.is_unreachable());
    assert!(chain(&error).contains("GET_FEATURES"), "{}", chain(&error));
}

#[test]
fn a_reset_overtakes_an_activation_that_takes_long() {
    let ram = TestRam::new();
    let peer = Peer::start(
        Offer::default(),
        once(
            FrontendReq::SET_FEATURES,
            Reaction::Late(Duration::from_millis(1200)),
        ),
    );
    let disk = disk(peer, IMPATIENT, &ram);
    disk.device.activate(disk.activation.clone());
    disk.device.reset();
    assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
    assert_eq!(next(&disk.events), Event::ResetDone);
    assert_eq!(count(&disk.peer.seen).get("SET_VRING_KICK"), None);
    // And the next one works.
    disk.device.activate(disk.activation.clone());
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
}

#[test]
fn a_refused_activation_can_be_tried_again() {
    let ram = TestRam::new();
    let refusal = answer(FrontendReq::SET_MEM_TABLE.into(), &1u64.to_ne_bytes());
    let peer = Peer::start(
        Offer::default(),
        once(FrontendReq::SET_MEM_TABLE, Reaction::Send(refusal, 0)),
    );
    let disk = disk(peer, Limits::default(), &ram);
    disk.device.activate(disk.activation.clone());
    assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
    assert_eq!(disk.device.state(), DeviceState::Idle);
    disk.device.reset();
    assert_eq!(next(&disk.events), Event::ResetDone);
    disk.device.activate(disk.activation.clone());
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
    assert_eq!(count(&disk.peer.seen)["SET_MEM_TABLE"], 2);
}

#[test]
fn the_memory_table_is_sent_once_and_resets_without_rings_ask_nothing() {
    let ram = TestRam::new();
    let disk = disk(Peer::honest(), Limits::default(), &ram);
    disk.device.reset();
    assert_eq!(next(&disk.events), Event::ResetDone);
    let before = count(&disk.peer.seen);
    assert_eq!(before.get("GET_VRING_BASE"), None);
    assert_eq!(before.get("RESET_DEVICE"), None);
    for _ in 0..3 {
        disk.device.activate(disk.activation.clone());
        assert_eq!(next(&disk.events), Event::Activated(Ok(())));
        disk.device.reset();
        assert_eq!(next(&disk.events), Event::ResetDone);
    }
    let seen = count(&disk.peer.seen);
    assert_eq!(seen["SET_MEM_TABLE"], 1);
    assert_eq!(seen["SET_FEATURES"], 3);
    assert_eq!(seen["GET_VRING_BASE"], 3);
    assert_eq!(seen["RESET_DEVICE"], 3);
}

#[test]
fn queues_outside_guest_ram_or_misaligned_are_refused_before_the_back_end_hears_of_them() {
    let ram = TestRam::new();
    let disk = disk(Peer::honest(), Limits::default(), &ram);
    count(&disk.peer.seen);
    let end = LOW + ram.regions[0].size;
    let cases: [fn(&mut ActiveQueue, u64); 6] = [
        |queue, _| queue.used = GuestAddress(u64::MAX - 15),
        |queue, _| queue.descriptors = GuestAddress(LOW + 8),
        |queue, _| queue.available = GuestAddress(LOW + 0x1001),
        |queue, _| queue.used = GuestAddress(LOW + 0x2002),
        |queue, end| queue.descriptors = GuestAddress(end - 128),
        |queue, _| queue.size = 3,
    ];
    for spoil in cases {
        let mut activation = disk.activation.clone();
        spoil(&mut activation.queues[0], end);
        disk.device.activate(activation);
        assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
        assert!(count(&disk.peer.seen).is_empty());
    }
}

#[test]
fn more_ram_regions_than_a_table_holds_are_refused() {
    let ram = TestRam::in_many_regions();
    let disk = disk(Peer::honest(), Limits::default(), &ram);
    disk.device.activate(disk.activation.clone());
    assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
    assert_eq!(count(&disk.peer.seen).get("SET_MEM_TABLE"), None);
    assert_eq!(disk.device.state(), DeviceState::Idle);
}

#[test]
fn a_base_that_cannot_be_fails_the_device() {
    let ram = TestRam::new();
    let base = answer(
        FrontendReq::GET_VRING_BASE.into(),
        &(0x1_0000u64 << 32).to_ne_bytes(),
    );
    let peer = Peer::start(
        Offer::default(),
        once(FrontendReq::GET_VRING_BASE, Reaction::Send(base, 0)),
    );
    let disk = disk(peer, Limits::default(), &ram);
    disk.device.activate(disk.activation.clone());
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
    disk.device.reset();
    assert_eq!(next(&disk.events), Event::ResetDone);
    let line = chain(&failure(&disk.reports));
    assert!(line.contains("GET_VRING_BASE"), "{line}");
}

/// The worker has ended without telling anybody.
fn ended_silently(reports: &std::sync::mpsc::Receiver<super::harness::Report>) {
    // The worker held the only other reference to the sender.
    assert_eq!(
        reports.recv_timeout(HANG).err(),
        Some(std::sync::mpsc::RecvTimeoutError::Disconnected)
    );
}

#[test]
fn a_start_that_is_cancelled_while_nobody_listens_ends_and_tells_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let ram = TestRam::new();
    let mut spec = Peer::honest().disk();
    spec.socket = directory.path().join("nobody.sock");
    let (observer, reports) = Observer::new();
    let starting =
        VhostUserDevice::start(spec, IMPATIENT, Arc::clone(&ram.regions), observer).unwrap();
    starting.cancel();
    ended_silently(&reports);
}

#[test]
fn a_start_that_is_cancelled_while_the_back_end_is_silent_lets_go_of_it() {
    for request in [
        FrontendReq::GET_FEATURES,
        FrontendReq::GET_QUEUE_NUM,
        FrontendReq::GET_CONFIG,
    ] {
        let ram = TestRam::new();
        let peer = Peer::start(Offer::default(), once(request, Reaction::Silence));
        let patient = Limits {
            request: HANG,
            ..IMPATIENT
        };
        let (observer, reports) = Observer::new();
        let starting =
            VhostUserDevice::start(peer.disk(), patient, Arc::clone(&ram.regions), observer)
                .unwrap();
        while !peer.seen.recv_timeout(HANG).unwrap().is(request) {}
        starting.cancel();
        starting.cancel();
        ended_silently(&reports);
        // The peer ends with its connection.
        assert!(peer.seen.recv_timeout(HANG).is_err(), "{request:?}");
    }
}

#[test]
fn a_start_that_has_ended_cannot_be_cancelled() {
    let ram = TestRam::new();
    let peer = Peer::honest();
    let (observer, reports) = Observer::new();
    let starting =
        VhostUserDevice::start(peer.disk(), IMPATIENT, Arc::clone(&ram.regions), observer).unwrap();
    let device = started(&reports).unwrap();
    starting.cancel();
    assert_eq!(device.state(), DeviceState::Idle);
    let (transport, events) = Transport::new();
    device.attach(transport);
    device.activate(Activation {
        features: device.features(),
        queues: vec![Ring::new(&ram, 0, LOW).queue.clone()],
    });
    assert_eq!(next(&events), Event::Activated(Ok(())));
}
