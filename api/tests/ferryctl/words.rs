//! What ferryctl prints.

use std::process::Stdio;

use crate::script::{Server, Turn, answer};
use crate::{ferryctl, prints};

const INFO: &str = r#"{
  "config": {
    "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
    "memory": {"size": 2147483648, "shared": true, "hugepages": true, "hugepage_size": 2097152},
    "payload": {
      "kernel": "/usr/lib/modules/6.12.41+deb13-amd64/vmlinuz",
      "initramfs": "/boot/initrd.img-6.12.41+deb13-amd64",
      "cmdline": "console=ttyS0 root=/dev/vda1 rw quiet systemd.journald.forward_to_console=1 panic=-1"
    },
    "disks": [
      {"id": "root", "vhost_user": true, "vhost_socket": "/run/user/1000/ferry/machines/build/root.sock",
       "num_queues": 2, "queue_size": 128},
      {"id": "installation-medium", "vhost_user": true, "vhost_socket": "/run/medium.sock",
       "num_queues": 1, "queue_size": 128, "readonly": true}
    ],
    "fs": [
      {"id": "fs0", "tag": "home", "socket": "/run/user/1000/ferry/machines/build/home.sock",
       "num_queues": 1, "queue_size": 1024}
    ],
    "serial": {"mode": "Socket", "socket": "/run/user/1000/ferry/machines/build/console.sock"},
    "from_a_newer_version": {}
  },
  "state": "Running",
  "transition": "being paused",
  "memory_actual_size": 2147483648,
  "device_tree": {
    "root": {"id": "root", "device_type": 2, "resources": [], "children": [], "pci_bdf": "0000:00:01.0", "state": "Active"},
    "installation-medium": {"id": "installation-medium", "device_type": 2, "resources": [], "children": [],
      "pci_bdf": "0000:00:02.0", "state": "Failed",
      "error": ["the back-end has left", "it closed its socket while a GET_VRING_BASE was owed, for 10 s by then"]},
    "fs0": {"id": "fs0", "device_type": 2, "resources": [], "children": [], "pci_bdf": "0000:00:03.0", "state": "Changing"}
  }
}"#;

#[test]
fn info_on_two_disks_and_a_share_fits_80_columns() {
    let server = Server::start(vec![Turn::Answer(answer(200, INFO))]);
    let printed = prints(server.socket(), &["info"]);
    assert_eq!(
        printed,
        "\
State       Running, being paused
Kernel      /usr/lib/modules/6.12.41+deb13-amd64/vmlinuz
Initramfs   /boot/initrd.img-6.12.41+deb13-amd64
Cmdline     console=ttyS0 root=/dev/vda1 rw quiet
            systemd.journald.forward_to_console=1 panic=-1
Processors  2, at most 4
Memory      2 GiB, in huge pages of 2 MiB
Serial      socket /run/user/1000/ferry/machines/build/console.sock

DEVICE               KIND        STATE     PCI      QUEUES    SOCKET
root                 disk        active    00:01.0  2 x 128   /run/…ld/root.sock
installation-medium  disk, ro    failed    00:02.0  1 x 128   /run/medium.sock
fs0                  share home  changing  00:03.0  1 x 1024  /run/…ld/home.sock

installation-medium: the back-end has left
  because it closed its socket while a GET_VRING_BASE was owed, for 10 s by then
"
    );
    for line in printed.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn a_vm_that_was_only_defined_is_described_too() {
    let body = r#"{"config":{"payload":{"kernel":"/k"},"memory":{"size":67108864,"shared":false},
        "cpus":{"boot_vcpus":1,"max_vcpus":1},"disks":null,"serial":{"mode":"Null"}},"state":"Created","memory_actual_size":67108864}"#;
    let server = Server::start(vec![Turn::Answer(answer(200, body))]);
    assert_eq!(
        prints(server.socket(), &["info"]),
        "\
State       Created
Kernel      /k
Processors  1
Memory      64 MiB, not shared
Serial      null
Devices     none
"
    );
}

#[test]
fn counters_are_a_table() {
    let body = r#"{"__vm":{"boots":1},"disk0":{"reconnects":0,"queue0_kicks":123456}}"#;
    let server = Server::start(vec![
        Turn::Answer(answer(200, body)),
        Turn::Answer(answer(200, body)),
    ]);
    assert_eq!(
        prints(server.socket(), &["counters"]),
        "\
DEVICE  COUNTER        VALUE
__vm    boots              1
disk0   queue0_kicks  123456
        reconnects         0
"
    );
    assert_eq!(
        prints(server.socket(), &["counters", "--json"]),
        "{\"__vm\":{\"boots\":1},\"disk0\":{\"queue0_kicks\":123456,\"reconnects\":0}}\n"
    );
}

#[test]
fn json_is_one_line_that_lacks_nothing() {
    let server = Server::start(vec![Turn::Answer(answer(200, INFO))]);
    let printed = prints(server.socket(), &["--json", "info"]);
    assert_eq!(printed.lines().count(), 1);
    let parse = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(parse(&printed), parse(INFO));
}

const EVENTS: &str = r#"[
  {"seq":1,"timestamp":{"secs":0,"nanos":1204000},"source":"vmm","event":"starting","properties":{}},
  {"seq":2,"timestamp":{"secs":63,"nanos":999999999},"source":"vm","event":"failed",
   "properties":{"device":"disk0","reason":"\u001b[2Jgone\n"}}
]"#;

#[test]
fn an_event_is_one_line_and_no_terminal_obeys_it() {
    let server = Server::start(vec![
        Turn::Answer(answer(200, EVENTS)),
        Turn::Answer(answer(200, EVENTS)),
    ]);
    assert_eq!(
        prints(server.socket(), &["events"]),
        "\
[    0.001204] vmm      starting
[   63.999999] vm       failed  device=disk0  reason=\\u{1b}[2Jgone\\n
"
    );
    let printed = prints(server.socket(), &["events", "--json"]);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[1].contains(r#""seq":2"#), "{}", lines[1]);
}

#[test]
fn metrics_are_printed_as_they_are() {
    let body = "# TYPE ferry_vm_running gauge\nferry_vm_running 1\n";
    let server = Server::start(vec![Turn::Answer(answer(200, body))]);
    assert_eq!(prints(server.socket(), &["metrics"]), body);
    assert_eq!(server.request().line, "GET /metrics");
}

#[test]
fn a_reader_who_leaves_early_is_no_error() {
    let body = "ferry_vm_running 1\n".repeat(100_000);
    let server = Server::start(vec![Turn::Answer(answer(200, &body))]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = ferryctl(server.socket(), &["metrics"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let server = Server::start(vec![Turn::Answer(answer(200, "x 1\n"))]);
    let full = std::fs::File::create("/dev/full").unwrap();
    let output = ferryctl(server.socket(), &["metrics"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "ferryctl: cannot show the metrics: cannot write to standard output\n  because No space left on device (os error 28)\n"
    );
}
