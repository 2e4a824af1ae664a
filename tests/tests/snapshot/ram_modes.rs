//! What becomes of the RAM files.

use ferry_tests::backend::Backend;
use ferry_tests::{Restore, pattern};

use crate::common::{Place, TICK, TICKS, WRITTEN, because, heir, names, saved, tiny};

#[test]
fn files_that_become_ram_are_used_up() {
    let place = Place::new();
    let directory = place.at("1");
    let disk = Backend::blk("2M").start();
    let mut guest = tiny("mode=blk-writer count=3000 report=50 end=halt")
        .with_disk(&disk)
        .start();
    guest.goes_on(WRITTEN);
    let left = saved(guest, &directory);
    let disk = heir(&disk);
    let restore = || {
        Restore::from(&directory)
            .mode("adopt")
            .device("disk0", &disk)
    };
    let guest = left.restored(&restore());
    assert!(
        !names(&directory).contains(&"manifest.json".to_owned()),
        "{:?}",
        names(&directory)
    );
    // Neither as it is, nor as a copy.
    let other = left.successor().start();
    for again in [restore(), restore().mode("copy")] {
        because(other.restore(&again), &["1"]);
    }
    guest.finished().line("blk verified=3000");
    assert!(disk.disk()[..3000 * 512] == pattern::blocks(512, 1, 3000));
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn an_adopted_guest_is_saved_again() {
    let place = Place::new();
    let mut guest = tiny(TICKS).start();
    guest.wait_for(TICK);
    for generation in ["1", "2", "3"] {
        let left = saved(guest, &place.at(generation));
        guest = left.restored(&Restore::from(&place.at(generation)).mode("adopt"));
        guest.goes_on(TICK);
    }
}

#[test]
fn an_adoption_that_fails_uses_nothing_up() {
    let place = Place::new();
    let directory = place.at("1");
    let disk = Backend::blk("32M").start();
    let guest = crate::common::busy(&disk);
    let left = saved(guest, &directory);
    let wrong = Backend::blk("1M").start();
    let ferry = left.successor().start();
    let restore = Restore::from(&directory).mode("adopt");
    because(
        ferry.restore(&restore.clone().device("disk0", &wrong)),
        &["disk0"],
    );
    assert!(names(&directory).contains(&"manifest.json".to_owned()));
    let disk = heir(&disk);
    let mut guest = left.restored(&restore.device("disk0", &disk));
    guest.goes_on(WRITTEN);
}

/// Whether files can be cloned is up to the file system; where they cannot, the choices are named.
#[test]
fn a_clone_leaves_the_snapshot_as_it_is_or_the_choices_are_named() {
    let place = Place::new();
    let directory = place.at("1");
    let mut guest = tiny(TICKS).start();
    guest.wait_for(TICK);
    let left = saved(guest, &directory);
    let mut ferry = left.successor().start();
    match ferry.restore(&Restore::from(&directory).mode("ondemand")) {
        Ok(_) => ferry.goes_on(TICK),
        Err(reasons) => {
            because(Err(reasons), &["copy", "adopt"]);
        }
    }
    drop(ferry);
    let mut guest = left.restored(&Restore::from(&directory));
    guest.goes_on(TICK);
}
