//! Snapshots and restores that are watched, held, released, given up, or left alone by their client.

use std::time::Duration;

use ferry_tests::backend::{Backend, Direction, Fault, Running};
use ferry_tests::{Guest, Left, Restore, Snapshot, Successor};
use serde_json::Value;

use crate::common::{
    BUSY, Place, STATE, WRITTEN, back, because, busy, heir, next_is_good, saved, stateful,
};

/// A guest whose Ferry is patient, so that only a cancel ends what hangs.
fn patient(disk: &ferry_tests::backend::Running) -> Guest {
    let mut guest = ferry_tests::Ferry::tiny(BUSY)
        .request_timeout(50)
        .with_api()
        .with_disk(disk)
        .start();
    guest.wait_for(WRITTEN);
    guest
}

#[test]
fn an_image_is_copied_while_the_guest_is_held() {
    let place = Place::new();
    let disk = stateful().start();
    let mut guest = busy(&disk);
    let snapshot = Snapshot::to(&place.at("1")).hold(Duration::from_secs(50));
    let snapshot = guest.begin_snapshot(&snapshot);
    guest.wait_for_step("hold");
    guest.stands_still(WRITTEN);
    let served = disk.requests();
    let copy = heir(&disk);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(disk.requests(), served);
    assert!(snapshot.is_pending());
    guest.release().unwrap();
    snapshot.answer().unwrap();
    // It goes on, and its disk moves on.
    guest.goes_on(WRITTEN);
    let left = guest.kill();
    let mut guest = back(&left, &place.at("1"), &copy);
    guest.goes_on(WRITTEN);
    assert_eq!(disk.complaints(), Vec::<String>::new());
    assert_eq!(copy.complaints(), Vec::<String>::new());
}

#[test]
fn a_guest_that_nobody_releases_goes_on_without_a_snapshot() {
    let place = Place::new();
    let disk = stateful().start();
    let guest = busy(&disk);
    let snapshot = Snapshot::to(&place.at("1")).hold(Duration::from_millis(500));
    because(guest.try_snapshot(&snapshot), &["held", "500"]);
    assert!(!place.at("1").exists());
    assert!(guest.release().is_err());
    next_is_good(guest, &disk, WRITTEN);
}

/// Gives a snapshot up at this step; the guest goes on.
fn cancelled_at(step: &str, guest: &mut Guest, snapshot: Snapshot) {
    let snapshot = guest.begin_snapshot(&snapshot);
    guest.wait_for_step(step);
    guest.cancel().unwrap();
    because(snapshot.answer(), &["goes on"]);
    assert_eq!(guest.state(), "Running");
    let progress = guest.progress();
    assert_eq!(progress["status"], "failed", "{progress}");
}

#[test]
fn a_snapshot_is_given_up_at_each_step() {
    let place = Place::new();
    let disk = stateful()
        .in_transfer(Direction::Save, 1, Fault::HangAt(1 << 20))
        .start();
    let mut guest = patient(&disk);
    let to = || Snapshot::to(&place.at("1"));
    cancelled_at("devices", &mut guest, to());
    guest.goes_on(WRITTEN);
    cancelled_at("prepare", &mut guest, to().prepare(Duration::from_secs(50)));
    guest.goes_on(WRITTEN);
    cancelled_at("hold", &mut guest, to().hold(Duration::from_secs(50)));
    guest.goes_on(WRITTEN);
    // Requests in flight keep it from standing still.
    guest.hold_requests(&disk);
    cancelled_at("pause", &mut guest, to());
    disk.release_requests();
    assert!(!place.at("1").exists());
    assert!(guest.cancel().is_err());
    next_is_good(guest, &disk, WRITTEN);
}

/// A successor whose patience is such that only being given up ends what hangs, and a back-end that hangs while it is
/// given the disk's state.
fn hanging<'a>(left: &'a Left, disk: &Running) -> (Successor<'a>, Running) {
    let successor = left.successor().arg("--request-timeout").arg("50");
    let hangs = Backend::blk("0")
        .with_contents(disk.disk())
        .awaits_state(STATE)
        .in_transfer(Direction::Load, 1, Fault::HangAt(0))
        .start();
    (successor.arg("--connect-timeout").arg("50"), hangs)
}

