//! Suspending and resuming with the real qemu-storage-daemon, while requests are in flight.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::harness::{Event, LOW, TestRam, failure, next};
use super::ring::{Ring, SIZE};
use super::storage_daemon::{
    READ, Running, Speed, StorageDaemon, WRITE, places, read_sector, spec, start, submit,
    write_sector,
};
use super::suspend::{outcome, resume, suspend};
use crate::chain;
use crate::vhost_user::{Cause, DeviceState, Limits};

/// Requests that fit into the ring, with three descriptors each.
const SLOTS: u16 = SIZE / 3;

/// A sequence of numbers that looks random and is the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1);
        (self.0 >> 33) % sides
    }
}

/// Publishes up to [`SLOTS`] writes of `fill` to sectors from `sector` on.
fn submit_writes(ring: &mut Ring<'_>, ram: &TestRam, count: u16, sector: u64, fill: u8) {
    for slot in 0..count {
        ram.write(places(slot).data, &[fill; 512]);
        submit(ring, ram, slot, WRITE, sector + u64::from(slot));
    }
}

fn all_written(ram: &TestRam, count: u16) -> bool {
    (0..count).all(|slot| ram.read(places(slot).status, 1) == [0])
}

#[test]
fn requests_in_flight_are_completed_before_the_device_stands() {
    let daemon = StorageDaemon::start(1, Speed::Throttled(4));
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    submit_writes(&mut ring, &ram, SLOTS, 0, 0x77);
    ring.kick();
    outcome(&suspend(&disk.device)).unwrap();
    assert_eq!(ring.used_index(), SLOTS);
    assert!(all_written(&ram, SLOTS));
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(read_sector(&mut ring, &ram, 0), [0x77; 512]);
}

#[test]
fn a_hundred_times_with_requests_in_flight_and_none_lost_or_repeated() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    let mut dice = Dice(1);
    let mut total: u16 = 0;
    for cycle in 0..100u64 {
        let count = dice.roll(u64::from(SLOTS) + 1) as u16;
        submit_writes(&mut ring, &ram, count, cycle * 8, cycle as u8);
        // A processor may have been stopped before it could say so.
        if dice.roll(2) == 0 {
            ring.kick();
        }
        thread::sleep(Duration::from_micros(dice.roll(300)));
        outcome(&suspend(&disk.device)).unwrap();
        total = total.wrapping_add(count);
        assert_eq!(ring.used_index(), total, "cycle {cycle}");
        assert!(all_written(&ram, count), "cycle {cycle}");
        outcome(&resume(&disk.device)).unwrap();
        write_sector(&mut ring, &ram, cycle * 8 + 7, !cycle as u8);
        total = total.wrapping_add(1);
        assert_eq!(ring.used_index(), total, "cycle {cycle}");
    }
    for cycle in 0..100u64 {
        let sector = read_sector(&mut ring, &ram, cycle * 8 + 7);
        assert_eq!(sector, [!cycle as u8; 512]);
    }
    assert_eq!(disk.device.counters().suspends, 100);
    assert!(disk.reports.try_recv().is_err());
}

#[test]
fn a_hundred_times_by_an_owner_who_gives_up_at_any_moment() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    let mut dice = Dice(2);
    let mut given_up = 0;
    for cycle in 0..100u64 {
        submit_writes(&mut ring, &ram, SLOTS, cycle * 8, cycle as u8);
        ring.kick();
        let suspended = suspend(&disk.device);
        // How long it takes is of the machine's making, so is how far it has come.
        thread::sleep(Duration::from_micros(dice.roll(400)));
        let resumed = resume(&disk.device);
        // The guest goes on at once.
        ring.wait();
        assert!(all_written(&ram, SLOTS), "cycle {cycle}");
        write_sector(&mut ring, &ram, cycle * 8 + 7, cycle as u8);
        given_up += u32::from(outcome(&suspended).is_err());
        outcome(&resumed).unwrap();
    }
    assert_eq!(ring.used_index(), 100 * (SLOTS + 1));
    assert_eq!(read_sector(&mut ring, &ram, 99 * 8 + 7), [99; 512]);
    assert_eq!(disk.device.state(), DeviceState::Active);
    assert!(disk.reports.try_recv().is_err());
    tracing::info!("{given_up} of 100 were given up");
}

/// The daemon stands still while it is to be suspended; the owner gives up and the guest goes on.
fn stands_still(daemon: &StorageDaemon, disk: &Running, ring: &mut Ring<'_>, ram: &TestRam) {
    daemon.signal(libc::SIGSTOP);
    let suspended = suspend(&disk.device);
    assert!(suspended.recv_timeout(Duration::from_millis(200)).is_err());
    let resumed = resume(&disk.device);
    submit(ring, ram, 0, READ, 3);
    ring.kick();
    daemon.signal(libc::SIGCONT);
    let error = outcome(&suspended).unwrap_err();
    assert!(matches!(*error.cause, Cause::GivenUp), "{:?}", error.cause);
    outcome(&resumed).unwrap();
    ring.wait();
    assert_eq!(ram.read(places(0).status, 1), [0]);
    assert_eq!(disk.device.state(), DeviceState::Active);
}

#[test]
fn a_daemon_that_stands_still_is_given_up_on_and_works_again() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    for _ in 0..20 {
        stands_still(&daemon, &disk, &mut ring, &ram);
        outcome(&suspend(&disk.device)).unwrap();
        outcome(&resume(&disk.device)).unwrap();
        write_sector(&mut ring, &ram, 3, 0x44);
    }
    disk.reset();
    assert!(disk.reports.try_recv().is_err());
}

#[test]
fn a_daemon_that_dies_while_it_is_suspended_fails_the_device_once() {
    let mut daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    outcome(&suspend(&disk.device)).unwrap();
    daemon.kill();
    let line = chain(&failure(&disk.reports));
    assert!(line.contains("closed"), "{line}");
    assert_eq!(next(&disk.events), Event::Failed);
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Failed);
}

#[test]
fn a_suspended_disk_works_after_a_reset() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    for round in 0..3u8 {
        ring.clear();
        disk.activate(&[&ring]);
        write_sector(&mut ring, &ram, 1, round);
        outcome(&suspend(&disk.device)).unwrap();
        disk.reset();
    }
    // New RAM for the next guest, and the daemon is told.
    let other = TestRam::new();
    disk.device.set_ram(Arc::clone(&other.regions));
    let mut ring = Ring::new(&other, 0, LOW);
    disk.activate(&[&ring]);
    assert_eq!(read_sector(&mut ring, &other, 1), [2; 512]);
}
