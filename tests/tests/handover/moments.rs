//! Any moment is one for a hand-over.

use std::time::Duration;

use ferry_tests::backend::Backend;
use ferry_tests::{MSIX_WAITS, Qsd, Receive};

use crate::common::{BUSY, TICK, TICKS, WRITTEN, handed_over, heir, local, tiny};

#[test]
fn before_a_driver_is_bound() {
    let disk = Backend::blk("1M").start();
    let mut guest = tiny("mode=ticks+blk-writer ticks=60 period=20 count=100 end=halt")
        .with_disk(&disk)
        .start();
    guest.wait_for("tick n=5");
    for _ in 0..3 {
        guest = handed_over(guest);
    }
    guest.finished().line("blk verified=100");
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn a_paused_guest_with_a_disk() {
    let disk = Backend::blk("256M").start();
    let mut guest = tiny(BUSY).with_disk(&disk).start();
    guest.wait_for(WRITTEN);
    guest.put("vm.pause");
    for _ in 0..3 {
        guest = handed_over(guest);
        guest.stands_still(WRITTEN);
    }
    guest.put("vm.resume");
    guest.goes_on(WRITTEN);
    guest = handed_over(guest);
    guest.goes_on(WRITTEN);
    assert_eq!((disk.connected(), disk.connections()), (1, 1));
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn with_interrupts_that_wait_behind_masks() {
    let disk = Backend::blk("1M").start();
    let mut guest = tiny("mode=msix-wait").with_disk(&disk).start();
    for (how, size) in MSIX_WAITS {
        guest.wait_for(&format!("msix-wait how={how}"));
        guest = handed_over(guest);
        disk.resize(size);
        guest.wait_for(&format!("msix-waited how={how}"));
    }
    guest.end().succeeded().line("msix-wait requests=20");
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn while_a_device_is_being_reset() {
    let disk = Backend::blk("1M").start();
    let mut guest = tiny("mode=reset-cycle times=1500 end=halt")
        .with_disk(&disk)
        .start();
    for generation in 0..20 {
        guest.goes_on("reset-cycle n=");
        std::thread::sleep(Duration::from_millis(generation));
        guest = handed_over(guest);
    }
    guest.finished();
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

/// Nobody is there, or somebody who does not want it.
#[test]
fn what_fails_leaves_the_guest_as_it_was() {
    let disk = Qsd::serving("256M").throttle(2000).start();
    let mut guest = tiny(BUSY).with_disk(&disk).start();
    guest.wait_for(WRITTEN);
    guest.send(&local(&guest.unix_url()));
    guest.wait_for_failure(&["migration-"]);
    guest.goes_on(WRITTEN);
    // Its devices come along, and are not to be found elsewhere.
    let mut there = heir(&guest);
    let url = guest.unix_url();
    let received = there.listen(&Receive::at(&url).device("disk0", &disk));
    guest.send(&local(&url));
    let reason = guest.wait_for_failure(&["name no sockets"]);
    assert!(received.answer().is_err(), "{reason}");
    guest.goes_on(WRITTEN);
    let url = guest.unix_url();
    let received = there.listen(&Receive::at(&url));
    guest.send(&local(&url));
    received.answer().expect("a guest");
    guest.departed();
    there.goes_on(WRITTEN);
    assert_eq!(disk.connected(), 1);
}

#[test]
fn a_guest_whose_back_end_is_gone_is_not_handed_over() {
    let disk = Backend::blk("256M").start();
    let mut guest = tiny(BUSY).with_disk(&disk).start();
    guest.wait_for(WRITTEN);
    disk.die();
    guest.wait_until("a failed device", |guest| {
        let failed = guest.events().iter().any(|event| event == "failed");
        failed.then_some(())
    });
    let refused = guest.begin_send(&local(&guest.unix_url())).answer();
    let reasons = refused.expect_err("a refusal");
    assert!(reasons.len() > 1, "no cause: {reasons:?}");
    let reasons = reasons.join(": ");
    for part in ["disk0", "once the back-end runs again"] {
        assert!(reasons.contains(part), "no {part}: {reasons}");
    }
}

#[test]
fn a_guest_goes_through_all_that_a_new_one_does() {
    let disk = Backend::blk("1M").start();
    let mut guest = tiny(TICKS).with_disk(&disk).start();
    guest.goes_on(TICK);
    guest = handed_over(guest);
    for route in ["vm.pause", "vm.resume", "vm.reboot"] {
        guest.put(route);
        guest.wait_until("a guest that runs", |guest| {
            (guest.state() != "Running" || route != "vm.pause").then_some(())
        });
    }
    guest.goes_on(TICK);
    guest = handed_over(guest);
    guest.goes_on(TICK);
    guest.put("vm.shutdown");
    guest.put("vm.boot");
    guest.goes_on(TICK);
    assert_eq!(disk.complaints(), Vec::<String>::new());
}
