//! Clients that mean harm, or do it by mistake.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped has failed the test"
)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{TestServer, receive, request, try_receive};
use ferry_api::control::Request;
use ferry_api::server::Limits;

/// The owner has been asked for nothing that would change the machine.
fn untouched(server: &TestServer) {
    let asked = server.script.asked.lock().unwrap();
    assert!(
        asked
            .iter()
            .all(|request| matches!(request, Request::Info | Request::Counters)),
        "{asked:?}"
    );
}

fn answers_ping(server: &TestServer) {
    assert_eq!(server.ask("GET", "/api/v1/vmm.ping", "").status(), 200);
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn what_is_not_http_is_refused() {
    let server = TestServer::start();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let fields = |number| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(number));
    let boot = |fields: &str| format!("PUT /api/v1/vm.boot HTTP/1.1\r\n{fields}\r\n");
    let longest = boot("Content-Length: 18446744073709551615\r\n");
    let cases = [
        ("hello\r\n\r\n", 400, "is not HTTP/1.1"),
        ("\0\0\0\0\r\n\r\n", 400, "is not HTTP/1.1"),
        ("GET / HTTP/9.9\r\n\r\n", 400, "is not HTTP/1.1"),
        ("GET  HTTP/1.1\r\n\r\n", 400, "is not HTTP/1.1"),
        (&boot("Content-Length: many\r\n"), 400, "is not HTTP/1.1"),
        (
            &(boot("Content-Length: 1\r\nContent-Length: 2\r\n") + "xx"),
            400,
            "is not HTTP/1.1",
        ),
        (
            &(boot("Transfer-Encoding: chunked\r\n") + "zz\r\n"),
            400,
            "body is not complete",
        ),
        (&long, 431, "head is too long"),
        (&fields(101), 431, "head is too long"),
        (&fields(100), 404, "there is no route /"),
        (&longest, 413, "body is too long"),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            400,
            "is not HTTP/1.1",
        ),
    ];
    for (case, status, reason) in cases {
        let mut stream = server.connect();
        // The server may have had enough before all is sent.
        let _ = stream.write_all(case.as_bytes());
        let name = case[..case.len().min(60)].escape_debug();
        let answer = try_receive(&mut stream).unwrap_or_else(|| panic!("{name}: no answer"));
        let start = format!("HTTP/1.1 {status} \r\n");
        assert!(answer.head.starts_with(&start), "{name}: {}", answer.head);
        let said = &answer.chain()[0];
        assert!(said.contains(reason), "{name}: {said}");
        if status != 404 {
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "{name}: not closed");
        }
        answers_ping(&server);
    }
    untouched(&server);
}

#[test]
fn a_head_that_ends_early_is_refused() {
    let server = TestServer::start();
    for head in ["G", "GET /api/v1/vmm.ping HTTP/1.1\r\nHost: a\r\n"] {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receive(&mut stream).status(), 400, "{head}");
    }
    // One that asks for nothing has no answer.
    let mut stream = server.connect();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(try_receive(&mut stream).is_none());
    untouched(&server);
}

#[test]
fn a_client_may_ask_before_it_sends_its_body() {
    let server = TestServer::start();
    let mut stream = server.connect();
    let head = "PUT /api/v1/vm.boot HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let answer = receive(&mut stream);
    assert_eq!(answer.status(), 100);
    stream.write_all(b"{}").unwrap();
    assert_eq!(receive(&mut stream).head, "HTTP/1.1 204 \r\n\r\n");
}

#[test]
fn a_body_that_ends_early_does_nothing() {
    let server = TestServer::start();
    let mut stream = server.connect();
    let head = "PUT /api/v1/vm.boot HTTP/1.1\r\nContent-Length: 100\r\n\r\n{\"half\":";
    stream.write_all(head.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive(&mut stream).status(), 400);
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    // One that is gone altogether.
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    drop(stream);
    answers_ping(&server);
    untouched(&server);
}

