//! What ferryctl asks for.

use std::os::unix::process::ExitStatusExt;

use serde_json::{Value, json};

use crate::script::{Request, Server, Turn, answer, done};
use crate::{Outcome, ferryctl, prints, run, run_with_input};

/// Runs ferryctl against a server that does all it is asked to; the request and what was printed.
fn request(words: &[&str]) -> (Request, String) {
    let server = Server::start(vec![Turn::Answer(done())]);
    let printed = prints(server.socket(), words);
    (server.request(), printed)
}

#[test]
fn changes_of_state_are_requests_without_a_body() {
    for (command, line, said) in [
        ("boot", "PUT /api/v1/vm.boot", "running\n"),
        ("pause", "PUT /api/v1/vm.pause", "paused\n"),
        ("resume", "PUT /api/v1/vm.resume", "running\n"),
        ("shutdown", "PUT /api/v1/vm.shutdown", "shut down\n"),
        ("reboot", "PUT /api/v1/vm.reboot", "running again\n"),
        (
            "power-button",
            "PUT /api/v1/vm.power-button",
            "pressed; the guest decides\n",
        ),
        ("delete", "PUT /api/v1/vm.delete", "deleted\n"),
        ("vmm-shutdown", "PUT /api/v1/vmm.shutdown", "Ferry ends\n"),
    ] {
        let (request, printed) = request(&[command]);
        assert_eq!(request.line, line);
        assert_eq!(request.body, "");
        assert_eq!(printed, said);
        // A program that asks for JSON gets what there is: nothing.
        let server = Server::start(vec![Turn::Answer(done())]);
        assert_eq!(prints(server.socket(), &["--json", command]), "");
    }
}

#[test]
fn a_vm_is_created_from_the_flags_of_ferrys_own_command_line() {
    let (request, printed) = request(&[
        "create",
        "--kernel",
        "/boot/vmlinuz",
        "--initramfs",
        "/boot/initrd.img",
        "--cmdline",
        "-x console=ttyS0",
        "--cpus",
        "boot=2,max=4",
        "--memory",
        "size=1G,hugepages=on",
        "--disk",
        "vhost_user=on,socket=/run/a.sock,id=a,readonly=on",
        "--disk",
        "vhost_user=on,socket=/run/b.sock,num_queues=2",
        "--fs",
        "tag=home,socket=/run/home.sock",
        "--vhost-user",
        "socket=/run/rng.sock,device_type=4,drain=[0]",
        "--serial",
        "file=/tmp/log",
    ]);
    assert_eq!(printed, "created\n");
    assert_eq!(request.line, "PUT /api/v1/vm.create");
    assert_eq!(
        serde_json::from_str::<Value>(&request.body).unwrap(),
        json!({
            "payload": {
                "kernel": "/boot/vmlinuz",
                "initramfs": "/boot/initrd.img",
                "cmdline": "-x console=ttyS0",
            },
            "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
            "memory": {"size": 1 << 30, "hugepages": true},
            "disks": [
                {"vhost_user": true, "vhost_socket": "/run/a.sock", "id": "a", "readonly": true},
                {"vhost_user": true, "vhost_socket": "/run/b.sock", "num_queues": 2},
            ],
            "fs": [{"tag": "home", "socket": "/run/home.sock"}],
            "vhost_user": [{"socket": "/run/rng.sock", "device_type": 4, "drain": [0]}],
            "serial": {"mode": "File", "file": "/tmp/log"},
        })
    );
}

#[test]
fn a_configuration_goes_to_ferry_as_it_is_written() {
    let text = "{ \"payload\": { \"kernel\": \"/k\" }, \"unknown\": [null] }\n";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.json");
    std::fs::write(&path, text).unwrap();
    let (request, _) = request(&["create", "--config", path.to_str().unwrap()]);
    assert_eq!(request.body, text);

    let server = Server::start(vec![Turn::Answer(done())]);
    let words = ["create", "--config", "-"];
    let outcome = run_with_input(server.socket(), &words, text.as_bytes());
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert_eq!(server.request().body, text);
}

