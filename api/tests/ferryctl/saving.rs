//! `snapshot` and `restore` against Ferry's own server, whose owner does as the tests say.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use ferry_api::config::validate::Fault;
use ferry_api::control::{Refusal, RefusalKind, Request, Response};
use ferry_api::snapshot::{After, MemoryMode, PauseBy, RestoreRequest, SnapshotRequest, Start};

use crate::common::{PATIENCE, TestServer, wait_until};
use crate::{Outcome, ferryctl, prints, run};

pub fn start(server: &TestServer, directory: &Path, words: &[&str]) -> Child {
    ferryctl(&server.path, words)
        .current_dir(directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub fn outcome(child: Child) -> Outcome {
    child.wait_with_output().unwrap().into()
}

/// Panics unless it ends by a signal that it was sent, with this report.
pub fn gives_up(child: Child, signal: i32, report: &str) {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(signal), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), report);
}

/// Returns once a snapshot or restore is in the owner's hands.
pub fn wait_held(server: &TestServer) {
    wait_until(|| !server.script.held.lock().unwrap().is_empty());
}

/// What was asked for, without the questions how it stands.
pub fn asked(server: &TestServer) -> Vec<Request> {
    let asked = server.script.asked.lock().unwrap();
    let questions = asked
        .iter()
        .filter(|it| !matches!(it, Request::Progress | Request::Migration));
    questions.cloned().collect()
}

pub fn usual(directory: &Path) -> SnapshotRequest {
    SnapshotRequest {
        destination: directory.to_owned(),
        pause: PauseBy::Ferry,
        after: After::AsBefore,
        hold: None,
        prepare: SnapshotRequest::PREPARE,
        state_most: SnapshotRequest::STATE_MOST,
    }
}

#[test]
fn a_snapshot_is_shown_while_it_goes_on_and_when_it_is_done() {
    let server = TestServer::start();
    let directory = tempfile::tempdir().unwrap();
    let child = start(&server, directory.path(), &["snapshot", "a b%é"]);
    wait_held(&server);
    // Who asks for the second time has shown the first answer.
    let before = server.script.asked.lock().unwrap().len();
    server.wait_asked(before + 2);
    server.script.end(Ok(Response::Done));
    let outcome = outcome(child);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (0, ""),
        "{outcome:?}"
    );
    let place = directory.path().join("a b%é");
    let expected = format!(
        "\
ram  512.0 MiB of 1.0 GiB, 2.0 GiB/s  1234 ms, paused 213 ms
saved in {}
time      1234 ms, the guest paused for 213 ms of it
steps     check 3 ms, ram 180 ms
RAM       512.0 MiB of 1.0 GiB, 2.0 GiB/s
home      4.8 KiB of state in 12 ms, checked
",
        place.display()
    );
    assert_eq!(outcome.stdout, expected);
    assert_eq!(asked(&server), [Request::Snapshot(Box::new(usual(&place)))]);
}

#[test]
fn flags_become_fields() {
    let server = TestServer::start();
    let words = [
        "--json",
        "snapshot",
        "/s",
        "--after",
        "stop",
        "--prepare",
        "20",
        "--state-limit",
        "1M",
        "--while-paused",
        "echo \"$FERRY_SNAPSHOT\"",
        "--hold-limit",
        "1.5",
    ];
    let outcome = run(&server.path, &words);
    // JSON on standard output is for answers, and the command's output for people.
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (0, "/s\n"),
        "{outcome:?}"
    );
    let progress: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(progress["status"], "done");
    assert_eq!(progress["paused_ms"], 213);
    let request = SnapshotRequest {
        after: After::Stop,
        hold: Some(Duration::from_millis(1500)),
        prepare: Duration::from_millis(20),
        state_most: 1 << 20,
        ..usual(Path::new("/s"))
    };
    let snapshot = Request::Snapshot(Box::new(request));
    assert_eq!(asked(&server), [snapshot, Request::ReleaseHold]);

    let server = TestServer::start();
    let child = start(
        &server,
        Path::new("/"),
        &["snapshot", "--no-pause", "./inspect"],
    );
    wait_held(&server);
    server.script.end(Ok(Response::Done));
    assert_eq!(outcome_status(child), 0);
    let request = SnapshotRequest {
        pause: PauseBy::Client,
        ..usual(Path::new("/inspect"))
    };
    assert_eq!(asked(&server), [Request::Snapshot(Box::new(request))]);
}

pub fn outcome_status(child: Child) -> i32 {
    outcome(child).status
}

pub fn kill(child: &Child, signal: i32) {
    // SAFETY: the call takes no pointers, and the process has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

#[test]
fn a_second_ctrl_c_waits_for_nobody() {
    // A server that takes the snapshot, and answers nothing.
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut child = ferryctl(&socket, &["snapshot", "/s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        kill(&child, libc::SIGINT);
        std::thread::sleep(Duration::from_millis(20));
        assert!(begun.elapsed() < PATIENCE);
    }
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGINT));
}

