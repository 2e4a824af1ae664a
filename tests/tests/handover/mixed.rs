//! Hand-overs before and after snapshots and migrations.

use ferry_tests::backend::{Backend, DeviceState, Running, feature, protocol};
use ferry_tests::{Guest, Receive, Restore, Send, Snapshot};
use tempfile::TempDir;

use crate::common::{BUSY, WRITTEN, goes_on, handed_over, heir, tiny};

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
        goes_on(&mut guest, WRITTEN);
        let directory = place.path().join(mode);
        guest.snapshot(&Snapshot::to(&directory).after("stop"));
        let left = guest.kill();
        let later = next(&disk);
        let restore = Restore::from(&directory).mode(mode).device("disk0", &later);
        let mut guest = left.restored(&restore);
        goes_on(&mut guest, WRITTEN);
        for _ in 0..3 {
            guest = handed_over(guest);
            goes_on(&mut guest, WRITTEN);
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
        goes_on(&mut guest, WRITTEN);
        guest = handed_over(guest);
        goes_on(&mut guest, WRITTEN);
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
        goes_on(&mut guest, WRITTEN);
        // One that comes to nothing, while its back-end logs.
        guest.send(&Send::to(&guest.unix_url()));
        guest.wait_for_failure(&["migration-"]);
        guest = handed_over(guest);
        goes_on(&mut guest, WRITTEN);
        let later = next(&disk);
        let there = heir(&guest);
        let url = guest.unix_url();
        let receive = Receive::at(&url).device("disk0", &later);
        guest = guest.migrated_to(there, &Send::to(&url), &receive);
        goes_on(&mut guest, WRITTEN);
        good(&[&disk, &later]);
        disk = later;
    }
    guest = handed_over(guest);
    goes_on(&mut guest, WRITTEN);
    good(&[&disk]);
}
