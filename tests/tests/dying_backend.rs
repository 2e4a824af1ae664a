//! Back-ends that die or hang while the guest runs: Ferry says so once, the guest and Ferry go on, and the
//! other devices work.

use ferry_tests::backend::Backend;
use ferry_tests::{Ended, Ferry, Guest, Qsd, Virtiofsd};

/// The writer has far more to do than it gets done. It says how the disk left it; then the guest goes on.
const WRITER: &str = "mode=blk-writer+ticks+blk-reset+blk-try+ticks op=write count=60000 report=50 ticks=3 period=10";

fn writer() -> Ferry {
    Ferry::tiny(&format!("{WRITER} patience=30000"))
}

/// The device failed once, and was reported once; the guest saw it and went on.
fn check(ended: Ended, device: &str, reason: &str) {
    let ended = ended.succeeded();
    let reports = ended.log_lines("the device has failed");
    assert_eq!(reports.len(), 1, "{}", ended.transcript());
    assert!(
        reports[0].0.contains(device) && reports[0].0.contains(reason),
        "{}",
        reports[0]
    );
    assert_eq!(ended.lines("tiny: tick n=2").len(), 2);
    ended.line("blk outcome=needs-reset");
    ended.line("blk-reset outcome=works");
    ended.line("blk-try outcome=needs-reset");
}

fn until_it_writes(ferry: Ferry) -> Guest {
    let mut guest = ferry.start();
    guest.wait_for("blk written=100");
    guest
}

#[test]
fn a_killed_qemu_storage_daemon() {
    let mut disk = Qsd::serving("32M").start();
    let guest = until_it_writes(writer().with_disk(&disk));
    disk.process().kill();
    check(guest.end(), "disk0", "closed the connection");
}

#[test]
fn our_back_end_dies() {
    let disk = Backend::blk("32M").start();
    let guest = until_it_writes(writer().with_disk(&disk));
    disk.die();
    check(guest.end(), "disk0", "closed the connection");
}

#[test]
fn a_message_that_nobody_asked_for() {
    let disk = Backend::blk("32M").start();
    let guest = until_it_writes(writer().with_disk(&disk));
    disk.send_unasked(&[0; 12]);
    check(guest.end(), "disk0", "nobody asked for");
}

#[test]
fn a_back_end_that_hangs_is_given_up_when_it_is_asked_something() {
    let disk = Backend::blk("32M").start();
    let mut guest = Ferry::tiny(&format!("{WRITER} patience=1000"))
        .request_timeout(1)
        .dead_timeout(2)
        .with_disk(&disk)
        .start();
    guest.wait_for("blk written=100");
    disk.hang();
    guest.wait_for("blk outcome=stalled");
    // The first reset takes longer than this guest waits for it.
    let ended = guest.end().succeeded();
    let reports = ended.log_lines("the device has failed");
    assert_eq!(reports.len(), 1, "{}", ended.transcript());
    assert!(
        reports[0].0.contains("GET_VRING_BASE") && reports[0].0.contains("taken for dead"),
        "{}",
        reports[0]
    );
    assert_eq!(ended.lines("tiny: tick n=2").len(), 2);
}

#[test]
fn a_back_end_that_only_pauses_loses_nothing() {
    let disk = Backend::blk("32M").start();
    let mut guest = Ferry::tiny("mode=blk-writer count=800 report=50")
        .with_disk(&disk)
        .start();
    guest.wait_for("blk written=100");
    disk.hang();
    std::thread::sleep(std::time::Duration::from_millis(300));
    disk.wake();
    let ended = guest.end().succeeded();
    ended.line("blk verified=800");
    assert!(
        ended.log_lines("failed").is_empty(),
        "{}",
        ended.transcript()
    );
}

#[test]
fn the_other_devices_go_on() {
    let (mut first, second) = (Qsd::serving("32M").start(), Qsd::serving("1M").start());
    let share = Virtiofsd::start();
    let cmdline = "mode=blk-writer+fuse op=write+verify count=60000 report=50 patience=30000";
    let guest = until_it_writes(
        Ferry::tiny(cmdline)
            .with_disk(&first)
            .with_disk(&second)
            .with_fs(&share, "home"),
    );
    first.process().kill();
    let ended = guest.end().succeeded();
    ended.line("blk outcome=needs-reset");
    ended.line("fuse verified=16");
    assert_eq!(
        ended.log_lines("the device has failed").len(),
        1,
        "{}",
        ended.transcript()
    );
}

#[test]
fn a_killed_virtiofsd() {
    let (disk, mut share) = (Qsd::serving("32M").start(), Virtiofsd::start());
    let guest = until_it_writes(
        Ferry::tiny("mode=fuse+blk-writer count=1000 report=50 end=halt")
            .with_disk(&disk)
            .with_fs(&share, "home"),
    );
    share.process().kill();
    let mut guest = guest;
    let report = guest.wait_for_log("the device has failed");
    assert!(report.0.contains("fs0"), "{report}");
    guest.wait_for("blk verified=1000");
}

#[test]
fn a_guest_reboots_without_its_dead_disk() {
    let (mut disk, counter) = (Qsd::serving("1M").start(), Qsd::serving("1M").start());
    let cmdline =
        "mode=blk-try+ticks+reboot ticks=400 period=10 patience=2000 times=1 counter-disk=1";
    let mut guest = Ferry::tiny(cmdline)
        .with_disk(&disk)
        .with_disk(&counter)
        .start();
    guest.wait_for("blk-try outcome=works");
    disk.process().kill();
    guest.wait_for_log("the device has failed");
    let ended = guest.end().succeeded();
    let outcomes: Vec<String> = ended
        .lines("blk-try outcome=")
        .iter()
        .map(|line| line.get("outcome").unwrap().to_owned())
        .collect();
    assert_eq!(outcomes, ["works", "needs-reset"]);
    assert_eq!(
        ended.log_lines("the device has failed").len(),
        1,
        "{}",
        ended.transcript()
    );
}
