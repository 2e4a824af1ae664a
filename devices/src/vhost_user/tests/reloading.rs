//! Loading once more over the same connection, after a load that failed or led to nothing.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use super::harness::{HANG, HIGH, LOW, TestRam, failure};
use super::loading::is_refused;
use super::moving::{
    BEGIN, CHECK, Counting, IMPATIENT, PATIENT, SHORT, begin_answer, blob, check_answer, load,
    moved_by, share, with_state,
};
use super::peer::{Reaction, Script, nth, once};
use super::restoring::{of_a_session, restore};
use super::ring::Ring;
use super::setting_up::set_up;
use super::suspend::{Disk, RESTART, outcome, resume, suspend};
use crate::chain;
use crate::vhost_user::{DeviceState, Limits, StateLimits};
use crate::virtio::VirtioDevice;

const MIB: usize = 1 << 20;

fn restored<'a>(script: Script, limits: Limits, ram: &'a TestRam) -> (Disk, Ring<'a>) {
    let share = share(script, limits, ram);
    let ring = Ring::new(ram, 0, LOW);
    outcome(&restore(&share, &[&ring], &of_a_session(&share))).unwrap();
    share.codes();
    (share, ring)
}

/// The device is idle after a reset, and another guest, in other RAM, goes on behind it. What the reset asks of the back-end is
/// `asked`.
fn takes_another(share: &Disk, asked: &[&str]) {
    assert_eq!(share.device.state(), DeviceState::Changing);
    takes_another_from_anywhere(share, asked);
}

fn takes_another_from_anywhere(share: &Disk, asked: &[&str]) {
    share.codes();
    share.reset();
    assert_eq!(share.codes(), asked);
    assert_eq!(share.device.state(), DeviceState::Idle);
    assert_eq!(share.device.accepted_features(), None);
    let other = TestRam::new();
    share.device.set_ram(Arc::clone(&other.regions));
    let ring = Ring::new(&other, 0, HIGH);
    outcome(&restore(share, &[&ring], &of_a_session(share))).unwrap();
    assert_eq!(share.codes(), ["SET_FEATURES", "SET_MEM_TABLE"]);
    load(&share.device, &PATIENT, &blob(MIB)).unwrap();
    assert_eq!(share.codes(), ["SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE"]);
    outcome(&resume(&share.device)).unwrap();
    assert_eq!(share.codes(), RESTART);
    assert_eq!(share.device.state(), DeviceState::Active);
    outcome(&suspend(&share.device)).unwrap();
    share.device.rest().unwrap();
    share.is_well();
}

#[test]
fn a_load_that_fails_can_be_repeated() {
    let most = StateLimits {
        most: MIB as u64,
        ..PATIENT
    };
    let refuses = |request, answer| once(request, Reaction::Send(answer, 0));
    let cases = [
        (
            refuses(BEGIN, begin_answer(0x101)),
            PATIENT,
            &["RESET_DEVICE"][..],
        ),
        (refuses(CHECK, check_answer(1)), PATIENT, &["RESET_DEVICE"]),
        // Nobody has asked how it went.
        (
            once(CHECK, Reaction::Honest),
            most,
            &["CHECK_DEVICE_STATE", "RESET_DEVICE"],
        ),
    ];
    for (exception, limits, asked) in cases {
        let ram = TestRam::new();
        let script = with_state(Vec::new(), exception).script;
        let (share, _ring) = restored(script, Limits::default(), &ram);
        load(&share.device, &limits, &blob(2 * MIB)).unwrap_err();
        takes_another(&share, asked);
    }
}

#[test]
fn a_load_that_is_given_up_can_be_repeated() {
    for written in [0, 1, MIB] {
        let ram = TestRam::new();
        let script = with_state(Vec::new(), once(CHECK, Reaction::Send(check_answer(1), 0)));
        let (share, _ring) = restored(script.script, Limits::default(), &ram);
        let mut loading = share.device.begin_load(&PATIENT);
        loading.write(&blob(written), &Counting::default()).unwrap();
        drop(loading);
        share.device.reset();
        super::harness::next(&share.events);
        share.codes();
        takes_another_from_anywhere(&share, &[]);
    }
}