#[test]
fn devices_are_added_and_removed() {
    let (disk, printed) = request(&["add-disk", "vhost_user=on,socket=/run/a.sock,id=a"]);
    assert_eq!(disk.line, "PUT /api/v1/vm.add-disk");
    assert_eq!(
        disk.body,
        r#"{"id":"a","vhost_socket":"/run/a.sock","vhost_user":true}"#
    );
    assert_eq!(printed, "added\n");
    let (fs, _) = request(&["add-fs", "tag=t,socket=/run/b.sock,queue_size=64"]);
    assert_eq!(fs.line, "PUT /api/v1/vm.add-fs");
    assert_eq!(
        fs.body,
        r#"{"queue_size":64,"socket":"/run/b.sock","tag":"t"}"#
    );
    let (removed, printed) = request(&["remove-device", "a\"b"]);
    assert_eq!(removed.line, "PUT /api/v1/vm.remove-device");
    assert_eq!(removed.body, r#"{"id":"a\"b"}"#);
    assert_eq!(printed, "removed\n");
}

#[test]
fn the_place_of_a_device_is_told_where_there_is_one() {
    let words = ["add-disk", "vhost_user=on,socket=/run/a.sock"];
    let body = r#"{"id":"disk0","bdf":"0000:00:06.0"}"#;
    let server = Server::start(vec![Turn::Answer(answer(200, body))]);
    assert_eq!(
        prints(server.socket(), &words),
        "added disk0 at 0000:00:06.0\n"
    );
}

#[test]
fn the_socket_may_come_from_the_environment() {
    let body = r#"{"build_version":"v1","version":"1.2.3","pid":77,"features":[]}"#;
    let server = Server::start(vec![Turn::Answer(answer(200, body))]);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ferryctl"));
    command.env("FERRY_API_SOCKET", server.socket()).arg("ping");
    let outcome = Outcome::from(command.output().unwrap());
    assert_eq!(outcome.stdout, "Ferry 1.2.3, process 77\n");
    assert_eq!(server.request().line, "GET /api/v1/vmm.ping");
}

#[test]
fn events_are_followed_from_one_to_the_next() {
    let event = |seq: u64| {
        format!(
            r#"{{"seq":{seq},"timestamp":{{"secs":{seq},"nanos":5000000}},"source":"vm","event":"paused","properties":{{}}}}"#
        )
    };
    let server = Server::start(vec![
        Turn::Answer(answer(200, &format!("[{},{}]", event(6), event(7)))),
        Turn::Answer(answer(200, &format!("[{}]", event(8)))),
        Turn::Answer(answer(200, "[]")),
        // Another Ferry by now, whose events have numbers of their own.
        Turn::Answer(answer(200, &format!("[{}]", event(1)))),
        // This Ferry ends while somebody waits for its next event.
        Turn::Answer(Vec::new()),
    ]);
    let outcome = run(server.socket(), &["events", "--follow", "--after", "5"]);
    assert_eq!(outcome.status, 3, "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "[    6.005000] vm       paused\n[    7.005000] vm       paused\n[    8.005000] vm       paused\n[    1.005000] vm       paused\n"
    );
    let asked: Vec<String> = (0..5).map(|_| server.request().line).collect();
    assert_eq!(
        asked,
        [
            "GET /api/v1/vm.events?after=5",
            "GET /api/v1/vm.events?after=7&wait=20",
            "GET /api/v1/vm.events?after=8&wait=20",
            "GET /api/v1/vm.events?after=8&wait=20",
            "GET /api/v1/vm.events?after=1&wait=20",
        ]
    );
}

#[test]
fn following_ends_with_ctrl_c() {
    let server = Server::start(vec![
        Turn::Answer(answer(200, "[]")),
        Turn::Hang(Vec::new()),
    ]);
    let mut child = ferryctl(server.socket(), &["events", "--follow"])
        .spawn()
        .unwrap();
    server.request();
    server.request();
    let interrupt = ["-INT".to_owned(), child.id().to_string()];
    let sent = std::process::Command::new("kill").args(interrupt).status();
    assert!(sent.unwrap().success());
    // What a shell tells as 130.
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGINT));
}

#[test]
fn ferryctl_that_does_not_follow_asks_once() {
    let server = Server::start(vec![Turn::Answer(answer(200, "[]"))]);
    assert_eq!(prints(server.socket(), &["events"]), "");
    assert_eq!(server.request().line, "GET /api/v1/vm.events?after=0");
}

#[test]
fn a_request_has_the_head_that_any_server_understands() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let child = ferryctl(&socket, &["remove-device", "x"])
        .stderr(std::process::Stdio::null())
        .spawn();
    let (mut stream, _) = listener.accept().unwrap();
    let expected = "PUT /api/v1/vm.remove-device HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n\
        Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{\"id\":\"x\"}";
    let mut bytes = vec![0; expected.len()];
    std::io::Read::read_exact(&mut stream, &mut bytes).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    drop(stream);
    assert_eq!(child.unwrap().wait().unwrap().code(), Some(3));
}
