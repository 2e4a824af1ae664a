//! Guest RAM of huge pages, shared with a back-end.
//!
//! In a file of its own: the reservation is the whole system's, and cargo runs one file's tests at a time.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferry_tests::{Ferry, Qsd, Receive, Send};

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

const MEMORY: &str = "64M,hugepages=on,hugepage_size=2M";
/// The same in pages of 2 MiB …
const PAGES: u64 = 32;
/// … and a few that someone else may take.
const WANTED: u64 = PAGES + 4;

/// Of this file's tests, too, one has the reservation at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn reserved() -> u64 {
    let text = fs::read_to_string(RESERVED).expect("the number of huge pages");
    text.trim().parse().expect("a number")
}

/// Huge pages that nobody has, and nobody is promised.
fn free() -> u64 {
    let number = |name: &str| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        let text = fs::read_to_string(path).expect("a number of huge pages");
        text.trim().parse::<u64>().expect("a number")
    };
    number("free_hugepages").saturating_sub(number("resv_hugepages"))
}

/// Huge pages set aside, and given back at the end.
struct Reservation {
    before: u64,
    wanted: u64,
    _alone: MutexGuard<'static, ()>,
}

impl Reservation {
    /// Only root can; without the right the number stays as it is.
    fn attempt() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reservation = Reservation {
            before: reserved(),
            wanted: 0,
            _alone: alone,
        };
        reservation.add();
        reservation
    }

    /// Sets as many aside once more.
    fn add(&mut self) {
        self.wanted += WANTED;
        let _ = fs::write(RESERVED, (self.before + self.wanted).to_string());
    }

    fn is_enough(&self) -> bool {
        reserved() >= self.before + self.wanted
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let _ = fs::write(RESERVED, self.before.to_string());
    }
}

#[test]
fn ram_of_huge_pages_works_where_there_are_some_and_is_refused_where_not() {
    let reservation = Reservation::attempt();
    let disk = Qsd::serving("1M").start();
    let ended = Ferry::tiny("mode=blk-writer count=40")
        .memory(MEMORY)
        .with_disk(&disk)
        .run();
    if reservation.is_enough() {
        ended.succeeded().line("blk verified=40");
    } else {
        let log = format!("{:?}", ended.with_status(1));
        assert!(log.contains("hugepages=on"), "{log}");
    }
}

/// Its memory is the same kind of memory on the other side, or it stays where it is.
#[test]
fn a_guest_in_huge_pages_moves_to_where_there_are_some_too() {
    let mut reservation = Reservation::attempt();
    if !reservation.is_enough() {
        eprintln!("skipped: there are no huge pages to be had");
        return;
    }
    let mut guest = Ferry::tiny("mode=dirty rate=1000 pages=512 check=1 report=100 ms=100000000")
        .memory(MEMORY)
        .with_api()
        .start();
    guest.wait_for("dirty ms=");
    let url = guest.unix_url();
    let mut there = guest.receiver();
    // The system may have had some before.
    if free() < PAGES {
        let received = there.listen(&Receive::at(&url));
        guest.send(&Send::to(&url));
        guest.wait_for_failure(&["hugepages=on"]);
        received.answer().expect_err("no guest");
        guest.goes_on("dirty ms=");
        reservation.add();
    }
    if free() < PAGES {
        eprintln!("there are huge pages for one side only");
    } else {
        guest = guest.migrated_to(there, &Send::to(&url), &Receive::at(&url));
        assert_eq!(guest.get("vm.info")["config"]["memory"]["hugepages"], true);
    }
    // Long enough to find each page as it was written.
    guest.wait_for_count("dirty ms=", guest.count("dirty ms=") + 12);
}
