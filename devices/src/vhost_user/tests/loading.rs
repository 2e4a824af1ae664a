//! Loading state into a back-end.

use std::io::pipe;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::harness::{HANG, LOW, TestRam, eventually, failure};
use super::moving::{
    BEGIN, CHECK, Counting, IMPATIENT, PATIENT, SHORT, begin_answer, blob, check_answer, honestly,
    load, moved_by, save, share, suspended, with_state,
};
use super::peer::{Reaction, Script, once};
use super::restoring::{of_a_session, restore};
use super::ring::Ring;
use super::suspend::{Disk, RESTART, outcome, resume, suspend};
use crate::chain;
use crate::vhost_user::{
    Cause, DeviceState, Limits, StateCause, StateError, StateLimits, StateStep,
};

const MIB: usize = 1 << 20;

/// A device that is being restored, and waits for its state.
fn waiting<'a>(script: Script, ram: &'a TestRam) -> (Disk, Ring<'a>) {
    let share = share(script, Limits::default(), ram);
    let ring = Ring::new(ram, 0, LOW);
    share.codes();
    outcome(&restore(&share, &[&ring], &of_a_session(&share))).unwrap();
    assert_eq!(share.device.state(), DeviceState::Changing);
    assert_eq!(share.codes(), ["SET_FEATURES", "SET_MEM_TABLE"]);
    (share, ring)
}

/// The device lives, and whoever lets it go on is refused for this reason, which is its end.
pub fn is_refused(share: &Disk, reason: &str) {
    eventually("it was told that the load has failed", || {
        share.device.state() == DeviceState::Changing
    });
    share.is_well();
    assert!(share.device.rest().is_err());
    let error = outcome(&resume(&share.device)).unwrap_err();
    assert!(matches!(*error.cause, Cause::NotLoaded { .. }));
    assert!(chain(&error).contains(reason), "{}", chain(&error));
    is_at_its_end(share, reason);
}

/// The device has failed for this reason, never to be started.
fn is_at_its_end(share: &Disk, reason: &str) {
    let line = chain(&failure(&share.reports));
    assert!(line.contains(reason), "{line}");
    eventually("it has failed", || {
        share.device.state() == DeviceState::Failed
    });
    outcome(&resume(&share.device)).unwrap();
    let codes = share.codes();
    assert!(
        !codes.iter().any(|code| code.contains("VRING")),
        "{codes:?}"
    );
    assert!(share.device.rest().is_err());
}

/// A load with these limits fails at this step, and the device cannot go on for this reason.
fn fails(script: Script, limits: &StateLimits, step: StateStep, reason: &str) {
    let ram = TestRam::new();
    let (share, _ring) = waiting(script, &ram);
    match load(&share.device, limits, &blob(3 * MIB)) {
        Err(StateError::BackEnd(error)) => {
            assert_eq!(error.step, step, "{}", chain(&error));
            assert!(chain(&error).contains(reason), "{}", chain(&error));
        }
        other => panic!("{other:?}"),
    }
    is_refused(&share, reason);
}

#[test]
fn states_of_any_size_are_loaded_and_the_device_goes_on() {
    for size in [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3] {
        let ram = TestRam::new();
        let state = blob(size);
        let stateful = with_state(state.clone(), honestly());
        let (share, ring) = waiting(stateful.script, &ram);
        assert_eq!(load(&share.device, &PATIENT, &state).unwrap(), size as u64);
        assert!(stateful.loaded.recv_timeout(HANG).unwrap() == state);
        assert_eq!(share.device.state(), DeviceState::Suspended);
        let moved = ["SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE"];
        assert_eq!(share.codes(), moved);
        // It can be saved before it has gone on.
        assert_eq!(share.device.rest().unwrap(), of_a_session(&share));
        assert!(save(&share.device, &PATIENT).unwrap() == state);
        share.codes();
        outcome(&resume(&share.device)).unwrap();
        assert_eq!(share.codes(), RESTART);
        assert_eq!(share.device.state(), DeviceState::Active);
        assert_eq!(ring.queue.kick.read().unwrap(), 1);
        assert_eq!(ring.queue.call.read().unwrap(), 1);
        outcome(&suspend(&share.device)).unwrap();
        assert!(save(&share.device, &PATIENT).unwrap() == state);
        share.is_well();
    }
}

#[test]
fn a_descriptor_that_the_back_end_returns_is_used() {
    let ram = TestRam::new();
    let (teller, loaded) = std::sync::mpsc::channel();
    let script: Script = Box::new(move |seen| {
        if !seen.is(BEGIN) {
            return Reaction::Honest;
        }
        let (mut reader, writer) = pipe().unwrap();
        let teller = teller.clone();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
            teller.send(bytes).unwrap();
        });
        Reaction::SendFds(begin_answer(0), vec![writer.into()])
    });
    let (share, _ring) = waiting(script, &ram);
    let state = blob(2 * MIB + 1);
    load(&share.device, &PATIENT, &state).unwrap();
    assert!(loaded.recv_timeout(HANG).unwrap() == state);
    share.is_well();
}

#[test]
fn a_refusal_is_the_end() {
    let refusal = Reaction::Send(begin_answer(0x101), 0);
    let reason = "its own log has the reason";
    fails(once(BEGIN, refusal), &PATIENT, StateStep::Begin, reason);
}

#[test]
fn a_check_that_fails_is_the_end() {
    let refusal = once(CHECK, Reaction::Send(check_answer(1), 0));
    let script = with_state(Vec::new(), refusal).script;
    let reason = "its own log has the reason";
    fails(script, &PATIENT, StateStep::Check, reason);
}

