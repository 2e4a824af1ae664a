//! Any moment is one for a migration.

use std::time::Duration;

use ferry_tests::backend::{Backend, Running};
use ferry_tests::{Guest, MSIX_WAITS, Receive, Send};

use crate::common::{
    SLOW, STATE, TICK, TICKS, WRITTEN, because, busy, full, heir, logging, moved, optional_heir,
    receiver, stateful, tiny,
};
use crate::proxy::{Proxy, Way};

fn both_kinds() -> [Backend; 2] {
    [logging("1M"), Backend::blk("1M").with_state(STATE)]
}

fn good(disks: &[&Running]) {
    for disk in disks {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

#[test]
fn before_a_driver_is_bound() {
    for disk in both_kinds() {
        let disk = disk.start();
        let mut guest = tiny("mode=ticks+blk-writer ticks=60 period=20 count=100 end=halt")
            .with_disk(&disk)
            .start();
        guest.wait_for("tick n=5");
        let next = optional_heir(&disk).start();
        let guest = moved(guest, &next);
        guest.finished().line("blk verified=100");
        good(&[&disk, &next]);
    }
}

#[test]
fn a_guest_that_never_touches_its_device() {
    for disk in both_kinds() {
        let disk = disk.start();
        let mut guest = tiny(TICKS).with_disk(&disk).start();
        guest.goes_on(TICK);
        let next = optional_heir(&disk).start();
        let mut guest = moved(guest, &next);
        guest.goes_on(TICK);
        good(&[&disk, &next]);
    }
}

/// Its back-end keeps the boot waiting until the receiver is there: the guest is sent in its first moments.
#[test]
fn in_early_boot() {
    for delay in [0, 1, 2, 3, 5, 8, 11] {
        for disk in both_kinds() {
            let disk = disk.start();
            disk.hang();
            let mut guest = tiny("mode=pci+blk-writer count=200 report=50 end=halt")
                .with_disk(&disk)
                .start();
            guest.wait_until("an API", |guest| guest.api().get("vmm.ping").ok());
            let next = optional_heir(&disk).start();
            let mut there = receiver(&guest);
            let url = guest.unix_url();
            let received = there.listen(&Receive::at(&url).device("disk0", &next));
            let send = Send::to(&url).preserve_source();
            because(guest.begin_send(&send).answer(), &[BOOTING]);
            disk.wake();
            std::thread::sleep(Duration::from_millis(delay));
            send_as_soon_as_it_runs(&mut guest, &send);
            received.answer().expect("a guest");
            guest.wait_for_migration("done");
            there.finished().line("blk verified=200");
            good(&[&disk, &next]);
        }
    }
}

const BOOTING: &str = "the guest is being booted";

fn send_as_soon_as_it_runs(guest: &mut Guest, send: &Send) {
    guest.wait_until("a guest that can be sent", |guest| {
        match guest.begin_send(send).answer() {
            Ok(_) => Some(()),
            refused => {
                because(refused, &[BOOTING]);
                None
            }
        }
    });
}

#[test]
fn a_paused_guest_stays_paused_and_can_be_resumed_there() {
    let disk = stateful().start();
    let mut guest = busy(&disk);
    guest.put("vm.pause");
    let next = heir(&disk).start();
    guest = moved(guest, &next);
    assert_eq!(guest.state(), "Paused");
    guest.stands_still(WRITTEN);
    // Once more, without having run.
    let last = heir(&next).start();
    guest = moved(guest, &last);
    assert_eq!(guest.state(), "Paused");
    guest.stands_still(WRITTEN);
    guest.put("vm.resume");
    guest.goes_on(WRITTEN);
    // And when it runs.
    let next_of_last = heir(&last).start();
    guest = moved(guest, &next_of_last);
    guest.goes_on(WRITTEN);
    good(&[&disk, &next, &last, &next_of_last]);
}

#[test]
fn a_paused_guest_without_devices() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    guest.put("vm.pause");
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let received = there.listen(&Receive::at(&url));
    guest.send(&Send::to(&url).preserve_source());
    received.answer().expect("a guest");
    // Both say how much there was, although it was not copied while it ran.
    let totals = [guest.wait_for_migration("done"), there.migration()];
    let totals = totals.map(|migration| migration["ram"]["total_bytes"].as_u64());
    assert!(totals[0] >= Some(64 << 20), "{totals:?}");
    assert_eq!(totals[0], totals[1]);
    guest = there;
    assert_eq!(guest.state(), "Paused");
    guest.stands_still(TICK);
    guest.put("vm.resume");
    guest.goes_on(TICK);
}

#[test]
fn a_paused_guest_whose_migration_fails_stays_paused() {
    let disk = stateful().start();
    let mut guest = busy(&disk);
    guest.put("vm.pause");
    guest.send(&Send::to(&guest.unix_url()));
    guest.wait_for_failure(&["migration-"]);
    assert_eq!(guest.state(), "Paused");
    guest.stands_still(WRITTEN);
    guest.put("vm.resume");
    guest.goes_on(WRITTEN);
    good(&[&disk]);
}

/// Interrupts that wait behind every kind of mask arrive on the other side.
#[test]
fn with_interrupts_that_wait_behind_masks() {
    for disk in both_kinds() {
        let mut disk = disk.start();
        let mut guest = tiny("mode=msix-wait").with_disk(&disk).start();
        for (how, size) in MSIX_WAITS {
            guest.wait_for(&format!("msix-wait how={how}"));
            let next = heir(&disk).start();
            guest = moved(guest, &next);
            good(&[&disk]);
            disk = next;
            disk.resize(size);
            guest.wait_for(&format!("msix-waited how={how}"));
        }
        guest.end().succeeded().line("msix-wait requests=20");
        good(&[&disk]);
    }
}

#[test]
fn while_a_device_is_being_reset() {
    for disk in both_kinds() {
        let mut disk = disk.start();
        let mut guest = tiny("mode=reset-cycle times=1500 end=halt")
            .with_disk(&disk)
            .start();
        for generation in 0..10 {
            guest.goes_on("reset-cycle n=");
            std::thread::sleep(Duration::from_millis(generation * 3));
            let next = optional_heir(&disk).start();
            guest = moved(guest, &next);
            good(&[&disk]);
            disk = next;
        }
        assert_eq!(guest.finished().lines("reset-cycle n=").len(), 1500);
        good(&[&disk]);
    }
}

#[test]
fn with_requests_that_take_their_time() {
    let disk = logging("2M").start();
    let mut guest = tiny("mode=blk-writer count=2000 report=50 depth=16")
        .with_disk(&disk)
        .start();
    guest.hold_requests(&disk);
    let next = heir(&disk).start();
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let received = there.listen(&Receive::at(&url).device("disk0", &next));
    guest.send(&Send::to(&url));
    guest.wait_for_phase("pause");
    std::thread::sleep(Duration::from_millis(500));
    assert!(received.is_pending());
    disk.release_requests();
    received.answer().expect("a guest");
    guest.departed();
    there.end().succeeded().line("blk verified=2000");
    good(&[&disk, &next]);
}

/// Whoever reboots a paused guest has it run: it is not the one that was to arrive paused.
#[test]
fn a_paused_guest_that_is_rebooted_while_it_is_sent() {
    for (phase, way) in [("connect", Way::ToSender), ("ram", Way::ToReceiver)] {
        let disk = stateful().start();
        let mut guest = full(&disk);
        guest.put("vm.pause");
        let next = optional_heir(&disk).start();
        let mut there = receiver(&guest);
        let url = guest.unix_url();
        let proxy = Proxy::to(&url).slow(SLOW);
        // Nothing comes of it as long as it is held.
        if way == Way::ToSender {
            proxy.hold(way);
        }
        let received = there.listen(&Receive::at(&url).device("disk0", &next));
        guest.send(&Send::to(proxy.url()));
        guest.wait_for_phase(phase);
        guest.put("vm.reboot");
        guest.wait_for_failure(&["was paused, and was rebooted meanwhile"]);
        assert_eq!(guest.state(), "Running");
        guest.wait_for_count("tiny: hello", 2);
        guest.goes_on(WRITTEN);
        proxy.set_rate(0);
        because(received.answer(), &[]);
        drop(there);
        // Now as one that runs.
        let last = optional_heir(&disk).start();
        let mut guest = moved(guest, &last);
        assert_eq!(guest.state(), "Running");
        guest.goes_on(WRITTEN);
        good(&[&disk, &next, &last]);
    }
}

/// A guest that is reset while it is copied is the same guest still: it is moved, and has begun anew.
#[test]
fn a_guest_that_reboots_while_it_is_copied() {
    let disk = stateful().start();
    let mut guest = full(&disk);
    let next = optional_heir(&disk).start();
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let proxy = Proxy::to(&url).slow(SLOW);
    let received = there.listen(&Receive::at(&url).device("disk0", &next));
    guest.send(&Send::to(proxy.url()));
    guest.wait_for_phase("precopy");
    guest.put("vm.reboot");
    guest.wait_for_count("tiny: hello", 2);
    proxy.set_rate(0);
    received.answer().expect("a guest");
    guest.departed();
    there.goes_on(WRITTEN);
    assert_eq!(there.count("tiny: hello"), 2);
    good(&[&disk, &next]);
}
