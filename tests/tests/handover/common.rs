//! What many of these scenarios have in common.

use ferry_tests::{Ferry, Guest, Receive, Send};

/// Writes for longer than any test takes; `blk written=` shows that guest and disk go on.
pub const BUSY: &str = "mode=blk-writer op=write count=500000 depth=8 report=50";
/// What [`BUSY`] says now and then.
pub const WRITTEN: &str = "blk written=";
/// A guest without anything: it says `tick n=`.
pub const TICKS: &str = "mode=ticks ticks=1000000 period=10";
/// What [`TICKS`] says.
pub const TICK: &str = "tick n=";

/// Seconds that an answer, or the other side's silence, may take.
pub const REQUEST_TIMEOUT: u32 = 8;

/// Ferry with limits that do not take long to be reached.
pub fn tiny(cmdline: &str) -> Ferry {
    Ferry::tiny(cmdline)
        .request_timeout(REQUEST_TIMEOUT)
        .dead_timeout(20)
        .with_api()
}

/// A process for the guest to be handed to, with the same limits.
pub fn heir(guest: &Guest) -> Guest {
    let left = guest.beside();
    let successor = left.successor().arg("--request-timeout");
    let successor = successor.arg(REQUEST_TIMEOUT.to_string());
    successor.arg("--dead-timeout").arg("20").start()
}

/// Hands a guest to the next Ferry; the old one has ended well.
pub fn handed_over(guest: Guest) -> Guest {
    let url = guest.unix_url();
    let there = heir(&guest);
    guest.migrated_to(there, &local(&url), &Receive::at(&url))
}

pub fn local(url: &str) -> Send {
    Send::to(url).with("local", true.into())
}
