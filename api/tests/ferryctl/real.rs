//! ferryctl against Ferry's own server.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use ferry_api::control::{Request, Response};

use crate::common::{TestServer, info};
use crate::{Outcome, ferryctl, prints, run};

#[test]
fn questions_are_answered() {
    let server = TestServer::start();
    let version = env!("CARGO_PKG_VERSION");
    let process = std::process::id();
    assert_eq!(
        prints(&server.path, &["ping"]),
        format!("Ferry {version}, process {process}\n")
    );
    assert_eq!(
        prints(&server.path, &["info"]),
        "\
State       Running, being paused
Kernel      /boot/vmlinuz
Cmdline     console=ttyS0
Processors  2
Memory      512 MiB
Serial      tty

DEVICE  KIND        STATE   PCI      QUEUES   SOCKET
root    disk        failed  00:01.0  1 x 128  /tmp/root.sock
home    share höme  -       -        1 x 128  /tmp/home.sock

root: the back-end of root is gone
"
    );
    assert_eq!(
        prints(&server.path, &["counters"]),
        "\
DEVICE  COUNTER       VALUE
root    queue0_kicks      7
        reconnects        1
"
    );
    let metrics = prints(&server.path, &["metrics"]);
    let line = "ferry_device_queue_kicks{device=\"root\",queue=\"0\"} 7\n";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn a_vm_from_flags_arrives_as_it_was_meant() {
    let server = TestServer::start();
    let words = [
        "create",
        "--kernel",
        "/boot/vmlinuz",
        "--cmdline",
        "console=ttyS0",
        "--cpus",
        "boot=2",
        "--disk",
        "vhost_user=on,socket=/tmp/root.sock,id=root",
        "--fs",
        "tag=h\u{f6}me,socket=/tmp/home.sock,id=home,queue_size=128",
        "--serial",
        "tty",
    ];
    assert_eq!(prints(&server.path, &words), "created\n");
    let config = Box::new(info().config);
    let asked = server.script.asked.lock().unwrap();
    assert_eq!(asked[..], [Request::Create(config)]);
}

#[test]
fn what_info_prints_as_json_defines_the_same_vm() {
    let server = TestServer::start();
    let printed = prints(&server.path, &["--json", "info"]);
    let info: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let config = info["config"].to_string();
    let outcome = crate::run_with_input(
        &server.path,
        &["create", "--config", "-"],
        config.as_bytes(),
    );
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let config = Box::new(crate::common::info().config);
    let asked = server.script.asked.lock().unwrap();
    assert_eq!(asked[..], [Request::Info, Request::Create(config)]);
}

#[test]
fn refusals_are_told_with_their_reasons() {
    let server = TestServer::start();
    for (words, report) in [
        (
            &["resume"][..],
            "ferryctl: cannot resume\n  because the guest läuft\n",
        ),
        (
            &["remove-device", "x"],
            "ferryctl: cannot remove the device: there is no device x\n",
        ),
        (
            &["reboot"],
            "ferryctl: cannot reboot: Ferry ended before the request was answered\n",
        ),
        (
            &["create", "--kernel", "/k", "--cpus", "boot=33"],
            "ferryctl: cannot create the VM: the configuration is wrong\n  because cpus: boot_vcpus=33 is not within 1 and 32\n",
        ),
    ] {
        let outcome = run(&server.path, words);
        assert_eq!(outcome.status, 1, "{outcome:?}");
        assert_eq!(outcome.stderr, report);
    }
}

#[test]
fn a_pause_that_takes_its_time_is_waited_for() {
    let server = TestServer::start();
    let pause = ferryctl(&server.path, &["pause"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    server.wait_asked(1);
    // Meanwhile others are answered, and who has no patience leaves.
    prints(&server.path, &["ping"]);
    assert_eq!(run(&server.path, &["--timeout", "0.2", "pause"]).status, 4);
    for reply in server.script.held.lock().unwrap().drain(..) {
        reply.answer(Ok(Response::Done));
    }
    let outcome = Outcome::from(pause.wait_with_output().unwrap());
    assert_eq!((outcome.status, outcome.stdout.as_str()), (0, "paused\n"));
}

#[test]
fn events_are_shown_as_they_happen() {
    let mut server = TestServer::start();
    let publish = |name| {
        let device = BTreeMap::from([("device".to_owned(), "disk0".to_owned())]);
        server.events.publish("vm", name, device);
    };
    publish("booted");
    let mut child = ferryctl(&server.path, &["--json", "events", "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    for (number, name) in [(1, "booted"), (2, "paused"), (3, "resumed")] {
        if number > 1 {
            publish(name);
        }
        let event = next();
        assert_eq!(event["seq"], number);
        assert_eq!(event["event"], name);
        assert_eq!(event["properties"]["device"], "disk0");
    }
    server.server = None;
    assert_eq!(child.wait().unwrap().code(), Some(3));
}