/// The snapshot is to become the guest's RAM: it is as it was, and nobody is at it any more.
#[test]
fn a_restore_that_is_given_up_uses_nothing_up() {
    let place = Place::new();
    let disk = stateful().start();
    let left = saved(busy(&disk), &place.at("1"));
    let (successor, hangs) = hanging(&left, &disk);
    let mut ferry = successor.start();
    let gone = Backend::blk("1M").start();
    gone.die();
    let restore = |disk| {
        Restore::from(&place.at("1"))
            .mode("adopt")
            .device("disk0", disk)
    };
    for (step, backend) in [("devices", &hangs), ("connect", &gone)] {
        let restore = ferry.begin_restore(&restore(backend));
        ferry.wait_for_step(step);
        ferry.cancel().unwrap();
        because(restore.answer(), &["given up"]);
        ferry.wait_until("a Ferry without a machine", |ferry| {
            ferry.api().get("vm.info").is_err().then_some(())
        });
    }
    let disk = heir(&disk);
    ferry.restore(&restore(&disk)).unwrap();
    ferry.goes_on(WRITTEN);
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn whoever_deletes_what_the_command_line_restores_does_not_end_ferry() {
    let place = Place::new();
    let disk = stateful().start();
    let left = saved(busy(&disk), &place.at("1"));
    let (successor, hangs) = hanging(&left, &disk);
    let restore = |disk| Restore::from(&place.at("1")).device("disk0", disk);
    let mut ferry = successor.restoring(&restore(&hangs)).start();
    ferry.wait_for_step("devices");
    ferry.put("vm.delete");
    let disk = heir(&disk);
    ferry.restore(&restore(&disk)).unwrap();
    ferry.goes_on(WRITTEN);
}

#[test]
fn progress_tells_what_was_done_and_how_long_the_guest_stood_still() {
    let place = Place::new();
    let disk = stateful()
        .in_transfer(
            Direction::Save,
            1,
            Fault::Trickle(Duration::from_millis(20)),
        )
        .start();
    let guest = busy(&disk);
    let snapshot = Snapshot::to(&place.at("1")).prepare(Duration::from_millis(100));
    guest.snapshot(&snapshot);
    let progress = guest.progress();
    assert_eq!(progress["operation"], "snapshot");
    assert_eq!(progress["status"], "done", "{progress}");
    assert_eq!(progress["directory"], place.at("1").to_str().unwrap());
    assert_eq!(progress["ram"]["total_bytes"], 64 << 20);
    assert_eq!(progress["ram"]["done_bytes"], 64 << 20);
    assert_eq!(progress["devices"]["disk0"]["bytes"], STATE.bytes);
    let steps: Vec<(&str, u64)> = progress["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (step["step"].as_str().unwrap(), step["ms"].as_u64().unwrap()))
        .collect();
    let names: Vec<&str> = steps.iter().map(|step| step.0).collect();
    for name in ["prepare", "pause", "machine", "ram", "devices", "publish"] {
        assert!(names.contains(&name), "no {name} in {names:?}");
    }
    let time = |name: &str| steps.iter().find(|step| step.0 == name).unwrap().1;
    assert!(time("prepare") >= 100, "{steps:?}");
    // 49 pieces, each after 20 ms; what has been collected before does not count.
    let (paused, elapsed) = (&progress["paused_ms"], &progress["elapsed_ms"]);
    let (paused, elapsed) = (paused.as_u64().unwrap(), elapsed.as_u64().unwrap());
    assert!(
        paused >= time("devices") && time("devices") >= 100,
        "{progress}"
    );
    assert!(elapsed >= paused + 100, "{progress}");
    let manifest = std::fs::read(place.at("1").join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert!(manifest["snapshot"]["paused_ms"].as_u64().unwrap() > 100);
}

#[test]
fn a_snapshot_goes_on_without_its_client() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    let place = Place::new();
    let disk = stateful()
        .in_transfer(
            Direction::Save,
            1,
            Fault::Trickle(Duration::from_millis(10)),
        )
        .start();
    let mut guest = busy(&disk);
    let directory = place.at("1");
    let body = format!(
        r#"{{"destination_url":"file://{}","pause":true,"after":"resume"}}"#,
        directory.display()
    );
    let mut client = UnixStream::connect(guest.api().socket()).unwrap();
    let head = "PUT /api/v1/vm.snapshot HTTP/1.1\r\nHost: x\r\nContent-Length:";
    write!(client, "{head} {}\r\n\r\n{body}", body.len()).unwrap();
    guest.wait_until("a snapshot under way", |guest| {
        guest.api().get("vm.progress").ok()
    });
    drop(client);
    guest.wait_until("its end", |guest| {
        (guest.progress()["status"] == "done").then_some(())
    });
    guest.goes_on(WRITTEN);
    assert!(directory.join("manifest.json").exists());
}

#[test]
fn others_are_served_meanwhile() {
    let place = Place::new();
    let disk = stateful()
        .in_transfer(Direction::Save, 1, Fault::HangAt(0))
        .start();
    let mut guest = patient(&disk);
    let snapshot = guest.begin_snapshot(&Snapshot::to(&place.at("1")));
    guest.wait_for_step("devices");
    for route in ["vmm.ping", "vm.info", "vm.counters"] {
        guest.get(route);
    }
    // What would get in the way is refused.
    for route in ["vm.pause", "vm.resume"] {
        because(
            guest.ask(route, vec![]).answer(),
            &["a snapshot of the guest is being taken"],
        );
    }
    because(
        guest.try_snapshot(&Snapshot::to(&place.at("2"))),
        &["another snapshot"],
    );
    // A shutdown ends it.
    guest.put("vm.shutdown");
    because(snapshot.answer(), &["ended meanwhile"]);
    assert!(!place.at("1").exists());
    assert_eq!(guest.state(), "Shutdown");
}
