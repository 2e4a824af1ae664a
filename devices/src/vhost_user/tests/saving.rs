//! Saving the state inside a back-end.

use std::fs::File;
use std::io::{Write, pipe};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::harness::{HANG, LOW, TestRam, eventually};
use super::moving::{
    BEGIN, CHECK, Counting, IMPATIENT, PATIENT, SHORT, begin_answer, blob, check_answer, end,
    honestly, moved_by, save, share, suspended, with_state,
};
use super::peer::{Reaction, Script, once};
use super::ring::Ring;
use super::suspend::{Disk, outcome, resume, suspend};
use crate::chain;
use crate::vhost_user::{
    Cause, DeviceState, LEAST_MOVED, Limits, StateCause, StateError, StateLimits, StateStep,
    TransferError,
};

const MIB: usize = 1 << 20;

/// The device goes on, and its state can be saved then.
fn recovers(share: &Disk, state: &[u8]) {
    assert_eq!(share.device.state(), DeviceState::Suspended);
    outcome(&resume(&share.device)).unwrap();
    assert_eq!(share.device.state(), DeviceState::Active);
    outcome(&suspend(&share.device)).unwrap();
    assert!(save(&share.device, &PATIENT).unwrap() == state);
    outcome(&resume(&share.device)).unwrap();
    share.is_well();
}

fn of_back_end<T>(result: Result<T, StateError>) -> TransferError {
    match result {
        Err(StateError::BackEnd(error)) => error,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it succeeded"),
    }
}

/// A save with these limits fails at this step, and the next one succeeds. Returns what is said about it.
fn fails_once(script: Script, limits: &StateLimits, step: StateStep) -> String {
    let ram = TestRam::new();
    let state = blob(3 * MIB + 5);
    let share = suspended(
        with_state(state.clone(), script).script,
        Limits::default(),
        &ram,
    );
    let error = of_back_end(save(&share.device, limits));
    assert_eq!((error.step, error.device.as_str()), (step, "fs0"));
    recovers(&share, &state);
    chain(&error)
}

#[test]
fn states_of_any_size_are_saved_again_and_again() {
    for size in [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3] {
        let ram = TestRam::new();
        let state = blob(size);
        let stateful = with_state(state.clone(), honestly());
        let share = suspended(stateful.script, Limits::default(), &ram);
        assert!(share.device.carries_state());
        for _ in 0..2 {
            assert!(save(&share.device, &PATIENT).unwrap() == state, "{size}");
            assert_eq!(share.device.state(), DeviceState::Suspended);
            let moved = ["SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE"];
            assert_eq!(share.codes(), moved);
            outcome(&resume(&share.device)).unwrap();
            outcome(&suspend(&share.device)).unwrap();
            share.codes();
        }
        share.is_well();
    }
}

#[test]
fn whoever_takes_the_state_gets_pieces_that_are_not_small() {
    let ram = TestRam::new();
    let dribble = |mut end: File| {
        for byte in blob(3000) {
            end.write_all(&[byte]).unwrap();
        }
    };
    let script = moved_by(dribble, |_| {}, honestly());
    let share = suspended(script, Limits::default(), &ram);
    let mut pieces = Vec::new();
    let transfer = share.device.begin_save(&PATIENT);
    let count = transfer.read(
        &mut |data| {
            pieces.push(data.to_vec());
            Ok::<_, std::io::Error>(())
        },
        &Counting::default(),
    );
    assert_eq!(count.unwrap(), 3000);
    assert_eq!(pieces, [blob(3000)]);
}

/// What a back-end may return in place of its end of the pipe, and where it writes the state.
fn returned_pipe() -> [OwnedFd; 2] {
    let (reader, writer) = pipe().unwrap();
    [reader.into(), writer.into()]
}

fn returned_socket() -> [OwnedFd; 2] {
    let (near, far) = UnixStream::pair().unwrap();
    [near.into(), far.into()]
}

