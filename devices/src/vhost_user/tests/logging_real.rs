//! The dirty log with real back-ends: which pages qemu-storage-daemon and virtiofsd say that they have written to.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::harness::{HIGH, LOW, TestRam};
use super::logging::{start_log, stop_log, taken};
use super::ring::Ring;
use super::storage_daemon::{
    READ, Running, Speed, StorageDaemon, WRITE, places, spec, start, submit, write_sector,
};
use super::suspend::{outcome, resume, suspend};
use super::virtiofsd::{ANSWER, Share, Virtiofsd, init, root_mode};
use crate::vhost_user::{DirtyLog, LOG_PAGE, Limits};

/// Where the used ring of a ring at `base` is.
fn used_ring(base: u64) -> u64 {
    base + 0x2000
}

fn pages(addresses: &[u64]) -> BTreeSet<u64> {
    addresses.iter().map(|address| address / LOG_PAGE).collect()
}

/// What one read writes to: data, status, used ring.
fn of_a_read(slot: u16) -> BTreeSet<u64> {
    let places = places(slot);
    pages(&[places.data, places.status, used_ring(LOW)])
}

fn read(ring: &mut Ring<'_>, ram: &TestRam, slot: u16) {
    submit(ring, ram, slot, READ, 3);
    ring.kick();
    ring.wait();
    assert_eq!(ram.read(places(slot).status, 1), [0]);
}

fn disk(daemon: &StorageDaemon, ram: &TestRam) -> Running {
    start(spec(&daemon.socket(), 1), Limits::default(), ram)
}

#[test]
fn a_disk_notes_data_and_used_ring_and_nothing_else() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = disk(&daemon, &ram);
    assert!(disk.device.can_log());
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    read(&mut ring, &ram, 0);
    for _ in 0..3 {
        // A new log each time, as for each attempt.
        let log = Arc::new(DirtyLog::new(&ram.regions).unwrap());
        outcome(&start_log(&disk.device, &log)).unwrap();
        assert_eq!(taken(&log), pages(&[]));
        for slot in [0, 3] {
            read(&mut ring, &ram, slot);
            assert_eq!(taken(&log), of_a_read(slot));
            assert_eq!(taken(&log), pages(&[]));
        }
        // A write reads from guest RAM, and writes no more than the status to it.
        write_sector(&mut ring, &ram, 9, 0x33);
        assert_eq!(taken(&log), pages(&[places(0).status, used_ring(LOW)]));

        outcome(&stop_log(&disk.device)).unwrap();
        read(&mut ring, &ram, 1);
        assert_eq!(taken(&log), pages(&[]));
    }
    assert!(disk.reports.try_recv().is_err());
}

