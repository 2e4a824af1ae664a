//! For benchmarks: `linux-migration RUNS` boots a Linux guest with 512 MiB, a disk by qemu-storage-daemon and a share by
//! virtiofsd, both in use, and moves it so often from one Ferry to the next, each with back-ends of its own. It prints what
//! GET vm.migration says of each, one JSON object a line. Its environment is that of the Linux tests.

#![allow(
    clippy::expect_used,
    reason = "a benchmark that cannot do its work has failed"
)]

use std::path::Path;

use ferry_tests::{Ferry, Guest, Qsd, QsdOptions, Receive, Send, Virtiofsd, VirtiofsdOptions};
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

fn main() {
    let runs = std::env::args().nth(1).map(|runs| runs.parse());
    let runs: u32 = runs.and_then(Result::ok).expect("linux-migration RUNS");
    let place = TempDir::new().expect("a temporary directory");
    let shared = place.path().join("share");
    std::fs::create_dir(&shared).expect("a directory to share");
    let (mut disk, mut share) = start(place.path());
    let mut guest = Ferry::linux(SCRIPT)
        .memory("512M")
        .with_disk(&disk)
        .with_fs(&share, "share")
        .with_api()
        .request_timeout(60)
        .dead_timeout(120)
        .start();
    for _ in 0..runs {
        works(&mut guest);
        let (next_disk, next_share) = start(place.path());
        let mut receiver = guest.receiver();
        let url = guest.unix_url();
        let receive = Receive::at(&url)
            .device("disk0", &next_disk)
            .device("fs0", &next_share);
        let receiving = receiver.listen(&receive);
        guest.send(&Send::to(&url).preserve_source());
        if let Err(reasons) = receiving.answer() {
            panic!("{}\n{}", reasons.join(": "), guest.transcript());
        }
        println!("{}", guest.wait_for_migration("done"));
        (guest, disk, share) = (receiver, next_disk, next_share);
    }
    works(&mut guest);
    std::fs::write(shared.join("end"), "").expect("write to the share");
    guest.end().succeeded();
    drop((disk, share));
}

/// Back-ends for the same disk and the same share.
fn start(place: &Path) -> (Qsd, Virtiofsd) {
    let disk: QsdOptions = Qsd::serving("16M").on(&place.join("disk.img"));
    let share: VirtiofsdOptions = Virtiofsd::options().sharing(&place.join("share"));
    (disk.start(), share.start())
}

/// Waits until the guest has used both devices once more.
fn works(guest: &mut Guest) {
    let turns = |guest: &Guest| {
        let serial = guest.serial();
        let last = serial.iter().rev().find(|line| line.0.contains("turn="));
        last.map_or(0, |line| line.number("turn"))
    };
    let before = turns(guest);
    guest.wait_until("devices that are used", |guest| {
        (turns(guest) >= before + 2).then_some(())
    });
}
