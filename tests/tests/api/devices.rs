//! Devices of a definition: added, removed, described, counted.

use ferry_tests::backend::Backend;
use serde_json::json;

use crate::controlled::Controlled;
use crate::life_cycle::TICKS;

#[test]
fn devices_come_and_go_before_the_guest_runs() {
    let (first, second) = (Backend::blk("1M").start(), Backend::blk("1M").start());
    let ferry = Controlled::start();
    let disk = |id: &str, backend: &ferry_tests::backend::Running| json!({"id": id, "vhost_user": true, "vhost_socket": backend.socket()});
    ferry
        .put_json("vm.add-disk", &disk("a", &first))
        .refused(404, "no virtual machine");
    ferry
        .put_json("vm.create", &ferry.definition(TICKS, &[]))
        .done();
    ferry.put_json("vm.add-disk", &disk("a", &first)).done();
    ferry
        .put_json("vm.add-disk", &disk("a", &second))
        .refused(409, "a");
    ferry
        .put_json("vm.remove-device", &json!({"id": "b"}))
        .refused(404, "b");
    let share = json!({"id": "share", "tag": "share", "socket": "/nowhere"});
    ferry.put_json("vm.add-fs", &share).done();
    ferry
        .put_json("vm.remove-device", &json!({"id": "share"}))
        .done();
    ferry.put_json("vm.add-disk", &disk("b", &second)).done();
    ferry.put("vm.boot").done();
    let info = ferry.info();
    assert_eq!(info["device_tree"]["a"]["pci_bdf"], "0000:00:01.0");
    assert_eq!(info["device_tree"]["b"]["pci_bdf"], "0000:00:02.0");

    for (route, body) in [
        ("vm.add-disk", disk("c", &second)),
        ("vm.add-fs", share),
        ("vm.remove-device", json!({"id": "a"})),
    ] {
        ferry
            .put_json(route, &body)
            .refused(500, "not supported yet");
    }
    ferry.put("vm.shutdown").done();
    ferry
        .put_json("vm.remove-device", &json!({"id": "a"}))
        .done();
    ferry.put("vm.boot").done();
    assert_eq!(ferry.info()["device_tree"]["b"]["pci_bdf"], "0000:00:01.0");
    assert_eq!((first.connections(), second.connections()), (1, 1));
}

#[test]
fn requests_and_pauses_are_counted() {
    let disk = Backend::blk("1M").start();
    let ferry = Controlled::start();
    let writer = "mode=blk-writer+ticks op=write count=100 report=50 ticks=1000000";
    ferry.boot(writer, &[disk.socket()]);
    ferry.wait_for_more("tick", 1);
    for _ in 0..3 {
        ferry.put("vm.pause").done();
        ferry.put("vm.resume").done();
    }
    assert_eq!(ferry.counter("disk0", "suspends"), 3);
    assert_eq!(ferry.counter("disk0", "resumes"), 3);
    assert_eq!(ferry.counter("disk0", "reconnects"), 0);
    assert_eq!(ferry.counter("disk0", "doorbell_exits"), 0);
    let available = ferry.counter("disk0", "queue0_available");
    assert!(available >= 100, "{available}");
    assert_eq!(ferry.counter("disk0", "queue0_used"), available);
    assert_eq!(ferry.counter("disk0", "queue0_in_flight"), 0);
    assert_ne!(ferry.counter("disk0", "features"), 0);

    let metrics = ferry.client().metrics().expect("metrics").body;
    let metrics = String::from_utf8(metrics).unwrap();
    let line = r#"ferry_device_queue_in_flight{device="disk0",queue="0"} 0"#;
    assert!(metrics.contains(line), "{metrics}");
    assert!(
        !metrics.contains("untyped"),
        "one is not in docs/counters.md: {metrics}"
    );
    assert!(
        metrics.contains("# TYPE ferry_device_queue_in_flight gauge"),
        "{metrics}"
    );
}

#[test]
fn a_device_that_fails_is_shown_and_connected_to_anew_by_a_boot() {
    let disk = Backend::blk("1M").start();
    let ferry = Controlled::start();
    ferry.boot(TICKS, &[disk.socket()]);
    disk.die();
    let device = |name: &str| ferry.info()["device_tree"]["disk0"][name].clone();
    ferry.wait_until("a failed device", || {
        (device("state") == "Failed").then_some(())
    });
    assert!(
        device("error")
            .to_string()
            .contains("closed the connection")
    );
    // The guest goes on without it, also through a pause and a reset.
    ferry.put("vm.pause").done();
    ferry.put("vm.resume").done();
    ferry.put("vm.reboot").done();
    assert_eq!(device("state"), "Failed");
    ferry.wait_for_more("tick", 1);
    ferry.put("vm.shutdown").done();

    let events = ferry.get("vm.events?after=0&wait=0").text;
    assert!(events.contains(r#""event":"failed""#), "{events}");
}
