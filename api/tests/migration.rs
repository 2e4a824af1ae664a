//! The routes of migrations, as clients use them.

mod common;

use std::io::Write;

use common::{TestServer, receive, request};
use ferry_api::control::Response;
use serde_json::json;

/// The sender is answered at once, and the receiver in the end.
#[test]
fn migrations_hold_phases_rates_and_times() {
    let server = TestServer::start();
    let answer = server.ask("GET", "/api/v1/vm.migration", "");
    assert_eq!(answer.status(), 404);
    let body = r#"{"destination_url": "tcp:[::1]:4000", "downtime_ms": 20}"#;
    let answer = server.ask("PUT", "/api/v1/vm.send-migration", body);
    assert_eq!(answer.head, "HTTP/1.1 204 \r\n\r\n");
    let mut expected = json!({
        "role": "send",
        "url": "tcp:[::1]:4000",
        "attempt": "5a".repeat(16),
        "state": "under-way",
        "phase": "precopy",
        "phases": [{"phase": "connect", "ms": 1.25}, {"phase": "precopy", "ms": 1200.0}],
        "peer_phases": [],
        "elapsed_ms": 1234.0,
        "round": 2,
        "ram": {"total_bytes": 1 << 30, "sent_bytes": 512 << 20, "remaining_bytes": 100 << 20,
                "bytes_per_second": 30 << 20, "dirty_bytes_per_second": 20 << 20},
        "throttle_percent": 0,
        "downtime_estimate_ms": 42.0,
        "devices": {},
    });
    let answer = server.ask("GET", "/api/v1/vm.migration", "");
    assert_eq!(answer.json(), expected);
    let answer = server.ask("PUT", "/api/v1/vm.migration-cancel", "");
    assert_eq!(answer.head, "HTTP/1.1 204 \r\n\r\n");
    expected["state"] = json!("failed");
    expected["error"] = json!(["it was cancelled"]);
    let answer = server.ask("GET", "/api/v1/vm.migration", "");
    assert_eq!(answer.json(), expected);
    let answer = server.ask("PUT", "/api/v1/vm.migration-reclaim", "");
    assert_eq!(answer.head, "HTTP/1.1 204 \r\n\r\n");

    let mut receiving = server.connect();
    let body = r#"{"receiver_url": "unix:/s", "devices": {"home": {"socket": "/x"}}}"#;
    let bytes = request("PUT", "/api/v1/vm.receive-migration", body);
    receiving.write_all(&bytes).unwrap();
    server.wait_asked(7);
    let answer = server.ask("GET", "/api/v1/vm.migration", "");
    assert_eq!(answer.json()["phase"], "listen");
    server.script.end_migration(Ok(Response::Done));
    assert_eq!(receive(&mut receiving).head, "HTTP/1.1 204 \r\n\r\n");
}
