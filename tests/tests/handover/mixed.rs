//! Hand-overs before and after snapshots and migrations.

use std::time::Duration;

use ferry_tests::backend::{Backend, DeviceState, Running, feature, protocol};
use ferry_tests::{Guest, Receive, Restore, Send, Snapshot};
use tempfile::TempDir;

use crate::common::{BUSY, WRITTEN, handed_over, heir, tiny};

const STATE: DeviceState = DeviceState {
    bytes: (1 << 20) + 17,
    seed: 3,
};

fn busy(disk: &Running) -> Guest {
    let mut guest = tiny(BUSY).with_disk(disk).start();
    guest.wait_for(WRITTEN);
    guest
}

/// The back-end of the next side, with the same disk.
fn next(old: &Running) -> Running {
    let state = old.holds_state().expect("a state");
    let next = Backend::blk("0").sharing(old).awaits_state(state);
    next.offers(feature::LOG_ALL)
        .offers_protocol(protocol::LOG_SHMFD)
        .start()
}

fn good(disks: &[&Running]) {
    for disk in disks {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

#[test]
fn a_snapshot_of_the_new_process_restores_and_that_is_handed_over() {
    for mode in ["copy", "adopt"] {
        let place = TempDir::new().unwrap();
        let disk = Backend::blk("256M").with_state(STATE).start();
        let mut guest = handed_over(busy(&disk));
        guest.goes_on(WRITTEN);
        let directory = place.path().join(mode);
        guest.snapshot(&Snapshot::to(&directory).after("stop"));
        let left = guest.kill();
        let later = next(&disk);
        let restore = Restore::from(&directory).mode(mode).device("disk0", &later);
        let mut guest = left.restored(&restore);
        guest.goes_on(WRITTEN);
        for _ in 0..3 {
            guest = handed_over(guest);
            guest.goes_on(WRITTEN);
        }
        good(&[&disk, &later]);
    }
}

/// A snapshot has its back-end log; so LOG_ALL may be on when the next process takes it over.
#[test]
fn between_snapshots() {
    let place = TempDir::new().unwrap();
    let disk = Backend::blk("256M").with_state(STATE).start();
    let mut guest = busy(&disk);
    for number in 0..3 {
        let directory = place.path().join(number.to_string());
        guest.snapshot(&Snapshot::to(&directory).after("resume"));
        guest.goes_on(WRITTEN);
        guest = handed_over(guest);
        guest.goes_on(WRITTEN);
    }
    good(&[&disk]);
}

/// A guest that stays paused after its snapshot has a back-end that still logs, which the next process has to end.
#[test]
fn a_back_end_that_logs_is_told_by_the_next_process_to_stop() {
    let place = TempDir::new().unwrap();
    let disk = Backend::blk("256M").with_state(STATE).start();
    let logs = || disk.accepted_features() & feature::LOG_ALL != 0;
    let mut guest = busy(&disk);
    for number in 0..3 {
        let directory = place.path().join(number.to_string());
        let snapshot = Snapshot::to(&directory).after("pause");
        guest.snapshot(&snapshot.prepare(Duration::from_millis(50)));
        assert!(logs(), "the back-end was not told to get ready");
        for _ in 0..2 {
            guest = handed_over(guest);
            assert!(logs(), "a hand-over was told to the back-end");
        }
        guest.put("vm.resume");
        guest.goes_on(WRITTEN);
        assert!(!logs(), "the back-end logs for nobody");
    }
    good(&[&disk]);
}

#[test]
fn between_migrations() {
    let first = Backend::blk("256M").with_state(STATE);
    let mut disk = first.start();
    let mut guest = busy(&disk);
    for _ in 0..3 {
        guest = handed_over(guest);
        guest.goes_on(WRITTEN);
        // One that comes to nothing, while its back-end logs.
        guest.send(&Send::to(&guest.unix_url()));
        guest.wait_for_failure(&["migration-"]);
        guest = handed_over(guest);
        guest.goes_on(WRITTEN);
        let later = next(&disk);
        let there = heir(&guest);
        let url = guest.unix_url();
        let receive = Receive::at(&url).device("disk0", &later);
        guest = guest.migrated_to(there, &Send::to(&url), &receive);
        guest.goes_on(WRITTEN);
        good(&[&disk, &later]);
        disk = later;
    }
    guest = handed_over(guest);
    guest.goes_on(WRITTEN);
    good(&[&disk]);
}
