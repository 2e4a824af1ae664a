//! Restoring a device, but for the state inside its back-end.

use std::sync::mpsc::channel;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{HIGH, LOW, TestRam};
use super::moving::{honestly, offer, share, suspended};
use super::peer::{Reaction, answer, base_answer, once};
use super::ring::Ring;
use super::suspend::{Disk, Outcome, outcome, restart_of_two, resume, suspend};
use crate::chain;
use crate::vhost_user::{
    BackEndStateV1, Cause, DeviceState, Limits, RingStateV1, VhostUserStateV1,
};
use crate::virtio::{Activation, VirtioDevice};

/// Restores a device whose driver had started these rings.
pub fn restore(share: &Disk, rings: &[&Ring<'_>], state: &VhostUserStateV1) -> Outcome {
    let activation = Activation {
        features: share.device.features(),
        queues: rings.iter().map(|ring| ring.queue.clone()).collect(),
    };
    restore_as(share, (!rings.is_empty()).then_some(activation), state)
}

fn restore_as(share: &Disk, activation: Option<Activation>, state: &VhostUserStateV1) -> Outcome {
    let (sender, receiver) = channel();
    share.device.restore(activation, state, move |outcome| {
        sender.send(outcome).unwrap()
    });
    receiver
}

fn config(share: &Disk) -> Vec<u8> {
    let mut config = vec![0; 256];
    share.device.read_config(0, &mut config);
    let length = match share.device.device_type() {
        2 => 60,
        _ => 40,
    };
    config.truncate(length);
    config
}

/// The state of a device with ring 0 at the beginning, whose back-end has state.
pub fn of_a_session(share: &Disk) -> VhostUserStateV1 {
    VhostUserStateV1 {
        features: share.device.features(),
        config: config(share),
        rings: vec![RingStateV1 { index: 0, base: 0 }],
        back_end: BackEndStateV1::Carried,
    }
}

/// The same, without state in its back-end.
fn of_a_disk(disk: &Disk, rings: &[[u16; 2]]) -> VhostUserStateV1 {
    let ring = |[index, base]: &[u16; 2]| RingStateV1 {
        index: *index,
        base: *base,
    };
    VhostUserStateV1 {
        rings: rings.iter().map(ring).collect(),
        back_end: BackEndStateV1::Absent,
        ..of_a_session(disk)
    }
}

#[test]
fn a_disk_goes_on_behind_another_back_end() {
    let ram = TestRam::new();
    let answers = [base_answer(0, 7), base_answer(1, 65535)];
    let mut answers = answers.into_iter();
    let script =
        Box::new(
            move |seen: &super::peer::Seen| match seen.is(FrontendReq::GET_VRING_BASE) {
                true => Reaction::Send(answers.next().unwrap(), 0),
                false => Reaction::Honest,
            },
        );
    let disk = Disk::scripted(script, Limits::default(), &ram);
    let (mut first, mut second) = (Ring::new(&ram, 0, LOW), Ring::new(&ram, 1, HIGH));
    disk.activate(&[&first, &second]);
    first.offer(7);
    first.pretend_used(7);
    second.offer(65535);
    second.pretend_used(65535);
    outcome(&suspend(&disk.device)).unwrap();
    let state = disk.device.rest().unwrap();
    assert_eq!(state, of_a_disk(&disk, &[[0, 7], [1, 65535]]));
    drop(disk);

    let disk = Disk::honest(&ram);
    disk.codes();
    outcome(&restore(&disk, &[&first, &second], &state)).unwrap();
    assert_eq!(disk.codes(), ["SET_FEATURES", "SET_MEM_TABLE"]);
    assert_eq!(disk.device.state(), DeviceState::Suspended);
    assert_eq!(disk.device.rest().unwrap(), state);
    outcome(&resume(&disk.device)).unwrap();
    let seen: Vec<_> = disk.peer.seen.try_iter().collect();
    let codes: Vec<_> = seen.iter().map(|seen| seen.code.to_string()).collect();
    assert_eq!(codes, restart_of_two());
    assert_eq!(seen[1].payload, [0u32, 7].map(u32::to_ne_bytes).concat());
    assert_eq!(
        seen[5].payload,
        [1u32, 65535].map(u32::to_ne_bytes).concat()
    );
    assert_eq!(disk.device.state(), DeviceState::Active);
    assert_eq!(
        disk.device.accepted_features(),
        Some(disk.device.features())
    );
    disk.is_well();
}

#[test]
fn a_device_that_no_driver_has_started_is_restored_as_such() {
    let ram = TestRam::new();
    let first = share(honestly(), Limits::default(), &ram);
    let state = first.device.rest().unwrap();
    assert_eq!((state.features, state.rings.len()), (0, 0));
    assert_eq!(state.back_end, BackEndStateV1::Absent);
    let second = share(honestly(), Limits::default(), &ram);
    second.codes();
    outcome(&restore(&second, &[], &state)).unwrap();
    assert_eq!(second.codes(), Vec::<String>::new());
    assert_eq!(second.device.state(), DeviceState::Idle);
    assert_eq!(second.device.rest().unwrap(), state);
    // Its driver may start it then.
    second.activate(&[&Ring::new(&ram, 0, LOW)]);
    second.is_well();
}

#[test]
fn an_activation_that_failed_is_saved_as_none() {
    let ram = TestRam::new();
    let refusal = answer(FrontendReq::SET_VRING_ENABLE.into(), &1u64.to_ne_bytes());
    let script = once(FrontendReq::SET_VRING_ENABLE, Reaction::Send(refusal, 0));
    let share = share(script, Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    share.post_activation(&[&ring]);
    super::harness::next(&share.events);
    outcome(&suspend(&share.device)).unwrap();
    assert!(!share.device.carries_state());
    let state = share.device.rest().unwrap();
    assert_eq!((state.features, state.rings.len()), (0, 0));
    assert_eq!(state.back_end, BackEndStateV1::Absent);
}

#[test]
fn only_what_rests_is_saved() {
    let ram = TestRam::new();
    let share = share(honestly(), Limits::default(), &ram);
    share.activate(&[&Ring::new(&ram, 0, LOW)]);
    let error = share.device.rest().unwrap_err();
    assert!(chain(&error).contains("not suspended"), "{}", chain(&error));
    outcome(&suspend(&share.device)).unwrap();
    assert_eq!(share.device.rest().unwrap(), of_a_session(&share));
}

/// What a driver has written is there again; nothing else of the configuration space is touched.
#[test]
fn what_the_driver_wrote_is_written_again() {
    let ram = TestRam::new();
    const CONFIG_WCE: u64 = 1 << 11;
    let peer = || {
        let offer = super::peer::Offer {
            features: super::peer::Offer::default().features | CONFIG_WCE,
            ..super::peer::Offer::default()
        };
        super::peer::Peer::start(offer, honestly())
    };
    let disk = || {
        let peer = peer();
        Disk::new(peer.disk(), peer, Limits::default(), &ram)
    };
    let first = disk();
    let writable = first.device.writable_config();
    assert_eq!(writable, 32..33);
    let mut state = first.device.rest().unwrap();
    state.config[32] ^= 1;
    let second = disk();
    second.codes();
    outcome(&restore(&second, &[], &state)).unwrap();
    let seen: Vec<_> = second.peer.seen.try_iter().collect();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].is(FrontendReq::SET_CONFIG));
    assert_eq!(
        seen[0].payload[..8],
        [32u32, 1].map(u32::to_ne_bytes).concat()
    );
    assert_eq!(seen[0].payload[12..], [state.config[32]]);
    assert_eq!(second.device.rest().unwrap(), state);
    second.is_well();
}

