//! Guests that cannot be saved: refused before anything is touched, so that the guest does not even stop.

use ferry_tests::backend::{Backend, Direction, Fault};
use ferry_tests::{Guest, Snapshot, Virtiofsd};

use crate::common::{Place, TICK, WRITTEN, because, busy, stateful, tiny};

/// Refused for this reason, without a pause.
fn is_refused(guest: &mut Guest, text: &str, reasons: &[&str]) {
    let place = Place::new();
    let answer = guest.try_snapshot(&Snapshot::to(&place.at("1")));
    because(answer, reasons);
    assert!(!place.at("1").exists());
    let events = guest.events();
    assert!(
        !events
            .iter()
            .any(|event| ["pausing", "paused"].contains(&event.as_str())),
        "{events:?}"
    );
    guest.goes_on(text);
    assert_eq!(guest.state(), "Running");
}

#[test]
fn a_share_on_the_old_virtiofsd() {
    let share = Virtiofsd::old().start();
    let mut guest = tiny("mode=fuse file=a blocks=100000 report=20")
        .with_fs(&share, "home")
        .start();
    guest.wait_for("fuse at=");
    is_refused(&mut guest, "fuse at=", &["fs0", "DEVICE_STATE"]);
    // A guest that is paused stays so.
    let place = Place::new();
    guest.put("vm.pause");
    let answer = guest.try_snapshot(&Snapshot::of_paused(&place.at("1")));
    because(answer, &["fs0", "DEVICE_STATE"]);
    assert_eq!(guest.state(), "Paused");
    guest.stands_still("fuse at=");
    guest.put("vm.resume");
    guest.goes_on("fuse at=");
}

#[test]
fn a_device_that_is_said_to_have_state_whose_back_end_cannot_hand_it_over() {
    let device = Backend::blk("1M").start();
    let mut guest = tiny("mode=ticks ticks=1000000 period=10")
        .with_device(&device, "device_type=2,id=odd,num_queues=1,state=required")
        .start();
    guest.wait_for(TICK);
    is_refused(&mut guest, TICK, &["odd", "DEVICE_STATE"]);
    assert_eq!(device.complaints(), Vec::<String>::new());
}

#[test]
fn a_device_whose_back_end_is_gone() {
    let disk = stateful().start();
    let cmdline = "mode=blk-writer+ticks op=write count=60000 report=50 patience=60000 ticks=1000000 period=10";
    let mut guest = tiny(cmdline).with_disk(&disk).start();
    guest.wait_for(WRITTEN);
    disk.die();
    guest.wait_for_log("the device has failed");
    guest.wait_for(TICK);
    is_refused(&mut guest, TICK, &["disk0"]);
}

#[test]
fn a_guest_that_runs_and_nobody_said_that_it_may_be_paused() {
    let disk = stateful().start();
    let mut guest = busy(&disk);
    let place = Place::new();
    let answer = guest.try_snapshot(&Snapshot::of_paused(&place.at("1")));
    because(answer, &["pause"]);
    assert!(!place.at("1").exists());
    guest.goes_on(WRITTEN);
}

#[test]
fn directories_that_are_not_for_a_snapshot() {
    let disk = stateful()
        .in_transfer(
            Direction::Save,
            1,
            Fault::Trickle(std::time::Duration::ZERO),
        )
        .start();
    let mut guest = busy(&disk);
    let place = Place::new();
    let full = place.at("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("note"), "mine").unwrap();
    for (directory, reason) in [
        (full.clone(), "note"),
        (full.join("note"), "note"),
        (place.at("no/where"), "no/where"),
    ] {
        let answer = guest.try_snapshot(&Snapshot::to(&directory));
        because(answer, &[reason]);
    }
    assert_eq!(crate::common::names(&full), ["note"]);
    let events = guest.events();
    assert!(!events.iter().any(|event| event == "pausing"), "{events:?}");
    guest.goes_on(WRITTEN);
}
