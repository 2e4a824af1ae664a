//! `migrate`, against Ferry's own server, whose owner does as the tests say.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferry_api::control::{Refusal, RefusalKind, Request, Response};
use ferry_api::migration::{
    AfterSend, DeviceProgress, MigrationState, MigrationUrl, Phase, SendRequest, Throttle,
    TimeoutStrategy, Unlogged,
};

use crate::common::{TestServer, wait_until};
use crate::saving::{asked, gives_up, kill, outcome, start};
use crate::{prints, run};

pub const ROOT: &str = "/";

/// Makes a migration of it whose guest has gone.
fn gone(server: &TestServer) {
    let us = Duration::from_micros;
    server.script.migration(|it| {
        it.phases.extend([
            (Phase::Pause, us(512)),
            (Phase::Ram, us(1_200)),
            (Phase::Devices, us(2_300)),
            (Phase::Commit, us(400)),
            (Phase::Release, us(9_000)),
        ]);
        it.peer_phases = vec![("load home".into(), us(1_800)), ("resume".into(), us(77))];
        it.phase = Phase::Release;
        it.devices = vec![DeviceProgress {
            id: "home".into(),
            bytes: 5000,
            elapsed: us(1_900),
            checked: true,
        }];
        it.downtime = Some(us(4_412));
        it.ram_sent = (1 << 30) + (512 << 10);
    });
}

#[test]
fn a_guest_is_shown_as_it_leaves_and_where_its_downtime_went() {
    let server = TestServer::start();
    let directory = tempfile::tempdir().unwrap();
    let child = start(&server, directory.path(), &["migrate", "unix:s"]);
    // Who asks for the second time has shown the first answer.
    server.wait_asked(3);
    gone(&server);
    server.script.end_migration(Ok(Response::Done));
    let outcome = outcome(child);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (0, ""),
        "{outcome:?}"
    );
    let place = directory.path().join("s");
    let expected = format!(
        "\
precopy 2  sent 512.0 MiB at 30.0 MiB/s, 100.0 MiB left, dirty 20.0 MiB/s, ETA 10 s  1234 ms
release  1234 ms, stands still for 4.412 ms
sent to unix:{}
time      1234 ms, the guest standing still for 4.412 ms of it
phases    connect 1.250 ms, precopy 1200 ms, release 9.000 ms
RAM       1.0 GiB, 1.0 GiB travelled in 2 rounds, 30.0 MiB/s
attempt   {}

DOWNTIME                   TIME     STATE
pause                  0.512 ms
ram                    1.200 ms
devices                2.300 ms
  home                 1.900 ms   4.8 KiB
commit                 0.400 ms
in all                 4.412 ms
the receiver meanwhile
  load home            1.800 ms
  resume               0.077 ms
",
        place.display(),
        "5a".repeat(16),
    );
    // The columns' widths are the table's own business.
    let words = |text: &str| -> Vec<Vec<String>> {
        let lines = text.lines();
        lines
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect()
    };
    assert_eq!(
        words(&outcome.stdout),
        words(&expected),
        "{}",
        outcome.stdout
    );
    let request = SendRequest::to(MigrationUrl::Unix(place));
    assert_eq!(asked(&server), [Request::SendMigration(Box::new(request))]);
}

#[test]
fn flags_become_fields() {
    let server = TestServer::start();
    let words = [
        "--json",
        "migrate",
        "tcp:host:4000",
        "--downtime-ms",
        "20",
        "--time-limit",
        "60",
        "--on-timeout",
        "ignore",
        "--connections",
        "4",
        "--tls-dir",
        "tls",
        "--unlogged",
        "resend",
        "--throttle",
        "--keep-source",
        "--state-limit",
        "1M",
    ];
    let directory = tempfile::tempdir().unwrap();
    let child = start(&server, directory.path(), &words);
    server.wait_asked(2);
    server.script.end_migration(Ok(Response::Done));
    let outcome = outcome(child);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (0, ""),
        "{outcome:?}"
    );
    let progress: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(progress["state"], "done");
    let destination = MigrationUrl::Tcp {
        host: "host".into(),
        port: 4000,
    };
    let request = SendRequest {
        downtime: Duration::from_millis(20),
        timeout: Duration::from_secs(60),
        timeout_strategy: TimeoutStrategy::Ignore,
        connections: 4,
        tls: Some(directory.path().join("tls")),
        unlogged: Unlogged::Resend,
        throttle: Throttle::On,
        state_most: 1 << 20,
        after: AfterSend::Stay,
        ..SendRequest::to(destination)
    };
    assert_eq!(asked(&server), [Request::SendMigration(Box::new(request))]);
}

