//! A guest that dirties its RAM faster than it can be sent.

use ferry_tests::{Guest, Receive, Send};

use crate::common::{receiver, tiny};
use crate::proxy::Proxy;

/// Writes some RAM again and again, as fast as it can, and checks each page before it writes it again.
const DIRTY: &str = "mode=dirty rate=0 report=200 check=1 ms=100000000";
const REPORT: &str = "dirty ms=";
/// Pages, 16 MiB.
const PAGES: u64 = 4096;
/// Of each of two connections: much less than the guest writes in a second.
const RATE: u64 = 4 << 20;

fn dirtying(pages: u64) -> Guest {
    let mut guest = tiny(&format!("{DIRTY} pages={pages}")).start();
    writes_all(&mut guest, pages);
    guest
}

/// Waits until the guest has found each page as it had written it.
fn writes_all(guest: &mut Guest, pages: u64) {
    guest.goes_on(REPORT);
    let written = |guest: &Guest| {
        let serial = guest.serial();
        let last = serial.iter().rev().find(|line| line.0.contains(REPORT));
        last.map_or(0, |line| line.number("written"))
    };
    let now = written(guest);
    guest.wait_until("every page", |guest| {
        (written(guest) > now + 2 * pages).then_some(())
    });
}

#[test]
fn it_is_given_up_in_time_if_that_is_asked_for() {
    // A round takes half a second at most.
    let pages = PAGES / 4;
    let mut guest = dirtying(pages);
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let proxy = Proxy::to(&url).slow(RATE);
    let received = there.listen(&Receive::at(&url));
    guest.send(&Send::to(proxy.url()).timeout_s(6).downtime_ms(50));
    guest.wait_for_failure(&["6s", "throttle"]);
    received.answer().expect_err("no guest");
    writes_all(&mut guest, pages);
    // It runs at full speed: nothing is held back.
    assert_eq!(guest.migration()["throttle_percent"], 0);
    assert!(guest.migration()["round"].as_u64() >= Some(2));
}

#[test]
fn it_is_moved_all_the_same_if_that_is_asked_for() {
    let mut guest = dirtying(PAGES);
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let proxy = Proxy::to(&url).slow(RATE);
    let received = there.listen(&Receive::at(&url));
    let send = Send::to(proxy.url()).timeout_s(3).downtime_ms(50);
    guest.send(&send.timeout_strategy("ignore").preserve_source());
    received.answer().expect("a guest");
    guest.wait_for_migration("done");
    // It has stood still for much longer than it should have.
    let downtime = guest.migration()["downtime_ms"].as_f64().expect("a time");
    assert!(downtime > 50.0, "{downtime} ms");
    writes_all(&mut there, PAGES);
}

#[test]
fn it_converges_when_it_is_held_back() {
    let mut guest = dirtying(PAGES);
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let proxy = Proxy::to(&url).slow(RATE);
    let received = there.listen(&Receive::at(&url));
    let send = Send::to(proxy.url()).timeout_s(50).downtime_ms(500);
    guest.send(&send.throttle().preserve_source());
    guest.wait_until("a guest that is held back", |guest| {
        let migration = guest.try_migration()?;
        (migration["throttle_percent"].as_u64()? > 0).then_some(())
    });
    received.answer().expect("a guest");
    let done = guest.wait_for_migration("done");
    assert!(done["round"].as_u64() >= Some(2), "{done}");
    // On the other side it is not held back.
    writes_all(&mut there, PAGES);
    assert_eq!(there.migration()["throttle_percent"], 0);
    proxy.set_rate(0);
}

/// What comes of a guest that writes a lot is right, however long it takes.
#[test]
fn every_page_is_as_it_was_written() {
    let pages = 2048;
    let words = format!("{DIRTY} pages={pages}").replace("rate=0", "rate=20000");
    let mut guest = tiny(&words).start();
    for connections in [1, 4] {
        writes_all(&mut guest, pages);
        let url = guest.unix_url();
        let there = receiver(&guest);
        let send = Send::to(&url).connections(connections);
        guest = guest.migrated_to(there, &send, &Receive::at(&url));
    }
    writes_all(&mut guest, pages);
}
