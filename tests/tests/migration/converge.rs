//! A guest that dirties its RAM faster than it can be sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ferry_tests::fault_proxy::{Act, Then};
use ferry_tests::{Asked, Guest, Receive, Send};
use serde_json::Value;
use vm_migration::link::Kind;

use crate::common::{receiver, tiny};
use crate::proxy::Proxy;
use crate::way::{Way, before};

/// Writes some RAM again and again, and checks each page before it writes it again.
const DIRTY: &str = "mode=dirty report=200 check=1 ms=100000000";
/// What it says now and then.
pub const REPORT: &str = "dirty ms=";
/// Pages, 16 MiB.
const PAGES: u64 = 4096;
/// Of each of two connections: much less than the guest writes in a second.
const RATE: u64 = 4 << 20;
/// More rounds than two migrations have.
const ROUNDS: usize = 200;

/// Writes so many pages as fast as it can.
pub fn dirtying(pages: u64) -> Guest {
    dirtying_at(0, pages)
}

/// The same, so many of them in a second.
pub fn dirtying_at(pace: u64, pages: u64) -> Guest {
    let mut guest = tiny(&format!("{DIRTY} rate={pace} pages={pages}")).start();
    writes(&mut guest, pages);
    guest
}

/// Waits until the guest has found each page as it had written it.
pub fn writes_all(guest: &mut Guest, pages: u64) {
    writes(guest, 2 * pages);
}

/// Waits until the guest has written so many more pages.
fn writes(guest: &mut Guest, pages: u64) {
    guest.goes_on(REPORT);
    let written = |guest: &Guest| {
        let serial = guest.serial();
        let last = serial.iter().rev().find(|line| line.0.contains(REPORT));
        last.map_or(0, |line| line.number("written"))
    };
    let now = written(guest);
    guest.wait_until("more pages", |guest| {
        (written(guest) > now + pages).then_some(())
    });
}

/// A guest that leaves over a link that is too slow for it.
struct Leaving {
    guest: Guest,
    there: Guest,
    _link: Proxy,
    received: Asked,
}

impl Leaving {
    /// `rate` is that of each connection, in bytes a second.
    fn at(rate: u64, guest: Guest, send: impl FnOnce(Send) -> Send) -> Leaving {
        let mut there = receiver(&guest);
        let url = guest.unix_url();
        let link = Proxy::to(&url).slow(rate);
        let received = there.listen(&Receive::at(&url));
        guest.send(&send(Send::to(link.url())));
        Leaving {
            guest,
            there,
            _link: link,
            received,
        }
    }

    /// The guest stays where it is, for these reasons, and nothing holds it back.
    fn stays(self, reasons: &[&str], pages: u64) -> Value {
        let mut guest = self.guest;
        guest.wait_for_failure(reasons);
        self.received.answer().expect_err("no guest");
        is_let_go(&mut guest, pages);
        guest.migration()
    }

    /// It has left; how it went.
    fn arrives(self) -> Value {
        let (mut guest, mut there) = (self.guest, self.there);
        self.received.answer().expect("a guest");
        let done = guest.wait_for_migration("done");
        is_let_go(&mut there, PAGES);
        done
    }

    fn wait_until_held_back(&mut self) {
        self.guest.wait_until("a guest that is held back", |guest| {
            let migration = guest.try_migration()?;
            (migration["throttle_percent"].as_u64()? > 0).then_some(())
        });
        self.guest.wait_until("the thread that does so", |guest| {
            is_held_back(guest).then_some(())
        });
    }
}

fn is_let_go(guest: &mut Guest, pages: u64) {
    // The system lists a thread for a moment after its end.
    guest.wait_until("a guest that is let go", |guest| {
        (!is_held_back(guest)).then_some(())
    });
    assert_eq!(guest.migration()["throttle_percent"], 0);
    writes_all(guest, pages);
}

/// Whether there is a thread that does so.
fn is_held_back(guest: &Guest) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", guest.pid())).expect("a process");
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    // One that has just ended has none.
    let mut names = tasks.flatten().filter_map(|task| name(task).ok());
    names.any(|name| name.trim() == "brake")
}

#[test]
fn it_is_given_up_in_time_if_that_is_asked_for() {
    // A round takes half a second at most.
    let pages = PAGES / 4;
    let send = |send: Send| send.timeout_s(6).downtime_ms(50);
    let leaving = Leaving::at(RATE, dirtying(pages), send);
    let migration = leaving.stays(&["6s", "throttle"], pages);
    assert!(migration["round"].as_u64() >= Some(2), "{migration}");
}

