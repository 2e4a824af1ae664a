//! What happens, as those see it who watch.

use ferry_tests::backend::Backend;
use ferry_tests::is_documented;
use serde_json::{Value, json};

use crate::controlled::Controlled;
use crate::life_cycle::TICKS;

#[test]
fn the_event_monitor_tells_a_whole_life_in_documented_words() {
    let directory = tempfile::tempdir().unwrap();
    let monitor = directory.path().join("events");
    let disk = Backend::blk("1M").start();
    let ferry = Controlled::start_with(&[
        "--event-monitor",
        &format!("path={}", monitor.display()),
        "--request-timeout",
        "1",
    ]);
    let definition = ferry.definition(TICKS, &[disk.socket()]);
    ferry.put_json("vm.create", &definition).done();
    let share = json!({"id": "share", "tag": "share", "socket": "/nowhere"});
    ferry.put_json("vm.add-fs", &share).done();
    ferry
        .put_json("vm.remove-device", &json!({"id": "share"}))
        .done();
    for request in [
        "vm.boot",
        "vm.pause",
        "vm.resume",
        "vm.power-button",
        "vm.reboot",
        "vm.shutdown",
        "vm.boot",
    ] {
        ferry.put(request).done();
    }
    disk.die();
    ferry.wait_until("a failed device", || {
        (ferry.info()["device_tree"]["disk0"]["state"] == "Failed").then_some(())
    });
    ferry.put("vm.delete").done();
    ferry.put("vmm.shutdown").done();
    assert_eq!(ferry.end(), 0);

    let lines = std::fs::read_to_string(&monitor).unwrap();
    let events: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect();
    let names: Vec<&str> = events
        .iter()
        .map(|event| event["event"].as_str().expect("a name"))
        .collect();
    let expected = [
        "created",
        "device-added",
        "device-removed",
        "booting",
        "booted",
        "pausing",
        "paused",
        "resuming",
        "resumed",
        "power-button",
        "rebooting",
        "booting",
        "booted",
        "shutting-down",
        "shutdown",
        "booting",
        "booted",
        "failed",
        "deleting",
        "deleted",
        "shutdown",
    ];
    assert_eq!(names, expected, "{lines}");
    events.iter().for_each(is_documented);
}
