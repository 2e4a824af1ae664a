//! Letting a back-end get its state ready while the guest runs.

use std::sync::mpsc::channel;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{LOW, TestRam};
use super::moving::{LOG_ALL, PATIENT, blob, honestly, save, share, with_state};
use super::peer::{Offer, Peer, Reaction, answer, nth};
use super::ring::Ring;
use super::suspend::{Disk, Outcome, RESTART, outcome, resume, suspend};
use crate::chain;
use crate::vhost_user::{Cause, DeviceState, Limits, VhostUserDevice};
use crate::virtio::VirtioDevice;

pub fn prepare(device: &VhostUserDevice) -> Outcome {
    let (sender, receiver) = channel();
    device.prepare_save(move |outcome| sender.send(outcome).unwrap());
    receiver
}

pub fn unprepare(device: &VhostUserDevice) -> Outcome {
    let (sender, receiver) = channel();
    device.unprepare(move |outcome| sender.send(outcome).unwrap());
    receiver
}

/// Of the features that the peer was told since the last call, whether LOG_ALL was among them; all other messages by name.
pub fn told(share: &Disk) -> Vec<String> {
    let seen = share.peer.seen.try_iter();
    seen.map(|seen| {
        if !seen.is(FrontendReq::SET_FEATURES) {
            return seen.code.to_string();
        }
        let features = u64::from_ne_bytes(seen.payload.try_into().unwrap());
        assert_eq!(features & !LOG_ALL, 1 << 32 | 1 << 30, "{features:#x}");
        match features & LOG_ALL {
            0 => "clear".into(),
            _ => "set".into(),
        }
    })
    .collect()
}

fn running(ram: &TestRam) -> Disk {
    let state = with_state(blob(9), honestly());
    let share = share(state.script, Limits::default(), ram);
    share.activate(&[&Ring::new(ram, 0, LOW)]);
    share
}

#[test]
fn log_all_is_cleared_and_set_for_every_attempt_and_cleared_after_it() {
    let ram = TestRam::new();
    let share = running(&ram);
    let restart = |first: &'static str| [&[first], &RESTART[..]].concat();
    for _ in 0..2 {
        outcome(&prepare(&share.device)).unwrap();
        assert_eq!(told(&share), ["clear", "set"]);
        assert_eq!(share.device.state(), DeviceState::Active);
        outcome(&suspend(&share.device)).unwrap();
        save(&share.device, &PATIENT).unwrap();
        assert!(!told(&share).contains(&"clear".into()));
        outcome(&resume(&share.device)).unwrap();
        assert_eq!(told(&share), restart("clear"));
    }
    // Without preparation there is nothing to clear.
    outcome(&suspend(&share.device)).unwrap();
    share.codes();
    outcome(&resume(&share.device)).unwrap();
    assert_eq!(told(&share), RESTART);
    share.is_well();
}

#[test]
fn what_it_takes_is_agreed_on_and_hidden_from_the_guest() {
    let ram = TestRam::new();
    let peer = Peer::start(super::moving::offer(), honestly());
    let share = Disk::new(peer.disk(), peer, Limits::default(), &ram);
    let seen: Vec<_> = share.peer.seen.try_iter().collect();
    let agreed = seen
        .iter()
        .find(|seen| seen.is(FrontendReq::SET_PROTOCOL_FEATURES))
        .unwrap();
    let agreed = u64::from_ne_bytes(agreed.payload.as_slice().try_into().unwrap());
    let needed = 1 << 19 | 1 << 1;
    assert_eq!(agreed & needed, needed, "DEVICE_STATE and LOG_SHMFD");
    assert_eq!(share.device.features() & LOG_ALL, 0);
    share.activate(&[&Ring::new(&ram, 0, LOW)]);
}

