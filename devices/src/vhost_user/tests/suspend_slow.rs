//! Suspending a back-end that takes its time, and an owner that does not wait for it.

use std::thread;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{Event, HANG, HIGH, LOW, TestRam, eventually, next};
use super::peer::{Reaction, Script, base_answer, nth, once};
use super::ring::Ring;
use super::suspend::{Disk, Outcome, RESTART, outcome, resume, suspend};
use crate::vhost_user::{Cause, DeviceState, Limits};
use crate::virtio::VirtioDevice;

/// The worker is patient; the owner is not.
const PATIENT: Limits = Limits {
    connect: HANG,
    request: HANG,
    dead: HANG,
};

/// How long the owner waits, and a back-end that stands still stands.
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_millis(500);

fn was_given_up(of: &Outcome) -> bool {
    match outcome(of) {
        Ok(()) => false,
        Err(error) => {
            assert!(matches!(*error.cause, Cause::GivenUp), "{:?}", error.cause);
            true
        }
    }
}

/// The `n`th GET_VRING_BASE of all.
fn late_base(n: usize) -> Script {
    nth(FrontendReq::GET_VRING_BASE, n, Reaction::Late(LATE))
}

/// The question that comes before GET_VRING_BASE; the first one is asked at the start.
fn late_question() -> Script {
    nth(FrontendReq::GET_FEATURES, 2, Reaction::Late(LATE))
}

#[test]
fn late_answers_are_waited_for_and_counted() {
    // Long enough for the start on a busy machine.
    let limits = Limits {
        request: Duration::from_secs(1),
        ..PATIENT
    };
    let late = || Reaction::Late(Duration::from_millis(1500));
    for (request, n) in [
        (FrontendReq::GET_FEATURES, 2),
        (FrontendReq::GET_VRING_BASE, 1),
        (FrontendReq::GET_VRING_BASE, 2),
    ] {
        let ram = TestRam::new();
        let disk = Disk::scripted(nth(request, n, late()), limits, &ram);
        let rings = [Ring::new(&ram, 0, LOW), Ring::new(&ram, 1, HIGH)];
        disk.activate(&[&rings[0], &rings[1]]);
        outcome(&suspend(&disk.device)).unwrap();
        assert_eq!(disk.device.state(), DeviceState::Suspended);
        assert!(disk.device.counters().late_answers > 0);
        outcome(&resume(&disk.device)).unwrap();
        disk.is_well();
    }
}

#[test]
fn an_owner_without_patience_gets_back_what_had_been_stopped_by_then() {
    // Where the back-end stands still, and how many rings are stopped when it goes on: all are asked for together.
    let cases = [
        ("GET_FEATURES", late_question as fn() -> Script, 0),
        ("the first GET_VRING_BASE", || late_base(1), 2),
        ("the second GET_VRING_BASE", || late_base(2), 2),
    ];
    for (place, script, stopped) in cases {
        let ram = TestRam::new();
        let disk = Disk::scripted(script(), PATIENT, &ram);
        let mut rings = [Ring::new(&ram, 0, LOW), Ring::new(&ram, 1, HIGH)];
        disk.activate(&[&rings[0], &rings[1]]);
        let suspended = suspend(&disk.device);
        assert!(suspended.recv_timeout(SOON).is_err());
        let resumed = resume(&disk.device);
        // The guest goes on while the back-end still stands.
        rings[0].offer(1);
        rings[1].offer(1);
        // With all rings stopped it is not worth giving up any more.
        assert_eq!(was_given_up(&suspended), stopped < 2, "{place}");
        outcome(&resumed).unwrap();
        assert_eq!(disk.device.state(), DeviceState::Active, "{place}");
        let codes = disk.codes();
        for message in RESTART {
            let count = codes.iter().filter(|code| *code == message).count();
            assert_eq!(count, stopped, "{place}: {codes:?}");
        }
        // And a second attempt succeeds.
        rings[0].pretend_used(1);
        rings[1].pretend_used(1);
        rings[0].clear();
        rings[1].clear();
        outcome(&suspend(&disk.device)).unwrap();
        outcome(&resume(&disk.device)).unwrap();
        disk.is_well();
    }
}

