//! `snapshot --while-paused`: a command, while the guest is held.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use ferry_api::control::{Refusal, RefusalKind, Request};
use ferry_api::snapshot::SnapshotRequest;

use crate::common::{TestServer, wait_until};
use crate::run;
use crate::saving::{asked, gives_up, kill, outcome, start, usual};

#[test]
fn a_command_runs_while_the_guest_is_held_and_not_before() {
    let server = TestServer::start();
    let directory = tempfile::tempdir().unwrap();
    let words = [
        "snapshot",
        "snap",
        "--while-paused",
        "test ! -e copy && echo \"$FERRY_SNAPSHOT\" >copy",
    ];
    let child = start(&server, directory.path(), &words);
    let outcome = outcome(child);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let copy = std::fs::read_to_string(directory.path().join("copy")).unwrap();
    let place = directory.path().join("snap");
    assert_eq!(copy, format!("{}\n", place.display()));
    let request = SnapshotRequest {
        hold: Some(Duration::from_secs(60)),
        ..usual(&place)
    };
    let snapshot = Request::Snapshot(Box::new(request));
    assert_eq!(asked(&server), [snapshot, Request::ReleaseHold]);
    assert!(outcome.stdout.starts_with("saved in "), "{outcome:?}");
}

#[test]
fn a_command_that_fails_gives_the_snapshot_up() {
    for (command, how) in [
        ("exit 3", "ended with status 3"),
        ("kill -9 $$", "was ended by signal 9"),
    ] {
        let server = TestServer::start();
        let outcome = run(&server.path, &["snapshot", "/s", "--while-paused", command]);
        let report = format!(
            "ferryctl: cannot save the guest: `{command}` {how}\n  hint: the snapshot was given up, and the guest goes on as before\n"
        );
        assert_eq!((outcome.status, outcome.stderr), (6, report));
        assert_eq!(outcome.stdout, "");
        assert_eq!(asked(&server).last(), Some(&Request::Cancel));
        assert!(!asked(&server).contains(&Request::ReleaseHold));
    }
}

/// A command that waits for ever, and says in the file `started` which process it is.
const FOREVER: &str = "echo $$ >started.new; mv started.new started; exec sleep 1000";

/// Starts a snapshot with this command, and waits for it.
fn held_for_ever(server: &TestServer, directory: &Path) -> (Child, String) {
    let words = ["snapshot", "snap", "--while-paused", FOREVER];
    let child = start(server, directory, &words);
    let started = directory.join("started");
    wait_until(|| started.exists());
    let process = std::fs::read_to_string(started).unwrap();
    (child, process.trim().to_owned())
}

fn runs(process: &str) -> bool {
    Path::new("/proc").join(process).exists()
}

#[test]
fn a_snapshot_that_ends_ends_the_command() {
    let server = TestServer::start();
    let directory = tempfile::tempdir().unwrap();
    let (child, process) = held_for_ever(&server, directory.path());
    assert!(runs(&process));
    server.script.end(Err(Refusal::new(
        RefusalKind::Failed,
        "the guest was held for 60 s",
    )));
    let outcome = outcome(child);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (
            1,
            "ferryctl: cannot save the guest: the guest was held for 60 s\n"
        )
    );
    assert!(!runs(&process));
}

#[test]
fn a_guest_that_somebody_else_lets_go_on_is_no_success() {
    let server = TestServer::start();
    let directory = tempfile::tempdir().unwrap();
    let (child, process) = held_for_ever(&server, directory.path());
    assert_eq!(
        server
            .ask("PUT", "/api/v1/vm.snapshot-release", "")
            .status(),
        204
    );
    let outcome = outcome(child);
    assert_eq!(outcome.status, 6, "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains("had not ended when the guest was let go on")
    );
    assert!(
        outcome
            .stderr
            .contains("the snapshot was finished all the same")
    );
    assert!(!runs(&process));
}

#[test]
fn ctrl_c_gives_the_snapshot_up() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let server = TestServer::start();
        let directory = tempfile::tempdir().unwrap();
        let (child, process) = held_for_ever(&server, directory.path());
        // As `timeout` does it: to the process, and then to all of its group.
        kill(&child, signal);
        kill(&child, signal);
        let report = "ferryctl: cannot save the guest: interrupted\n  hint: the snapshot was given up, and the guest goes on as before\n";
        gives_up(child, signal, report);
        assert_eq!(asked(&server).last(), Some(&Request::Cancel));
        assert!(!runs(&process));
    }
}