#[test]
fn an_attempt_that_ends_before_the_suspension_is_put_back() {
    let ram = TestRam::new();
    let share = running(&ram);
    outcome(&unprepare(&share.device)).unwrap();
    assert_eq!(told(&share), Vec::<String>::new());
    outcome(&prepare(&share.device)).unwrap();
    outcome(&prepare(&share.device)).unwrap();
    outcome(&unprepare(&share.device)).unwrap();
    assert_eq!(told(&share), ["clear", "set", "clear", "set", "clear"]);
    // A suspension that the owner has given up.
    outcome(&prepare(&share.device)).unwrap();
    outcome(&resume(&share.device)).unwrap();
    assert_eq!(told(&share), ["clear", "set", "clear"]);
    // And a reset, after which the features are told anew.
    outcome(&prepare(&share.device)).unwrap();
    share.reset();
    outcome(&unprepare(&share.device)).unwrap();
    told(&share);
    share.post_activation(&[&Ring::new(&ram, 0, LOW)]);
    super::harness::next(&share.events);
    assert_eq!(told(&share)[0], "clear");
    share.is_well();
}

#[test]
fn what_has_nothing_to_prepare_is_not_disturbed() {
    let ram = TestRam::new();
    // Nobody has started it.
    let idle = share(honestly(), Limits::default(), &ram);
    // It has no state, or cannot hand it over ahead of time.
    let disk = Disk::honest(&ram);
    disk.activate(&[&Ring::new(&ram, 0, LOW)]);
    let peer = Peer::start(
        Offer {
            features: super::moving::offer().features & !LOG_ALL,
            ..super::moving::offer()
        },
        honestly(),
    );
    let without = Disk::new(peer.disk(), peer, Limits::default(), &ram);
    without.activate(&[&Ring::new(&ram, 0, LOW)]);
    for device in [idle, disk, without] {
        device.codes();
        outcome(&prepare(&device.device)).unwrap();
        outcome(&unprepare(&device.device)).unwrap();
        assert_eq!(told(&device), Vec::<String>::new());
        device.is_well();
    }
}

#[test]
fn a_back_end_that_does_not_prepare_runs_on_and_can_be_saved() {
    let refusal = answer(FrontendReq::SET_FEATURES.into(), &1u64.to_ne_bytes());
    let late = Reaction::Late(Duration::from_secs(2));
    let cases = [
        // The activation tells them first.
        (2, Reaction::Send(refusal.clone(), 0), "refused"),
        (3, Reaction::Send(refusal, 0), "refused"),
        (3, late, "has not answered"),
    ];
    for (n, reaction, reason) in cases {
        let ram = TestRam::new();
        let script = nth(FrontendReq::SET_FEATURES, n, reaction);
        let stateful = with_state(blob(9), script);
        let limits = Limits {
            request: Duration::from_secs(1),
            ..Limits::default()
        };
        let share = share(stateful.script, limits, &ram);
        share.activate(&[&Ring::new(&ram, 0, LOW)]);
        let error = outcome(&prepare(&share.device)).unwrap_err();
        assert!(chain(&error).contains(reason), "{}", chain(&error));
        assert_eq!(share.device.state(), DeviceState::Active);
        outcome(&suspend(&share.device)).unwrap();
        assert_eq!(save(&share.device, &PATIENT).unwrap(), blob(9));
        outcome(&resume(&share.device)).unwrap();
        outcome(&prepare(&share.device)).unwrap();
        share.is_well();
    }
}

#[test]
fn a_back_end_that_dies_of_it_is_reported() {
    let ram = TestRam::new();
    let script = nth(FrontendReq::SET_FEATURES, 3, Reaction::Close);
    let share = share(script, Limits::default(), &ram);
    share.activate(&[&Ring::new(&ram, 0, LOW)]);
    let error = outcome(&prepare(&share.device)).unwrap_err();
    assert!(matches!(*error.cause, Cause::Closed { .. }));
    super::harness::failure(&share.reports);
    assert!(outcome(&prepare(&share.device)).is_err());
}