fn memory_file(contents: &[u8]) -> OwnedFd {
    // SAFETY: the name is a C string.
    let raw = unsafe { libc::memfd_create(c"state".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(raw >= 0);
    // SAFETY: the descriptor is new and belongs to nobody else.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(raw) });
    file.write_all(contents).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file.into()
}

#[test]
fn a_descriptor_that_the_back_end_returns_is_used() {
    for make in [returned_pipe as fn() -> [OwnedFd; 2], returned_socket] {
        let ram = TestRam::new();
        let state = blob(3 * MIB + 1);
        let source = state.clone();
        let script: Script = Box::new(move |seen| {
            if !seen.is(BEGIN) {
                return Reaction::Honest;
            }
            // Garbage in the pipe that is not to be used.
            let _ = end(seen).write_all(b"garbage");
            let [theirs, ours] = make();
            let source = source.clone();
            thread::spawn(move || File::from(ours).write_all(&source));
            Reaction::SendFds(begin_answer(0), vec![theirs])
        });
        let share = suspended(script, Limits::default(), &ram);
        assert!(save(&share.device, &PATIENT).unwrap() == state);
        recovers(&share, &state);
    }
}

#[test]
fn a_file_in_memory_that_the_back_end_returns_is_used() {
    let ram = TestRam::new();
    let state = blob(MIB + 77);
    let source = state.clone();
    let script: Script = Box::new(move |seen| match seen.is(BEGIN) {
        true => Reaction::SendFds(begin_answer(0), vec![memory_file(&source)]),
        false => Reaction::Honest,
    });
    let share = suspended(script, Limits::default(), &ram);
    assert!(save(&share.device, &PATIENT).unwrap() == state);
    recovers(&share, &state);
}

#[test]
fn a_refusal_is_passed_on() {
    for answer in [0x101, 0x1ff, 0x01] {
        let script = once(BEGIN, Reaction::Send(begin_answer(answer), 0));
        let line = fails_once(script, &PATIENT, StateStep::Begin);
        assert!(line.contains("its own log has the reason"), "{line}");
    }
}

#[test]
fn a_check_that_fails_makes_the_state_worthless() {
    for answer in [1, 1 << 63] {
        let script = once(CHECK, Reaction::Send(check_answer(answer), 0));
        let line = fails_once(script, &PATIENT, StateStep::Check);
        assert!(line.contains("its own log has the reason"), "{line}");
    }
}

#[test]
fn answers_that_come_too_late_disturb_nobody() {
    let late = || SHORT * 2;
    let script = once(
        BEGIN,
        Reaction::SendLate(late(), begin_answer(0x100), vec![]),
    );
    let line = fails_once(script, &IMPATIENT, StateStep::Begin);
    assert!(
        line.contains("has not answered SET_DEVICE_STATE_FD"),
        "{line}"
    );
    let script = once(CHECK, Reaction::Late(late()));
    let line = fails_once(script, &IMPATIENT, StateStep::Check);
    assert!(
        line.contains("has not answered CHECK_DEVICE_STATE"),
        "{line}"
    );
}

#[test]
fn a_descriptor_that_comes_too_late_is_closed() {
    let (reader, mut writer) = pipe().unwrap();
    let returned = vec![reader.into()];
    let answer = Reaction::SendLate(SHORT * 2, begin_answer(0), returned);
    let line = fails_once(once(BEGIN, answer), &IMPATIENT, StateStep::Begin);
    assert!(line.contains("has not answered"), "{line}");
    eventually("nobody can read it", || (&writer).write_all(b"x").is_err());
    writer.flush().unwrap();
}

/// A back-end that hangs once, when it has written `written` bytes.
fn hangs_after(written: usize, state: &[u8]) -> Script {
    let state = state.to_vec();
    let hung = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    moved_by(
        move |mut end| {
            if hung.swap(true, Ordering::Relaxed) {
                end.write_all(&state).unwrap();
                return;
            }
            end.write_all(&state[..written]).unwrap();
            // Until long after it has been given up.
            thread::sleep(SHORT * 3);
        },
        |_| {},
        honestly(),
    )
}

#[test]
fn a_back_end_that_hangs_is_given_up() {
    let state = blob(2 * MIB);
    for written in [0, 1, MIB + 9, 2 * MIB] {
        let ram = TestRam::new();
        let share = suspended(hangs_after(written, &state), Limits::default(), &ram);
        let error = of_back_end(save(&share.device, &IMPATIENT));
        assert_eq!(error.step, StateStep::Read);
        match &*error.cause {
            StateCause::Silent { waited, after } => {
                assert!(*waited >= SHORT);
                assert_eq!(*after, written as u64);
            }
            other => panic!("{other:?}"),
        }
        recovers(&share, &state);
    }
}

/// A back-end that writes its state in `pieces`, with pauses that are short for what is allowed.
fn dribbles(pieces: Vec<Vec<u8>>) -> Script {
    let slow = move |mut end: File| {
        for piece in &pieces {
            thread::sleep(SHORT / 5);
            if end.write_all(piece).is_err() {
                return;
            }
        }
    };
    moved_by(slow, |_| {}, honestly())
}

#[test]
fn slow_is_not_silent() {
    let ram = TestRam::new();
    let state = blob(8 * LEAST_MOVED as usize);
    let pieces = state.chunks(LEAST_MOVED as usize).map(<[u8]>::to_vec);
    let script = dribbles(pieces.collect());
    let share = suspended(script, Limits::default(), &ram);
    assert!(save(&share.device, &IMPATIENT).unwrap() == state);
}

#[test]
fn a_byte_now_and_then_does_not_hold_the_guest() {
    let ram = TestRam::new();
    // Would go on for minutes.
    let pieces = std::iter::once(blob(MIB)).chain(std::iter::repeat_n(vec![1], 1000));
    let share = suspended(dribbles(pieces.collect()), Limits::default(), &ram);
    let error = of_back_end(save(&share.device, &IMPATIENT));
    assert_eq!(error.step, StateStep::Read);
    match &*error.cause {
        StateCause::Slow {
            waited,
            moved,
            after,
        } => {
            assert!(*waited >= SHORT);
            assert!(*moved < LEAST_MOVED);
            assert!(*after >= MIB as u64 - LEAST_MOVED);
        }
        other => panic!("{other:?}"),
    }
    let line = chain(&error);
    assert!(line.contains("only ") && line.contains("65536"), "{line}");
    assert_eq!(share.device.state(), DeviceState::Suspended);
    outcome(&resume(&share.device)).unwrap();
    share.is_well();
}

#[test]
fn a_state_may_be_as_large_as_allowed_and_no_larger() {
    for (most, fine) in [(2 * MIB, true), (2 * MIB - 1, false), (0, false)] {
        let ram = TestRam::new();
        let state = blob(2 * MIB);
        let stateful = with_state(state.clone(), honestly());
        let share = suspended(stateful.script, Limits::default(), &ram);
        let most = most as u64;
        let limits = StateLimits { most, ..PATIENT };
        let result = save(&share.device, &limits);
        match fine {
            true => assert!(result.unwrap() == state),
            false => {
                let error = of_back_end(result);
                assert!(matches!(*error.cause, StateCause::TooMuch { most: of } if of == most));
            }
        }
        recovers(&share, &state);
    }
}

/// Cancels while the back-end stands at some point, and sees that nobody waits for it.
fn is_cancelled(script: Script, state: &[u8]) {
    let ram = TestRam::new();
    let share = suspended(script, Limits::default(), &ram);
    let watch = Counting::default();
    thread::scope(|scope| {
        let transfer = share.device.begin_save(&PATIENT);
        let saving = scope.spawn(|| transfer.read(&mut |_| Ok::<_, std::io::Error>(()), &watch));
        thread::sleep(Duration::from_millis(100));
        assert!(!saving.is_finished());
        watch.cancel.store(true, Ordering::Relaxed);
        assert!(matches!(saving.join().unwrap(), Err(StateError::Cancelled)));
    });
    recovers(&share, state);
}

#[test]
fn a_save_is_cancelled_wherever_it_waits() {
    let state = blob(2 * MIB);
    is_cancelled(hangs_after(0, &state), &state);
    is_cancelled(hangs_after(MIB, &state), &state);
    for request in [BEGIN, CHECK] {
        let late = once(request, Reaction::Late(Duration::from_secs(1)));
        is_cancelled(with_state(state.clone(), late).script, &state);
    }
}

#[test]
fn an_error_of_whoever_takes_the_state_is_passed_on() {
    let ram = TestRam::new();
    let state = blob(3 * MIB);
    let stateful = with_state(state.clone(), honestly());
    let share = suspended(stateful.script, Limits::default(), &ram);
    let transfer = share.device.begin_save(&PATIENT);
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = transfer.read(&mut |_| Err(full()), &Counting::default());
    match error {
        Err(StateError::Sink(error)) => assert_eq!(error.kind(), std::io::ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
    assert_eq!(share.codes(), ["SET_DEVICE_STATE_FD"], "no check");
    recovers(&share, &state);
}

#[test]
fn a_save_that_nobody_reads_is_given_up() {
    let ram = TestRam::new();
    let state = blob(3 * MIB);
    let stateful = with_state(state.clone(), honestly());
    let share = suspended(stateful.script, Limits::default(), &ram);
    for _ in 0..10 {
        drop(share.device.begin_save(&PATIENT));
    }
    recovers(&share, &state);
}

/// What a back-end is still busy with has to come to its end before it is asked for anything new.
#[test]
fn a_save_that_was_given_up_is_settled_before_the_next_one() {
    let ram = TestRam::new();
    let stateful = with_state(blob(3 * MIB), honestly());
    let share = suspended(stateful.script, Limits::default(), &ram);
    let give_up = || {
        let transfer = share.device.begin_save(&PATIENT);
        let nobody = |_: &[u8]| Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        transfer
            .read(&mut { nobody }, &Counting::default())
            .unwrap_err();
        assert_eq!(share.codes(), ["SET_DEVICE_STATE_FD"], "not yet");
    };
    give_up();
    save(&share.device, &PATIENT).unwrap();
    let (begin, check) = ("SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE");
    assert_eq!(share.codes(), [check, begin, check]);
    give_up();
    outcome(&resume(&share.device)).unwrap();
    assert!(!share.codes().contains(&check.into()), "the guest goes on");
    let (sender, receiver) = std::sync::mpsc::channel();
    let tell = move |outcome| sender.send(outcome).unwrap();
    share.device.prepare_save(tell);
    outcome(&receiver).unwrap();
    assert_eq!(share.codes(), [check, "SET_FEATURES", "SET_FEATURES"]);
    outcome(&suspend(&share.device)).unwrap();
    save(&share.device, &PATIENT).unwrap();
    share.is_well();
}

#[test]
fn the_owner_who_lets_the_device_go_on_ends_a_save() {
    let ram = TestRam::new();
    let state = blob(3 * MIB);
    let stateful = with_state(state.clone(), honestly());
    let share = suspended(stateful.script, Limits::default(), &ram);
    let mut resumed = None;
    let result = share.device.begin_save(&PATIENT).read(
        &mut |_| {
            resumed.get_or_insert_with(|| outcome(&resume(&share.device)).unwrap());
            Ok::<_, std::io::Error>(())
        },
        &Counting::default(),
    );
    let Err(StateError::BackEnd(error)) = result else {
        panic!("{result:?}");
    };
    assert_eq!(error.step, StateStep::Check);
    match &*error.cause {
        StateCause::Device(cause) => assert!(matches!(**cause, Cause::GivenUp), "{cause:?}"),
        other => panic!("{other:?}"),
    }
    assert!(!share.codes().contains(&"CHECK_DEVICE_STATE".into()));
    outcome(&suspend(&share.device)).unwrap();
    recovers(&share, &state);
}

#[test]
fn what_is_not_suspended_cannot_be_saved() {
    let ram = TestRam::new();
    let state = blob(7);
    let stateful = with_state(state.clone(), honestly());
    let share = share(stateful.script, Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    let refused = || {
        let error = of_back_end(save(&share.device, &PATIENT));
        assert!(chain(&error).contains("not suspended"), "{}", chain(&error));
    };
    assert!(!share.device.carries_state());
    refused();
    share.activate(&[&ring]);
    assert!(share.device.carries_state());
    refused();
    outcome(&suspend(&share.device)).unwrap();
    assert!(save(&share.device, &PATIENT).unwrap() == state);
    share.reset();
    assert!(!share.device.carries_state());
    refused();
    share.is_well();
}

#[test]
fn a_back_end_without_device_state_is_not_asked() {
    let ram = TestRam::new();
    let disk = Disk::honest(&ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    outcome(&suspend(&disk.device)).unwrap();
    disk.codes();
    assert!(!disk.device.carries_state());
    let line = chain(&of_back_end(save(&disk.device, &PATIENT)));
    assert!(line.contains("does not offer DEVICE_STATE"), "{line}");
    assert_eq!(disk.codes(), Vec::<String>::new());
    outcome(&resume(&disk.device)).unwrap();
    disk.is_well();
}

#[test]
fn a_device_that_goes_away_ends_a_save() {
    let ram = TestRam::new();
    let state = blob(7);
    let silent = once(BEGIN, Reaction::Silence);
    let share = suspended(with_state(state, silent).script, Limits::default(), &ram);
    let transfer = share.device.begin_save(&PATIENT);
    drop(share.device);
    let result = transfer.read(&mut |_| Ok::<_, std::io::Error>(()), &Counting::default());
    let Err(StateError::BackEnd(error)) = result else {
        panic!("{result:?}");
    };
    assert!(chain(&error).contains("removed"), "{}", chain(&error));
    // And the time that this may take is that of nobody's patience.
    assert!(PATIENT.reply >= HANG);
}
