//! Telling a back-end its rings before the guest is certain to go on behind it.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{Event, HIGH, LOW, TestRam, next};
use super::moving::{PATIENT, blob, honestly, load, share, with_state};
use super::peer::{Reaction, Script, answer, once};
use super::restoring::{of_a_session, restore};
use super::ring::Ring;
use super::suspend::{Disk, Outcome, RESTART, outcome, restart_of_two, resume, suspend};
use crate::chain;
use crate::vhost_user::{
    BackEndStateV1, Cause, DeviceState, Limits, RingStateV1, VhostUserDevice, VhostUserStateV1,
};

pub fn set_up(device: &VhostUserDevice) -> Outcome {
    let (sender, receiver) = channel();
    device.set_up_rings(move |outcome| sender.send(outcome).unwrap());
    receiver
}

/// What a ring is told before it may be started, and what starts it.
const SET_UP: &[&str] = RESTART.split_at(4).0;

/// A disk with two rings that is restored, with one of them far along.
fn restored<'a>(script: Script, ram: &'a TestRam) -> (Disk, [Ring<'a>; 2]) {
    let disk = Disk::scripted(script, Limits::default(), ram);
    let mut rings = [Ring::new(ram, 0, LOW), Ring::new(ram, 1, HIGH)];
    rings[0].offer(7);
    rings[0].pretend_used(7);
    let state = VhostUserStateV1 {
        rings: [(0, 7), (1, 0)]
            .map(|(index, base)| RingStateV1 { index, base })
            .to_vec(),
        back_end: BackEndStateV1::Absent,
        ..of_a_session(&disk)
    };
    outcome(&restore(&disk, &[&rings[0], &rings[1]], &state)).unwrap();
    disk.codes();
    (disk, rings)
}

/// Refuses the first of these requests.
fn refusing(request: FrontendReq) -> Script {
    let refusal = answer(request.into(), &1u64.to_ne_bytes());
    once(request, Reaction::Send(refusal, 0))
}

#[test]
fn nothing_starts_before_the_guest_goes_on() {
    let ram = TestRam::new();
    let (disk, rings) = restored(honestly(), &ram);
    outcome(&set_up(&disk.device)).unwrap();
    let seen: Vec<_> = disk.peer.seen.try_iter().collect();
    let codes: Vec<_> = seen.iter().map(|seen| seen.code.to_string()).collect();
    assert_eq!(codes, [SET_UP, SET_UP].concat());
    assert_eq!(seen[1].payload, [0u32, 7].map(u32::to_ne_bytes).concat());
    assert_eq!(seen[5].payload, [1u32, 0].map(u32::to_ne_bytes).concat());
    assert_eq!(disk.device.state(), DeviceState::Suspended);
    let rest = disk.device.rest().unwrap();
    // Once is enough; and it may be suspended, as it is.
    outcome(&set_up(&disk.device)).unwrap();
    assert_eq!(disk.codes(), Vec::<String>::new());
    outcome(&suspend(&disk.device)).unwrap();
    assert_eq!(disk.codes(), ["GET_FEATURES"]);
    assert_eq!(disk.device.rest().unwrap(), rest);
    for ring in &rings {
        assert!(ring.queue.kick.read().is_err(), "nothing to look at");
        assert!(ring.queue.call.read().is_err(), "no interrupt yet");
    }

    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.codes(), restart_of_two()[8..]);
    assert_eq!(disk.device.state(), DeviceState::Active);
    for ring in &rings {
        assert_eq!(ring.queue.kick.read().unwrap(), 1, "looked at once");
        assert_eq!(ring.queue.call.read().unwrap(), 1, "one interrupt");
    }
    // What was set up was set up for that once.
    outcome(&set_up(&disk.device)).unwrap();
    assert_eq!(disk.codes(), Vec::<String>::new());
    disk.is_well();
}

/// The signal to look at the ring comes after the back-end may, and the interrupt after that.
#[test]
fn a_ring_is_kicked_when_it_is_enabled() {
    let ram = TestRam::new();
    let (disk, rings) = restored(refusing(FrontendReq::SET_VRING_ENABLE), &ram);
    outcome(&set_up(&disk.device)).unwrap();
    // It cannot be enabled.
    let _ = outcome(&resume(&disk.device));
    for ring in &rings {
        assert!(ring.queue.kick.read().is_err());
        assert!(ring.queue.call.read().is_err());
    }
}

#[test]
fn a_suspended_device_goes_on_as_before_after_it_has_been_set_up_once() {
    let ram = TestRam::new();
    let (disk, rings) = restored(honestly(), &ram);
    outcome(&set_up(&disk.device)).unwrap();
    outcome(&resume(&disk.device)).unwrap();
    for ring in &rings {
        ring.queue.kick.read().unwrap();
    }
    disk.codes();
    // The peer repeats what it is asked, so that both rings stop at 0.
    rings[0].pretend_used(0);
    ram.write(LOW + 0x1002, &[0; 2]);
    outcome(&suspend(&disk.device)).unwrap();
    disk.codes();
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.codes(), restart_of_two());
    disk.is_well();
}

