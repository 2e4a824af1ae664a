//! What `vm.migration` tells of a guest while it is sent, and of what has become of it.

use std::time::{Duration, Instant};

use ferry_tests::backend::{Direction, Fault};
use ferry_tests::{Guest, Receive, Send};
use serde_json::Value;

use crate::common::{STATE, WRITTEN, busy, heir, receiver, stateful};
use crate::converge::dirtying_at;
use crate::proxy::Proxy;

/// Pages that the guest writes, 8 MiB …
const PAGES: u64 = 2048;
/// … and how many of them in a second, 8 MiB as well.
const PACE: u64 = 2048;
const DIRTIED: u64 = PAGES << 12;
/// Bytes a second that get through to the receiver.
const RATE: u64 = 16 << 20;
/// More than the guest has in use besides.
const OTHERS: u64 = 1 << 20;
/// It takes half of that to send all that the guest writes.
const DOWNTIME_MS: u64 = 1000;

/// All that is told of a migration, from its beginning to its end.
fn told(guest: &Guest) -> Vec<Value> {
    let begun = Instant::now();
    let mut told = Vec::new();
    loop {
        let now = guest.migration();
        assert!(begun.elapsed() < Duration::from_secs(60), "{now}");
        let is_over = now["state"] != "under-way";
        told.push(now);
        if is_over {
            return told;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

fn bytes(migration: &Value, name: &str) -> u64 {
    let value = &migration["ram"][name];
    value.as_u64().unwrap_or_else(|| panic!("{name}: {value}"))
}

/// This never falls.
fn rises(told: &[Value], what: &str, number: impl Fn(&Value) -> f64) {
    for pair in told.windows(2) {
        let (before, after) = (number(&pair[0]), number(&pair[1]));
        assert!(before <= after, "{what}: {after} after {before}");
    }
}

/// How long these phases have taken, in milliseconds.
fn length(phases: &Value, is_meant: impl Fn(&str) -> bool) -> f64 {
    let phases = phases.as_array().expect("phases").iter();
    let meant = phases.filter(|it| is_meant(it["phase"].as_str().expect("a name")));
    meant.map(|it| number(&it["ms"])).sum()
}

#[test]
fn a_guest_that_is_copied_while_it_writes() {
    let guest = dirtying_at(PACE, PAGES);
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let proxy = Proxy::to(&url).slow(RATE);
    let received = there.listen(&Receive::at(&url));
    let send = Send::to(proxy.url()).connections(1);
    guest.send(&send.downtime_ms(DOWNTIME_MS).preserve_source());
    let told = told(&guest);
    received.answer().expect("a guest");

    rises(&told, "round", |it| number(&it["round"]));
    rises(&told, "elapsed_ms", |it| number(&it["elapsed_ms"]));
    rises(&told, "sent_bytes", |it| bytes(it, "sent_bytes") as f64);
    let mut copied = told.iter().filter(|it| it["phase"] == "precopy");
    let estimate = |it: &Value| it["downtime_estimate_ms"].as_f64();
    let first: Vec<Value> = copied
        .by_ref()
        .take_while(|it| estimate(it).is_none())
        .filter(|it| it["round"] == 1)
        .cloned()
        .collect();
    in_the_first_round(&first);
    let later: Vec<&Value> = copied.collect();
    assert!(!later.is_empty());
    for it in &later {
        in_a_later_round(it, estimate(it).expect("an estimate"));
    }
    // What was written in the first round is known from its end.
    let written = later.iter().find(|it| it["round"] == 2).expect("a round");
    let pace = bytes(written, "dirty_bytes_per_second");
    let told_to = PACE << 12;
    // A machine that has a lot to do lets the guest write late, and then faster.
    assert!((1..told_to * 8).contains(&pace), "{written}");

    let done = told.last().expect("an end");
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(bytes(done, "remaining_bytes"), 0, "{done}");
    assert!(estimate(done) <= Some(DOWNTIME_MS as f64), "{done}");
    // All of it in the first round, and some of it again.
    assert!(bytes(done, "sent_bytes") > DIRTIED + DIRTIED / 8, "{done}");
    let rounds = guest.events();
    let rounds = rounds
        .iter()
        .filter(|it| *it == "migration-memory-iteration");
    assert_eq!(done["round"], rounds.count(), "{done}");
}

fn in_the_first_round(told: &[Value]) {
    rises(told, "bytes done", |it| {
        -(bytes(it, "remaining_bytes") as f64)
    });
    let [begin, .., end] = told else {
        panic!("nothing is told of the first round: {told:?}");
    };
    assert!(
        bytes(end, "sent_bytes") > bytes(begin, "sent_bytes"),
        "{end}"
    );
    assert!(bytes(end, "bytes_per_second") > 0, "{end}");
    for it in told {
        assert_eq!(bytes(it, "total_bytes"), 64 << 20, "{it}");
        assert_eq!(bytes(it, "dirty_bytes_per_second"), 0, "{it}");
        // What is not left has been sent, or is zero.
        let known = bytes(it, "sent_bytes") + bytes(it, "remaining_bytes");
        assert!(known <= (64 << 20) + OTHERS, "{it}");
    }
}

fn in_a_later_round(it: &Value, estimate: f64) {
    let (left, rate) = (bytes(it, "remaining_bytes"), bytes(it, "bytes_per_second"));
    assert!(left <= DIRTIED + OTHERS, "{it}");
    // A machine that has a lot to do passes on less than it may; at first more fits on the way.
    assert!((1..RATE * 2).contains(&rate), "{it}");
    let ms = |bytes: u64| bytes as f64 / rate as f64 * 1000.0;
    // It is for what was left when the round began.
    let (least, most) = (ms(left) * 0.99, ms(DIRTIED + OTHERS) * 1.01);
    assert!((least..most).contains(&estimate), "{it}");
}

#[test]
fn a_guest_that_stands_still_while_its_back_end_saves() {
    let slowly = Fault::Trickle(Duration::from_millis(20));
    let disk = stateful().in_transfer(Direction::Save, 1, slowly).start();
    let guest = busy(&disk);
    let next = heir(&disk).start();
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let received = there.listen(&Receive::at(&url).device("disk0", &next));
    guest.send(&Send::to(&url).preserve_source());
    let told = told(&guest);
    received.answer().expect("a guest");
    there.goes_on(WRITTEN);

    let moving: Vec<Value> = told
        .iter()
        .filter(|it| it["phase"] == "devices")
        .cloned()
        .collect();
    let device = |it: &Value| it["devices"]["disk0"].clone();
    let sizes = moving.iter().map(|it| number(&device(it)["bytes"]));
    let on_its_way = sizes.filter(|size| *size > 0.0 && *size < STATE.bytes as f64);
    assert!(on_its_way.count() > 1, "{moving:?}");
    rises(&moving, "bytes", |it| number(&device(it)["bytes"]));
    rises(&moving, "downtime_ms", |it| number(&it["downtime_ms"]));
    let [begin, .., end] = &moving[..] else {
        panic!("nothing is told of the device: {told:?}");
    };
    assert!(number(&end["downtime_ms"]) > number(&begin["downtime_ms"]));
    assert!(number(&device(end)["ms"]) > number(&device(begin)["ms"]));
    assert_eq!(device(begin)["checked"], false, "{begin}");

    let done = told.last().expect("an end");
    // Too little for a rate to be known.
    assert!(bytes(done, "sent_bytes") < 4 << 20, "{done}");
    assert_eq!(bytes(done, "bytes_per_second"), 0, "{done}");
    where_the_downtime_went(done);
    for (side, migration) in [("here", done), ("there", &there.migration())] {
        let device = device(migration);
        assert_eq!(device["bytes"], STATE.bytes, "{side}: {migration}");
        assert_eq!(device["checked"], true, "{side}: {migration}");
        let all = length(&migration["phases"], |name| name == "devices");
        let ms = number(&device["ms"]);
        assert!(ms > 0.0 && ms <= all, "{side}: {migration}");
    }
}

/// From the pause to the commit it stands still, for a part of the pause itself.
fn where_the_downtime_went(done: &Value) {
    let still = |name: &str| ["ram", "machine", "devices", "ready", "commit"].contains(&name);
    let least = length(&done["phases"], still);
    let most = least + length(&done["phases"], |name| name == "pause");
    let downtime = number(&done["downtime_ms"]);
    // Each of them is rounded.
    assert!((least - 0.1..most + 0.1).contains(&downtime), "{done}");
    // The receiver's part of it comes after the commit, or while the sender waits.
    let there = length(&done["peer_phases"], |_| true);
    assert!(there > 0.0 && there < downtime + 0.1, "{done}");
}