#[test]
fn wrong_types_are_named_with_their_place() {
    let server = TestServer::start();
    let kernel = r#""payload":{"kernel":"/k"}"#;
    let disk = r#"{"vhost_user":true,"vhost_socket":"/a"}"#;
    let cases = [
        ("[]", "it is not an object"),
        ("{\"payload\":7}", "payload: invalid type"),
        ("{\"payload\":{\"kernel\":\"/k\"}}{", "trailing characters"),
        ("{", "EOF while parsing"),
        ("\u{0}", "it is not an object"),
        ("{\u{0}}", "key must be a string"),
        (
            "{\"memory\":{\"size\":\"1G\"}}",
            "memory.size: invalid type: string \"1G\"",
        ),
        ("{\"memory\":{\"size\":-1}}", "memory.size: invalid value"),
        ("{\"memory\":{\"size\":1e300}}", "memory.size: invalid type"),
        (
            "{\"disks\":{}}",
            "disks: invalid type: map, expected a list",
        ),
        ("{\"disks\":[7]}", "disks[0]: invalid type"),
        (
            "{\"serial\":{\"mode\":\"Loud\"}}",
            "serial.mode: unknown variant `Loud`",
        ),
        (
            &format!("{{{kernel},\"disks\":[{disk},{disk}]}}"),
            "disks[1]: socket=/a is used twice",
        ),
        (&"{\"a\":".repeat(100_000), "EOF while parsing"),
        (
            &format!("{{\"disks\":[{}]}}", vec!["{}"; 300].join(",")),
            "more than 256 entries",
        ),
    ];
    for (body, reason) in cases {
        let answer = server.ask("PUT", "/api/v1/vm.create", body);
        assert_eq!(answer.status(), 400, "{body:.60}");
        let said = answer.chain().join(": ");
        assert!(said.contains(reason), "{body:.60}: {said}");
    }
    untouched(&server);
}

#[test]
fn an_answer_does_not_repeat_megabytes() {
    let server = TestServer::start();
    let long = "\u{e9}".repeat(1 << 20);
    let body = format!("{{\"memory\":{{\"size\":\"{long}\"}}}}");
    let answer = server.ask("PUT", "/api/v1/vm.create", &body);
    assert_eq!(answer.status(), 400);
    assert!(answer.body.len() < 10_000);
}