/// A Ferry whose guest has left ends, and then nobody is there to ask.
#[test]
fn the_end_of_ferry_is_taken_for_what_it_is() {
    for (phase, status, said) in [
        (
            Phase::Release,
            0,
            "\nthe guest has left; this Ferry has ended\n",
        ),
        // It may have handed the guest over, and may not.
        (
            Phase::Commit,
            3,
            "was at commit when it was asked last\n  hint: ask the receiver",
        ),
        (
            Phase::Precopy,
            3,
            "was at precopy when it was asked last\n  hint: ask the receiver",
        ),
        // The guest was on its way back.
        (Phase::Resume, 3, "was at resume when it was asked last\n"),
    ] {
        let mut server = TestServer::start();
        let child = start(&server, Path::new(ROOT), &["migrate", "unix:/s"]);
        server.wait_asked(2);
        server.script.migration(|it| it.phase = phase);
        let before = server.script.asked.lock().unwrap().len();
        server.wait_asked(before + 2);
        server.server = None;
        let outcome = outcome(child);
        assert_eq!(outcome.status, status, "{outcome:?}");
        let place = if status == 0 {
            &outcome.stdout
        } else {
            &outcome.stderr
        };
        assert!(place.contains(said), "{outcome:?}");
    }
}

/// What happens between two questions is not missed.
#[test]
fn a_ferry_that_ends_at_once_has_said_why() {
    let mut server = TestServer::start();
    let finished = |server: &TestServer, us: &str| {
        let downtime = BTreeMap::from([("downtime_us".to_owned(), us.to_owned())]);
        server
            .events
            .publish("migration", "migration-finished", downtime);
    };
    // That was another one.
    finished(&server, "1");
    let child = start(&server, Path::new(ROOT), &["migrate", "unix:/s"]);
    server.wait_asked(2);
    finished(&server, "4812");
    // Also who asks for events late gets them, as long as Ferry is there.
    let asked = |server: &TestServer| server.script.asked.lock().unwrap().len();
    server.wait_asked(asked(&server) + 4);
    server.script.is_ending.store(true, Ordering::Relaxed);
    server.wait_asked(asked(&server) + 3);
    server.server = None;
    let outcome = outcome(child);
    assert_eq!(
        (outcome.status, outcome.stderr.as_str()),
        (0, ""),
        "{outcome:?}"
    );
    let said = "\nthe guest has left after standing still for 4.812 ms; this Ferry has ended\n";
    assert!(outcome.stdout.ends_with(said), "{outcome:?}");
}

#[test]
fn a_failure_comes_with_its_reasons() {
    let server = TestServer::start();
    let child = start(&server, Path::new(ROOT), &["migrate", "unix:/s"]);
    server.wait_asked(2);
    server.script.end_migration(Err(Refusal {
        kind: RefusalKind::Failed,
        chain: vec!["the receiver gave up".into(), "fs0: the tag differs".into()],
    }));
    let outcome = outcome(child);
    let report =
        "ferryctl: cannot move the guest: the receiver gave up\n  because fs0: the tag differs\n";
    assert_eq!((outcome.status, outcome.stderr.as_str()), (1, report));
    // What Ferry does not even begin.
    let outcome = run(&server.path, &["migrate", "unix:/s", "--connections", "17"]);
    assert_eq!(outcome.status, 1);
    assert!(
        outcome
            .stderr
            .contains("connections=17 is not within 1 and 16"),
        "{outcome:?}"
    );
}