/// One of which the first round alone would take longer.
#[test]
fn it_is_given_up_in_time_within_a_round() {
    let leaving = Leaving::at(RATE / 8, dirtying(PAGES), |send| send.timeout_s(3));
    let migration = leaving.stays(&["3s"], PAGES);
    assert_eq!(migration["round"], 1, "{migration}");
    assert_eq!(migration["phase"], "precopy", "{migration}");
}

#[test]
fn it_is_not_held_back_any_more_after_a_cancel() {
    let send = |send: Send| send.timeout_s(50).downtime_ms(1).throttle();
    let mut leaving = Leaving::at(RATE, dirtying(PAGES), send);
    leaving.wait_until_held_back();
    leaving.guest.cancel_migration().expect("an end");
    leaving.stays(&["cancel"], PAGES);
}

#[test]
fn it_is_moved_all_the_same_if_that_is_asked_for() {
    let send = |send: Send| {
        let limited = send.timeout_s(3).downtime_ms(50);
        limited.timeout_strategy("ignore").preserve_source()
    };
    let leaving = Leaving::at(RATE, dirtying(PAGES), send);
    let done = leaving.arrives();
    // It has stood still for much longer than it should have.
    let downtime = done["downtime_ms"].as_f64().expect("a time");
    assert!(downtime > 50.0, "{downtime} ms");
}

#[test]
fn it_converges_when_it_is_held_back() {
    let send = |send: Send| {
        let limited = send.timeout_s(50).downtime_ms(500);
        limited.throttle().preserve_source()
    };
    let mut leaving = Leaving::at(RATE, dirtying(PAGES), send);
    leaving.wait_until_held_back();
    let done = leaving.arrives();
    assert!(done["round"].as_u64() >= Some(2), "{done}");
}

/// A way on which each round takes a while, until it is told otherwise.
fn sluggish() -> (Way, Arc<AtomicBool>) {
    let hurries = Arc::new(AtomicBool::new(false));
    let due = (0..ROUNDS).map(|_| {
        let hurries = Arc::clone(&hurries);
        let wait = move || {
            if !hurries.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(300));
            }
            Then::PassOn
        };
        (before(Kind::Round), Act::ask(wait))
    });
    (Way::with(due), hurries)
}

/// The guest writes as much in each round as in the one before. Where that can be sent within the downtime, the rounds end; where
/// it cannot, they go on until they take less time.
#[test]
fn rounds_end_when_the_rest_can_be_sent_within_the_downtime() {
    // The estimate is between them.
    const LARGE: u64 = 20_000;
    const SMALL: u64 = 20;
    // More than 4 MiB: with less, the rate is not known.
    let pages = 1100;
    let mut guest = dirtying_at(1500, pages);
    let (way, hurries) = sluggish();
    let (receive, send) = (Receive::at(way.receiver()), Send::to(way.sender()));
    let send = send.connections(1).preserve_source();
    let estimate = |migration: &Value| migration["downtime_estimate_ms"].as_f64();

    let mut there = receiver(&guest);
    let received = there.listen(&receive);
    guest.send(&send.clone().downtime_ms(LARGE));
    let done = guest.wait_for_migration("done");
    received.answer().expect("a guest");
    let kept = Some(SMALL as f64)..=Some(LARGE as f64);
    assert!(kept.contains(&estimate(&done)), "{done}");
    let rounds = done["round"].as_u64().expect("a number");
    // All after the second one are for a quiet moment, which is not waited for any longer than that.
    assert!(rounds <= 30, "{done}");

    // Back again, the other way round.
    let received = guest.listen(&receive);
    there.send(&send.clone().downtime_ms(SMALL));
    let later = there.wait_until("more rounds", |guest| {
        let migration = guest.try_migration()?;
        assert_eq!(migration["state"], "under-way", "{migration}");
        (migration["round"].as_u64()? > rounds).then_some(migration)
    });
    assert_eq!(later["phase"], "precopy", "{later}");
    assert!(estimate(&later) > Some(SMALL as f64), "{later}");
    hurries.store(true, Ordering::Relaxed);
    received.answer().expect("a guest");
    let done = there.wait_for_migration("done");
    assert!(estimate(&done) <= Some(SMALL as f64), "{done}");
    guest.goes_on(REPORT);
}

/// What comes of a guest that writes a lot is right, however long it takes.
#[test]
fn every_page_is_as_it_was_written() {
    let pages = 2048;
    moved_while_it_writes(dirtying_at(20_000, pages), pages);
}

/// Two Ferrys further, over one connection and over four.
pub fn moved_while_it_writes(mut guest: Guest, pages: u64) -> Guest {
    for connections in [1, 4] {
        writes_all(&mut guest, pages);
        let url = guest.unix_url();
        let there = receiver(&guest);
        let send = Send::to(&url).connections(connections);
        guest = guest.migrated_to(there, &send, &Receive::at(&url));
    }
    writes_all(&mut guest, pages);
    guest
}
