//! What ferryctl says and how it ends when something is wrong.

use std::os::unix::net::UnixListener;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::script::{Server, Turn, answer};
use crate::{Outcome, run, run_with_input};

fn failed(status: i32, stderr: impl Into<String>) -> Outcome {
    Outcome {
        status,
        stdout: String::new(),
        stderr: stderr.into(),
    }
}

/// Runs `info` on a server that does this; where it hangs, for half a second.
fn outcome(turn: Turn) -> Outcome {
    let timeout = match turn {
        Turn::Hang(_) => "0.5",
        _ => "60",
    };
    let server = Server::start(vec![turn]);
    let mut outcome = run(server.socket(), &["--timeout", timeout, "info"]);
    let socket = server.socket().to_str().unwrap();
    outcome.stderr = outcome.stderr.replace(socket, "SOCKET");
    outcome
}

#[test]
fn a_refusal_is_printed_with_all_its_reasons() {
    let body = r#"["disk0 cannot be suspended","GET_VRING_BASE failed","no answer within 10 s"]"#;
    let server = Server::start(vec![Turn::Answer(answer(500, body))]);
    assert_eq!(
        run(server.socket(), &["pause"]),
        failed(
            1,
            "ferryctl: cannot pause: disk0 cannot be suspended\n  because GET_VRING_BASE failed\n  because no answer within 10 s\n"
        )
    );
    // JSON on standard output is for answers.
    let server = Server::start(vec![Turn::Answer(answer(404, r#"["there is no VM"]"#))]);
    assert_eq!(
        run(server.socket(), &["info", "--json"]),
        failed(1, "ferryctl: cannot show the VM: there is no VM\n")
    );
}

#[test]
fn the_users_page_shows_a_refusal_as_it_is_printed() {
    let page = include_str!("../../../docs/ferryctl.md");
    let (_, shown) = page.split_once("\nferryctl: cannot pause: ").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    let reasons: Vec<&str> = shown.trim_end().split("\n  because ").collect();
    // What Ferry says first, since there are pauses that fail.
    assert_eq!(reasons[0], "the guest could not be paused, and goes on");
    let body = serde_json::to_string(&reasons).unwrap();
    let server = Server::start(vec![Turn::Answer(answer(500, &body))]);
    assert_eq!(
        run(server.socket(), &["pause"]),
        failed(1, format!("ferryctl: cannot pause: {shown}"))
    );
}

#[test]
fn a_refusal_that_comes_before_the_whole_request_is_a_refusal() {
    let refusal = answer(400, r#"["the body is too long"]"#);
    let server = Server::start(vec![Turn::Interrupt(refusal)]);
    let long = format!("\"{}\"", "x".repeat(3 << 20));
    let words = ["create", "--config", "-"];
    assert_eq!(
        run_with_input(server.socket(), &words, long.as_bytes()),
        failed(1, "ferryctl: cannot create the VM: the body is too long\n")
    );
}

#[test]
fn nobody_at_the_socket_is_said_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let socket = path.to_str().unwrap();
    let report = |cause: &str| {
        format!(
            "ferryctl: cannot reach Ferry: cannot connect to {socket}\n  because {cause}\n  hint: is Ferry running with --api-socket {socket}?\n"
        )
    };
    let absent = report("No such file or directory (os error 2)");
    assert_eq!(run(&path, &["ping"]), failed(3, absent));
    // A socket that was left behind.
    drop(UnixListener::bind(&path).unwrap());
    let stale = report("Connection refused (os error 111)");
    assert_eq!(run(&path, &["ping"]), failed(3, stale));
    let long = Path::new("/tmp").join("x".repeat(200));
    assert_eq!(run(&long, &["ping"]).status, 3);
}

#[test]
fn a_ferry_that_ends_is_not_reached() {
    assert_eq!(
        outcome(Turn::Answer(Vec::new())),
        failed(
            3,
            "ferryctl: cannot show the VM: SOCKET closed the connection without an answer\n"
        )
    );
}

#[test]
fn a_request_that_nobody_has_read_is_sent_again() {
    let refusal = answer(404, r#"["there is no VM"]"#);
    let turns = || vec![Turn::Leave, Turn::Ignore, Turn::Answer(refusal.clone())];
    let long = format!("\"{}\"", "x".repeat(3 << 20));
    let create = ["--timeout", "60", "create", "--config", "-"];
    let server = Server::start(turns());
    assert_eq!(
        run(server.socket(), &["--timeout", "60", "info"]),
        failed(1, "ferryctl: cannot show the VM: there is no VM\n")
    );
    assert_eq!(server.request().line, "GET /api/v1/vm.info");
    // And one that is not all on its way when its reader goes.
    let server = Server::start(turns());
    assert_eq!(
        run_with_input(server.socket(), &create, long.as_bytes()),
        failed(1, "ferryctl: cannot create the VM: there is no VM\n")
    );
    assert_eq!(server.request().body, long);
}

#[test]
fn a_server_that_reads_nothing_is_given_up() {
    let server = Server::start((0..1000).map(|_| Turn::Leave).collect());
    let outcome = run(server.socket(), &["--timeout", "60", "info"]);
    let said = "closed the connection without an answer\n";
    assert!(
        outcome.status == 3 && outcome.stderr.contains(said),
        "{outcome:?}"
    );
}

#[test]
fn a_server_that_hangs_costs_the_time_that_was_allowed() {
    let hint =
        "  hint: it may still happen; ferryctl info tells, and --timeout gives it more time\n";
    let answer = answer(200, "{}");
    for length in [0, 5, answer.len() - 1] {
        assert_eq!(
            outcome(Turn::Hang(answer[..length].to_vec())),
            failed(
                4,
                format!(
                    "ferryctl: cannot show the VM: SOCKET has not answered within 0.5 s\n{hint}"
                )
            )
        );
    }
}

#[test]
fn a_server_that_does_not_take_the_request_costs_the_time_that_was_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let long = format!("\"{}\"", "x".repeat(3 << 20));
    let words = ["--timeout", "0.5", "create", "--config", "-"];
    let outcome = run_with_input(&path, &words, long.as_bytes());
    assert_eq!(outcome.status, 4, "{outcome:?}");
}

#[test]
fn a_server_with_a_full_queue_costs_the_time_that_was_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let address = SockAddr::unix(&path).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        if client.connect(&address).is_err() {
            break;
        }
        waiting.push(client);
        assert!(waiting.len() < 1000);
    }
    let outcome = run(&path, &["--timeout", "0.5", "ping"]);
    assert_eq!(outcome.status, 4, "{outcome:?}");
}

#[test]
fn what_is_no_answer_of_ferrys_is_named() {
    let long = b"HTTP/1.1 200 \r\nContent-Length: 4194305\r\n\r\n".to_vec();
    let endless = [b"HTTP/1.1 200 \r\n".to_vec(), vec![b'x'; 20 << 10]].concat();
    let mut truncated = answer(200, INFO_START);
    truncated.truncate(truncated.len() - 4);
    for (bytes, reason) in [
        (
            b"220 mail.example.org ESMTP\r\n".to_vec(),
            "the answer is not HTTP",
        ),
        (truncated, "the answer ends after 16 of 20 bytes"),
        (
            b"HTTP/1.1 200 \r\nContent-".to_vec(),
            "the answer ends within its head",
        ),
        (
            long,
            "the answer has 4194305 bytes, more than the 4194304 that are taken",
        ),
        (endless, "the answer's head has more than 16384 bytes"),
        (
            b"HTTP/1.1 200 \r\n\r\n{}".to_vec(),
            "the answer does not tell how long it is",
        ),
        (
            answer(200, "{]"),
            "the answer's body is not what was asked for",
        ),
        (
            answer(200, "[1]"),
            "the answer's body is not what was asked for",
        ),
    ] {
        let outcome = outcome(Turn::Answer(bytes));
        assert_eq!(outcome.status, 5, "{outcome:?}");
        let report = format!(
            "ferryctl: cannot show the VM: what listens on SOCKET does not speak as Ferry does\n  because {reason}\n"
        );
        assert!(outcome.stderr.starts_with(&report), "{outcome:?}");
    }
}

const INFO_START: &str = r#"{"state": "Running"}"#;

#[test]
fn usage_that_is_wrong_is_told_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let text = directory.path().join("text");
    std::fs::write(&text, "kernel=/k").unwrap();
    let text = text.to_str().unwrap();
    for (words, report) in [
        (&["create"][..], "--config <FILE>|--kernel <PATH>"),
        (&["create", "--kernel", "/k", "--config", "-"], "--config"),
        (
            &["create", "--config", "/nonexistent"],
            "cannot read /nonexistent",
        ),
        (&["create", "--config", text], "is not JSON"),
        (
            &["create", "--kernel", "/k", "--cpus", "4"],
            "cannot create the VM: --cpus: there is no key `4` (keys: boot, max)",
        ),
        (
            &["add-disk", "path=/disk.img"],
            "cannot add the disk: disk: there is no key `path`",
        ),
        (&["--timeout", "0", "ping"], "--timeout"),
        (&["pasue"], "pause"),
        (&[], "Usage"),
    ] {
        let outcome = run(&path, words);
        assert_eq!(outcome.status, 2, "{words:?} {outcome:?}");
        assert!(outcome.stderr.contains(report), "{words:?} {outcome:?}");
    }
}

#[test]
fn a_socket_has_to_be_named() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ferryctl"))
        .env_remove("FERRY_API_SOCKET")
        .arg("ping")
        .output()
        .unwrap();
    assert_eq!(
        Outcome::from(output),
        failed(
            2,
            "ferryctl: cannot reach Ferry: which Ferry? Say --api-socket PATH, or set FERRY_API_SOCKET\n"
        )
    );
}
