//! Attempts to save that are given up one after the other while the back-end is slow.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{HANG, LOW, TestRam};
use super::moving::{BEGIN, PATIENT, blob, save, share, suspended, with_state};
use super::peer::{Reaction, Script, Seen};
use super::preparing::{prepare, told, unprepare};
use super::ring::Ring;
use super::suspend::{Outcome, outcome, resume};
use crate::vhost_user::{Cause, Limits};

/// More than there is room for.
const ATTEMPTS: usize = 8;

const UNHURRIED: Limits = Limits {
    connect: HANG,
    request: HANG,
    dead: HANG,
};

/// Where a back-end stands still.
struct Gate {
    reached: Receiver<()>,
    open: Sender<()>,
}

/// A back-end that stands still at its `n`th `request`, beginning with 1, until the gate is opened.
fn gated(request: FrontendReq, n: usize) -> (Script, Gate) {
    let (open, opened) = channel();
    let (reach, reached) = channel();
    let mut count = 0;
    let script = Box::new(move |seen: &Seen| {
        count += usize::from(seen.is(request));
        if seen.is(request) && count == n {
            reach.send(()).unwrap();
            // A test that has failed does not open it.
            let _ = opened.recv();
        }
        Reaction::Honest
    });
    (script, Gate { reached, open })
}

fn was_given_up(of: &Outcome) {
    let error = outcome(of).unwrap_err();
    assert!(matches!(*error.cause, Cause::GivenUp), "{:?}", error.cause);
}

#[test]
fn a_back_end_is_not_left_prepared() {
    let ram = TestRam::new();
    // The activation tells the features first.
    let (script, gate) = gated(FrontendReq::SET_FEATURES, 3);
    let share = share(with_state(blob(9), script).script, UNHURRIED, &ram);
    share.activate(&[&Ring::new(&ram, 0, LOW)]);
    let begun = prepare(&share.device);
    // The worker has this one in hand, so that the others wait.
    gate.reached.recv_timeout(HANG).unwrap();
    let mut last = unprepare(&share.device);
    for _ in 0..ATTEMPTS {
        for order in [prepare, unprepare] {
            let next = order(&share.device);
            was_given_up(&last);
            last = next;
        }
    }
    gate.open.send(()).unwrap();
    outcome(&begun).unwrap();
    outcome(&last).unwrap();
    assert_eq!(told(&share), ["clear", "set", "clear"]);
    // And the last word may be the other one.
    outcome(&prepare(&share.device)).unwrap();
    assert_eq!(told(&share), ["clear", "set"]);
    share.is_well();
}

#[test]
fn saves_of_a_guest_that_stands_still_leave_room_for_another() {
    let ram = TestRam::new();
    let state = blob(9);
    let (script, gate) = gated(BEGIN, 1);
    let share = suspended(with_state(state.clone(), script).script, UNHURRIED, &ram);
    let begun = share.device.begin_save(&PATIENT);
    gate.reached.recv_timeout(HANG).unwrap();
    for _ in 0..ATTEMPTS {
        drop(share.device.begin_save(&PATIENT));
    }
    thread::scope(|scope| {
        let last = scope.spawn(|| save(&share.device, &PATIENT));
        gate.open.send(()).unwrap();
        assert!(last.join().unwrap().unwrap() == state);
    });
    drop(begun);
    outcome(&resume(&share.device)).unwrap();
    share.is_well();
}
