//! Migrations of guests that have come here in another way, and go on in another way.

use ferry_tests::{Receive, Restore, Send, Snapshot};
use tempfile::TempDir;

use crate::common::{TICK, TICKS, memory, moved_alone, tiny};
use crate::converge::{moved_while_it_writes, writes_all};
use crate::ways::Served;

/// What back-ends are told when a guest is moved must not depend on what they were told before.
#[test]
fn a_guest_that_is_moved_saved_restored_and_moved_again() {
    let mut served = Served::new();
    let mut guest = served.guest();
    let place = TempDir::new().unwrap();
    guest.goes_on("blk written=");
    let url = guest.unix_url();
    let guest = served.move_over(guest, &Send::to(&url), Receive::at(&url));
    guest.snapshot(&Snapshot::to(place.path()).after("stop"));
    let left = guest.kill();
    served.renew();
    let guest = left.restored(&served.named(Restore::from(place.path())));
    let url = guest.unix_url();
    let mut guest = served.move_over(guest, &Send::to(&url), Receive::at(&url));
    guest.goes_on("fuse at=");
    served.verify(guest);
}

/// RAM in two parts, of which the guest writes the second one.
#[test]
fn ram_above_4_gib() {
    const PAGES: u64 = 4096;
    let dirty =
        format!("mode=dirty report=200 check=1 ms=100000000 high=1 rate=20000 pages={PAGES}");
    let guest = tiny(&dirty).memory("3136M").start();
    let guest = moved_while_it_writes(guest, PAGES);
    let place = TempDir::new().unwrap();
    guest.snapshot(&Snapshot::to(place.path()).after("stop"));
    let mut guest = guest.kill().restored(&Restore::from(place.path()));
    writes_all(&mut guest, PAGES);
}

/// All of the receiver's RAM is there before anything of the guest comes.
#[test]
fn into_ram_that_is_prefaulted() {
    let guest = tiny(TICKS).memory("64M,prefault=on");
    let mut guest = guest.start();
    for _ in 0..2 {
        guest.goes_on(TICK);
        guest = moved_alone(guest);
        let shared = memory(&guest, "RssShmem:");
        assert!(shared >= 64 << 10, "{shared} KiB");
    }
    guest.goes_on(TICK);
}
