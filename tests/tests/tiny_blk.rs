//! Disks, seen by the tiny guest: numbered, checksummed records with several requests in flight, on the
//! real qemu-storage-daemon and on our own back-end.

use ferry_tests::backend::{Backend, feature, message::FrontendReq, protocol};
use ferry_tests::{Ferry, Qsd, pattern};

const RECORD: usize = 512;

#[test]
fn a_writer_finds_its_records_again() {
    for depth in [1, 4, 32] {
        let disk = Qsd::serving("1M").start();
        let cmdline = format!("mode=blk-writer count=300 depth={depth} seed={depth}");
        let ended = Ferry::tiny(&cmdline).with_disk(&disk).run().succeeded();
        assert_eq!(ended.line("blk sectors=").number("sectors"), 2048);
        ended.line("blk verified=300");
        assert!(ended.line("blk interrupts=").number("interrupts") > 0);
        // The records are really on the disk, and nothing else is.
        let image = disk.read(301 * RECORD);
        assert!(image[..300 * RECORD] == pattern::blocks(RECORD, depth, 300));
        assert!(image[300 * RECORD..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn records_outlive_the_machine() {
    let disk = Qsd::serving("1M").start();
    Ferry::tiny("mode=blk-writer op=write seed=3")
        .with_disk(&disk)
        .run()
        .succeeded();
    Ferry::tiny("mode=blk-writer op=verify seed=3")
        .with_disk(&disk)
        .run()
        .succeeded();
}

#[test]
fn a_reader_notices_a_wrong_record() {
    let disk = Qsd::serving("1M").start();
    let mut records = pattern::blocks(RECORD, 1, 10);
    records[5 * RECORD + 100] ^= 1;
    disk.write(&records);
    let ended = Ferry::tiny("mode=blk-writer op=verify count=10")
        .with_disk(&disk)
        .run();
    ended.line("FAIL record 5: wrong contents");
}

#[test]
fn several_queues_work_side_by_side() {
    let disk = Qsd::serving("1M").queues(2).start();
    let ended = Ferry::tiny("mode=blk-writer count=200 queues=2")
        .with_disk_options(&disk, "num_queues=2")
        .run()
        .succeeded();
    assert_eq!(ended.line("blk sectors=").number("queues"), 2);
    assert!(disk.read(200 * RECORD) == pattern::blocks(RECORD, 1, 200));
}

#[test]
fn a_disk_is_read_only_if_either_side_says_so() {
    let read_only = Qsd::serving("1M").readonly().start();
    let writable = Qsd::serving("1M").start();
    for disk in [&read_only, &writable] {
        disk.write(&pattern::blocks(RECORD, 1, 10));
    }
    let ferry = || Ferry::tiny("mode=blk-writer op=verify count=10");
    let by_back_end = ferry().with_disk(&read_only).run().succeeded();
    let by_option = ferry()
        .with_disk_options(&writable, "readonly=on")
        .run()
        .succeeded();
    for ended in [by_back_end, by_option] {
        assert_eq!(ended.line("blk sectors=").number("read-only"), 1);
    }
}

#[test]
fn two_disks_are_two_disks() {
    let (first, second) = (Qsd::serving("1M").start(), Qsd::serving("2M").start());
    let ended = Ferry::tiny("mode=blk-writer index=1 count=50")
        .with_disk(&first)
        .with_disk(&second)
        .run()
        .succeeded();
    assert_eq!(ended.line("blk sectors=").number("sectors"), 4096);
    assert!(first.read(RECORD).iter().all(|byte| *byte == 0));
    assert!(second.read(50 * RECORD) == pattern::blocks(RECORD, 1, 50));
}

#[test]
fn a_disk_works_again_after_each_reset() {
    let disk = Qsd::serving("1M").start();
    let ended = Ferry::tiny("mode=reset-cycle times=20")
        .with_disk(&disk)
        .run()
        .succeeded();
    assert_eq!(ended.lines("reset-cycle n=").len(), 20);
}

#[test]
fn a_strict_back_end_has_no_complaints() {
    let disk = Backend::blk("1M").start();
    Ferry::tiny("mode=blk-writer+reset-cycle+blk-writer queues=2 count=100")
        .with_disk_options(&disk, "num_queues=2")
        .run()
        .succeeded();
    assert_eq!(disk.complaints(), Vec::<String>::new());
    assert_eq!(disk.connections(), 1);
    assert!(disk.disk()[..100 * RECORD] == pattern::blocks(RECORD, 1, 100));
}

#[test]
fn a_back_end_may_offer_little() {
    // Without acknowledgements, queue numbers, a channel or a reset of its own.
    let disk = Backend::blk("1M")
        .withholds(
            feature::INDIRECT_DESC | feature::EVENT_IDX | feature::BLK_FLUSH | feature::BLK_MQ,
        )
        .withholds_protocol(!protocol::CONFIG)
        .start();
    let ended = Ferry::tiny("mode=blk-writer+reset-cycle+blk-writer count=50")
        .with_disk(&disk)
        .run()
        .succeeded();
    assert_eq!(ended.line("blk sectors=").number("flush"), 0);
    assert_eq!(disk.complaints(), Vec::<String>::new());
    assert_eq!(disk.count(FrontendReq::RESET_DEVICE), 0);
}

#[test]
fn a_reset_waits_for_requests_in_flight() {
    let disk = Backend::blk("1M").start();
    // The writer reports that it is stuck, then resets the disk and starts again.
    let mut guest =
        Ferry::tiny("mode=ticks+blk-writer+blk-reset+blk-try ticks=3 patience=3000 count=100")
            .request_timeout(1)
            .with_disk(&disk)
            .start();
    disk.hold_requests();
    guest.wait_for("blk outcome=stalled");
    // Ferry says so once `--request-timeout` has passed.
    guest.wait_for_log("a reset waits for requests in flight");
    disk.release_requests();
    let reset = guest.wait_for("blk-reset outcome=");
    assert_eq!(reset.get("outcome"), Some("works"));
    let ended = guest.end().succeeded();
    ended.line("blk-try outcome=works");
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn a_disk_that_grows_tells_the_guest() {
    let disk = Backend::blk("1M").start();
    let mut guest = Ferry::tiny("mode=blk-resize").with_disk(&disk).start();
    let before = guest.wait_for("blk-resize sectors=2048");
    disk.resize("3M");
    let ended = guest.end().succeeded();
    let after = ended.line("blk-resized");
    assert_eq!(after.number("sectors"), 6144);
    assert!(after.number("interrupts") >= 1);
    assert_ne!(after.number("generation"), before.number("generation"));
}
