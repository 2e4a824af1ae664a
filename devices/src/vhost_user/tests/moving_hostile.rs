//! Back-ends that leave the protocol, or die, while their state is moved.

use std::fs::File;
use std::io::{Write, pipe};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::harness::{LOW, TestRam, eventually, failure};
use super::moving::{
    BEGIN, CHECK, PATIENT, begin_answer, blob, check_answer, load, moved_by, save, share,
    suspended, with_state,
};
use super::peer::{Reaction, Script, answer, once};
use super::restoring::{of_a_session, restore};
use super::ring::Ring;
use super::suspend::{Disk, outcome, resume};
use crate::chain;
use crate::vhost_user::{DeviceState, Limits, StateError, StateStep, TransferError};

const MIB: usize = 1 << 20;

enum Direction {
    Save,
    Load,
}

fn moved(share: &Disk, direction: &Direction) -> TransferError {
    let result = match direction {
        Direction::Save => save(&share.device, &PATIENT).map(drop),
        Direction::Load => load(&share.device, &PATIENT, &blob(3 * MIB)).map(drop),
    };
    match result {
        Err(StateError::BackEnd(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// A device that is to be saved, or to be loaded.
fn ready<'a>(script: Script, direction: &Direction, ram: &'a TestRam) -> (Disk, Option<Ring<'a>>) {
    match direction {
        Direction::Save => (suspended(script, Limits::default(), ram), None),
        Direction::Load => {
            let share = share(script, Limits::default(), ram);
            let ring = Ring::new(ram, 0, LOW);
            let state = of_a_session(&share);
            outcome(&restore(&share, &[&ring], &state)).unwrap();
            share.codes();
            (share, Some(ring))
        }
    }
}

/// The move fails, and the device for good, for this reason.
fn is_the_end(script: Script, direction: &Direction, reason: &str) -> TransferError {
    let ram = TestRam::new();
    let (share, _ring) = ready(script, direction, &ram);
    let error = moved(&share, direction);
    let line = chain(&failure(&share.reports));
    assert!(line.contains(reason), "{line}");
    eventually("it has failed", || {
        share.device.state() == DeviceState::Failed
    });
    outcome(&resume(&share.device)).unwrap();
    assert!(share.device.rest().is_err());
    let again = moved(&share, direction);
    assert_eq!(again.step, StateStep::Begin);
    assert!(
        share.codes().iter().all(|code| !code.contains("VRING")),
        "nothing is started"
    );
    error
}

/// An answer to SET_DEVICE_STATE_FD with these descriptors, of which nothing is kept.
fn violates(value: u64, count: usize, direction: &Direction, reason: &str) {
    let (reader, writer) = pipe().unwrap();
    let end = || match direction {
        Direction::Save => OwnedFd::from(reader.try_clone().unwrap()),
        Direction::Load => OwnedFd::from(writer.try_clone().unwrap()),
    };
    let returned = (0..count).map(|_| end()).collect();
    let answer = Reaction::SendFds(begin_answer(value), returned);
    let error = is_the_end(once(BEGIN, answer), direction, reason);
    assert_eq!(error.step, StateStep::Begin);
    assert!(chain(&error).contains(reason), "{}", chain(&error));
    match direction {
        Direction::Save => {
            drop(reader);
            eventually("nobody can read it", || (&writer).write_all(b"x").is_err());
        }
        Direction::Load => {
            drop(writer);
            eventually("nobody can write it", || {
                matches!(std::io::Read::read(&mut &reader, &mut [0]), Ok(0))
            });
        }
    }
}

#[test]
fn descriptors_that_do_not_go_with_the_answer() {
    for direction in [Direction::Save, Direction::Load] {
        violates(0x101, 1, &direction, "(an error) and returned");
        violates(0x001, 1, &direction, "(an error) and returned");
        violates(0x100, 1, &direction, "all the same");
        violates(0x000, 0, &direction, "did not return");
        violates(0x000, 2, &direction, "2 file descriptors");
        violates(0x100, 2, &direction, "2 file descriptors");
        violates(0x000, 9, &direction, "more than 8 file descriptors");
    }
}

#[test]
fn answers_of_the_wrong_shape() {
    for direction in [Direction::Save, Direction::Load] {
        let short = answer(BEGIN.into(), &[0; 4]);
        let script = once(BEGIN, Reaction::Send(short, 0));
        is_the_end(script, &direction, "4 bytes of payload");
        let script = once(BEGIN, Reaction::Send(check_answer(0), 0));
        is_the_end(script, &direction, "request CHECK_DEVICE_STATE");
        let long = answer(CHECK.into(), &[0; 16]);
        let script = once(CHECK, Reaction::Send(long, 0));
        let script = with_state(Vec::new(), script).script;
        is_the_end(script, &direction, "16 bytes of payload");
        let script = once(CHECK, Reaction::Send(check_answer(0), 1));
        let script = with_state(Vec::new(), script).script;
        is_the_end(script, &direction, "1 file descriptors");
    }
}

fn null(flags: i32) -> OwnedFd {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(flags);
    options.open("/dev/null").unwrap().into()
}

fn event() -> OwnedFd {
    // SAFETY: the call takes no pointers.
    let raw = unsafe { libc::eventfd(0, 0) };
    assert!(raw >= 0);
    // SAFETY: the descriptor is new and belongs to nobody else.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

#[test]
fn descriptors_that_cannot_be_used() {
    let (reader, writer) = pipe().unwrap();
    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    let file = || tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let read_only = File::open("/proc/self/stat").unwrap();
    let save = [
        (writer.into(), "cannot be read"),
        (null(libc::O_PATH), "cannot be read"),
        (null(0), "no pipe"),
        (event(), "no pipe"),
        (datagrams.into(), "no pipe"),
        (File::open("/").unwrap().into(), "no pipe"),
        (file().into(), "no pipe"),
    ];
    let load = [
        (reader.into(), "cannot be written"),
        (read_only.into(), "cannot be written"),
        (file().into(), "no pipe"),
    ];
    let attempt = |direction: Direction, fd: OwnedFd, reason: &str| {
        assert!(fd.as_raw_fd() >= 0);
        let answer = Reaction::SendFds(begin_answer(0), vec![fd]);
        is_the_end(once(BEGIN, answer), &direction, reason);
    };
    for (fd, reason) in save {
        attempt(Direction::Save, fd, reason);
    }
    for (fd, reason) in load {
        attempt(Direction::Load, fd, reason);
    }
}

#[test]
fn death_while_the_state_is_moved() {
    for direction in [Direction::Save, Direction::Load] {
        // Asked whether it is willing; asked how it went; and in between, which shows at the check.
        let error = is_the_end(once(BEGIN, Reaction::Close), &direction, "closed");
        assert_eq!(error.step, StateStep::Begin);
        let script = once(CHECK, Reaction::Close);
        let script = with_state(blob(MIB), script).script;
        let error = is_the_end(script, &direction, "closed");
        assert_eq!(error.step, StateStep::Check);
    }
    let half = |mut end: File| end.write_all(&blob(MIB / 2)).unwrap();
    let script = once(CHECK, Reaction::Close);
    let script = moved_by(half, drop, script);
    let error = is_the_end(script, &Direction::Save, "closed");
    assert_eq!(error.step, StateStep::Check);
}

/// One that does not answer is given up in the end, and until then its answer is waited for.
#[test]
fn a_back_end_that_never_answers_is_dead() {
    for request in [BEGIN, CHECK] {
        let ram = TestRam::new();
        let limits = Limits {
            dead: Duration::from_secs(2),
            ..Limits::default()
        };
        let script = with_state(blob(7), once(request, Reaction::Silence)).script;
        let share = suspended(script, limits, &ram);
        let error = save(&share.device, &super::moving::IMPATIENT).unwrap_err();
        assert!(matches!(error, StateError::BackEnd(_)));
        assert_eq!(share.device.state(), DeviceState::Suspended);
        let error = outcome(&resume(&share.device)).unwrap_err();
        assert!(
            chain(&error).contains("taken for dead"),
            "{}",
            chain(&error)
        );
        failure(&share.reports);
    }
}

#[test]
fn a_message_nobody_asked_for_while_state_is_read() {
    let unasked = Reaction::Extra(check_answer(0));
    let script = with_state(blob(MIB), once(BEGIN, unasked)).script;
    is_the_end(script, &Direction::Save, "nobody asked for");
}
