//! For benchmarks: `linux-migration RUNS [QEMU]` boots a Linux guest with 512 MiB, a disk by qemu-storage-daemon and a share
//! by virtiofsd, both in use, and moves it so often from one Ferry to the next, each with back-ends of its own. With the path
//! of a QEMU, such a guest moves from one QEMU to the next, too: in turns with Ferry's, and the one that is not moved stands
//! still. It prints what the monitor says of each migration, one JSON object a line: `vmm`, `report`. Its environment is that
//! of the Linux tests.

#![allow(
    clippy::expect_used,
    reason = "a benchmark that cannot do its work has failed"
)]

mod ferry;
mod qemu;

use std::fs;
use std::path::{Path, PathBuf};

use ferry_tests::{Line, Qsd, Virtiofsd};
use serde_json::{Value, json};
use tempfile::TempDir;

/// All of the RAM that is free holds data, and both devices are written to, a few times a second.
const SCRIPT: &str = "
    mount -t tmpfs -o size=90% fill /tmp
    dd if=/dev/urandom of=/tmp/block bs=64k count=16 2> /dev/null
    number=0
    while [ $number -lt 300 ]; do
        cat /tmp/block > /tmp/fill$number
        number=$((number + 1))
    done
    mkdir -p /share
    mount -t virtiofs share /share
    turn=0
    while [ ! -e /share/end ]; do
        dd if=/tmp/block of=/dev/vda bs=64k count=1 seek=$((turn % 100)) conv=fsync 2> /dev/null
        dd if=/tmp/block of=/share/file bs=64k count=1 seek=$((turn % 100)) conv=fsync,notrunc 2> /dev/null
        turn=$((turn + 1))
        echo turn=$turn
        sleep 0.2
    done";

/// For how long a guest may stand still, in milliseconds, by the monitor's estimate.
const DOWNTIME_MS: u64 = 300;

/// A guest in a monitor.
trait Moving {
    /// The monitor's name.
    fn name(&self) -> &'static str;
    /// Waits until the guest has used both devices this often since it booted.
    fn wait_for_turns(&mut self, count: u64);
    /// How often it has.
    fn turns(&self) -> u64;
    /// Lets the guest stand still.
    fn pause(&mut self);
    /// Lets it go on.
    fn resume(&mut self);
    /// Moves the guest to another monitor with these back-ends, and returns what the old one says of it.
    fn move_to(&mut self, next: BackEnds) -> Value;
    /// Waits for the guest's end, which has to be a good one.
    fn end(self: Box<Self>);
}

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let runs = arguments
        .next()
        .and_then(|runs| runs.to_str()?.parse().ok());
    let runs: u32 = runs.expect("linux-migration RUNS [QEMU]");
    let qemu = arguments.next().map(PathBuf::from);
    keep_addresses();

    let mut guests = vec![Running::new(|own| Box::new(ferry::Ferry::boot(own)))];
    if let Some(program) = &qemu {
        guests.push(Running::new(|own| Box::new(qemu::Qemu::boot(program, own))));
    }
    for _ in 0..runs {
        for guest in &mut guests {
            println!("{}", guest.run());
        }
    }
    for guest in guests {
        guest.end();
    }
}

/// Lets all processes that are started from now on have the same addresses each time. An emulator translates code anew where it is found at
/// another address, and a process that has just started would do little else. That is no part of a migration.
fn keep_addresses() {
    const ADDR_NO_RANDOMIZE: libc::c_ulong = libc::ADDR_NO_RANDOMIZE as libc::c_ulong;
    // SAFETY: it is a flag of this process, which has no memory arguments.
    let before = unsafe { libc::personality(ADDR_NO_RANDOMIZE) };
    assert_ne!(before, -1, "random addresses cannot be switched off");
}

/// A guest, and where its disk's image and the directory that it shares are. It stands still between its runs.
struct Running {
    guest: Box<dyn Moving>,
    place: TempDir,
}

impl Running {
    fn new(boot: impl FnOnce(BackEnds) -> Box<dyn Moving>) -> Self {
        let place = TempDir::new().expect("a temporary directory");
        fs::create_dir(place.path().join("share")).expect("a directory to share");
        let mut guest = boot(BackEnds::start(place.path()));
        works(&mut *guest);
        guest.pause();
        Self { guest, place }
    }

    fn run(&mut self) -> Value {
        self.guest.resume();
        works(&mut *self.guest);
        let report = self.guest.move_to(BackEnds::start(self.place.path()));
        works(&mut *self.guest);
        self.guest.pause();
        json!({"vmm": self.guest.name(), "report": report})
    }

    fn end(mut self) {
        fs::write(self.place.path().join("share/end"), "").expect("write to the share");
        self.guest.resume();
        self.guest.end();
    }
}

/// Waits until the guest has used both devices once more.
fn works(guest: &mut dyn Moving) {
    let count = guest.turns() + 2;
    guest.wait_for_turns(count);
}

/// How often a guest that has said this has used its devices.
fn turns(serial: &[Line]) -> u64 {
    let last = serial.iter().rev().find(|line| line.0.contains("turn="));
    last.map_or(0, |line| line.number("turn"))
}

/// What a guest has outside its monitor.
struct BackEnds {
    disk: Qsd,
    share: Virtiofsd,
}

impl BackEnds {
    /// For the disk and the directory in `place`.
    fn start(place: &Path) -> Self {
        Self {
            disk: Qsd::serving("16M").on(&place.join("disk.img")).start(),
            share: Virtiofsd::options().sharing(&place.join("share")).start(),
        }
    }
}
