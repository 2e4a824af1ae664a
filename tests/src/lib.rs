//! The harness of Ferry's integration tests.
//!
//! A test is a scenario: start back-ends, start Ferry with a guest, look at what the guest says.
//!
//! ```no_run
//! use ferry_tests::{Ferry, Qsd};
//!
//! let disk = Qsd::serving("1M").start();
//! let ended = Ferry::tiny("mode=blk-writer count=100").with_disk(&disk).run().succeeded();
//! assert_eq!(ended.line("blk verified").number("verified"), 100);
//! ```
//!
//! Nothing here is timed. The limits only keep a test that fails from hanging.

#![allow(
    clippy::expect_used,
    reason = "in a test, a harness that cannot do its work is a failure"
)]

pub mod backend;
#[path = "../../xtask/src/cpio.rs"]
#[allow(dead_code, reason = "some of it is for the common initramfs")]
mod cpio;
mod daemons;
pub mod fault_proxy;
mod ferry;
mod ferryctl;
pub mod keys;
mod lines;
pub mod pattern;
mod process;
pub mod units;

pub use daemons::{Qsd, QsdOptions, Virtiofsd, VirtiofsdOptions};
pub use ferry::{
    Answer, Asked, Ended, Ferry, Guest, Kernel, LINUX_COMMAND_LINE, Left, Linux, Listener, Receive,
    Restore, Send, Snapshot, Successor, ferry_binary, is_documented, loopback_url,
};
pub use ferryctl::ferryctl;
pub use lines::{Line, complete_lines};
pub use process::{Process, tool};

/// The path of the tiny guest, a PVH kernel that `build.rs` makes from `guest/`.
pub const TINY_GUEST: &str = env!("TINY_GUEST");

/// How the tiny guest's `mode=msix-wait` waits for interrupts, in its order, and to what size a disk then changes.
pub const MSIX_WAITS: [(&str, &str); 4] = [
    ("vector", "2M"),
    ("function", "3M"),
    ("retarget", "4M"),
    ("cli", "5M"),
];

/// Programs that a Linux guest can run: static, for the file system's root ([`Ferry::file`]).
pub mod programs {
    /// Writes numbered, checksummed records, and reads them back (`guest/linux/records.c`).
    pub const RECORDS: &str = env!("LINUX_RECORDS");
    /// Says "hello" to the host's port 1234 and prints the answer (`guest/linux/vsock.c`).
    pub const VSOCK: &str = env!("LINUX_VSOCK");
}
