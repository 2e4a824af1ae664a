//! Back-ends that misbehave while their state is saved: the snapshot fails in bounded time with a reason that names the
//! device, nothing of it is left, the guest and its disk go on, and the next snapshot is good.

use std::time::{Duration, Instant};

use ferry_tests::backend::message::FrontendReq as Req;
use ferry_tests::backend::{Backend, Direction, Fault, Misbehaviour, When};
use ferry_tests::{Guest, Snapshot};

use crate::common::{
    Place, STATE, TICK, WRITTEN, because, busy, names, next_is_good, stateful, tiny,
};

/// Far more than any of these takes, and far less than for ever.
const BOUND: Duration = Duration::from_secs(20);
/// Longer than Ferry waits for an answer.
const LATE: Duration = Duration::from_secs(4);

/// The snapshot fails for one of these reasons, and leaves nothing.
fn fails(guest: &Guest, texts: &[&str]) {
    let place = Place::new();
    let begun = Instant::now();
    let reasons = because(
        guest.try_snapshot(&Snapshot::to(&place.at("1"))),
        &["disk0"],
    );
    assert!(
        texts.iter().any(|text| reasons.contains(text)),
        "none of {texts:?} in: {reasons}"
    );
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    assert!(!place.at("1").exists(), "{:?}", names(&place.at("1")));
    assert_eq!(guest.state(), "Running");
}

fn fails_once(backend: Backend, texts: &[&str]) {
    let disk = backend.start();
    let guest = busy(&disk);
    fails(&guest, texts);
    next_is_good(guest, &disk, WRITTEN);
}

fn with(fault: Fault) -> Backend {
    stateful().in_transfer(Direction::Save, 1, fault)
}

fn at(request: Req, then: Misbehaviour) -> Backend {
    stateful().on(When::Nth(request, 1), then)
}

#[test]
fn a_descriptor_of_the_back_ends_own_is_used() {
    let disk = with(Fault::ReturnFd).start();
    next_is_good(busy(&disk), &disk, WRITTEN);
    let disk = stateful().in_transfer(Direction::Load, 1, Fault::ReturnFd);
    let disk = disk.start();
    next_is_good(busy(&disk), &disk, WRITTEN);
}

#[test]
fn a_back_end_that_says_no() {
    fails_once(with(Fault::Refuse), &["refuse"]);
}

#[test]
fn a_hang_before_the_data() {
    fails_once(with(Fault::HangAt(0)), &["not a byte has moved"]);
}

#[test]
fn a_hang_during_the_data() {
    fails_once(
        with(Fault::HangAt(STATE.bytes / 2)),
        &["not a byte has moved"],
    );
}

#[test]
fn a_hang_after_the_data() {
    fails_once(with(Fault::HangAt(STATE.bytes)), &["not a byte has moved"]);
}

#[test]
fn data_that_ends_early() {
    fails_once(with(Fault::StopAt(1000)), &["says that it cannot"]);
}

#[test]
fn an_answer_that_comes_too_late() {
    fails_once(
        at(Req::SET_DEVICE_STATE_FD, Misbehaviour::Late(LATE)),
        &["has not answered"],
    );
}

#[test]
fn a_check_that_says_no() {
    fails_once(
        at(Req::CHECK_DEVICE_STATE, Misbehaviour::Number(1)),
        &["says that it cannot"],
    );
}

#[test]
fn a_check_that_comes_too_late() {
    fails_once(
        at(Req::CHECK_DEVICE_STATE, Misbehaviour::Late(LATE)),
        &["has not answered"],
    );
}

#[test]
fn a_state_that_is_larger_than_allowed() {
    let disk = stateful().start();
    let guest = busy(&disk);
    let place = Place::new();
    let most = STATE.bytes - 1;
    let snapshot = Snapshot::to(&place.at("1")).state_most(most);
    because(guest.try_snapshot(&snapshot), &["disk0", &most.to_string()]);
    assert!(!place.at("1").exists());
    let snapshot = Snapshot::to(&place.at("1")).state_most(STATE.bytes);
    guest.snapshot(&snapshot);
    next_is_good(guest, &disk, WRITTEN);
}

/// Slow, but never silent for long.
#[test]
fn a_state_that_trickles_is_taken() {
    let disk = with(Fault::Trickle(Duration::from_millis(100))).start();
    next_is_good(busy(&disk), &disk, WRITTEN);
}

/// What a back-end must not do at all: its device has failed, and the guest goes on without it.
fn breaks_the_device(backend: Backend, texts: &[&str]) {
    let disk = backend.start();
    let cmdline = "mode=blk-writer+ticks op=write count=60000 report=50 patience=60000 ticks=1000000 period=10";
    let mut guest = tiny(cmdline).with_disk(&disk).start();
    guest.wait_for(WRITTEN);
    fails(&guest, texts);
    guest.goes_on(TICK);
    // It cannot be saved any more, and Ferry says why.
    fails(&guest, &["disk0"]);
    guest.goes_on(TICK);
}

#[test]
fn an_error_with_a_descriptor() {
    breaks_the_device(with(Fault::RefuseWithFd), &["descriptor"]);
}

#[test]
fn no_descriptor_where_one_is_due() {
    breaks_the_device(with(Fault::NoFd), &["descriptor"]);
}

#[test]
fn a_descriptor_that_was_not_announced() {
    breaks_the_device(with(Fault::UnannouncedFd), &["descriptor"]);
}

#[test]
fn two_descriptors() {
    breaks_the_device(with(Fault::TwoFds), &["descriptor"]);
}

#[test]
fn a_back_end_that_dies_at_any_step() {
    let close = Misbehaviour::Close;
    for backend in [
        at(Req::GET_VRING_BASE, close),
        at(Req::SET_DEVICE_STATE_FD, close),
        with(Fault::DieAt(0)),
        with(Fault::DieAt(STATE.bytes / 2)),
        with(Fault::DieAt(STATE.bytes)),
        at(Req::CHECK_DEVICE_STATE, close),
    ] {
        breaks_the_device(backend, &["closed", "connection", "reset", "gone"]);
    }
}

/// LOG_ALL is cleared, then set for each attempt, and cleared afterwards.
#[test]
fn back_ends_are_told_of_a_snapshot_ahead_of_it() {
    use ferry_tests::backend::feature::LOG_ALL;

    let disk = stateful()
        .in_transfer(Direction::Save, 1, Fault::Refuse)
        .start();
    let mut guest = busy(&disk);
    let place = Place::new();
    for attempt in ["1", "2", "3"] {
        let before = disk.accepted_so_far().len();
        let prepared = Snapshot::to(&place.at(attempt)).prepare(Duration::from_millis(50));
        assert_eq!(guest.try_snapshot(&prepared).is_ok(), attempt != "1");
        guest.goes_on(WRITTEN);
        let toggles: Vec<bool> = disk.accepted_so_far()[before..]
            .iter()
            .map(|features| features & LOG_ALL != 0)
            .collect();
        assert_eq!(toggles.first(), Some(&false), "{toggles:?}");
        assert_eq!(toggles.last(), Some(&false), "{toggles:?}");
        assert_eq!(toggles.iter().filter(|on| **on).count(), 1, "{toggles:?}");
    }
    assert_eq!(disk.complaints(), Vec::<String>::new());
}
