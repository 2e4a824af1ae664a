//! Guests at work, handed on again and again.

use ferry_tests::{Line, Qsd, Receive, Virtiofsd, pattern};

use crate::common::{TICK, TICKS, handed_over, heir, local, tiny};

/// Every tick is there once, in order.
fn check(serial: &[Line], count: u64) {
    let ticks = serial.iter().filter(|line| line.0.contains(TICK));
    let numbers: Vec<u64> = ticks.map(|line| line.number("n")).collect();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
}

#[test]
fn ticks_go_on_from_process_to_process() {
    for timer in ["tsc", "lapic"] {
        let cmdline = format!("mode=ticks ticks=600 period=10 timer={timer} end=halt");
        let mut guest = tiny(&cmdline).start();
        for _ in 0..5 {
            guest.goes_on(TICK);
            guest = handed_over(guest);
        }
        guest.goes_on(TICK);
        check(&guest.finished().serial, 600);
    }
}

#[test]
fn a_paused_guest_stays_paused() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    guest.put("vm.pause");
    for _ in 0..3 {
        guest = handed_over(guest);
        guest.stands_still(TICK);
    }
    guest.put("vm.resume");
    guest.goes_on(TICK);
}

#[test]
fn a_disk_and_a_directory_at_work() {
    const RECORD: usize = 512;
    const RECORDS: u32 = 3000;
    const BLOCK: usize = 4096;
    const BLOCKS: u32 = 400;
    let disk = Qsd::serving("2M").throttle(2000).start();
    let share = Virtiofsd::options().start();
    let cmdline = format!(
        "mode=blk-writer+fuse count={RECORDS} depth=8 report=20 file=open blocks={BLOCKS} seed=4 end=halt"
    );
    let mut guest = tiny(&cmdline)
        .with_disk(&disk)
        .with_fs(&share, "home")
        .start();
    guest.goes_on("blk ");
    for _ in 0..20 {
        guest = handed_over(guest);
        assert_eq!(disk.connected(), 1);
        guest.goes_on("blk ");
    }
    let ended = guest.finished();
    ended.line(&format!("blk verified={RECORDS}"));
    ended.line(&format!("fuse verified={BLOCKS}"));
    let records = disk.read(RECORD * RECORDS as usize);
    assert!(records == pattern::blocks(RECORD, 4, RECORDS));
    let file = std::fs::read(share.shared().join("open")).unwrap();
    assert!(file == pattern::blocks(BLOCK, 4, BLOCKS));
}

/// Ferry knows nothing of what such a device is.
#[test]
fn a_generic_device_at_work() {
    let disk = Qsd::serving("256M").throttle(2000).start();
    let mut guest = tiny(crate::common::BUSY)
        .with_device(&disk, "device_type=2,num_queues=1")
        .start();
    guest.goes_on(crate::common::WRITTEN);
    for _ in 0..5 {
        guest = handed_over(guest);
        guest.goes_on(crate::common::WRITTEN);
        assert_eq!(disk.connected(), 1);
    }
}

#[test]
fn the_old_process_can_stay_and_take_the_guest_again() {
    let disk = Qsd::serving("256M").throttle(2000).start();
    let mut here = tiny(crate::common::BUSY).with_disk(&disk).start();
    let mut there = heir(&here);
    for _ in 0..10 {
        here.goes_on(crate::common::WRITTEN);
        let url = here.unix_url();
        let received = there.listen(&Receive::at(&url));
        here.send(&local(&url).preserve_source());
        received.answer().expect("a guest");
        here.wait_for_migration("done");
        std::mem::swap(&mut here, &mut there);
    }
    here.goes_on(crate::common::WRITTEN);
    assert_eq!(disk.connected(), 1);
}
