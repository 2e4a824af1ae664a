//! The same connection for one attempt after the other, with real back-ends.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::harness::{HIGH, LOW, TestRam};
use super::moving::{Counting, PATIENT, load, save};
use super::moving_real::{Guest, daemon, shared_directory};
use super::ring::Ring;
use super::setting_up::set_up;
use super::storage_daemon::{
    READ, Running, Speed, StorageDaemon, places, read_sector, spec, start, submit, write_sector,
};
use super::suspend::{outcome, resume, suspend};
use super::virtiofsd::Share;
use crate::vhost_user::{DeviceState, Limits, RamRegion, StateError, StateStep, VhostUserStateV1};
use crate::virtio::{Activation, VirtioDevice};

/// A guest that stands still behind a virtiofsd of its own.
struct Source<'a> {
    guest: Guest<'a>,
    share: Share,
    rest: VhostUserStateV1,
    state: Vec<u8>,
    _daemon: super::virtiofsd::Virtiofsd,
}

impl<'a> Source<'a> {
    fn new(shared: &Path, ram: &'a TestRam) -> Self {
        let daemon = daemon(shared);
        let share = Share::new(&daemon, ram);
        let guest = Guest::start(&share, ram);
        outcome(&suspend(&share.device)).unwrap();
        Source {
            guest,
            rest: share.device.rest().unwrap(),
            state: save(&share.device, &PATIENT).unwrap(),
            share,
            _daemon: daemon,
        }
    }
}

/// In virtiofsd 1.14, RESET_DEVICE empties the table of inodes and closes what is open; LOAD begins by emptying the table, too.
/// Nothing of an attempt is left for the next one: it holds what a destination holds that has seen no other.
#[test]
fn a_share_that_was_given_a_damaged_state_takes_a_good_one() {
    let shared = shared_directory();
    let ram = TestRam::new();
    let mut source = Source::new(shared.path(), &ram);
    let truncated = source.state[..source.state.len() / 2].to_vec();
    let garbage = vec![0xff; source.state.len()];

    let next = daemon(shared.path());
    let elsewhere = TestRam::new();
    let destination = Share::new(&next, &elsewhere);
    for damaged in [truncated, garbage, Vec::new()] {
        destination.device.set_ram(Arc::clone(&ram.regions));
        source.guest.restore(&destination, &source.rest);
        match load(&destination.device, &PATIENT, &damaged) {
            Err(StateError::BackEnd(error)) => {
                assert!(matches!(error.step, StateStep::Check | StateStep::Write));
            }
            other => panic!("{other:?}"),
        }
        destination.reset();
        assert_eq!(destination.device.state(), DeviceState::Idle);
    }
    // Given up in the middle, and before anything was written.
    for part in [0, source.state.len() / 2] {
        source.guest.restore(&destination, &source.rest);
        let mut loading = destination.device.begin_load(&PATIENT);
        let part = &source.state[..part];
        loading.write(part, &Counting::default()).unwrap();
        drop(loading);
        destination.reset();
    }
    // Loaded, set up, and never started.
    for _ in 0..2 {
        source.guest.restore(&destination, &source.rest);
        load(&destination.device, &PATIENT, &source.state).unwrap();
        outcome(&set_up(&destination.device)).unwrap();
        destination.reset();
    }
    assert!(!next.has_exited());
    source.guest.restore(&destination, &source.rest);
    load(&destination.device, &PATIENT, &source.state).unwrap();
    let again = save(&destination.device, &PATIENT).unwrap();
    assert_eq!(again.len(), source.state.len());
    outcome(&set_up(&destination.device)).unwrap();
    outcome(&resume(&destination.device)).unwrap();
    source.guest.is_well();
    assert!(destination.reports.try_recv().is_err());
    assert!(source.share.reports.try_recv().is_err());
}

/// What one guest knew, the next one does not.
#[test]
fn a_share_that_was_loaded_for_one_guest_serves_another() {
    let shared = shared_directory();
    let ram = TestRam::new();
    let first = Source::new(shared.path(), &ram);
    let ram = TestRam::new();
    let second_daemon = daemon(shared.path());
    let share = Share::new(&second_daemon, &ram);
    let mut small = Guest::start_with(&share, &ram, 3);
    outcome(&suspend(&share.device)).unwrap();
    let rest = share.device.rest().unwrap();
    let state = save(&share.device, &PATIENT).unwrap();
    assert!(state.len() < first.state.len() / 10);

    let next = daemon(shared.path());
    let destination = Share::new(&next, first.guest.ram);
    first.guest.restore(&destination, &first.rest);
    load(&destination.device, &PATIENT, &first.state).unwrap();
    outcome(&set_up(&destination.device)).unwrap();
    destination.reset();

    destination.device.set_ram(Arc::clone(&ram.regions));
    small.restore(&destination, &rest);
    load(&destination.device, &PATIENT, &state).unwrap();
    outcome(&resume(&destination.device)).unwrap();
    small.is_well();
    outcome(&suspend(&destination.device)).unwrap();
    let again = save(&destination.device, &PATIENT).unwrap();
    assert_eq!(again.len(), state.len());
    // And a guest of its own: after the reset there is nothing but what that one looks for.
    destination
        .device
        .set_ram(Arc::clone(&first.guest.ram.regions));
    destination.reset();
    first.guest.restore(&destination, &first.rest);
    load(&destination.device, &PATIENT, &first.state).unwrap();
    destination.reset();
    let mut fresh = Guest::start_with(&destination, first.guest.ram, 3);
    fresh.is_well();
    outcome(&suspend(&destination.device)).unwrap();
    let its = save(&destination.device, &PATIENT).unwrap();
    // Its numbers go on from those of the guest before, and take a few bytes more.
    assert!(its.len() < state.len() + 20, "{} bytes", its.len());
    assert!(destination.reports.try_recv().is_err());
}