#[test]
fn a_guest_that_was_loaded_and_never_started_leaves_room_for_another() {
    for sets_up in [false, true] {
        let ram = TestRam::new();
        let script = with_state(Vec::new(), once(CHECK, Reaction::Honest)).script;
        let (share, ring) = restored(script, Limits::default(), &ram);
        load(&share.device, &PATIENT, &blob(9)).unwrap();
        if sets_up {
            outcome(&set_up(&share.device)).unwrap();
        }
        assert_eq!(share.device.state(), DeviceState::Suspended);
        takes_another_from_anywhere(&share, &["RESET_DEVICE"]);
        assert!(ring.queue.kick.read().is_err());
    }
}

/// Without a reset in between, it is the same guest that is loaded again.
#[test]
fn a_load_that_fails_can_be_followed_by_another_at_once() {
    let ram = TestRam::new();
    let refusal = once(CHECK, Reaction::Send(check_answer(1), 0));
    let script = with_state(Vec::new(), refusal).script;
    let (share, _ring) = restored(script, Limits::default(), &ram);
    load(&share.device, &PATIENT, &blob(9)).unwrap_err();
    load(&share.device, &PATIENT, &blob(9)).unwrap();
    outcome(&resume(&share.device)).unwrap();
    assert_eq!(share.device.state(), DeviceState::Active);
    share.is_well();
}

/// A ring of a guest that is gone lies where the next one has no RAM.
#[test]
fn former_rings_are_parked_before_other_ram_is_told() {
    let ram = TestRam::new();
    let disk = Disk::honest(&ram);
    let (low, high) = (Ring::new(&ram, 0, LOW), Ring::new(&ram, 1, HIGH));
    disk.activate(&[&low, &high]);
    disk.reset();
    let other = TestRam::new();
    disk.device.set_ram(Arc::from(&other.regions[..1]));
    disk.codes();
    let low = Ring::new(&other, 0, LOW);
    for round in 0..2 {
        disk.post_activation(&[&low]);
        super::harness::next(&disk.events);
        let seen: Vec<_> = disk.peer.seen.try_iter().collect();
        let codes: Vec<_> = seen.iter().map(|seen| seen.code.to_string()).collect();
        if round == 1 {
            assert_eq!(codes[..2], ["SET_FEATURES", "SET_VRING_NUM"]);
            break;
        }
        let parks = ["SET_VRING_NUM", "SET_VRING_ADDR", "SET_MEM_TABLE"];
        assert_eq!(codes[1..4], parks);
        assert_eq!(seen[1].payload, [1u32, 16].map(u32::to_ne_bytes).concat());
        let place = crate::vhost_user::memory::token(vm_memory::GuestAddress(LOW));
        let expected = [place; 3].map(u64::to_ne_bytes).concat();
        assert_eq!(seen[2].payload[8..32], expected);
        disk.reset();
        disk.codes();
    }
    disk.is_well();
}

/// Only what nobody resets is lost.
#[test]
fn what_is_not_reset_is_not_started() {
    let ram = TestRam::new();
    let refusal = once(CHECK, Reaction::Send(check_answer(1), 0));
    let script = with_state(Vec::new(), refusal).script;
    let (share, _ring) = restored(script, Limits::default(), &ram);
    load(&share.device, &PATIENT, &blob(9)).unwrap_err();
    is_refused(&share, "its own log has the reason");
}