/// What makes no sense is refused before the back-end is told anything, and what makes sense still works then.
#[test]
fn a_state_that_does_not_fit_is_refused() {
    let ram = TestRam::new();
    let ring = Ring::new(&ram, 0, LOW);
    let misplaced = Ring::new(&ram, 0, HIGH);
    let mut outside = ring.queue.clone();
    outside.used.0 = 0x9000_0000_0000;
    let mut misaligned = ring.queue.clone();
    misaligned.descriptors.0 += 8;
    let mut unknown = misplaced.queue.clone();
    unknown.index = 9;
    let share = share(honestly(), Limits::default(), &ram);
    let good = of_a_session(&share);
    let features = share.device.features();
    let with = |change: &dyn Fn(&mut VhostUserStateV1)| {
        let mut state = good.clone();
        change(&mut state);
        state
    };
    let start = |queue: &crate::virtio::ActiveQueue, features| {
        let queues = vec![queue.clone()];
        Some(Activation { features, queues })
    };
    let queue = &ring.queue;
    let cases = [
        (None, good.clone(), "has not started it"),
        (
            start(queue, features),
            with(&|state| state.rings.clear()),
            "other queues",
        ),
        (
            start(queue, features),
            with(&|state| state.rings[0].index = 1),
            "other queues",
        ),
        (
            start(queue, features),
            with(&|state| state.rings[0].base = 1),
            "is to go on at 1",
        ),
        (
            start(queue, features),
            with(&|state| state.features ^= 1 << 32),
            "other features",
        ),
        (
            start(queue, features),
            with(&|state| state.config.truncate(3)),
            "has 3 bytes",
        ),
        (
            start(queue, features | 1 << 29),
            good.clone(),
            "lacks features",
        ),
        (
            start(&outside, features),
            good.clone(),
            "outside of guest RAM",
        ),
        (start(&misaligned, features), good.clone(), "misaligned"),
        (
            start(&unknown, features),
            with(&|state| state.rings[0].index = 9),
            "no queue 9",
        ),
    ];
    share.codes();
    for (activation, state, reason) in cases {
        let error = outcome(&restore_as(&share, activation, &state)).unwrap_err();
        let line = chain(&error);
        assert!(line.contains(reason), "{line}");
        assert_eq!(share.codes(), Vec::<String>::new(), "{reason}");
        assert_eq!(share.device.state(), DeviceState::Idle);
    }
    outcome(&restore(&share, &[&ring], &good)).unwrap();
    let again = outcome(&restore(&share, &[&ring], &good)).unwrap_err();
    assert!(matches!(*again.cause, Cause::BadState { .. }));
    share.is_well();
}