/// A disk whose driver stands still with a request that nobody has been told of.
fn restored(disk: &Running, ring: &Ring<'_>, state: &VhostUserStateV1) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let activation = Activation {
        features: state.features,
        queues: vec![ring.queue.clone()],
    };
    let tell = move |outcome| sender.send(outcome).unwrap();
    disk.device.restore(Some(activation), state, tell);
    outcome(&receiver).unwrap();
}

/// qemu-storage-daemon starts a ring at its kick: what is only set up it leaves alone, whatever is in the ring.
#[test]
fn a_disk_that_is_only_set_up_stands_still() {
    let ram = TestRam::new();
    let first = StorageDaemon::start(1, Speed::Full);
    let source = start(spec(&first.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    source.activate(&[&ring]);
    for sector in 0..5 {
        write_sector(&mut ring, &ram, sector, 0x11);
    }
    outcome(&suspend(&source.device)).unwrap();
    let state = source.device.rest().unwrap();
    drop(source);

    let next = StorageDaemon::start(1, Speed::Full);
    let disk = start(spec(&next.socket(), 1), Limits::default(), &ram);
    for _ in 0..3 {
        restored(&disk, &ring, &state);
        outcome(&set_up(&disk.device)).unwrap();
        disk.reset();
    }
    restored(&disk, &ring, &state);
    let used = ring.used_index();
    submit(&mut ring, &ram, 2, READ, 0);
    ring.kick();
    outcome(&set_up(&disk.device)).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(ring.used_index(), used);
    assert_eq!(ram.read(places(2).status, 1), [0xff]);
    outcome(&resume(&disk.device)).unwrap();
    ring.wait();
    assert_eq!(ram.read(places(2).status, 1), [0]);
    write_sector(&mut ring, &ram, 6, 0x22);
    assert_eq!(read_sector(&mut ring, &ram, 6), [0x22; 512]);
    assert!(disk.reports.try_recv().is_err());
}

/// The same with less above the hole.
fn less(ram: &TestRam) -> Arc<[RamRegion]> {
    let mut regions = ram.regions.to_vec();
    regions[1].size /= 2;
    regions.into()
}

/// qemu-storage-daemon remembers where its last rings were, and looks for them in every memory table. Also those of rings that
/// have run, and of rings that the next guest does not use.
#[test]
fn a_disk_that_was_set_up_takes_a_guest_with_less_ram() {
    let ram = TestRam::new();
    let daemon = StorageDaemon::start(2, Speed::Full);
    let disk = start(spec(&daemon.socket(), 2), Limits::default(), &ram);
    let second = Ring::new(&ram, 1, HIGH + 0x38_0000);
    let ring = Ring::new(&ram, 0, HIGH + 0x30_0000);
    disk.activate(&[&ring, &second]);
    disk.reset();
    let state = VhostUserStateV1 {
        features: disk.device.features() & !(1 << 29),
        config: {
            let mut config = vec![0; 60];
            disk.device.read_config(0, &mut config);
            config
        },
        rings: vec![crate::vhost_user::RingStateV1 { index: 0, base: 0 }],
        back_end: crate::vhost_user::BackEndStateV1::Absent,
    };
    restored(&disk, &ring, &state);
    outcome(&set_up(&disk.device)).unwrap();
    disk.reset();

    let other = TestRam::new();
    disk.device.set_ram(less(&other));
    let ring = Ring::new(&other, 0, LOW);
    restored(&disk, &ring, &state);
    outcome(&set_up(&disk.device)).unwrap();
    outcome(&resume(&disk.device)).unwrap();
    let mut ring = ring;
    write_sector(&mut ring, &other, 1, 0x44);
    // And one with more again.
    disk.reset();
    disk.device.set_ram(Arc::clone(&ram.regions));
    let (mut ring, mut second) = (Ring::new(&ram, 0, LOW), Ring::new(&ram, 1, HIGH));
    disk.activate(&[&ring, &second]);
    assert_eq!(read_sector(&mut ring, &ram, 1), [0x44; 512]);
    assert_eq!(read_sector(&mut second, &ram, 1), [0x44; 512]);
    assert!(disk.reports.try_recv().is_err());
}
