//! Restores on other devices than those of the snapshot are refused, with what differs; the right ones are taken afterwards.

use ferry_tests::backend::message::FrontendReq as Req;
use ferry_tests::backend::{Backend, feature};
use ferry_tests::{Guest, Left, Restore, Virtiofsd};

use crate::common::{BUSY, Place, WRITTEN, because, saved, tiny};

fn refused(ferry: &mut Guest, restore: &Restore, texts: &[&str]) {
    because(ferry.restore(restore), texts);
    ferry.wait_until("a Ferry without a machine", |ferry| {
        ferry.api().get("vm.info").is_err().then_some(())
    });
}

#[test]
fn differences_are_named() {
    let place = Place::new();
    let directory = place.at("1");
    let disk = Backend::blk("32M").start();
    let mut guest = tiny(BUSY).with_disk_options(&disk, "num_queues=2").start();
    guest.wait_for(WRITTEN);
    let left: Left = saved(guest, &directory);
    let mut ferry = left.successor().arg("--connect-timeout").arg("2").start();
    let same = || Backend::blk("32M").with_contents(disk.disk());

    for (other, texts) in [
        (
            Backend::blk("31M"),
            ["disk0", "had 33554432 bytes, and has 32505856"],
        ),
        (same().withholds(feature::BLK_FLUSH), ["feature", "disk0"]),
        (
            same().withholds(feature::BLK_MQ).claims_queues(1),
            ["queue", "disk0"],
        ),
    ] {
        let other = other.start();
        let restore = Restore::from(&directory).device("disk0", &other);
        refused(&mut ferry, &restore, &texts);
        assert_eq!(other.count(Req::SET_VRING_KICK), 0);
        assert_eq!(other.complaints(), Vec::<String>::new());
    }
    let share = Virtiofsd::start();
    let restore = Restore::from(&directory).device("disk0", &share);
    refused(&mut ferry, &restore, &["disk0"]);
    let same = same().start();
    let restore = Restore::from(&directory).device("disk9", &same);
    refused(&mut ferry, &restore, &["disk9"]);
    let gone = Backend::blk("1M").start();
    gone.die();
    let restore = Restore::from(&directory).device("disk0", &gone);
    refused(&mut ferry, &restore, &["disk0"]);

    let restore = Restore::from(&directory).device("disk0", &same);
    if let Err(reasons) = ferry.restore(&restore) {
        panic!("{}", reasons.join(": "));
    }
    ferry.goes_on(WRITTEN);
    assert_eq!(same.complaints(), Vec::<String>::new());
}

#[test]
fn a_restore_needs_a_ferry_without_a_machine() {
    let place = Place::new();
    let mut guest = tiny("mode=ticks ticks=1000000 period=10").start();
    guest.wait_for("tick n=3");
    guest.snapshot(&ferry_tests::Snapshot::to(&place.at("1")));
    because(
        guest.restore(&Restore::from(&place.at("1"))),
        &["there is a virtual machine already"],
    );
    guest.goes_on("tick n=");
}