#[test]
fn what_was_in_flight_when_a_disk_was_suspended_is_in_its_log() {
    let daemon = StorageDaemon::start(1, Speed::Throttled(8));
    let ram = TestRam::new();
    let disk = disk(&daemon, &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    let log = Arc::new(DirtyLog::new(&ram.regions).unwrap());
    // What is under way when the log begins is there, too.
    submit(&mut ring, &ram, 0, READ, 0);
    submit(&mut ring, &ram, 1, READ, 1);
    ring.kick();
    outcome(&start_log(&disk.device, &log)).unwrap();
    submit(&mut ring, &ram, 2, READ, 2);
    submit(&mut ring, &ram, 3, READ, 3);
    ring.kick();
    outcome(&suspend(&disk.device)).unwrap();
    let last = [of_a_read(2), of_a_read(3)].concat_all();
    assert!(taken(&log).is_superset(&last));
    disk.device.rest().unwrap();

    // The attempt fails, and its log lives on until somebody ends it.
    outcome(&resume(&disk.device)).unwrap();
    read(&mut ring, &ram, 4);
    assert_eq!(taken(&log), of_a_read(4));
    outcome(&stop_log(&disk.device)).unwrap();
    submit(&mut ring, &ram, 0, WRITE, 0);
    ring.kick();
    ring.wait();
    assert_eq!(taken(&log), pages(&[]));
}

trait ConcatAll {
    fn concat_all(self) -> BTreeSet<u64>;
}

impl ConcatAll for [BTreeSet<u64>; 2] {
    fn concat_all(self) -> BTreeSet<u64> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn a_disk_that_is_started_or_reset_or_given_new_ram_during_a_log_is_in_it() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = disk(&daemon, &ram);
    let log = Arc::new(DirtyLog::new(&ram.regions).unwrap());
    // No driver has started it.
    outcome(&start_log(&disk.device, &log)).unwrap();
    let mut ring = Ring::new(&ram, 0, LOW);
    for _ in 0..3 {
        ring.clear();
        disk.activate(&[&ring]);
        read(&mut ring, &ram, 2);
        assert!(disk.device.log_error().is_none());
        assert_eq!(taken(&log), of_a_read(2));
        disk.reset();
    }
    // The same addresses, and another file.
    let other = TestRam::new();
    disk.device.set_ram(Arc::clone(&other.regions));
    let mut ring = Ring::new(&other, 0, LOW);
    disk.activate(&[&ring]);
    read(&mut ring, &other, 2);
    assert_eq!(taken(&log), of_a_read(2));
    disk.reset();
    outcome(&stop_log(&disk.device)).unwrap();
    ring.clear();
    disk.activate(&[&ring]);
    read(&mut ring, &other, 2);
    assert_eq!(taken(&log), pages(&[]));
}

#[test]
fn two_devices_share_a_log() {
    let daemons = [(); 2].map(|()| StorageDaemon::start(1, Speed::Full));
    let ram = TestRam::new();
    let [first, second] = [&daemons[0], &daemons[1]].map(|daemon| disk(daemon, &ram));
    let mut rings = [Ring::new(&ram, 0, LOW), Ring::new(&ram, 0, HIGH)];
    first.activate(&[&rings[0]]);
    second.activate(&[&rings[1]]);
    let log = Arc::new(DirtyLog::new(&ram.regions).unwrap());
    outcome(&start_log(&first.device, &log)).unwrap();
    outcome(&start_log(&second.device, &log)).unwrap();
    read(&mut rings[0], &ram, 0);
    read(&mut rings[1], &ram, 1);
    let of_second = pages(&[places(1).data, places(1).status, used_ring(HIGH)]);
    assert_eq!(taken(&log), [of_a_read(0), of_second].concat_all());
}

/// virtiofsd logs from SET_LOG_BASE on, cannot stop, and knows nothing of memory that comes later.
#[test]
fn a_shared_directory_notes_answers_and_used_ring() {
    let daemon = Virtiofsd::start();
    let ram = TestRam::new();
    let share = Share::new(&daemon, &ram);
    assert!(share.device.can_log());
    let answer = pages(&[ANSWER, used_ring(HIGH)]);
    let first = Arc::new(DirtyLog::new(&ram.regions).unwrap());
    // Before there is a driver.
    outcome(&start_log(&share.device, &first)).unwrap();
    let mut high_priority = Ring::new(&ram, 0, LOW);
    let mut requests = Ring::new(&ram, 1, HIGH);
    for _ in 0..2 {
        high_priority.clear();
        requests.clear();
        share.activate(&[&high_priority, &requests]);
        init(&mut requests, &ram);
        assert!(taken(&first).is_superset(&answer));
        root_mode(&mut requests, &ram);
        assert_eq!(taken(&first), answer);
        share.reset();
    }
    // Memory that it has not known is logged, too.
    let other = TestRam::new();
    share.device.set_ram(Arc::clone(&other.regions));
    let high_priority = Ring::new(&other, 0, LOW);
    let mut requests = Ring::new(&other, 1, HIGH);
    share.activate(&[&high_priority, &requests]);
    init(&mut requests, &other);
    assert!(taken(&first).is_superset(&answer));
    for _ in 0..3 {
        let log = Arc::new(DirtyLog::new(&ram.regions).unwrap());
        outcome(&start_log(&share.device, &log)).unwrap();
        root_mode(&mut requests, &other);
        assert_eq!(taken(&log), answer);
        assert_eq!(taken(&first), pages(&[]));
        outcome(&suspend(&share.device)).unwrap();
        outcome(&resume(&share.device)).unwrap();
        taken(&log);
        root_mode(&mut requests, &other);
        assert_eq!(taken(&log), answer);
        outcome(&stop_log(&share.device)).unwrap();
        // Which does it no harm.
        root_mode(&mut requests, &other);
    }
    assert!(share.reports.try_recv().is_err());
}