#[test]
fn silence_or_hardly_a_word_is_the_end_wherever_it_comes() {
    let reason = "has not answered SET_DEVICE_STATE_FD";
    let silent = once(BEGIN, Reaction::Silence);
    fails(silent, &IMPATIENT, StateStep::Begin, reason);

    // It keeps its end open, and does not read.
    let hangs = moved_by(
        |_| {},
        |end| {
            thread::sleep(HANG);
            drop(end);
        },
        honestly(),
    );
    let reason = "not a byte has moved";
    fails(hangs, &IMPATIENT, StateStep::Write, reason);

    // It reads a page now and then.
    let dribbles = moved_by(
        |_| {},
        |mut end| {
            while std::io::Read::read_exact(&mut end, &mut [0; 4096]).is_ok() {
                thread::sleep(SHORT / 5);
            }
        },
        honestly(),
    );
    let reason = "of waiting, after ";
    fails(dribbles, &IMPATIENT, StateStep::Write, reason);

    let reason = "has not answered CHECK_DEVICE_STATE";
    let script = with_state(Vec::new(), once(CHECK, Reaction::Silence)).script;
    fails(script, &IMPATIENT, StateStep::Check, reason);
}

#[test]
fn a_back_end_that_closes_its_end_is_an_error_and_no_signal() {
    let closes = moved_by(|_| {}, drop, honestly());
    fails(closes, &PATIENT, StateStep::Write, "Broken pipe");
}

#[test]
fn death_is_the_end_wherever_it_comes() {
    for (at, step) in [(BEGIN, StateStep::Begin), (CHECK, StateStep::Check)] {
        let ram = TestRam::new();
        let script = with_state(Vec::new(), once(at, Reaction::Close)).script;
        let (share, _ring) = waiting(script, &ram);
        match load(&share.device, &PATIENT, &blob(3 * MIB)) {
            Err(StateError::BackEnd(error)) => assert_eq!(error.step, step),
            other => panic!("{other:?}"),
        }
        is_at_its_end(&share, "closed the connection");
    }
}

#[test]
fn a_state_that_is_too_large_is_the_end() {
    let script = with_state(Vec::new(), honestly()).script;
    let limits = StateLimits {
        most: 2 * MIB as u64,
        ..PATIENT
    };
    let reason = "more than the 2097152 bytes";
    fails(script, &limits, StateStep::Write, reason);
}

#[test]
fn a_load_that_is_given_up_is_the_end() {
    for written in [0, 1, MIB] {
        let ram = TestRam::new();
        let script = with_state(Vec::new(), honestly()).script;
        let (share, _ring) = waiting(script, &ram);
        let mut loading = share.device.begin_load(&PATIENT);
        loading.write(&blob(written), &Counting::default()).unwrap();
        drop(loading);
        is_refused(&share, "given up before the end of the state");
    }
}

#[test]
fn a_load_is_cancelled_wherever_it_waits() {
    let stuck = || moved_by(|_| {}, |end| (thread::sleep(HANG), drop(end)).0, honestly());
    let late = |request| {
        let late = once(request, Reaction::Late(Duration::from_secs(1)));
        with_state(Vec::new(), late).script
    };
    for script in [late(BEGIN), stuck(), late(CHECK)] {
        let ram = TestRam::new();
        let (share, _ring) = waiting(script, &ram);
        let watch = Counting::default();
        thread::scope(|scope| {
            let mut loading = share.device.begin_load(&PATIENT);
            let watch = &watch;
            let loading = scope.spawn(move || {
                loading.write(&blob(3 * MIB), watch)?;
                loading.finish(watch)
            });
            thread::sleep(Duration::from_millis(200));
            assert!(!loading.is_finished());
            watch.cancel.store(true, Ordering::Relaxed);
            let result = loading.join().unwrap();
            assert!(matches!(result, Err(StateError::Cancelled)), "{result:?}");
        });
        is_refused(&share, "given up before the end of the state");
    }
}

#[test]
fn nothing_follows_what_has_failed() {
    let ram = TestRam::new();
    let refusal = Reaction::Send(begin_answer(0x101), 0);
    let (share, _ring) = waiting(once(BEGIN, refusal), &ram);
    let mut loading = share.device.begin_load(&PATIENT);
    for _ in 0..3 {
        let error = loading.write(b"x", &Counting::default());
        assert!(matches!(error, Err(StateError::BackEnd(_))), "{error:?}");
    }
    assert!(loading.finish(&Counting::default()).is_err());
    is_refused(&share, "its own log has the reason");
}

#[test]
fn a_device_without_its_state_is_not_started() {
    let ram = TestRam::new();
    let script = with_state(Vec::new(), honestly()).script;
    let (share, _ring) = waiting(script, &ram);
    assert!(share.device.rest().is_err());
    // There is nothing to stop.
    outcome(&suspend(&share.device)).unwrap();
    assert_eq!(share.device.state(), DeviceState::Changing);
    let error = outcome(&resume(&share.device)).unwrap_err();
    assert!(matches!(*error.cause, Cause::NotLoaded { .. }));
    is_at_its_end(&share, "was not restored");
}

#[test]
fn only_what_is_being_restored_can_be_loaded() {
    let ram = TestRam::new();
    let script = with_state(Vec::new(), honestly()).script;
    let share = suspended(script, Limits::default(), &ram);
    let mut loading = share.device.begin_load(&PATIENT);
    match loading.write(b"x", &Counting::default()) {
        Err(StateError::BackEnd(error)) => {
            assert_eq!(error.step, StateStep::Begin);
            assert!(matches!(*error.cause, StateCause::Device(_)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(share.codes(), Vec::<String>::new());
    // Nothing has happened to what it holds.
    drop(loading);
    outcome(&resume(&share.device)).unwrap();
    assert_eq!(share.device.state(), DeviceState::Active);
    share.is_well();
}