#[test]
fn requests_that_take_long_can_be_given_up_on() {
    let ram = TestRam::new();
    let disk = Disk::scripted(Box::new(|_| Reaction::Honest), PATIENT, &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    ring.offer(1);
    for _ in 0..3 {
        let suspended = suspend(&disk.device);
        assert!(suspended.recv_timeout(SOON).is_err());
        assert_eq!(disk.device.state(), DeviceState::Changing);
        let resumed = resume(&disk.device);
        assert!(was_given_up(&suspended));
        outcome(&resumed).unwrap();
        assert_eq!(disk.device.state(), DeviceState::Active);
    }
    assert_eq!(disk.codes(), Vec::<String>::new());
    disk.is_well();
}

#[test]
fn requests_that_never_end_end_the_suspension_and_not_the_device() {
    let limits = Limits {
        dead: Duration::from_secs(1),
        ..PATIENT
    };
    let ram = TestRam::new();
    let disk = Disk::scripted(Box::new(|_| Reaction::Honest), limits, &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    ring.offer(1);
    let error = outcome(&suspend(&disk.device)).unwrap_err();
    assert!(
        matches!(*error.cause, Cause::NotDrained { .. }),
        "{:?}",
        error.cause
    );
    assert_eq!(disk.device.state(), DeviceState::Active);
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.codes(), Vec::<String>::new());
    disk.is_well();
}

#[test]
fn a_reset_ends_a_suspension_that_waits() {
    let ram = TestRam::new();
    let disk = Disk::scripted(Box::new(|_| Reaction::Honest), PATIENT, &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    ring.offer(1);
    let suspended = suspend(&disk.device);
    eventually("it waits", || ring.queue.kick.read().is_ok());
    disk.device.reset();
    assert!(was_given_up(&suspended));
    ring.pretend_used(1);
    assert_eq!(next(&disk.events), Event::ResetDone);
    assert_eq!(disk.codes(), ["GET_VRING_BASE", "RESET_DEVICE"]);
    disk.is_well();
}

#[test]
fn a_reset_does_not_stop_what_has_been_stopped() {
    let ram = TestRam::new();
    let disk = Disk::scripted(late_base(1), PATIENT, &ram);
    let rings = [Ring::new(&ram, 0, LOW), Ring::new(&ram, 1, HIGH)];
    disk.activate(&[&rings[0], &rings[1]]);
    let suspended = suspend(&disk.device);
    assert!(suspended.recv_timeout(SOON).is_err());
    disk.device.reset();
    outcome(&suspended).unwrap();
    assert_eq!(next(&disk.events), Event::ResetDone);
    assert_eq!(
        disk.codes(),
        [
            "GET_FEATURES",
            "GET_VRING_BASE",
            "GET_VRING_BASE",
            "RESET_DEVICE"
        ]
    );
    disk.is_well();
}

#[test]
fn a_ring_that_was_stopped_with_requests_in_flight_starts_when_they_have_ended() {
    let ram = TestRam::new();
    // It takes the two requests that come meanwhile, and stops before they have ended.
    let mut base = once(
        FrontendReq::GET_VRING_BASE,
        Reaction::Send(base_answer(0, 2), 0),
    );
    let script: Script = Box::new(move |seen| {
        if seen.is(FrontendReq::GET_VRING_BASE) {
            thread::sleep(LATE);
        }
        base(seen)
    });
    let disk = Disk::scripted(script, PATIENT, &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    let suspended = suspend(&disk.device);
    assert!(suspended.recv_timeout(SOON).is_err());
    let resumed = resume(&disk.device);
    ring.offer(3);
    outcome(&suspended).unwrap();
    assert!(resumed.recv_timeout(SOON).is_err());
    assert_eq!(disk.codes(), ["GET_FEATURES", "GET_VRING_BASE"]);
    ring.pretend_used(2);
    outcome(&resumed).unwrap();
    assert_eq!(disk.codes(), RESTART);
    disk.is_well();
}

#[test]
fn everybody_is_told_when_the_device_goes() {
    let ram = TestRam::new();
    let script = nth(FrontendReq::GET_FEATURES, 2, Reaction::Silence);
    let disk = Disk::scripted(script, PATIENT, &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    let first = suspend(&disk.device);
    disk.peer.seen.recv_timeout(HANG).unwrap();
    let waiting = [first, resume(&disk.device), suspend(&disk.device)];
    let Disk { device, .. } = disk;
    drop(device);
    for order in &waiting {
        let error = outcome(order).unwrap_err();
        assert!(matches!(*error.cause, Cause::Stopped), "{:?}", error.cause);
    }
}

#[test]
fn orders_that_pile_up_against_the_contract_are_not_taken() {
    let ram = TestRam::new();
    let script = nth(FrontendReq::GET_FEATURES, 2, Reaction::Late(LATE));
    let disk = Disk::scripted(script, PATIENT, &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    // The worker has this one in hand, so that the others wait.
    let begun = suspend(&disk.device);
    disk.peer.seen.recv_timeout(HANG).unwrap();
    let taken = [resume(&disk.device), suspend(&disk.device)];
    for order in [suspend, resume, suspend, resume] {
        let error = order(&disk.device).try_recv().unwrap().unwrap_err();
        assert!(matches!(*error.cause, Cause::Stopped), "{:?}", error.cause);
    }
    assert!(was_given_up(&begun));
    for order in taken {
        outcome(&order).unwrap();
    }
    assert_eq!(disk.device.state(), DeviceState::Suspended);
    // There is room again, and the transport's orders have had room of their own.
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Active);
    disk.device.reset();
    assert_eq!(next(&disk.events), Event::ResetDone);
    disk.is_well();
}
