//! From a definition to its deletion, and what the connections to back-ends live through.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use ferry_tests::backend::Backend;
use ferry_tests::backend::message::FrontendReq;
use ferry_tests::ferry_binary;
use serde_json::json;

use crate::controlled::Controlled;

/// A guest that never ends by itself.
pub const TICKS: &str = "mode=ticks ticks=1000000 period=10";

#[test]
fn a_guest_is_created_booted_paused_resumed_rebooted_shut_down_and_deleted() {
    let ferry = Controlled::start();
    ferry.get("vm.info").refused(404, "no virtual machine");
    ferry
        .put_json("vm.create", &ferry.definition(TICKS, &[]))
        .done();
    assert_eq!(ferry.state(), "Created");
    ferry.put("vm.boot").done();
    assert_eq!(ferry.state(), "Running");
    ferry.wait_for_more("tick", 3);

    ferry.put("vm.pause").done();
    assert_eq!(ferry.state(), "Paused");
    // What the serial port still held when the guest stopped comes first.
    let stands_still = || {
        let ticks = ferry.lines("tick");
        std::thread::sleep(std::time::Duration::from_millis(200));
        ferry.lines("tick") == ticks
    };
    assert!((0..10).any(|_| stands_still()), "the guest runs");
    assert!(stands_still(), "the guest runs again");
    ferry.put("vm.resume").done();
    assert_eq!(ferry.state(), "Running");
    ferry.wait_for_more("tick", 3);

    ferry.put("vm.reboot").done();
    assert_eq!(ferry.state(), "Running");
    ferry.wait_until("a second start", || {
        (ferry.lines("start mode=ticks") == 2).then_some(())
    });
    ferry.put("vm.shutdown").done();
    assert_eq!(ferry.state(), "Shutdown");
    ferry.put("vm.boot").done();
    ferry.wait_until("a third start", || {
        (ferry.lines("start mode=ticks") == 3).then_some(())
    });
    ferry.put("vm.delete").done();
    ferry.get("vm.info").refused(404, "no virtual machine");
    ferry.put("vm.delete").done();
    ferry.boot(TICKS, &[]);
    ferry.wait_for_more("tick", 1);
    ferry.put("vmm.shutdown").done();
    assert_eq!(ferry.end(), 0);
}

#[test]
fn a_paused_guest_can_be_rebooted_shut_down_and_deleted() {
    let disk = Backend::blk("32M").start();
    let ferry = Controlled::start();
    let writer = "mode=blk-writer+ticks op=write count=60000 report=50 ticks=1000000";
    ferry.boot(writer, &[disk.socket()]);
    ferry.wait_for_more("blk written", 1);
    ferry.put("vm.pause").done();
    ferry.put("vm.reboot").done();
    assert_eq!(ferry.state(), "Running");
    ferry.wait_for_more("blk written", 1);
    ferry.put("vm.pause").done();
    ferry.put("vm.shutdown").done();
    assert_eq!(ferry.state(), "Shutdown");
    ferry.put("vm.boot").done();
    ferry.wait_for_more("blk written", 1);
    ferry.put("vm.pause").done();
    ferry.put("vm.delete").done();
    assert_eq!(disk.connections(), 1);
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn connections_outlive_the_guest_and_end_with_the_definition() {
    let disk = Backend::blk("1M").start();
    let ferry = Controlled::start();
    let try_it = "mode=blk-try+ticks ticks=1000000";
    ferry
        .put_json("vm.create", &ferry.definition(try_it, &[disk.socket()]))
        .done();
    assert_eq!(disk.connections(), 0, "a definition connects to nothing");
    ferry.put("vm.boot").done();
    for _ in 0..2 {
        ferry.wait_for_more("tick", 1);
        ferry.put("vm.reboot").done();
    }
    ferry.wait_for_more("tick", 1);
    ferry.put("vm.shutdown").done();
    ferry.put("vm.boot").done();
    ferry.wait_for_more("tick", 1);
    assert_eq!(disk.connections(), 1);
    assert_eq!(disk.count(FrontendReq::RESET_DEVICE), 3);
    ferry.put("vm.delete").done();
    ferry.boot(try_it, &[disk.socket()]);
    assert_eq!(disk.connections(), 2);
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn what_fails_at_boot_is_told_and_can_be_mended() {
    let disk = Backend::blk("1M").start();
    let ferry = Controlled::start_with(&["--connect-timeout", "0"]);
    let mut definition = ferry.definition(TICKS, &[]);
    definition["payload"]["kernel"] = json!("/nowhere/vmlinux");
    ferry.put_json("vm.create", &definition).done();
    ferry.put("vm.boot").refused(500, "/nowhere/vmlinux");
    assert_eq!(ferry.state(), "Created");
    ferry.put("vm.delete").done();

    let nobody = std::path::Path::new("/nowhere/disk.sock");
    let definition = ferry.definition(TICKS, &[disk.socket(), nobody]);
    ferry.put_json("vm.create", &definition).done();
    ferry.put("vm.boot").refused(500, "/nowhere/disk.sock");
    assert_eq!(ferry.state(), "Created");
    ferry
        .put_json("vm.remove-device", &json!({"id": "disk1"}))
        .done();
    ferry.put("vm.boot").done();
    ferry.wait_for_more("tick", 1);
    assert_eq!(disk.connections(), 1, "the good one was kept");
}

#[test]
fn a_guest_of_the_command_line_can_be_controlled_too() {
    let ferry = Controlled::start_with(&[
        "--kernel",
        ferry_tests::TINY_GUEST,
        "--cmdline",
        TICKS,
        "--serial",
        "null",
    ]);
    ferry.wait_until("a running guest", || {
        (ferry.state() == "Running").then_some(())
    });
    ferry.put("vm.pause").done();
    ferry.put("vm.resume").done();
    ferry.put("vm.shutdown").done();
    assert_eq!(ferry.state(), "Shutdown");
    ferry.put("vmm.shutdown").done();
    assert_eq!(ferry.end(), 0);
}

#[test]
fn a_guest_that_powers_off_ends_ferry() {
    let ferry = Controlled::start();
    ferry.boot("mode=hello", &[]);
    assert_eq!(ferry.end(), 0);
}

#[test]
fn the_socket_is_the_users_alone_and_never_shared() {
    let ferry = Controlled::start();
    let path = ferry.client().socket().to_owned();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);

    let second = Command::new(ferry_binary())
        .arg("--api-socket")
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(2));
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(error.contains("another process serves"), "{error}");
    assert_eq!(
        ferry.get("vmm.ping").status,
        200,
        "the first one still serves"
    );
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "precious").unwrap();
    let output = Command::new(ferry_binary())
        .arg("--api-socket")
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}
