//! A guest without devices: its time and its serial port go on, and both sides say what has become of it.

use ferry_tests::{Guest, Line, Receive, Send, is_documented};
use serde_json::Value;

use crate::common::{TICK, TICKS, because, moved_alone, receiver, tiny};

/// Every tick is there once, in order.
fn check(serial: &[Line], count: u64) {
    let ticks = serial.iter().filter(|line| line.0.contains(TICK));
    let numbers: Vec<u64> = ticks.map(|line| line.number("n")).collect();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
}

fn ticks_go_on(timer: &str) {
    let mut guest = tiny(&format!(
        "mode=ticks ticks=600 period=10 timer={timer} end=halt"
    ))
    .start();
    for _ in 0..3 {
        guest.goes_on(TICK);
        guest = moved_alone(guest);
    }
    guest.goes_on(TICK);
    check(&guest.finished().serial, 600);
}

#[test]
fn ticks_of_a_spinning_guest_go_on_three_times() {
    ticks_go_on("tsc");
}

#[test]
fn ticks_of_a_sleeping_guest_go_on_three_times() {
    ticks_go_on("lapic");
}

/// A guest that ticks has been moved, and both Ferrys live.
fn both_sides() -> (Guest, Guest) {
    let mut here = tiny(TICKS).start();
    here.goes_on(TICK);
    let mut there = receiver(&here);
    let url = here.unix_url();
    let received = there.listen(&Receive::at(&url));
    here.send(&Send::to(&url).preserve_source());
    received.answer().expect("a guest");
    here.wait_for_migration("done");
    there.goes_on(TICK);
    (here, there)
}

fn in_order(events: &[String], names: &[&str]) {
    let mut events = events.iter();
    for name in names {
        assert!(
            events.any(|event| event == name),
            "no {name}, or too early: {names:?}"
        );
    }
}

#[test]
fn events_of_both_sides() {
    let (here, there) = both_sides();
    in_order(
        &here.events(),
        &[
            "migration-started",
            "migration-memory-iteration",
            "migration-finished",
        ],
    );
    in_order(
        &there.events(),
        &["receive-ready", "receive-started", "receive-finished"],
    );
    for events in [here.events(), there.events()] {
        assert!(!events.iter().any(|event| event.contains("failed")));
    }
}

#[test]
fn what_events_of_both_sides_say() {
    let (here, there) = both_sides();
    for guest in [&here, &there] {
        guest.whole_events().iter().for_each(is_documented);
    }
    let url = here.event("migration-started")["url"].clone();
    assert!(url.as_str().expect("a URL").starts_with("unix:"), "{url}");
    assert_eq!(there.event("receive-ready")["url"], url);
    let first = here.event("migration-memory-iteration");
    assert_eq!(first["iteration"], "1", "{first}");
    assert_eq!(
        first["remaining_bytes"],
        (64 << 20).to_string().as_str(),
        "{first}"
    );
    let downtime = here.event("migration-finished")["downtime_us"].clone();
    let downtime: f64 = downtime
        .as_str()
        .expect("a text")
        .parse()
        .expect("a number");
    let shown = number(&here.migration()["downtime_ms"]) * 1000.0;
    assert!((downtime - shown).abs() <= 1.0, "{downtime}, {shown}");
}

/// Both say why.
#[test]
fn events_of_a_migration_that_fails() {
    let mut here = tiny(TICKS).start();
    here.goes_on(TICK);
    let mut there = receiver(&here);
    let url = here.unix_url();
    let received = there.listen(&Receive::at(&url));
    there.cancel_migration().expect("an end");
    because(received.answer(), &["cancel"]);
    let reason = there.event("receive-failed")["reason"].to_string();
    assert!(reason.contains("cancel"), "{reason}");
    here.send(&Send::to(&url));
    let said = here.wait_for_failure(&[]);
    here.wait_until("an event", |guest| {
        let events = guest.events();
        events
            .contains(&"migration-failed".to_owned())
            .then_some(())
    });
    assert_eq!(here.event("migration-failed")["reason"], said.as_str());
    here.goes_on(TICK);
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

fn phases(migration: &Value) -> Vec<&str> {
    let phases = migration["phases"].as_array().expect("phases");
    phases
        .iter()
        .map(|phase| phase["phase"].as_str().expect("a name"))
        .collect()
}

#[test]
fn how_it_went_on_both_sides() {
    let (here, there) = both_sides();
    let (sent, received) = (here.migration(), there.migration());
    assert_eq!(
        (&sent["role"], &received["role"]),
        (&"send".into(), &"receive".into())
    );
    assert_eq!(sent["attempt"], received["attempt"]);
    assert_eq!(sent["attempt"].as_str().expect("an id").len(), 32);
    for migration in [&sent, &received] {
        assert_eq!(migration["state"], "done");
        assert_eq!(migration["ram"]["total_bytes"], 64 << 20, "{migration}");
        assert!(migration.get("error").is_none(), "{migration}");
        let parts = migration["phases"].as_array().expect("phases").iter();
        let sum: f64 = parts.map(|phase| number(&phase["ms"])).sum();
        assert!(sum <= number(&migration["elapsed_ms"]) + 1.0, "{migration}");
    }
    let names = phases(&sent);
    for name in [
        "connect", "prepare", "precopy", "pause", "ram", "machine", "devices", "ready", "commit",
    ] {
        assert!(names.contains(&name), "no {name} in {names:?}");
    }
    let names = phases(&received);
    for name in [
        "listen", "connect", "prepare", "precopy", "machine", "ready", "commit", "resume",
    ] {
        assert!(names.contains(&name), "no {name} in {names:?}");
    }
    assert!(sent["round"].as_u64() >= Some(1), "{sent}");
    let ram = sent["ram"]["sent_bytes"].as_u64().expect("bytes");
    // It has touched a fraction of it.
    assert!((4096..8 << 20).contains(&ram), "{sent}");
    let downtime = number(&sent["downtime_ms"]);
    assert!(
        downtime > 0.0 && downtime <= number(&sent["elapsed_ms"]),
        "{sent}"
    );
    assert!(!sent["peer_phases"].as_array().expect("phases").is_empty());
}

#[test]
fn the_definition_is_the_same_and_the_source_has_none() {
    let mut here = tiny(TICKS).start();
    here.goes_on(TICK);
    let before = here.get("vm.info");
    let mut there = receiver(&here);
    let url = here.unix_url();
    let received = there.listen(&Receive::at(&url));
    here.send(&Send::to(&url).preserve_source());
    received.answer().expect("a guest");
    here.wait_for_migration("done");
    let after = there.get("vm.info");
    assert_eq!(after["state"], "Running");
    assert_eq!(after["config"], before["config"]);
    let refused = here.api().get("vm.info").expect_err("no machine");
    assert_eq!(refused.chain().len(), 1, "{:?}", refused.chain());
    // It can go back.
    let url = here.unix_url();
    let received = here.listen(&Receive::at(&url));
    there.send(&Send::to(&url));
    received.answer().expect("a guest");
    there.departed();
    here.goes_on(TICK);
    assert_eq!(here.state(), "Running");
}

#[test]
fn a_source_that_is_not_to_stay_ends_with_status_0() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    // This waits for it.
    let mut guest = moved_alone(guest);
    guest.goes_on(TICK);
    assert_eq!(guest.state(), "Running");
}