/// Sends a byte now and then until the server has had enough.
fn trickle(mut stream: UnixStream, bytes: &[u8], end: &AtomicBool) {
    for byte in bytes.iter().cycle() {
        if end.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn two_hundred_slow_clients_lock_nobody_out() {
    let server = TestServer::start();
    let end = AtomicBool::new(false);
    let head = b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n";
    let before = resident();
    std::thread::scope(|scope| {
        for client in 0..200 {
            let mut stream = server.connect();
            let end = &end;
            // Some never end their head, some never end their body.
            if client % 2 == 0 {
                stream.write_all(head).unwrap();
            }
            scope.spawn(move || trickle(stream, b"x", end));
        }
        for _ in 0..50 {
            answers_ping(&server);
        }
        end.store(true, Ordering::Relaxed);
    });
    // Threads of this test's own are in it, too.
    assert!(resident().saturating_sub(before) < 64 << 20);
    untouched(&server);
}

#[test]
fn many_more_clients_than_there_is_room_for_lock_nobody_out() {
    let server = TestServer::with(Limits {
        connections: 16,
        ..Limits::default()
    });
    let mut streams: Vec<UnixStream> = Vec::new();
    for _ in 0..100 {
        let mut stream = server.connect();
        let _ = stream.write_all(b"GET /api/v1/vm.");
        streams.push(stream);
        if streams.len().is_multiple_of(10) {
            answers_ping(&server);
        }
    }
    // The oldest have been closed for the newer ones.
    assert_eq!(streams[0].read(&mut [0]).unwrap_or(0), 0);
    untouched(&server);
}

#[test]
fn a_connection_that_is_being_answered_is_not_closed_for_others() {
    let server = TestServer::with(Limits {
        connections: 4,
        ..Limits::default()
    });
    let mut paused = server.connect();
    let pause = request("PUT", "/api/v1/vm.pause", "");
    paused.write_all(&pause).unwrap();
    server.wait_asked(1);
    let idle: Vec<UnixStream> = (0..20).map(|_| server.connect()).collect();
    answers_ping(&server);
    let reply = server.script.held.lock().unwrap().pop().unwrap();
    reply.answer(Ok(ferry_api::control::Response::Done));
    assert_eq!(receive(&mut paused).status(), 204);
    drop(idle);
}

#[test]
fn a_slow_client_is_told_and_closed() {
    let server = TestServer::with(Limits {
        receive: Duration::from_millis(200),
        ..Limits::default()
    });
    let mut body = server.connect();
    body.write_all(b"PUT /api/v1/vm.boot HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        .unwrap();
    let mut head = server.connect();
    head.write_all(b"PUT /api/v1").unwrap();
    assert_eq!(receive(&mut body).status(), 408);
    assert_eq!(body.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(head.read(&mut [0]).unwrap_or(0), 0);
    untouched(&server);
}

#[test]
fn a_client_that_does_not_read_is_closed() {
    let server = TestServer::with(Limits {
        receive: Duration::from_millis(200),
        ..Limits::default()
    });
    let mut stream = server.connect();
    let ask = request("GET", "/api/v1/vm.info", "");
    let error = loop {
        if let Err(error) = stream.write_all(&ask) {
            break error;
        }
    };
    // Not this test's patience.
    let closed = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
    assert!(closed.contains(&error.kind()), "{error}");
    answers_ping(&server);
}

#[test]
fn bodies_together_are_bounded() {
    let server = TestServer::with(Limits {
        bodies: 3 << 20,
        ..Limits::default()
    });
    let part = " ".repeat((2 << 20) - 1);
    let length = part.len() + 1;
    let mut first = server.connect();
    let head = format!("PUT /api/v1/vm.boot HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
    first.write_all(head.as_bytes()).unwrap();
    // Once all is sent, the server has read all but what a socket holds.
    first.write_all(part.as_bytes()).unwrap();
    assert_eq!(server.ask("PUT", "/api/v1/vm.boot", &part).status(), 503);
    answers_ping(&server);
    first.write_all(b" ").unwrap();
    assert_eq!(receive(&mut first).status(), 204);
    assert_eq!(server.ask("PUT", "/api/v1/vm.boot", &part).status(), 204);
}

#[test]
fn requests_without_an_answer_are_bounded() {
    let server = TestServer::with(Limits {
        unanswered: 3,
        ..Limits::default()
    });
    let pause = request("PUT", "/api/v1/vm.pause", "");
    for asked in 1..=3 {
        // The client leaves, and its request stays. One that has left before it was heard may not have asked at all.
        let mut client = server.connect();
        client.write_all(&pause).unwrap();
        server.wait_asked(asked);
        drop(client);
    }
    // Whoever wants something that takes its time is told; all others are served as ever.
    let answer = server.ask("PUT", "/api/v1/vm.pause", "");
    assert_eq!(answer.status(), 503);
    assert!(answer.body.contains("too many requests"));
    assert_eq!(server.ask("PUT", "/api/v1/vm.delete", "").status(), 503);
    answers_ping(&server);
    let disk = r#"{"vhost_user":true,"vhost_socket":"/a"}"#;
    let create = r#"{"payload":{"kernel":"/k"}}"#;
    for (method, path, body, status) in [
        ("GET", "/api/v1/vm.info", "", 200),
        ("GET", "/api/v1/vm.counters", "", 200),
        ("GET", "/metrics", "", 200),
        ("PUT", "/api/v1/vm.power-button", "", 204),
        ("PUT", "/api/v1/vm.create", create, 204),
        ("PUT", "/api/v1/vm.add-disk", disk, 204),
        ("PUT", "/api/v1/vm.remove-device", r#"{"id":"a"}"#, 404),
        ("PUT", "/api/v1/vmm.shutdown", "", 204),
    ] {
        let answer = server.ask(method, path, body);
        assert_eq!(answer.status(), status, "{path}: {}", answer.body);
    }
    server.script.held.lock().unwrap().clear();
    assert_eq!(server.ask("PUT", "/api/v1/vm.boot", "").status(), 204);
}

#[test]
fn requests_that_are_answered_at_once_wait_for_their_turn() {
    let server = TestServer::with(Limits {
        prompt: 1,
        ..Limits::default()
    });
    let info = request("GET", "/api/v1/vm.info", "");
    let mut streams: Vec<UnixStream> = (0..50).map(|_| server.connect()).collect();
    for stream in &mut streams {
        stream.write_all(&info).unwrap();
    }
    for stream in &mut streams {
        assert_eq!(receive(stream).status(), 200);
    }
}

#[test]
fn clients_that_wait_lock_nobody_out() {
    let most = Limits::default();
    assert!(most.unanswered + most.watchers < most.connections);
    let server = TestServer::with(Limits {
        connections: 16,
        unanswered: 8,
        ..most
    });
    // More than there may be connections, and none of them leaves.
    let pause = request("PUT", "/api/v1/vm.pause", "");
    let waiting: Vec<UnixStream> = (0..40)
        .map(|_| {
            let mut stream = server.connect();
            let _ = stream.write_all(&pause);
            stream
        })
        .collect();
    server.wait_asked(8);
    answers_ping(&server);
    assert_eq!(server.ask("GET", "/api/v1/vm.info", "").status(), 200);
    drop(waiting);
}
