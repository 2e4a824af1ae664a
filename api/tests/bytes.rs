//! The bytes on the socket, as existing clients send and read them.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;

use common::{TestServer, receive, request};
use ferry_api::control::Request;
use serde_json::json;

#[test]
fn ping_answers_in_exactly_these_bytes() {
    let server = TestServer::start();
    let answer = server.ask("GET", "/api/v1/vmm.ping", "");
    let length = answer.body.len();
    let expected = format!(
        "HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    assert_eq!(answer.head, expected);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        answer.json(),
        json!({
            "build_version": format!("ferry-{version}"),
            "version": version,
            "pid": std::process::id(),
            "features": [],
        })
    );
}

#[test]
fn an_answer_without_content_has_no_length() {
    let server = TestServer::start();
    let mut stream = server.connect();
    let boot = request("PUT", "/api/v1/vm.boot", "");
    // Twice, as the connection stays.
    for _ in 0..2 {
        stream.write_all(&boot).unwrap();
        assert_eq!(receive(&mut stream).head, "HTTP/1.1 204 \r\n\r\n");
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn a_request_may_arrive_in_pieces() {
    let server = TestServer::start();
    let body = json!({"id": "disk1", "vhost_user": true, "vhost_socket": "/tmp/x"}).to_string();
    let bytes = request("PUT", "/api/v1/vm.add-disk", &body);
    let mut stream = server.connect();
    for piece in bytes.chunks(bytes.len().div_ceil(4)) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(receive(&mut stream).head, "HTTP/1.1 204 \r\n\r\n");
    let asked = server.script.asked.lock().unwrap();
    let [Request::AddDisk(disk)] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!(disk.backend.id, "disk1");
}

#[test]
fn a_client_that_has_said_all_still_gets_its_answer() {
    let server = TestServer::start();
    let body = "x".repeat(300_000);
    let ask = |bytes: &[u8]| {
        let mut stream = server.connect();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    };
    let mut stream = ask(&request("PUT", "/api/v1/vm.pause", ""));
    server.wait_asked(1);
    for reply in server.script.held.lock().unwrap().drain(..) {
        reply.answer(Ok(ferry_api::control::Response::Done));
    }
    assert_eq!(receive(&mut stream).status(), 204);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // The end may come with the request's bytes or after them.
    for _ in 0..100 {
        let mut stream = ask(&request("PUT", "/api/v1/vm.boot", ""));
        assert_eq!(receive(&mut stream).status(), 204);
        let mut stream = ask(&request("PUT", "/api/v1/vm.boot", "{}"));
        assert_eq!(receive(&mut stream).status(), 204);
        let mut stream = ask(&request("PUT", "/api/v1/vm.boot", &body));
        assert_eq!(receive(&mut stream).status(), 204);
    }
}

#[test]
fn errors_are_arrays_of_text_in_ascii() {
    let server = TestServer::start();
    let longest = "x".repeat(5 << 20);
    let cases = [
        ("PUT", "/api/v1/vm.resume", "", 500, "cannot resume"),
        ("PUT", "/api/v1/vm.reboot", "", 500, "Ferry ended before"),
        (
            "PUT",
            "/api/v1/vm.remove-device",
            "{\"id\":\"x\"}",
            404,
            "there is no device x",
        ),
        (
            "PUT",
            "/api/v1/vm.remove-device",
            "{\"id\":null}",
            400,
            "there is no device without a name",
        ),
        (
            "PUT",
            "/api/v1/vm.add-fs",
            "{\"tag\":\"t\",\"socket\":\"/s\"}",
            409,
            "taken",
        ),
        (
            "PUT",
            "/api/v1/vm.frobnicate",
            "{}",
            404,
            "there is no route",
        ),
        ("GET", "/", "", 404, "there is no route /"),
        (
            "PUT",
            "/api/v1/vmm.ping",
            "{}",
            405,
            "/api/v1/vmm.ping takes GET only",
        ),
        (
            "POST",
            "/api/v1/vm.boot",
            "",
            405,
            "/api/v1/vm.boot takes PUT only",
        ),
        (
            "PUT",
            "/api/v1/vm.create",
            "",
            400,
            "the body is not the JSON",
        ),
        (
            "PUT",
            "/api/v1/vm.snapshot",
            r#"{"destination_url": "/snap"}"#,
            400,
            "the snapshot cannot be as asked for",
        ),
        (
            "PUT",
            "/api/v1/vm.restore",
            r#"{"source_url": "tcp:host:1"}"#,
            400,
            "the restore cannot be as asked for",
        ),
        (
            "PUT",
            "/api/v1/vm.send-migration",
            r#"{"destination_url": "tcp:localhost:4000", "local": true}"#,
            400,
            "the guest cannot be sent as asked for",
        ),
        (
            "PUT",
            "/api/v1/vm.receive-migration",
            r#"{"receiver_url": "tcp:0.0.0.0:4000"}"#,
            400,
            "no guest can be received as asked for",
        ),
        (
            "PUT",
            "/api/v1/vm.migration",
            "",
            405,
            "/api/v1/vm.migration takes GET only",
        ),
        (
            "GET",
            "/api/v1/vm.cancel",
            "",
            405,
            "/api/v1/vm.cancel takes PUT only",
        ),
        (
            "PUT",
            "/api/v1/vm.create",
            &longest,
            413,
            "the request's body is longer",
        ),
        (
            "PUT",
            "/api/v1/vm.frobnicate",
            &longest,
            413,
            "the request's body is longer",
        ),
    ];
    for (method, path, body, status, reason) in cases {
        let answer = server.ask(method, path, body);
        let line = format!("HTTP/1.1 {status} \r\n");
        assert!(answer.head.starts_with(&line), "{path}: {}", answer.head);
        assert!(
            answer.chain()[0].starts_with(reason),
            "{path}: {}",
            answer.body
        );
    }
    let answer = server.ask("PUT", "/api/v1/vm.resume", "");
    assert_eq!(answer.body, r#"["cannot resume","the guest l\u00e4uft"]"#);
}

#[test]
fn info_holds_what_clients_look_for() {
    let server = TestServer::start();
    let answer = server.ask("GET", "/api/v1/vm.info", "");
    assert_eq!(
        answer.json(),
        json!({
            "config": {
                "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
                "memory": {"size": 536870912, "shared": true, "hugepages": false, "prefault": false},
                "payload": {"kernel": "/boot/vmlinuz", "cmdline": "console=ttyS0"},
                "disks": [{
                    "id": "root", "vhost_user": true, "vhost_socket": "/tmp/root.sock",
                    "num_queues": 1, "queue_size": 128, "readonly": false,
                }],
                "fs": [{
                    "id": "home", "tag": "h\u{f6}me", "socket": "/tmp/home.sock",
                    "num_queues": 1, "queue_size": 128,
                }],
                "serial": {"mode": "Tty"},
                "console": {"mode": "Off"},
            },
            "state": "Running",
            "transition": "being paused",
            "memory_actual_size": 536870912,
            "device_tree": {
                "root": {
                    "id": "root", "resources": [], "children": [], "pci_bdf": "0000:00:01.0",
                    "device_type": 2, "state": "Failed", "features": 4294967296_u64,
                    "error": ["the back-end of root is gone"],
                },
            },
        })
    );
    let answer = server.ask("GET", "/api/v1/vm.counters", "");
    assert_eq!(
        answer.json(),
        json!({"root": {"queue0_kicks": 7, "reconnects": 1}})
    );
}

#[test]
fn progress_holds_steps_bytes_and_devices() {
    let server = TestServer::start();
    let answer = server.ask("GET", "/api/v1/vm.progress", "");
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.chain(), ["nothing was saved yet"]);
    let mut saving = server.connect();
    let body = r#"{"destination_url": "file:///sn\u00e4p%20", "pause": true, "hold_s": 2}"#;
    let snapshot = request("PUT", "/api/v1/vm.snapshot", body);
    saving.write_all(&snapshot).unwrap();
    server.wait_asked(2);
    let mut expected = json!({
        "operation": "snapshot",
        "status": "under-way",
        "step": "hold",
        "steps": [{"step": "check", "ms": 3}, {"step": "hold", "ms": 180}],
        "elapsed_ms": 1234,
        "paused_ms": 213,
        "directory": "/sn\u{e4}p ",
        "ram": {"done_bytes": 536870912, "total_bytes": 1073741824, "bytes_per_second": 2147483648_u64},
        "devices": {"home": {"bytes": 5000, "ms": 12, "checked": true}},
    });
    let answer = server.ask("GET", "/api/v1/vm.progress", "");
    assert_eq!(answer.json(), expected);
    let answer = server.ask("PUT", "/api/v1/vm.cancel", "");
    assert_eq!(answer.head, "HTTP/1.1 204 \r\n\r\n");
    assert_eq!(receive(&mut saving).chain(), ["it was cancelled"]);
    expected["status"] = json!("failed");
    expected["error"] = json!(["it was cancelled"]);
    let answer = server.ask("GET", "/api/v1/vm.progress", "");
    assert_eq!(answer.json(), expected);

    saving.write_all(&snapshot).unwrap();
    server.wait_asked(6);
    let answer = server.ask("PUT", "/api/v1/vm.snapshot-release", "");
    assert_eq!(answer.head, "HTTP/1.1 204 \r\n\r\n");
    assert_eq!(receive(&mut saving).head, "HTTP/1.1 204 \r\n\r\n");
}

#[test]
fn metrics_are_text_for_prometheus() {
    let server = TestServer::start();
    let answer = server.ask("GET", "/metrics", "");
    assert!(
        answer
            .head
            .contains("Content-Type: text/plain; version=0.0.4\r\n")
    );
    for line in [
        "# TYPE ferry_vm_state gauge",
        "ferry_vm_state{state=\"Running\"} 1",
        "ferry_vm_state{state=\"Paused\"} 0",
        "ferry_device_state{device=\"root\",type=\"2\",state=\"Failed\"} 1",
        "# TYPE ferry_device_reconnects counter",
        "ferry_device_reconnects{device=\"root\"} 1",
        "ferry_device_queue_kicks{device=\"root\",queue=\"0\"} 7",
    ] {
        assert!(
            answer.body.lines().any(|it| it == line),
            "{line}: {}",
            answer.body
        );
    }
}

#[test]
fn no_request_waits_for_another() {
    let server = TestServer::start();
    let mut paused = server.connect();
    let pause = request("PUT", "/api/v1/vm.pause", "");
    paused.write_all(&pause).unwrap();
    server.wait_asked(1);
    for _ in 0..10 {
        assert_eq!(server.ask("GET", "/api/v1/vmm.ping", "").status(), 200);
        assert_eq!(server.ask("GET", "/api/v1/vm.info", "").status(), 200);
    }
    let reply = server.script.held.lock().unwrap().pop().unwrap();
    reply.answer(Ok(ferry_api::control::Response::Done));
    assert_eq!(receive(&mut paused).status(), 204);
}

#[test]
fn the_end_writes_the_last_answer_and_takes_the_socket_away() {
    let mut server = TestServer::start();
    let mode = server.path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let mut stream = server.connect();
    let pause = request("PUT", "/api/v1/vm.pause", "");
    stream.write_all(&pause).unwrap();
    let mut idle = server.connect();
    server.wait_asked(1);
    let reply = server.script.held.lock().unwrap().pop().unwrap();
    reply.answer(Ok(ferry_api::control::Response::Done));
    drop(server.server.take());
    assert_eq!(receive(&mut stream).status(), 204);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert!(!server.path.exists());
}
