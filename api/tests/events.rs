//! Events over the API.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped has failed the test"
)]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{TestServer, receive, request};
use ferry_api::events::Properties;
use ferry_api::server::Limits;
use serde_json::{Value, json};

fn names(events: &Value) -> Vec<&str> {
    let events = events.as_array().unwrap().iter();
    events
        .map(|event| event["event"].as_str().unwrap())
        .collect()
}

#[test]
fn events_are_asked_for_by_the_last_one_seen() {
    let server = TestServer::start();
    let ask = |query: &str| {
        server
            .ask("GET", &format!("/api/v1/vm.events{query}"), "")
            .json()
    };
    assert_eq!(ask(""), json!([]));
    server.events.publish("vm", "booting", Properties::new());
    let properties = Properties::from([("id".into(), "root".into())]);
    server.events.publish("device", "failed", properties);
    assert_eq!(names(&ask("")), ["booting", "failed"]);
    let events = ask("?after=1&wait=30");
    assert_eq!(events[0]["seq"], 2);
    assert_eq!(events[0]["source"], "device");
    assert_eq!(events[0]["properties"], json!({"id": "root"}));
    assert!(events[0]["timestamp"]["nanos"].is_u64());
    assert_eq!(names(&ask("?after=2")), [""; 0]);
    assert_eq!(names(&ask("?after=77&wait=30")), ["booting", "failed"]);
    for query in ["?after=x", "?wait=-1", "?after="] {
        let answer = server.ask("GET", &format!("/api/v1/vm.events{query}"), "");
        assert_eq!(answer.status(), 400, "{query}");
    }
}

#[test]
fn a_client_that_waits_gets_the_next_event() {
    let server = TestServer::start();
    let mut stream = server.connect();
    let wait = request("GET", "/api/v1/vm.events?after=0&wait=30", "");
    stream.write_all(&wait).unwrap();
    // Others are served meanwhile.
    assert_eq!(server.ask("GET", "/api/v1/vmm.ping", "").status(), 200);
    server.events.publish("vm", "paused", Properties::new());
    assert_eq!(names(&receive(&mut stream).json()), ["paused"]);
    // Without an event the wait has an end.
    let wait = request("GET", "/api/v1/vm.events?after=1&wait=1", "");
    stream.write_all(&wait).unwrap();
    assert_eq!(receive(&mut stream).json(), json!([]));
}

#[test]
fn the_end_does_not_wait_for_those_who_wait() {
    let mut server = TestServer::start();
    let mut stream = server.connect();
    let wait = request("GET", "/api/v1/vm.events?wait=30", "");
    stream.write_all(&wait).unwrap();
    // Once this is answered, the request before it has been read.
    assert_eq!(server.ask("GET", "/api/v1/vmm.ping", "").status(), 200);
    let begun = Instant::now();
    drop(server.server.take());
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(receive(&mut stream).json(), json!([]));
}

#[test]
fn those_who_wait_are_bounded() {
    let server = TestServer::with(Limits {
        watchers: 2,
        ..Limits::default()
    });
    let wait = request("GET", "/api/v1/vm.events?wait=30", "");
    let mut streams = [server.connect(), server.connect()];
    for stream in &mut streams {
        stream.write_all(&wait).unwrap();
        assert_eq!(server.ask("GET", "/api/v1/vmm.ping", "").status(), 200);
    }
    assert_eq!(server.ask("GET", "/api/v1/vm.events", "").status(), 503);
    server.events.publish("vm", "paused", Properties::new());
    for stream in &mut streams {
        assert_eq!(receive(stream).status(), 200);
    }
    assert_eq!(server.ask("GET", "/api/v1/vm.events", "").status(), 200);
}

#[test]
fn those_who_leave_make_room_for_others() {
    let server = TestServer::with(Limits {
        watchers: 1,
        ..Limits::default()
    });
    let wait = request("GET", "/api/v1/vm.events?wait=30", "");
    for _ in 0..5 {
        let mut stream = server.connect();
        stream.write_all(&wait).unwrap();
        common::wait_until(|| server.ask("GET", "/api/v1/vm.events", "").status() == 503);
        drop(stream);
        common::wait_until(|| server.ask("GET", "/api/v1/vm.events", "").status() == 200);
    }
}
