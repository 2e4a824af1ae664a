//! The dirty log, as a back-end is told of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{Event, HIGH, LOW, TestRam, failure, next};
use super::moving::{LOG_ALL, PATIENT, blob, honestly, offer, save, share, with_state};
use super::peer::{Offer, Peer, Reaction, Script, Seen, answer, nth, once};
use super::preparing::{prepare, told, unprepare};
use super::restoring::{of_a_session, restore};
use super::ring::Ring;
use super::suspend::{Disk, Outcome, RESTART, outcome, resume, suspend};
use crate::chain;
use crate::vhost_user::{Cause, DeviceState, DirtyLog, Limits, RequestCode, VhostUserDevice};

const BASE: FrontendReq = FrontendReq::SET_LOG_BASE;

pub fn start_log(device: &VhostUserDevice, log: &Arc<DirtyLog>) -> Outcome {
    let (sender, receiver) = channel();
    device.start_log(Arc::clone(log), move |outcome| {
        sender.send(outcome).unwrap()
    });
    receiver
}

pub fn stop_log(device: &VhostUserDevice) -> Outcome {
    let (sender, receiver) = channel();
    device.stop_log(move |outcome| sender.send(outcome).unwrap());
    receiver
}

/// The pages that are in the log, and not any more.
pub fn taken(log: &DirtyLog) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    log.take(|word, bits| {
        let bits = (0..64).filter(|bit| bits & 1 << bit != 0);
        pages.extend(bits.map(|bit| word as u64 * 64 + bit));
    });
    pages
}

fn log(ram: &TestRam) -> Arc<DirtyLog> {
    Arc::new(DirtyLog::new(&ram.regions).unwrap())
}

/// The answers that real back-ends give, in turn.
fn answering() -> Script {
    let mut number = 0;
    let exception: Script = Box::new(move |seen| {
        if !seen.is(BASE) {
            return Reaction::Honest;
        }
        let size = seen.payload[..8].to_vec();
        let answers = [seen.payload.clone(), size, vec![0; 8], Vec::new()];
        number += 1;
        Reaction::Send(answer(BASE.into(), &answers[number % 4]), 0)
    });
    with_state(blob(9), exception).script
}

fn running(script: Script, ram: &TestRam) -> Disk {
    let share = share(script, Limits::default(), ram);
    share.activate(&[&Ring::new(ram, 0, LOW)]);
    share
}

#[test]
fn a_log_is_given_then_log_all_cleared_and_set() {
    let ram = TestRam::new();
    let share = running(answering(), &ram);
    assert!(share.device.can_log());
    for _ in 0..4 {
        outcome(&start_log(&share.device, &log(&ram))).unwrap();
        assert_eq!(told(&share), ["SET_LOG_BASE", "clear", "set"]);
        // Preparing is part of it.
        outcome(&prepare(&share.device)).unwrap();
        outcome(&unprepare(&share.device)).unwrap();
        outcome(&suspend(&share.device)).unwrap();
        save(&share.device, &PATIENT).unwrap();
        told(&share);
        // Whatever becomes of the attempt.
        outcome(&resume(&share.device)).unwrap();
        assert_eq!(told(&share), RESTART);
        outcome(&stop_log(&share.device)).unwrap();
        assert_eq!(told(&share), ["clear"]);
        outcome(&stop_log(&share.device)).unwrap();
        assert_eq!(told(&share), Vec::<String>::new());
    }
    // Of a device that is suspended already, too.
    outcome(&suspend(&share.device)).unwrap();
    told(&share);
    outcome(&start_log(&share.device, &log(&ram))).unwrap();
    assert_eq!(told(&share), ["SET_LOG_BASE", "clear", "set"]);
    assert_eq!(share.device.state(), DeviceState::Suspended);
    share.is_well();
}

#[test]
fn the_back_end_gets_the_log_itself() {
    let ram = TestRam::new();
    let share = running(answering(), &ram);
    let log = log(&ram);
    outcome(&start_log(&share.device, &log)).unwrap();
    let seen: Vec<Seen> = share.peer.seen.try_iter().collect();
    let base = &seen[0];
    assert!(base.is(BASE) && !base.needs_reply);
    let expected = [log.bytes(), 0].map(u64::to_ne_bytes).concat();
    assert_eq!(base.payload, expected);
    let file = File::from(base.fds[0].try_clone().unwrap());
    assert_eq!(file.metadata().unwrap().len(), log.bytes());
    for page in [LOW / 4096, HIGH / 4096 + 9, HIGH / 4096 - 1] {
        file.write_all_at(&[1 << (page % 8)], page / 8).unwrap();
    }
    // The last one is in the hole.
    let expected = [LOW / 4096, HIGH / 4096 + 9].into_iter().collect();
    assert_eq!(taken(&log), expected);
}