#[test]
fn a_back_end_without_device_state_does_not_take_over_from_one_with_it() {
    let ram = TestRam::new();
    let disk = Disk::honest(&ram);
    let ring = Ring::new(&ram, 0, LOW);
    let state = VhostUserStateV1 {
        back_end: BackEndStateV1::Carried,
        ..of_a_disk(&disk, &[[0, 0]])
    };
    let error = outcome(&restore(&disk, &[&ring], &state)).unwrap_err();
    let line = chain(&error);
    assert!(line.contains("does not offer DEVICE_STATE"), "{line}");
    assert_eq!(disk.device.state(), DeviceState::Idle);
}

#[test]
fn what_the_back_end_refuses_leaves_the_device_idle() {
    for request in [FrontendReq::SET_FEATURES, FrontendReq::SET_MEM_TABLE] {
        let ram = TestRam::new();
        let refusal = answer(request.into(), &1u64.to_ne_bytes());
        let script = once(request, Reaction::Send(refusal, 0));
        let share = share(script, Limits::default(), &ram);
        let ring = Ring::new(&ram, 0, LOW);
        let state = of_a_session(&share);
        let error = outcome(&restore(&share, &[&ring], &state)).unwrap_err();
        assert!(chain(&error).contains("refused"), "{}", chain(&error));
        assert_eq!(share.device.state(), DeviceState::Idle);
        outcome(&restore(&share, &[&ring], &state)).unwrap();
        share.is_well();
    }
}

#[test]
fn buffers_in_flight_are_not_left_behind() {
    let ram = TestRam::new();
    let script = once(
        FrontendReq::GET_VRING_BASE,
        Reaction::Send(base_answer(0, 3), 0),
    );
    let peer = super::peer::Peer::start(offer(), script);
    let spec = crate::vhost_user::BackendSpec {
        profile: crate::vhost_user::Profile::Generic(crate::vhost_user::Generic {
            device_type: 4,
            state: crate::vhost_user::BackendState::None,
            drain: Vec::new(),
            config: None,
        }),
        ..peer.disk()
    };
    let device = Disk::new(spec, peer, Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    device.activate(&[&ring]);
    ring.offer(8);
    ring.pretend_used(2);
    outcome(&suspend(&device.device)).unwrap();
    let error = device.device.rest().unwrap_err();
    assert!(chain(&error).contains("queue 0"), "{}", chain(&error));
    ring.pretend_used(3);
    let state = device.device.rest().unwrap();
    assert_eq!(state.rings, [RingStateV1 { index: 0, base: 3 }]);
    assert_eq!(state.back_end, BackEndStateV1::Absent);
}

#[test]
fn a_suspended_device_rests() {
    let ram = TestRam::new();
    let share = suspended(honestly(), Limits::default(), &ram);
    let state = share.device.rest().unwrap();
    assert_eq!(state, of_a_session(&share));
    outcome(&resume(&share.device)).unwrap();
    assert!(share.device.rest().is_err());
}
