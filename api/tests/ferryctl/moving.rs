//! `receive` and `migration`, against Ferry's own server, whose owner does as the tests say.

use std::path::Path;

use ferry_api::config::SerialConfig;
use ferry_api::control::{Refusal, RefusalKind, Request, Response};
use ferry_api::migration::{MigrationUrl, Openness, Phase, ReceiveRequest};
use ferry_api::snapshot::SnapshotRequest;

use crate::common::TestServer;
use crate::migrating::ROOT;
use crate::saving::{asked, gives_up, kill, outcome, start, wait_held};
use crate::{prints, run};

#[test]
fn a_guest_is_waited_for_until_it_is_there() {
    let server = TestServer::start();
    let directory = tempfile::tempdir().unwrap();
    let words = [
        "receive",
        "unix:s",
        "--socket",
        "home=x.sock",
        "--serial",
        "file=log",
    ];
    let child = start(&server, directory.path(), &words);
    wait_held(&server);
    let before = server.script.asked.lock().unwrap().len();
    server.wait_asked(before + 2);
    server.script.migration(|it| it.phase = Phase::Precopy);
    let before = server.script.asked.lock().unwrap().len();
    server.wait_asked(before + 2);
    server.script.end_migration(Ok(Response::Done));
    let outcome = outcome(child);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (0, ""),
        "{outcome:?}"
    );
    let place = directory.path().join("s");
    let said = format!(
        "\nreceived at unix:{}\ntime      1234 ms\n",
        place.display()
    );
    assert!(
        outcome
            .stdout
            .starts_with("listen  1234 ms\nprecopy  received "),
        "{outcome:?}"
    );
    assert!(outcome.stdout.contains(&said), "{outcome:?}");
    let request = ReceiveRequest {
        receiver: MigrationUrl::Unix(place),
        sockets: [("home".to_owned(), directory.path().join("x.sock"))].into(),
        serial: Some(SerialConfig::File(directory.path().join("log"))),
        tls: None,
        openness: Openness::Loopback,
        state_most: SnapshotRequest::STATE_MOST,
    };
    assert_eq!(
        asked(&server),
        [Request::ReceiveMigration(Box::new(request))]
    );
}

#[test]
fn other_hosts_are_let_in_by_a_word_or_a_certificate() {
    let server = TestServer::start();
    let outcome = run(&server.path, &["receive", "tcp:0.0.0.0:4000"]);
    assert_eq!(outcome.status, 1);
    let reason = "receiver_url=tcp:0.0.0.0:4000 may be reached from other hosts";
    assert!(outcome.stderr.contains(reason), "{outcome:?}");
    for (flags, openness, tls) in [
        (&["--insecure"][..], Openness::Insecure, None),
        (
            &["--tls-dir", "/tls"],
            Openness::Loopback,
            Some("/tls".into()),
        ),
    ] {
        let server = TestServer::start();
        let words = [
            &["receive", "tcp:0.0.0.0:4000", "--state-limit", "4K"],
            flags,
        ]
        .concat();
        let child = start(&server, Path::new(ROOT), &words);
        wait_held(&server);
        server.script.end_migration(Ok(Response::Done));
        assert_eq!(crate::saving::outcome(child).status, 0);
        let [Request::ReceiveMigration(request)] = &asked(&server)[..] else {
            panic!("not one request");
        };
        assert_eq!((request.openness, &request.tls), (openness, &tls));
        assert_eq!(request.state_most, 4096);
    }
}

#[test]
fn a_guest_that_does_not_arrive_is_not_there() {
    let server = TestServer::start();
    let child = start(&server, Path::new(ROOT), &["receive", "unix:/s"]);
    wait_held(&server);
    server.script.end_migration(Err(Refusal {
        kind: RefusalKind::Failed,
        chain: vec!["the sender gave up".into(), "it was cancelled".into()],
    }));
    let outcome = outcome(child);
    let report =
        "ferryctl: cannot receive a guest: the sender gave up\n  because it was cancelled\n";
    assert_eq!((outcome.status, outcome.stderr.as_str()), (1, report));
}

#[test]
fn ctrl_c_ends_the_wait() {
    let server = TestServer::start();
    let child = start(&server, Path::new(ROOT), &["receive", "unix:/s"]);
    wait_held(&server);
    kill(&child, libc::SIGTERM);
    let report = "ferryctl: cannot receive a guest: interrupted\n  hint: no guest was received\n";
    gives_up(child, libc::SIGTERM, report);
    assert_eq!(asked(&server).last(), Some(&Request::CancelMigration));
}

#[test]
fn who_wants_to_know_asks() {
    let server = TestServer::start();
    let outcome = run(&server.path, &["migration"]);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (
            1,
            "ferryctl: cannot show the migration: nothing was moved yet\n"
        )
    );
    let child = start(&server, Path::new(ROOT), &["receive", "unix:/s"]);
    wait_held(&server);
    let printed = prints(&server.path, &["migration"]);
    assert!(
        printed.starts_with("waiting for a guest at unix:/s\n"),
        "{printed}"
    );
    assert_eq!(
        prints(&server.path, &["migration", "cancel"]),
        "cancelled\n"
    );
    assert_eq!(crate::saving::outcome(child).status, 1);
    let printed = prints(&server.path, &["migration"]);
    assert!(
        printed.starts_with("not received at unix:/s, ended at listen\n"),
        "{printed}"
    );
    assert!(
        printed.ends_with("reason    it was cancelled\n"),
        "{printed}"
    );
    let printed = prints(&server.path, &["--json", "migration"]);
    let value: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(value["state"], "failed");
}

#[test]
fn usage_that_is_wrong_is_told_before_anything_is_sent() {
    let nowhere = Path::new("/nonexistent");
    for (words, report) in [
        (&["migrate"][..], "<URL>"),
        (
            &["migrate", "/s"],
            "/s is neither unix:/path nor tcp:host:port",
        ),
        (&["migrate", "tcp:host"], "tcp:host names no port"),
        (&["migrate", "unix:/s", "--on-timeout", "wait"], "ignore"),
        (&["migrate", "unix:/s", "--unlogged", "skip"], "resend"),
        (&["receive", "tcp:::1:1"], "tcp:[address]:port"),
        (
            &["receive", "tcp:h:1", "--insecure", "--tls-dir", "/t"],
            "--tls-dir",
        ),
        (
            &["receive", "unix:/s", "--socket", "fs0"],
            "--socket: fs0 is not of the form ID=PATH",
        ),
        (&["migration", "stop"], "stop"),
    ] {
        let outcome = run(nowhere, words);
        assert_eq!(outcome.status, 2, "{words:?} {outcome:?}");
        assert!(outcome.stderr.contains(report), "{words:?} {outcome:?}");
    }
}