/// Whether the used ring is to be logged is said once, whether or not there is a log.
#[test]
fn rings_are_told_as_logged_where_that_is_possible() {
    let ram = TestRam::new();
    let flags = |disk: &Disk| -> Vec<[u8; 12]> {
        let seen = disk.peer.seen.try_iter();
        seen.filter(|seen| seen.is(FrontendReq::SET_VRING_ADDR))
            .map(|seen| {
                let mut said = [0; 12];
                said[..4].copy_from_slice(&seen.payload[4..8]);
                said[4..].copy_from_slice(&seen.payload[32..40]);
                said
            })
            .collect()
    };
    let with = |flag: u32| {
        let mut expected = [0; 12];
        expected[..4].copy_from_slice(&flag.to_ne_bytes());
        expected[4..].copy_from_slice(&(LOW + 0x2000).to_ne_bytes());
        expected
    };
    let share = share(answering(), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    share.post_activation(&[&ring]);
    next(&share.events);
    assert_eq!(flags(&share), [with(1)]);
    outcome(&start_log(&share.device, &log(&ram))).unwrap();
    assert_eq!(flags(&share), [[0; 12]; 0]);
    outcome(&suspend(&share.device)).unwrap();
    outcome(&resume(&share.device)).unwrap();
    assert_eq!(flags(&share), [with(1)]);

    let disk = Disk::honest(&ram);
    assert!(!disk.device.can_log());
    disk.post_activation(&[&ring]);
    next(&disk.events);
    assert_eq!(flags(&disk), [with(0)]);
    let error = outcome(&start_log(&disk.device, &log(&ram))).unwrap_err();
    assert!(chain(&error).contains("LOG_ALL"), "{}", chain(&error));
    outcome(&stop_log(&disk.device)).unwrap();
    disk.is_well();
}

#[test]
fn a_device_without_rings_is_logged_from_its_activation_on() {
    let ram = TestRam::new();
    let share = share(answering(), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    told(&share);
    outcome(&start_log(&share.device, &log(&ram))).unwrap();
    assert_eq!(told(&share), Vec::<String>::new());
    let begins = ["clear", "SET_LOG_BASE", "set", "SET_VRING_NUM"];
    for round in 0..3 {
        share.post_activation(&[&ring]);
        assert_eq!(next(&share.events), Event::Activated(Ok(())));
        let mut codes = told(&share);
        if round == 0 {
            assert_eq!(codes.remove(1), "SET_MEM_TABLE");
        }
        assert_eq!(codes[..4], begins);
        share.reset();
        assert!(!told(&share).contains(&"set".into()));
    }
    // And other memory.
    let other = TestRam::new();
    share.device.set_ram(Arc::clone(&other.regions));
    share.post_activation(&[&ring]);
    assert_eq!(next(&share.events), Event::Activated(Ok(())));
    let begins = ["clear", "SET_MEM_TABLE", "SET_LOG_BASE", "set"];
    assert_eq!(told(&share)[..4], begins);
    share.reset();
    // Forgotten, it is not told any more.
    outcome(&stop_log(&share.device)).unwrap();
    told(&share);
    share.post_activation(&[&ring]);
    next(&share.events);
    let codes = told(&share);
    assert_eq!(codes[..2], ["clear", "SET_VRING_NUM"]);
    share.is_well();
}

#[test]
fn a_back_end_that_refuses_or_does_not_answer_has_no_log_and_runs_on() {
    let features = FrontendReq::SET_FEATURES;
    let refusal = |request: FrontendReq| answer(request.into(), &7u64.to_ne_bytes());
    let late = || Reaction::Late(Duration::from_millis(1500));
    let late_base = Reaction::SendLate(
        Duration::from_millis(1500),
        answer(BASE.into(), &[0; 8]),
        Vec::new(),
    );
    let cases = [
        (BASE, 1, Reaction::Send(refusal(BASE), 0), "refused"),
        (BASE, 1, late_base, "has not answered"),
        // The activation tells them first.
        (features, 2, Reaction::Send(refusal(features), 0), "refused"),
        (features, 3, Reaction::Send(refusal(features), 0), "refused"),
        (features, 3, late(), "has not answered"),
    ];
    for (request, n, reaction, reason) in cases {
        let ram = TestRam::new();
        let mut exception = nth(request, n, reaction);
        let mut answers = answering();
        let script: Script = Box::new(move |seen| match exception(seen) {
            Reaction::Honest => answers(seen),
            other => other,
        });
        let limits = Limits {
            request: Duration::from_millis(700),
            ..Limits::default()
        };
        let share = share(script, limits, &ram);
        share.activate(&[&Ring::new(&ram, 0, LOW)]);
        let error = outcome(&start_log(&share.device, &log(&ram))).unwrap_err();
        let line = chain(&error);
        let name = RequestCode::from(request).to_string();
        for part in [reason, &name, "fs0"] {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(share.device.state(), DeviceState::Active);
        // It can be moved as soon as the answer has come.
        super::harness::eventually("there is a log", || {
            outcome(&start_log(&share.device, &log(&ram))).is_ok()
        });
        outcome(&stop_log(&share.device)).unwrap();
        told(&share);
        outcome(&start_log(&share.device, &log(&ram))).unwrap();
        assert_eq!(told(&share), ["SET_LOG_BASE", "clear", "set"]);
        outcome(&suspend(&share.device)).unwrap();
        share.device.rest().unwrap();
        share.is_well();
    }
}

#[test]
fn an_answer_that_cannot_be_is_a_violation() {
    for (size, fds) in [(4, 0), (12, 0), (17, 0), (16, 1)] {
        let ram = TestRam::new();
        let wrong = Reaction::Send(answer(BASE.into(), &vec![0; size]), fds);
        let share = running(once(BASE, wrong), &ram);
        let error = outcome(&start_log(&share.device, &log(&ram))).unwrap_err();
        assert!(matches!(*error.cause, Cause::Violation { .. }), "{size}");
        failure(&share.reports);
        let again = outcome(&start_log(&share.device, &log(&ram)));
        assert!(again.is_err());
        assert!(outcome(&stop_log(&share.device)).is_err());
    }
}

/// The guest has its device, and whoever moves it is told.
#[test]
fn a_log_that_is_refused_by_an_activation_costs_the_attempt_and_not_the_device() {
    let ram = TestRam::new();
    let refusal = answer(BASE.into(), &7u64.to_ne_bytes());
    let share = share(
        once(BASE, Reaction::Send(refusal, 0)),
        Limits::default(),
        &ram,
    );
    let ring = Ring::new(&ram, 0, LOW);
    outcome(&start_log(&share.device, &log(&ram))).unwrap();
    assert!(share.device.log_error().is_none());
    share.activate(&[&ring]);
    let error = share.device.log_error().unwrap();
    assert!(chain(&error).contains("refused SET_LOG_BASE"));
    outcome(&suspend(&share.device)).unwrap();
    assert!(share.device.rest().is_err());
    outcome(&resume(&share.device)).unwrap();
    // A reset changes nothing: what it wrote it has written.
    share.reset();
    assert!(share.device.rest().is_err());
    outcome(&stop_log(&share.device)).unwrap();
    assert!(share.device.log_error().is_none());
    share.device.rest().unwrap();
    share.is_well();
}

/// libvhost-user ends its process when it writes to a page without a bit.
#[test]
fn a_log_of_less_than_guest_ram_is_not_given() {
    let ram = TestRam::new();
    let small = Arc::new(DirtyLog::new(&ram.regions[..1]).unwrap());
    let share = running(answering(), &ram);
    let error = outcome(&start_log(&share.device, &small)).unwrap_err();
    assert!(chain(&error).contains("does not cover"));
    assert_eq!(told(&share), Vec::<String>::new());
    share.reset();
    outcome(&start_log(&share.device, &small)).unwrap();
    share.activate(&[&Ring::new(&ram, 0, LOW)]);
    assert!(share.device.log_error().is_some());
    share.is_well();
}

#[test]
fn only_the_last_word_counts() {
    let ram = TestRam::new();
    let late = Reaction::Late(Duration::from_millis(300));
    let share = running(nth(FrontendReq::SET_FEATURES, 2, late), &ram);
    // The worker has this one in hand, so that the others wait.
    let begun = prepare(&share.device);
    let mut waiting = Vec::new();
    for _ in 0..8 {
        waiting.push(start_log(&share.device, &log(&ram)));
        waiting.push(stop_log(&share.device));
    }
    let last = waiting.pop().unwrap();
    outcome(&begun).unwrap();
    outcome(&last).unwrap();
    let given_up = |of: &Outcome| match outcome(of) {
        Err(error) => matches!(*error.cause, Cause::GivenUp),
        // The first may have been begun before the second came.
        Ok(()) => false,
    };
    assert!(waiting.iter().skip(1).all(given_up));
    let features = told(&share);
    assert_eq!(features.last().map(String::as_str), Some("clear"));
    share.is_well();
}

#[test]
fn a_device_that_is_being_restored_has_no_log() {
    let ram = TestRam::new();
    let share = share(honestly(), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    outcome(&restore(&share, &[&ring], &of_a_session(&share))).unwrap();
    let error = outcome(&start_log(&share.device, &log(&ram))).unwrap_err();
    assert!(chain(&error).contains("being restored"));
    share.is_well();
}

#[test]
fn log_all_alone_is_not_enough() {
    let ram = TestRam::new();
    let lacking = Offer {
        protocol: Offer::default().protocol,
        ..offer()
    };
    assert_ne!(lacking.features & LOG_ALL, 0);
    let peer = Peer::start(lacking, honestly());
    let disk = Disk::new(peer.disk(), peer, Limits::default(), &ram);
    assert!(!disk.device.can_log());
}
