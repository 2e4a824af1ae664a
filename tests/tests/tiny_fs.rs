//! Shared directories, seen by the tiny guest: a few FUSE requests to the real virtiofsd.

use std::fs;

use ferry_tests::{Ferry, Qsd, Virtiofsd, pattern};

const BLOCK: usize = 4096;

#[test]
fn a_guest_writes_a_file_that_the_host_reads() {
    let share = Virtiofsd::start();
    let ended = Ferry::tiny("mode=fuse file=from-guest blocks=20 seed=4")
        .with_fs(&share, "home")
        .run()
        .succeeded();
    assert_eq!(ended.line("fuse tag=").get("tag"), Some("home"));
    assert_eq!(ended.line("fuse init").number("major"), 7);
    assert!(ended.line("fuse interrupts=").number("interrupts") >= 1);
    let written = fs::read(share.shared().join("from-guest")).unwrap();
    assert!(written == pattern::blocks(BLOCK, 4, 20));
}

#[test]
fn a_guest_reads_a_file_that_the_host_wrote() {
    let share = Virtiofsd::start();
    fs::write(
        share.shared().join("from-host"),
        pattern::blocks(BLOCK, 8, 10),
    )
    .unwrap();
    Ferry::tiny("mode=fuse file=from-host blocks=10 seed=8 op=verify")
        .with_fs(&share, "home")
        .run()
        .succeeded()
        .line("fuse verified=10");
}

#[test]
fn a_guest_notices_a_file_that_is_wrong() {
    let share = Virtiofsd::start();
    fs::write(
        share.shared().join("from-host"),
        pattern::blocks(BLOCK, 9, 10),
    )
    .unwrap();
    let ended = Ferry::tiny("mode=fuse file=from-host blocks=10 seed=8 op=verify")
        .with_fs(&share, "home")
        .run();
    ended.line("FAIL block 0: wrong seed");
}

#[test]
fn the_request_queue_works_without_interrupts() {
    let share = Virtiofsd::start();
    Ferry::tiny("mode=fuse poll=1")
        .with_fs(&share, "home")
        .run()
        .succeeded();
}

#[test]
fn a_disk_and_a_share_work_in_one_machine() {
    let (disk, share) = (Qsd::serving("1M").start(), Virtiofsd::start());
    let ended = Ferry::tiny("mode=blk-writer+fuse+blk-writer")
        .with_disk(&disk)
        .with_fs(&share, "home")
        .run()
        .succeeded();
    assert_eq!(ended.lines("blk verified=100").len(), 2);
    ended.line("fuse verified=16");
}

#[test]
fn virtiofsd_leaves_with_ferry() {
    let mut share = Virtiofsd::start();
    Ferry::tiny("mode=fuse")
        .with_fs(&share, "home")
        .run()
        .succeeded();
    let status = share.process().wait(std::time::Duration::from_secs(20));
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}