#[test]
fn what_was_set_up_can_be_reset_and_started_by_a_driver() {
    let ram = TestRam::new();
    let (disk, mut rings) = restored(honestly(), &ram);
    outcome(&set_up(&disk.device)).unwrap();
    disk.codes();
    disk.reset();
    // Not kicked, so there is nothing to stop.
    assert_eq!(disk.codes(), ["RESET_DEVICE"]);
    assert_eq!(disk.device.state(), DeviceState::Idle);
    rings[0].clear();
    disk.post_activation(&[&rings[0]]);
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
    assert_eq!(disk.codes(), [&["SET_FEATURES"], &RESTART[..]].concat());
    disk.is_well();
}

#[test]
fn what_has_no_rings_to_be_set_up_is_not_disturbed() {
    let ram = TestRam::new();
    let disk = Disk::honest(&ram);
    disk.codes();
    outcome(&set_up(&disk.device)).unwrap();
    disk.activate(&[&Ring::new(&ram, 0, LOW)]);
    outcome(&set_up(&disk.device)).unwrap();
    assert_eq!(disk.codes(), Vec::<String>::new());
    disk.is_well();
}

#[test]
fn the_state_comes_before_the_rings() {
    let ram = TestRam::new();
    let script = with_state(Vec::new(), honestly()).script;
    let share = share(script, Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    outcome(&restore(&share, &[&ring], &of_a_session(&share))).unwrap();
    share.codes();
    let error = outcome(&set_up(&share.device)).unwrap_err();
    assert!(matches!(*error.cause, Cause::BadState { .. }));
    assert!(
        chain(&error).contains("not loaded yet"),
        "{}",
        chain(&error)
    );
    assert_eq!(share.codes(), Vec::<String>::new());
    load(&share.device, &PATIENT, &blob(9)).unwrap();
    share.codes();
    outcome(&set_up(&share.device)).unwrap();
    assert_eq!(share.codes(), SET_UP);
    outcome(&resume(&share.device)).unwrap();
    assert_eq!(share.codes(), RESTART[4..]);
    share.is_well();
}

#[test]
fn what_a_back_end_refuses_can_be_tried_again() {
    for request in [
        FrontendReq::SET_VRING_NUM,
        FrontendReq::SET_VRING_BASE,
        FrontendReq::SET_VRING_ADDR,
        FrontendReq::SET_VRING_CALL,
    ] {
        let refusal = answer(request.into(), &1u64.to_ne_bytes());
        let late = Reaction::Late(Duration::from_millis(50));
        for reaction in [Reaction::Send(refusal, 0), late] {
            let ram = TestRam::new();
            let refuses = matches!(reaction, Reaction::Send(..));
            let (disk, _rings) = restored(once(request, reaction), &ram);
            let outcome_of = outcome(&set_up(&disk.device));
            assert_eq!(outcome_of.is_err(), refuses);
            assert_eq!(disk.device.state(), DeviceState::Suspended);
            outcome(&set_up(&disk.device)).unwrap();
            outcome(&resume(&disk.device)).unwrap();
            assert_eq!(disk.device.state(), DeviceState::Active);
            disk.is_well();
        }
    }
}

#[test]
fn nothing_is_enabled_where_something_could_not_be_started() {
    let ram = TestRam::new();
    let (disk, _rings) = restored(refusing(FrontendReq::SET_VRING_KICK), &ram);
    outcome(&set_up(&disk.device)).unwrap();
    disk.codes();
    outcome(&resume(&disk.device)).unwrap_err();
    // Up to the end of the connection; the other ring's kick it may have read or not.
    let mut seen = disk.peer.seen.iter();
    assert!(seen.next().unwrap().is(FrontendReq::SET_VRING_KICK));
    assert!(seen.all(|seen| seen.is(FrontendReq::SET_VRING_KICK)));
}

/// What it has read before and behind what it refused it knows, and looks for in any RAM that it is told of.
#[test]
fn rings_that_a_back_end_may_know_are_parked_later() {
    let ram = TestRam::new();
    let (disk, _rings) = restored(refusing(FrontendReq::SET_VRING_CALL), &ram);
    outcome(&set_up(&disk.device)).unwrap_err();
    disk.reset();
    disk.codes();
    let other = TestRam::new();
    disk.device.set_ram(Arc::from(&other.regions[..1]));
    disk.post_activation(&[&Ring::new(&other, 0, LOW)]);
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
    let parks = [
        "SET_FEATURES",
        "SET_VRING_NUM",
        "SET_VRING_ADDR",
        "SET_MEM_TABLE",
    ];
    assert_eq!(disk.codes()[..4], parks);
    disk.is_well();
}
