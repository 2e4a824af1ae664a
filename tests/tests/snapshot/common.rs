//! What many of these scenarios have in common.

use std::path::{Path, PathBuf};

use ferry_tests::backend::{Backend, DeviceState, Running};
use ferry_tests::{Ferry, Guest, Left, Restore, Snapshot};
use tempfile::TempDir;

/// Writes for ever, or nearly so; `blk written=` shows that guest and disk go on.
pub const BUSY: &str = "mode=blk-writer op=write count=60000 report=50";
/// What [`BUSY`] needs.
pub const BUSY_SIZE: &str = "32M";
/// What [`BUSY`] says now and then.
pub const WRITTEN: &str = "blk written=";
/// A guest without anything: it says `tick n=`.
pub const TICKS: &str = "mode=ticks ticks=1000000 period=10";
/// What [`TICKS`] says.
pub const TICK: &str = "tick n=";

/// The size of state that is enough for a test that is not about its size.
pub const STATE: DeviceState = DeviceState {
    bytes: (3 << 20) + 17,
    seed: 11,
};

/// Room for snapshots.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Place(TempDir::new().expect("a temporary directory"))
    }

    /// The path of this name; nothing is there.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Ferry with limits that do not take long to be reached.
pub fn tiny(cmdline: &str) -> Ferry {
    Ferry::tiny(cmdline)
        .request_timeout(REQUEST_TIMEOUT)
        .dead_timeout(20)
        .with_api()
}

/// Seconds.
pub const REQUEST_TIMEOUT: u32 = 2;

/// A guest that writes to a disk.
pub fn busy(disk: &Running) -> Guest {
    let mut guest = tiny(BUSY).with_disk(disk).start();
    guest.wait_for(WRITTEN);
    guest
}

/// A disk for [`BUSY`], whose back-end has state.
pub fn stateful() -> Backend {
    Backend::blk(BUSY_SIZE).with_state(STATE)
}

/// A disk with the contents of another one, whose back-end waits for the state of the other one's.
pub fn heir(old: &Running) -> Running {
    let disk = Backend::blk("0").with_contents(old.disk());
    match old.holds_state() {
        Some(state) => disk.awaits_state(state).start(),
        None => disk.start(),
    }
}

/// Takes a snapshot with which the guest ends, and kills Ferry.
pub fn saved(guest: Guest, directory: &Path) -> Left {
    guest.snapshot(&Snapshot::to(directory).after("stop"));
    assert_eq!(guest.state(), "Shutdown");
    guest.kill()
}

/// Brings a guest with one disk back.
pub fn back(left: &Left, directory: &Path, disk: &Running) -> Guest {
    left.restored(&Restore::from(directory).device("disk0", disk))
}

/// The next snapshot is good, and can be restored, also after whatever has gone wrong.
pub fn next_is_good(mut guest: Guest, disk: &Running, text: &str) {
    guest.goes_on(text);
    let place = Place::new();
    let directory = place.at("next");
    let left = saved(guest, &directory);
    let disk = {
        assert_eq!(disk.complaints(), Vec::<String>::new());
        heir(disk)
    };
    let mut guest = back(&left, &directory, &disk);
    guest.goes_on(text);
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

/// Panics unless the reasons hold all these texts.
pub fn because(answer: ferry_tests::Answer, texts: &[&str]) -> String {
    let reasons = answer.expect_err("a refusal").join(": ");
    for text in texts {
        assert!(reasons.contains(text), "no '{text}' in: {reasons}");
    }
    reasons
}

/// The names in a directory.
pub fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
