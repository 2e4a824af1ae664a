//! What back-ends notice of a hand-over: nothing.

use ferry_tests::backend::{Backend, DeviceState, Running};
use ferry_tests::{Guest, Receive, Virtiofsd};

use crate::common::{BUSY, WRITTEN, handed_over, heir, local, tiny};

const STATE: DeviceState = DeviceState {
    bytes: (1 << 20) + 17,
    seed: 3,
};

/// Back-ends that offer all there is to offer, and one that offers next to nothing.
fn all_kinds() -> [Backend; 2] {
    [Backend::blk("256M").with_state(STATE), Backend::blk("256M")]
}

fn busy(disk: &Running) -> Guest {
    let mut guest = tiny(BUSY).with_disk(disk).start();
    guest.goes_on(WRITTEN);
    guest
}

#[test]
fn not_a_message() {
    for disk in all_kinds() {
        let disk = disk.start();
        let mut guest = busy(&disk);
        let before = disk.received().len();
        for _ in 0..5 {
            guest = handed_over(guest);
            guest.goes_on(WRITTEN);
        }
        let heard = disk.received().split_off(before);
        assert!(heard.is_empty(), "{heard:?}");
        assert_eq!((disk.connected(), disk.connections()), (1, 1));
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

#[test]
fn requests_that_are_held_all_the_while_are_completed_in_the_end() {
    let disk = Backend::blk("1M").start();
    let mut guest = tiny("mode=blk-writer count=2000 depth=8 report=20")
        .with_disk(&disk)
        .start();
    guest.hold_requests(&disk);
    for _ in 0..3 {
        guest = handed_over(guest);
        let in_flight = &guest.get("vm.counters")["disk0"]["queue0_in_flight"];
        assert!(in_flight.as_u64() > Some(0), "{in_flight}");
    }
    disk.release_requests();
    guest.end().succeeded().line("blk verified=2000");
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

/// It says so while the connection is neither's, at one moment or another.
#[test]
fn a_disk_that_grows_in_the_midst_of_it() {
    for round in 0..20 {
        let disk = Backend::blk("1M").start();
        let mut guest = tiny("mode=blk-resize end=halt").with_disk(&disk).start();
        guest.wait_for("blk-resize sectors=2048");
        let mut there = heir(&guest);
        let url = guest.unix_url();
        let received = there.listen(&Receive::at(&url));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_micros(700 * round));
                disk.resize("3M");
            });
            guest.send(&local(&url).preserve_source());
        });
        if received.answer().is_ok() {
            // Said by the one or the other.
            let said = there.wait_until("a new size", |there| {
                let said = [guest.serial(), there.serial()].concat();
                said.into_iter().find(|line| line.0.contains("blk-resized"))
            });
            assert_eq!(said.number("sectors"), 6144);
        }
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

/// A share whose virtiofsd has long forgotten how to be asked: nobody asks.
#[test]
fn an_old_virtiofsd_without_any_of_that() {
    let share = Virtiofsd::old().start();
    let mut guest = tiny("mode=fuse file=open blocks=300 seed=4 report=5 pace=5 end=halt")
        .with_fs(&share, "home")
        .start();
    guest.wait_for("fuse at=");
    for _ in 0..5 {
        guest = handed_over(guest);
        guest.goes_on("fuse ");
    }
    guest.finished().line("fuse verified=300");
}