#[test]
fn another_ones_snapshot_is_left_alone() {
    let server = TestServer::start();
    let directory = tempfile::tempdir().unwrap();
    let other = start(&server, Path::new("/"), &["snapshot", "/other"]);
    wait_held(&server);
    // What Ferry is at is `/other`, also if this one waits.
    let child = start(&server, directory.path(), &["restore", "snap"]);
    wait_until(|| server.script.held.lock().unwrap().len() == 2);
    server
        .script
        .progress
        .lock()
        .unwrap()
        .as_mut()
        .unwrap()
        .directory = "/other".into();
    kill(&child, libc::SIGTERM);
    // Both of them have asked again since.
    let before = server.script.asked.lock().unwrap().len();
    server.wait_asked(before + 8);
    assert!(!asked(&server).contains(&Request::Cancel));
    server.script.end(Ok(Response::Done));
    assert_eq!(outcome_status(child), 0);
    assert_eq!(outcome_status(other), 0);
}

#[test]
fn a_guest_is_brought_back_and_goes_on() {
    let server = TestServer::start();
    let directory = tempfile::tempdir().unwrap();
    let words = [
        "restore",
        "snap",
        "--memory",
        "ondemand",
        "--socket",
        "home=x.sock",
    ];
    let child = start(&server, directory.path(), &words);
    wait_held(&server);
    server.script.end(Ok(Response::Done));
    let outcome = outcome(child);
    let place = directory.path().join("snap");
    let said = format!("brought back from {}\ntime      1234 ms\n", place.display());
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(outcome.stdout.contains(&said), "{outcome:?}");
    let request = RestoreRequest {
        source: place,
        memory: MemoryMode::OnDemand,
        start: Start::Running,
        sockets: [("home".to_owned(), directory.path().join("x.sock"))].into(),
        serial: None,
    };
    assert_eq!(asked(&server), [Request::Restore(Box::new(request))]);

    let server = TestServer::start();
    let child = start(&server, Path::new("/"), &["restore", "/s", "--paused"]);
    wait_held(&server);
    server.script.end(Err(Refusal {
        kind: RefusalKind::Failed,
        chain: vec![
            "the snapshot does not fit".into(),
            "fs0: the tag differs".into(),
        ],
    }));
    let outcome = self::outcome(child);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (
            1,
            "ferryctl: cannot bring the guest back: the snapshot does not fit\n  because fs0: the tag differs\n"
        )
    );
    let [Request::Restore(request)] = &asked(&server)[..] else {
        panic!("not one restore");
    };
    assert_eq!(
        (request.start, request.memory),
        (Start::Paused, MemoryMode::Copy)
    );
}

#[test]
fn who_wants_to_know_asks() {
    let server = TestServer::start();
    let outcome = run(&server.path, &["progress"]);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (
            1,
            "ferryctl: cannot show the progress: nothing was saved yet\n"
        )
    );
    let child = start(&server, Path::new("/"), &["snapshot", "/s"]);
    wait_held(&server);
    let printed = prints(&server.path, &["progress"]);
    assert!(
        printed.starts_with("being saved in /s, at ram\n"),
        "{printed}"
    );
    assert_eq!(prints(&server.path, &["cancel"]), "cancelled\n");
    let outcome = self::outcome(child);
    assert_eq!(
        outcome.stderr,
        "ferryctl: cannot save the guest: it was cancelled\n"
    );
    let printed = prints(&server.path, &["progress"]);
    assert!(
        printed.ends_with("reason    it was cancelled\n"),
        "{printed}"
    );
}

#[test]
fn usage_that_is_wrong_is_told_before_anything_is_sent() {
    let nowhere = Path::new("/nonexistent");
    for (words, report) in [
        (&["snapshot"][..], "<DIR>"),
        (&["snapshot", "/s", "--hold-limit", "5"], "--while-paused"),
        (
            &["snapshot", "/s", "--no-pause", "--prepare", "5"],
            "--prepare",
        ),
        (&["snapshot", "/s", "--state-limit", "x"], "not a size"),
        (&["snapshot", "/s", "--after", "sleep"], "resume"),
        (&["restore", "/s", "--memory", "lazy"], "ondemand"),
        (
            &["restore", "/s", "--socket", "fs0"],
            "--socket: fs0 is not of the form ID=PATH",
        ),
        (
            &["restore", "/s", "--socket", "a=/x", "--socket", "a=/y"],
            "--socket: a=/y names a device for the second time",
        ),
    ] {
        let outcome = run(nowhere, words);
        assert_eq!(outcome.status, 2, "{words:?} {outcome:?}");
        assert!(outcome.stderr.contains(report), "{words:?} {outcome:?}");
    }
    // The rest is Ferry's to say.
    let server = TestServer::start();
    let words = ["snapshot", "/s", "--prepare", "600001"];
    let fault = Fault::Value {
        field: "prepare_ms",
        value: "600001".into(),
        reason: "is more than 600000".into(),
    };
    let outcome = run(&server.path, &words);
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.contains(&fault.to_string()), "{outcome:?}");
}
