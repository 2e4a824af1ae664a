//! Any moment is one for a snapshot.

use std::time::Duration;

use ferry_tests::backend::{Backend, Direction, Fault, Running};
use ferry_tests::{Guest, Restore, Snapshot};

use crate::common::{Place, STATE, TICK, WRITTEN, back, because, busy, saved, stateful, tiny};

/// A disk with the same contents, whose back-end takes state and does not miss it.
fn next(disk: &Running) -> Running {
    let next = Backend::blk("0").with_contents(disk.disk());
    match disk.holds_state() {
        Some(state) => next.with_state(state).start(),
        None => next.start(),
    }
}

fn both_kinds() -> [Backend; 2] {
    [Backend::blk("1M"), Backend::blk("1M").with_state(STATE)]
}

#[test]
fn before_a_driver_is_bound() {
    for disk in both_kinds() {
        let place = Place::new();
        let disk = disk.start();
        let mut guest = tiny("mode=ticks+blk-writer ticks=60 period=20 count=100 end=halt")
            .with_disk(&disk)
            .start();
        guest.wait_for("tick n=5");
        let left = saved(guest, &place.at("1"));
        let disk = next(&disk);
        let guest = back(&left, &place.at("1"), &disk);
        guest.finished().line("blk verified=100");
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

#[test]
fn in_early_boot() {
    for delay in 0..12 {
        for disk in both_kinds() {
            let place = Place::new();
            let disk = disk.start();
            let mut guest = tiny("mode=pci+blk-writer count=200 end=halt")
                .with_disk(&disk)
                .start();
            guest.wait_until("an API", |guest| guest.api().get("vmm.ping").ok());
            std::thread::sleep(Duration::from_millis(delay));
            // The guest may not even be there, or have ended.
            if guest
                .try_snapshot(&Snapshot::to(&place.at("1")).after("stop"))
                .is_err()
            {
                continue;
            }
            let left = guest.kill();
            let disk = next(&disk);
            let guest = back(&left, &place.at("1"), &disk);
            guest.finished().line("blk verified=200");
            assert_eq!(disk.complaints(), Vec::<String>::new());
        }
    }
}

#[test]
fn while_a_device_is_being_reset() {
    for disk in both_kinds() {
        let place = Place::new();
        let mut disk = disk.start();
        let mut guest = tiny("mode=reset-cycle times=1500 end=halt")
            .with_disk(&disk)
            .start();
        for generation in 0..10 {
            guest.goes_on("reset-cycle n=");
            std::thread::sleep(Duration::from_millis(generation * 3));
            let directory = place.at(&generation.to_string());
            let left = saved(guest, &directory);
            disk = next(&disk);
            guest = back(&left, &directory, &disk);
        }
        assert_eq!(guest.finished().lines("reset-cycle n=").len(), 1500);
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

#[test]
fn with_requests_that_take_their_time() {
    let place = Place::new();
    let disk = Backend::blk("2M").start();
    let mut guest = tiny("mode=blk-writer count=2000 report=50 depth=16")
        .with_disk(&disk)
        .start();
    guest.hold_requests(&disk);
    let snapshot = guest.begin_snapshot(&Snapshot::to(&place.at("1")).after("stop"));
    std::thread::sleep(Duration::from_millis(500));
    assert!(snapshot.is_pending());
    disk.release_requests();
    snapshot.answer().unwrap();
    let left = guest.kill();
    let disk = next(&disk);
    let guest = back(&left, &place.at("1"), &disk);
    guest.end().succeeded().line("blk verified=2000");
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn a_drain_that_fails_leaves_guest_and_disk_as_they_were() {
    let place = Place::new();
    let disk = stateful().start();
    let mut guest = busy(&disk);
    guest.hold_requests(&disk);
    because(
        guest.try_snapshot(&Snapshot::to(&place.at("1"))),
        &["disk0"],
    );
    assert_eq!(guest.state(), "Running");
    disk.release_requests();
    crate::common::next_is_good(guest, &disk, WRITTEN);
}

fn stays_paused(guest: &Guest) {
    assert_eq!(guest.state(), "Paused");
    guest.stands_still(WRITTEN);
}

#[test]
fn a_paused_guest_stays_paused_also_when_its_snapshot_fails() {
    let place = Place::new();
    let disk = stateful()
        .in_transfer(Direction::Save, 1, Fault::Refuse)
        .start();
    let mut guest = busy(&disk);
    guest.put("vm.pause");
    because(
        guest.try_snapshot(&Snapshot::of_paused(&place.at("1"))),
        &["disk0", "paused"],
    );
    stays_paused(&guest);
    guest.snapshot(&Snapshot::of_paused(&place.at("1")));
    stays_paused(&guest);
    // And it can be saved again without having run.
    guest.snapshot(&Snapshot::of_paused(&place.at("2")));
    stays_paused(&guest);
    guest.put("vm.resume");
    guest.goes_on(WRITTEN);
    // Both are good.
    let left = guest.kill();
    for name in ["1", "2"] {
        let next = Backend::blk("0").with_contents(disk.disk());
        let next = next.awaits_state(STATE).start();
        let mut guest = back(&left, &place.at(name), &next);
        guest.goes_on(WRITTEN);
        assert_eq!(next.complaints(), Vec::<String>::new());
    }
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn a_snapshot_of_a_restored_guest_that_has_never_run() {
    let place = Place::new();
    let mut guest = tiny("mode=ticks ticks=1000000 period=10").start();
    guest.wait_for(TICK);
    let mut left = saved(guest, &place.at("0"));
    for (from, to) in [("0", "1"), ("1", "2"), ("2", "3")] {
        let guest = left.restored(&Restore::from(&place.at(from)).paused());
        guest.snapshot(&Snapshot::of_paused(&place.at(to)));
        left = guest.kill();
    }
    let mut guest = left.restored(&Restore::from(&place.at("3")));
    guest.goes_on(TICK);
}

#[test]
fn a_disk_of_a_restored_guest_that_has_never_run() {
    let place = Place::new();
    let disk = stateful().start();
    let left = saved(busy(&disk), &place.at("1"));
    let disk = crate::common::heir(&disk);
    let restore = Restore::from(&place.at("1")).device("disk0", &disk);
    let guest = left.restored(&restore.paused());
    guest.snapshot(&Snapshot::of_paused(&place.at("2")));
    let left = guest.kill();
    let disk = crate::common::heir(&disk);
    let mut guest = back(&left, &place.at("2"), &disk);
    guest.goes_on(WRITTEN);
    assert_eq!(disk.complaints(), Vec::<String>::new());
}
