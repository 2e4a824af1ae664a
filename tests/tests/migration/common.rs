//! What many of these scenarios have in common.

use ferry_tests::backend::{Backend, DeviceState, Running, feature, protocol};
use ferry_tests::{Ferry, Guest, Receive, Send};

/// Writes for longer than any test takes; `blk written=` shows that guest and disk go on.
pub const BUSY: &str = "mode=blk-writer op=write count=500000 report=50";
/// What [`BUSY`] needs.
pub const BUSY_SIZE: &str = "256M";
/// What [`BUSY`] says now and then.
pub const WRITTEN: &str = "blk written=";
/// The same, with some MiB of RAM in use before: a slow link takes its time.
pub const FULL: &str =
    "mode=dirty+blk-writer rate=0 pages=2048 ms=1500 op=write count=500000 report=50";
/// What [`FULL`] has in use before.
pub const FULL_BYTES: u64 = 2048 << 12;
/// So many bytes a second make a slow link.
pub const SLOW: u64 = 512 << 10;
/// A guest without anything: it says `tick n=`.
pub const TICKS: &str = "mode=ticks ticks=1000000 period=10";
/// What [`TICKS`] says.
pub const TICK: &str = "tick n=";

/// The size of state that is enough for a test that is not about its size.
pub const STATE: DeviceState = DeviceState {
    bytes: (3 << 20) + 17,
    seed: 11,
};

/// Seconds that a back-end's answer, or the other side's silence, may take. It takes a thousandth of that,
/// on a machine that has nothing else to do.
pub const REQUEST_TIMEOUT: u32 = 8;

/// Ferry with limits that do not take long to be reached.
pub fn tiny(cmdline: &str) -> Ferry {
    Ferry::tiny(cmdline)
        .request_timeout(REQUEST_TIMEOUT)
        .dead_timeout(20)
        .with_api()
}

/// A receiver with the same limits.
pub fn receiver(guest: &Guest) -> Guest {
    let left = guest.beside();
    let successor = left.successor().arg("--request-timeout");
    let successor = successor.arg(REQUEST_TIMEOUT.to_string());
    successor.arg("--dead-timeout").arg("20").start()
}

/// A disk whose back-end logs, and has no state.
pub fn logging(size: &str) -> Backend {
    Backend::blk(size)
        .offers(feature::LOG_ALL)
        .offers_protocol(protocol::LOG_SHMFD)
}

/// A disk for [`BUSY`], whose back-end logs and has state.
pub fn stateful() -> Backend {
    Backend::blk(BUSY_SIZE).with_state(STATE)
}

/// The back-end on the other side: it has the same disk open, and waits for the state of the other one's.
pub fn heir(old: &Running) -> Backend {
    match old.holds_state() {
        Some(state) => logging("0").sharing(old).awaits_state(state),
        None => logging("0").sharing(old),
    }
}

/// The same, but it does not have to be given a state before it starts: the guest may not have set it up.
pub fn optional_heir(old: &Running) -> Backend {
    match old.holds_state() {
        Some(state) => logging("0").sharing(old).with_state(state),
        None => logging("0").sharing(old),
    }
}

/// A guest that writes to a disk.
pub fn busy(disk: &Running) -> Guest {
    let mut guest = tiny(BUSY).with_disk(disk).start();
    guest.wait_for(WRITTEN);
    guest
}

/// A guest that writes to a disk, and has some MiB of RAM in use.
pub fn full(disk: &Running) -> Guest {
    let mut guest = tiny(FULL).with_disk(disk).start();
    guest.wait_for(WRITTEN);
    guest
}

/// Moves a guest, over a unix socket, to the next Ferry; the receiver names where its disk is.
pub fn moved(guest: Guest, disk: &Running) -> Guest {
    let there = receiver(&guest);
    moved_to(guest, there, disk)
}

/// The same, to a Ferry that is there already.
pub fn moved_to(guest: Guest, there: Guest, disk: &Running) -> Guest {
    let url = guest.unix_url();
    let receive = Receive::at(&url).device("disk0", disk);
    guest.migrated_to(there, &Send::to(&url), &receive)
}

/// Moves a guest that has no devices.
pub fn moved_alone(guest: Guest) -> Guest {
    let url = guest.unix_url();
    let there = receiver(&guest);
    guest.migrated_to(there, &Send::to(&url), &Receive::at(&url))
}

/// Panics unless the reasons hold all these texts.
pub fn because(answer: ferry_tests::Answer, texts: &[&str]) -> String {
    let reasons = answer.expect_err("a refusal").join(": ");
    for text in texts {
        assert!(reasons.contains(text), "no '{text}' in: {reasons}");
    }
    reasons
}

/// Ferry has never had much memory, whatever it was told. Its guest uses some MiB.
pub fn has_bounds(guest: &Guest) {
    let most = memory(guest, "VmHWM:");
    assert!(most < 40 << 10, "{most} KiB");
}

/// What the kernel says of a Ferry's memory under this name, in KiB.
pub fn memory(guest: &Guest, name: &str) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", guest.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.expect("a number of KiB")
}