#[test]
fn ctrl_c_gives_it_up() {
    let server = TestServer::start();
    let child = start(&server, Path::new(ROOT), &["migrate", "unix:/s"]);
    server.wait_asked(2);
    kill(&child, libc::SIGINT);
    let report = "ferryctl: cannot move the guest: interrupted\n  hint: the migration was given up, and the guest goes on here as before\n";
    gives_up(child, libc::SIGINT, report);
    assert_eq!(asked(&server).last(), Some(&Request::CancelMigration));
}

#[test]
fn another_ones_migration_is_left_alone() {
    let server = TestServer::start();
    let child = start(&server, Path::new(ROOT), &["migrate", "unix:/s"]);
    server.wait_asked(3);
    {
        // The next answer waits, and finds both.
        let mut migration = server.script.migration.lock().unwrap();
        let before = server.script.asked.lock().unwrap().len();
        server.wait_asked(before + 1);
        migration.as_mut().unwrap().attempt = "0b".repeat(16);
        kill(&child, libc::SIGTERM);
    }
    let outcome = outcome(child);
    // It has ended, and nobody knows any more how.
    assert_eq!(outcome.status, 3, "{outcome:?}");
    let cancelled = asked(&server).contains(&Request::CancelMigration);
    let ours = server
        .script
        .migration
        .lock()
        .unwrap()
        .as_ref()
        .unwrap()
        .state;
    assert!(!cancelled || ours == MigrationState::UnderWay, "{ours:?}");
}

#[test]
fn an_unconfirmed_guest_is_neither_moved_nor_lost() {
    let unconfirmed = |server: &TestServer| {
        server.script.migration(|it| {
            it.state = MigrationState::Unconfirmed;
            it.phase = Phase::Unconfirmed;
            it.phases.push((Phase::Unconfirmed, Duration::from_secs(3)));
        });
    };
    let server = TestServer::start();
    let words = ["migrate", "unix:/s", "--confirm-limit", "0.3"];
    let child = start(&server, Path::new(ROOT), &words);
    server.wait_asked(2);
    unconfirmed(&server);
    let outcome = outcome(child);
    assert_eq!(outcome.status, 7, "{outcome:?}");
    let said = "it was handed over to unix:/s, and nobody has said that it runs there\n  hint: it does not run here";
    assert!(outcome.stderr.contains(said), "{outcome:?}");
    let printed = prints(&server.path, &["migration"]);
    assert!(
        printed.starts_with("handed over to unix:/s, unconfirmed\n"),
        "{printed}"
    );
    let whole = printed.replace('\n', " ");
    assert!(
        whole.contains("Never use it if the guest may run there, or may have run there"),
        "{printed}"
    );
    assert!(
        printed.lines().all(|line| line.chars().count() <= 80),
        "{printed}"
    );
    assert_eq!(
        prints(&server.path, &["migration", "reclaim"]),
        "taken back\n"
    );
    assert_eq!(asked(&server).last(), Some(&Request::ReclaimMigration));

    // The word comes later.
    let server = TestServer::start();
    let child = start(&server, Path::new(ROOT), &["migrate", "unix:/s"]);
    server.wait_asked(2);
    unconfirmed(&server);
    let before = server.script.asked.lock().unwrap().len();
    server.wait_asked(before + 2);
    server.script.end_migration(Ok(Response::Done));
    let outcome = crate::saving::outcome(child);
    assert_eq!(outcome.status, 0, "{outcome:?}");

    // Nobody waits for it after Ctrl-C, and there is nothing that could be given up.
    let server = TestServer::start();
    let child = start(&server, Path::new(ROOT), &["migrate", "unix:/s"]);
    server.wait_asked(2);
    unconfirmed(&server);
    // It knows.
    let before = server.script.asked.lock().unwrap().len();
    server.wait_asked(before + 2);
    kill(&child, libc::SIGINT);
    let outcome = crate::saving::outcome(child);
    assert_eq!(outcome.status, 7, "{outcome:?}");
    wait_until(|| !asked(&server).contains(&Request::CancelMigration));
}

#[test]
fn ferryctl_does_not_wait_for_ever() {
    let server = TestServer::start();
    let outcome = run(&server.path, &["migrate", "unix:/s", "--timeout", "0.3"]);
    assert_eq!(outcome.status, 4, "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains("has not finished the migration within 0.3 s"),
        "{outcome:?}"
    );
}
