//! Guest RAM of huge pages, shared with a back-end.
//!
//! In a file of its own: the reservation is the whole system's, and cargo runs one file's tests at a time.

use std::fs;

use ferry_tests::{Ferry, Qsd};

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

/// 64 MiB in pages of 2 MiB, and a few that someone else may take.
const WANTED: u64 = 32 + 4;

fn reserved() -> u64 {
    let text = fs::read_to_string(RESERVED).expect("the number of huge pages");
    text.trim().parse().expect("a number")
}

/// Huge pages set aside, and given back at the end.
struct Reservation {
    before: u64,
}

impl Reservation {
    /// Only root can; without the right the number stays as it is.
    fn attempt() -> Self {
        let before = reserved();
        let _ = fs::write(RESERVED, (before + WANTED).to_string());
        Reservation { before }
    }

    fn is_enough(&self) -> bool {
        reserved() >= self.before + WANTED
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
        .memory("64M,hugepages=on,hugepage_size=2M")
        .with_disk(&disk)
        .run();
    if reservation.is_enough() {
        ended.succeeded().line("blk verified=40");
    } else {
        let log = format!("{:?}", ended.with_status(1));
        assert!(log.contains("hugepages=on"), "{log}");
    }
}
