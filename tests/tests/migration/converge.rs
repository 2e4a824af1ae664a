//! A guest that dirties its RAM faster than it can be sent.

use ferry_tests::{Guest, Receive, Send};

use crate::common::{goes_on, receiver, tiny};
use crate::proxy::Proxy;

/// Writes all of 16 MiB again and again, as fast as it can, and checks it in the end.
const DIRTY: &str = "mode=dirty rate=0 pages=4096 report=200";
const REPORT: &str = "dirty ms=";
/// Much less than the guest writes in a second.
const RATE: u64 = 8 << 20;

fn dirtying(milliseconds: u32) -> Guest {
    let mut guest = tiny(&format!("{DIRTY} ms={milliseconds}")).start();
    goes_on(&mut guest, REPORT);
    guest
}

#[test]
fn it_is_given_up_in_time_if_that_is_asked_for() {
    let mut guest = dirtying(100_000);
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let proxy = Proxy::to(&url).slow(RATE);
    let received = there.listen(&Receive::at(&url));
    guest.send(&Send::to(proxy.url()).timeout_s(4).downtime_ms(50));
    guest.wait_for_failure(&["4s", "throttle"]);
    received.answer().expect_err("no guest");
    goes_on(&mut guest, REPORT);
    // It runs at full speed: nothing is held back.
    assert_eq!(guest.migration()["throttle_percent"], 0);
    assert!(guest.migration()["round"].as_u64() >= Some(2));
}

#[test]
fn it_is_moved_all_the_same_if_that_is_asked_for() {
    let mut guest = dirtying(20_000);
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
    goes_on(&mut there, REPORT);
    // Every page is as it was written.
    there.end().succeeded();
}

#[test]
fn it_converges_when_it_is_held_back() {
    let mut guest = dirtying(60_000);
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
    goes_on(&mut there, REPORT);
    assert_eq!(there.migration()["throttle_percent"], 0);
    proxy.set_rate(0);
}

/// What comes of a guest that writes a lot is right, however long it takes.
#[test]
fn every_page_is_as_it_was_written() {
    let mut guest = tiny("mode=dirty rate=20000 pages=2048 ms=6000 report=200").start();
    for connections in [1, 4] {
        goes_on(&mut guest, REPORT);
        let url = guest.unix_url();
        let there = receiver(&guest);
        let send = Send::to(&url).connections(connections);
        guest = guest.migrated_to(there, &send, &Receive::at(&url));
    }
    guest.end().succeeded().line("dirty written=");
}