/// The back-end stands still in the midst of a load, and at its answers, until well after that was given up.
#[test]
fn a_back_end_that_hangs_and_wakes_takes_another() {
    let hangs = || {
        let mut first = true;
        let (waker, woken) = channel::<()>();
        let woken = Arc::new(std::sync::Mutex::new(Some(woken)));
        let load = move |mut end: File| {
            // Only the first one.
            let woken = woken.lock().unwrap().take();
            let _ = woken.map(|woken| woken.recv_timeout(HANG));
            let _ = end.read_to_end(&mut Vec::new());
        };
        let script: Script =
            Box::new(
                move |seen| match seen.is(CHECK) && std::mem::take(&mut first) {
                    true => {
                        thread::sleep(3 * SHORT);
                        let _ = waker.send(());
                        Reaction::Send(check_answer(1), 0)
                    }
                    false => Reaction::Honest,
                },
            );
        moved_by(|_| {}, load, script)
    };
    let late = |request| with_state(Vec::new(), once(request, Reaction::Late(3 * SHORT))).script;
    let settles = &["CHECK_DEVICE_STATE", "RESET_DEVICE"][..];
    let cases = [
        (hangs(), settles),
        (late(BEGIN), settles),
        // This one is owed already.
        (late(CHECK), &["RESET_DEVICE"]),
    ];
    for (script, asked) in cases {
        let ram = TestRam::new();
        let (share, _ring) = restored(script, Limits::default(), &ram);
        load(&share.device, &IMPATIENT, &blob(3 * MIB)).unwrap_err();
        takes_another(&share, asked);
    }
}

#[test]
fn a_back_end_that_never_wakes_is_dead() {
    for request in [BEGIN, CHECK] {
        let ram = TestRam::new();
        let limits = Limits {
            dead: 3 * SHORT,
            ..Limits::default()
        };
        let script = with_state(Vec::new(), once(request, Reaction::Silence)).script;
        let (share, _ring) = restored(script, limits, &ram);
        load(&share.device, &IMPATIENT, &blob(9)).unwrap_err();
        share.reset_fails("taken for dead");
    }
}

impl Disk {
    fn reset_fails(&self, reason: &str) {
        self.device.reset();
        let line = chain(&failure(&self.reports));
        assert!(line.contains(reason), "{line}");
        assert_eq!(self.device.state(), DeviceState::Failed);
        let told = self.events.recv_timeout(HANG).unwrap();
        assert_eq!(told, super::harness::Event::ResetDone);
    }
}

/// Fifty attempts, none of which leads to anything, and then one that does.
#[test]
fn attempts_do_not_wear_the_connection_out() {
    let ram = TestRam::new();
    let mut number = 0;
    let exception: Script = Box::new(move |seen| {
        number += usize::from(seen.is(CHECK));
        match seen.is(CHECK) && number <= 50 && number % 2 == 0 {
            true => Reaction::Send(check_answer(1), 0),
            false => Reaction::Honest,
        }
    });
    let share = share(
        with_state(Vec::new(), exception).script,
        Limits::default(),
        &ram,
    );
    for _ in 0..50 {
        let ring = Ring::new(&ram, 0, LOW);
        outcome(&restore(&share, &[&ring], &of_a_session(&share))).unwrap();
        if load(&share.device, &PATIENT, &blob(99)).is_ok() {
            outcome(&set_up(&share.device)).unwrap();
        }
        share.reset();
    }
    let ring = Ring::new(&ram, 0, LOW);
    outcome(&restore(&share, &[&ring], &of_a_session(&share))).unwrap();
    load(&share.device, &PATIENT, &blob(99)).unwrap();
    outcome(&resume(&share.device)).unwrap();
    share.is_well();
}

#[test]
fn a_device_goes_on_to_a_driver_of_its_own_after_a_load_that_failed() {
    let ram = TestRam::new();
    let refusal = nth(CHECK, 1, Reaction::Send(check_answer(1), 0));
    let script = with_state(Vec::new(), refusal).script;
    let (share, ring) = restored(script, Limits::default(), &ram);
    load(&share.device, &PATIENT, &blob(9)).unwrap_err();
    share.reset();
    share.activate(&[&ring]);
    assert_eq!(share.device.state(), DeviceState::Active);
    share.is_well();
}
