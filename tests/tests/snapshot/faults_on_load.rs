//! Back-ends that misbehave while they are given their state: the restore fails in bounded time, no ring is started, Ferry
//! serves on, and the same snapshot can be restored with a back-end that behaves.

use std::time::{Duration, Instant};

use ferry_tests::backend::message::FrontendReq as Req;
use ferry_tests::backend::{Backend, DeviceState, Direction, Fault, Misbehaviour, Running, When};
use ferry_tests::{Guest, Left, Restore};

use crate::common::{Place, STATE, WRITTEN, because, busy, heir, saved, stateful};

const BOUND: Duration = Duration::from_secs(20);
const LATE: Duration = Duration::from_secs(4);

/// A saved guest with a disk whose back-end has state.
struct Saved {
    place: Place,
    left: Left,
    disk: Running,
}

impl Saved {
    fn new() -> Self {
        let place = Place::new();
        let disk = stateful().start();
        let left = saved(busy(&disk), &place.at("1"));
        Saved { place, left, disk }
    }

    fn restore(&self, disk: &Running) -> Restore {
        Restore::from(&self.place.at("1")).device("disk0", disk)
    }

    fn ferry(&self) -> Guest {
        self.left
            .successor()
            .arg("--request-timeout")
            .arg("2")
            .arg("--connect-timeout")
            .arg("5")
            .start()
    }

    /// A back-end with the disk's contents, that is to be told how to misbehave.
    fn backend(&self) -> Backend {
        Backend::blk("0")
            .with_contents(self.disk.disk())
            .awaits_state(STATE)
    }

    /// The restore fails with this back-end, and succeeds with a good one.
    fn fails_once(&self, ferry: &mut Guest, backend: Backend, texts: &[&str]) {
        let disk = backend.start();
        let begun = Instant::now();
        let reasons = because(ferry.restore(&self.restore(&disk)), &["disk0"]);
        assert!(
            texts.iter().any(|text| reasons.contains(text)),
            "none of {texts:?} in: {reasons}"
        );
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        assert_eq!(disk.count(Req::SET_VRING_KICK), 0);
        self.can_be_restored(ferry);
    }

    fn can_be_restored(&self, ferry: &mut Guest) {
        let disk = heir(&self.disk);
        // What failed before may still be being cleaned up.
        let restore = self.restore(&disk);
        ferry.wait_until("a Ferry without a machine", |ferry| {
            ferry.api().get("vm.info").is_err().then_some(())
        });
        if let Err(reasons) = ferry.restore(&restore) {
            panic!("{}\n{}", reasons.join(": "), ferry.transcript());
        }
        ferry.goes_on(WRITTEN);
        assert_eq!(disk.complaints(), Vec::<String>::new());
        ferry.put("vm.delete");
    }
}

#[test]
fn back_ends_that_answer_wrongly() {
    let saved = Saved::new();
    let mut ferry = saved.ferry();
    for (fault, text) in [
        (Fault::Refuse, "refuse"),
        (Fault::RefuseWithFd, "descriptor"),
        (Fault::NoFd, "descriptor"),
        (Fault::UnannouncedFd, "descriptor"),
        (Fault::TwoFds, "descriptor"),
    ] {
        let backend = saved.backend().in_transfer(Direction::Load, 1, fault);
        saved.fails_once(&mut ferry, backend, &[text]);
    }
}

#[test]
fn back_ends_that_hang() {
    let saved = Saved::new();
    let mut ferry = saved.ferry();
    for at in [0, STATE.bytes / 4] {
        let backend = saved
            .backend()
            .in_transfer(Direction::Load, 1, Fault::HangAt(at));
        saved.fails_once(&mut ferry, backend, &["not a byte has moved"]);
    }
    for request in [Req::SET_DEVICE_STATE_FD, Req::CHECK_DEVICE_STATE] {
        let backend = saved
            .backend()
            .on(When::Nth(request, 1), Misbehaviour::Late(LATE));
        saved.fails_once(&mut ferry, backend, &["has not answered"]);
    }
}

#[test]
fn back_ends_that_die() {
    let saved = Saved::new();
    let mut ferry = saved.ferry();
    // A check that comes just before its end finds out as well.
    let causes = [
        "closed",
        "connection",
        "reset",
        "gone",
        "pipe",
        "says that it cannot",
    ];
    for at in [0, STATE.bytes / 2, STATE.bytes] {
        let backend = saved
            .backend()
            .in_transfer(Direction::Load, 1, Fault::DieAt(at));
        saved.fails_once(&mut ferry, backend, &causes);
    }
    for request in [
        Req::GET_FEATURES,
        Req::SET_FEATURES,
        Req::SET_MEM_TABLE,
        Req::SET_DEVICE_STATE_FD,
        Req::CHECK_DEVICE_STATE,
    ] {
        let backend = saved.backend().on(When::Each(request), Misbehaviour::Close);
        saved.fails_once(&mut ferry, backend, &causes);
    }
}

#[test]
fn back_ends_that_do_not_take_the_state() {
    let saved = Saved::new();
    let mut ferry = saved.ferry();
    let stops = saved
        .backend()
        .in_transfer(Direction::Load, 1, Fault::StopAt(1000));
    saved.fails_once(
        &mut ferry,
        stops,
        &["pipe", "says that it cannot", "closed"],
    );
    let refuses = saved
        .backend()
        .on(When::Each(Req::CHECK_DEVICE_STATE), Misbehaviour::Number(1));
    saved.fails_once(&mut ferry, refuses, &["says that it cannot"]);
    // It finds by itself that this is not its state.
    let other = DeviceState {
        bytes: STATE.bytes,
        seed: STATE.seed + 1,
    };
    let other = Backend::blk("0")
        .with_contents(saved.disk.disk())
        .awaits_state(other);
    saved.fails_once(
        &mut ferry,
        other,
        &["says that it cannot", "pipe", "closed"],
    );
}

#[test]
fn a_back_end_that_cannot_take_state_at_all() {
    let saved = Saved::new();
    let mut ferry = saved.ferry();
    let stateless = Backend::blk("0").with_contents(saved.disk.disk());
    saved.fails_once(&mut ferry, stateless, &["feature bit", "DEVICE_STATE"]);
}

#[test]
fn a_guest_whose_restore_failed_can_be_restored_by_another_ferry() {
    let saved = Saved::new();
    let refuses = saved
        .backend()
        .in_transfer(Direction::Load, 1, Fault::Refuse)
        .start();
    // From the command line, a failure is Ferry's end.
    let ended = saved.left.successor().restoring(&saved.restore(&refuses));
    let ended = ended.spawn().end();
    assert_eq!(ended.status, Some(1), "{}", ended.transcript());
    assert!(
        !ended.log_lines("disk0").is_empty(),
        "{}",
        ended.transcript()
    );
    saved.can_be_restored(&mut saved.ferry());
}
