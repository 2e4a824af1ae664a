//! Back-ends that hang in any phase: no request waits for another, and what they delay comes to a defined end.

use std::sync::mpsc;
use std::time::Duration;

use ferry_tests::backend::message::FrontendReq;
use ferry_tests::backend::{Backend, Misbehaviour, When};

use crate::controlled::{Answer, Controlled, put};

const WRITER: &str =
    "mode=blk-writer+ticks op=write count=60000 report=50 patience=60000 ticks=1000000";
const TIMEOUTS: [&str; 4] = ["--request-timeout", "1", "--dead-timeout", "30"];

/// A request that is being waited for.
struct Pending(mpsc::Receiver<Answer>);

impl Pending {
    fn ask(ferry: &Controlled, route: &'static str) -> Self {
        let (sender, receiver) = mpsc::channel();
        let client = ferry.client();
        std::thread::spawn(move || sender.send(put(&client, route, b"")));
        Pending(receiver)
    }

    fn answer(self) -> Answer {
        self.0
            .recv_timeout(crate::controlled::LIMIT)
            .expect("an answer")
    }

    fn is_pending(&self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty))
    }
}

/// Ping, info and counters answer while something else is being waited for; the state that is left is shown.
fn others_are_served(ferry: &Controlled, pending: &Pending, left: &str, transition: &str) {
    let info = ferry.wait_until(transition, || {
        let info = ferry.info();
        (info["transition"] == transition).then_some(info)
    });
    assert_eq!(info["state"], left);
    for route in ["vmm.ping", "vm.info", "vm.counters"] {
        assert_eq!(ferry.get(route).status, 200);
    }
    assert!(pending.is_pending(), "{transition} had ended already");
}

#[test]
fn a_boot_whose_back_end_says_nothing() {
    let disk = Backend::blk("1M")
        .on(
            When::Each(FrontendReq::GET_FEATURES),
            Misbehaviour::NeverAnswer,
        )
        .start();
    let ferry = Controlled::start_with(&["--request-timeout", "3"]);
    ferry
        .put_json("vm.create", &ferry.definition(WRITER, &[disk.socket()]))
        .done();
    let boot = Pending::ask(&ferry, "vm.boot");
    others_are_served(&ferry, &boot, "Created", "being booted");
    ferry.put("vm.pause").refused(500, "being booted");
    boot.answer().refused(500, "GET_FEATURES");
    assert_eq!(ferry.state(), "Created");
}

#[test]
fn a_boot_that_waits_can_be_given_up() {
    let ferry = Controlled::start_with(&["--connect-timeout", "50"]);
    let nobody = std::path::Path::new("/nowhere/disk.sock");
    for (request, state) in [("vm.shutdown", Some("Shutdown")), ("vm.delete", None)] {
        if state.is_some() {
            let definition = ferry.definition(WRITER, &[nobody]);
            ferry.put_json("vm.create", &definition).done();
        }
        let boot = Pending::ask(&ferry, "vm.boot");
        let left = state.map_or("Shutdown", |_| "Created");
        others_are_served(&ferry, &boot, left, "being booted");
        ferry.put(request).done();
        boot.answer().refused(500, request);
        match state {
            Some(state) => assert_eq!(ferry.state(), state),
            None => ferry.get("vm.info").refused(404, "no virtual machine"),
        }
    }
}

#[test]
fn a_pause_whose_back_end_hangs_fails_and_the_guest_goes_on() {
    let (hung, fine) = (Backend::blk("32M").start(), Backend::blk("1M").start());
    let ferry = Controlled::start_with(&TIMEOUTS);
    let both = "mode=blk-writer+ticks op=write count=200 report=50 ticks=1000000 period=10";
    ferry.boot(both, &[hung.socket(), fine.socket()]);
    ferry.wait_for_more("tick", 1);
    hung.hang();
    let pause = Pending::ask(&ferry, "vm.pause");
    others_are_served(&ferry, &pause, "Running", "being paused");
    let ticks = ferry.lines("tick");
    let answer = pause.answer();
    answer.refused(500, "disk0");
    answer.refused(500, "goes on");
    assert_eq!(ferry.state(), "Running");
    ferry.wait_for_more("tick", 3);
    assert!(ferry.lines("tick") > ticks);
    // A second attempt fares no better, and is told why.
    ferry.put("vm.pause").refused(500, "disk0");
    hung.wake();
    ferry.wait_until("a pause that succeeds", || {
        (ferry.put("vm.pause").status == 204).then_some(())
    });
    ferry.put("vm.resume").done();
    ferry.wait_for_more("tick", 3);
    assert_eq!(hung.complaints(), Vec::<String>::new());
    assert_eq!(ferry.info()["device_tree"]["disk0"]["state"], "Active");
}

#[test]
fn requests_in_flight_of_a_held_disk_come_through_a_failed_pause() {
    let disk = Backend::blk("32M").start();
    let ferry = Controlled::start_with(&TIMEOUTS);
    let writer = "mode=blk-writer count=20000 report=50 patience=60000 end=halt";
    ferry.boot(writer, &[disk.socket()]);
    ferry.wait_for_more("blk written", 1);
    disk.hold_requests();
    ferry.wait_until("requests that nobody serves", || {
        let served = disk.requests();
        std::thread::sleep(Duration::from_millis(50));
        (disk.requests() == served && ferry.counter("disk0", "queue0_in_flight") > 0).then_some(())
    });
    ferry.put("vm.pause").refused(500, "disk0");
    disk.release_requests();
    ferry.put("vm.pause").done();
    ferry.put("vm.resume").done();
    ferry.wait_until("the guest's verdict", || {
        (ferry.lines("blk verified") + ferry.lines("FAIL") > 0).then_some(())
    });
    assert_eq!(ferry.lines("FAIL"), 0);
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn a_resume_does_not_wait_for_a_back_end_that_hangs() {
    let disk = Backend::blk("32M").start();
    let ferry = Controlled::start_with(&TIMEOUTS);
    let both = "mode=blk-writer+ticks op=write count=200 report=50 ticks=1000000 period=10";
    ferry.boot(both, &[disk.socket()]);
    ferry.wait_for_more("tick", 1);
    ferry.put("vm.pause").done();
    disk.hang();
    let resume = Pending::ask(&ferry, "vm.resume");
    // The guest runs although its disk does not.
    ferry.wait_for_more("tick", 3);
    let answer = resume.answer();
    answer.refused(500, "the guest runs again");
    answer.refused(500, "disk0");
    assert_eq!(ferry.state(), "Running");
    disk.wake();
    ferry.wait_until("an active device", || {
        (ferry.info()["device_tree"]["disk0"]["state"] == "Active").then_some(())
    });
    ferry.put("vm.pause").done();
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn a_reboot_waits_for_a_back_end_that_hangs_and_serves_others_meanwhile() {
    let disk = Backend::blk("32M").start();
    let ferry = Controlled::start_with(&TIMEOUTS);
    ferry.boot(WRITER, &[disk.socket()]);
    ferry.wait_for_more("blk written", 1);
    disk.hang();
    let reboot = Pending::ask(&ferry, "vm.reboot");
    others_are_served(&ferry, &reboot, "Running", "being rebooted");
    let answer = reboot.answer();
    answer.refused(500, "starts again once its devices have come to rest");
    answer.refused(500, "disk0");
    assert_eq!(ferry.info()["transition"], "being rebooted");
    disk.wake();
    ferry.wait_for_more("blk written", 1);
    // The second attempt succeeds.
    ferry.put("vm.reboot").done();
    ferry.wait_for_more("blk written", 1);
}

#[test]
fn a_shutdown_takes_the_place_of_a_pause_and_of_a_reboot() {
    let disk = Backend::blk("32M").start();
    let ferry = Controlled::start_with(&["--request-timeout", "20", "--dead-timeout", "40"]);
    ferry.boot(WRITER, &[disk.socket()]);
    ferry.wait_for_more("blk written", 1);
    disk.hang();
    let pause = Pending::ask(&ferry, "vm.pause");
    others_are_served(&ferry, &pause, "Running", "being paused");
    let reboot = Pending::ask(&ferry, "vm.reboot");
    pause.answer().refused(500, "ended meanwhile");
    others_are_served(&ferry, &reboot, "Running", "being rebooted");
    let shutdown = Pending::ask(&ferry, "vm.shutdown");
    reboot.answer().refused(500, "given up");
    others_are_served(&ferry, &shutdown, "Running", "being shut down");
    disk.wake();
    shutdown.answer().done();
    assert_eq!(ferry.state(), "Shutdown");
    ferry.put("vm.boot").done();
    ferry.wait_for_more("blk written", 1);
}

#[test]
fn ferry_ends_at_once_whatever_it_waits_for() {
    let disk = Backend::blk("32M").start();
    let ferry = Controlled::start_with(&["--request-timeout", "50", "--dead-timeout", "50"]);
    ferry.boot(WRITER, &[disk.socket()]);
    ferry.wait_for_more("blk written", 1);
    disk.hang();
    let client = ferry.client();
    // Its answer never comes, because Ferry ends.
    std::thread::spawn(move || client.put("vm.pause", b""));
    ferry.wait_until("a pause under way", || {
        (ferry.info()["transition"] == "being paused").then_some(())
    });
    let begun = std::time::Instant::now();
    ferry.put("vmm.shutdown").done();
    assert_eq!(ferry.end(), 0);
    assert!(begun.elapsed() < Duration::from_secs(25));
}

#[test]
fn a_back_end_that_dies_while_others_are_waited_for_makes_the_boot_fail() {
    let (first, second) = (Backend::blk("1M").start(), Backend::blk("1M").start());
    let ferry = Controlled::start_with(&["--connect-timeout", "50"]);
    let directory = tempfile::tempdir().unwrap();
    let late = directory.path().join("late.sock");
    let definition = ferry.definition(WRITER, &[first.socket(), &late]);
    ferry.put_json("vm.create", &definition).done();
    let boot = Pending::ask(&ferry, "vm.boot");
    ferry.wait_until("the first connection", || {
        (ferry.info()["device_tree"]["disk0"]["state"] == "Idle").then_some(())
    });
    first.die();
    boot.answer().refused(500, "disk0");
    assert_eq!(ferry.state(), "Created");
    drop(second);
}

#[test]
fn a_connection_begun_for_a_boot_that_failed_has_the_time_of_the_next_one() {
    let disk = Backend::blk("1M").start();
    let directory = tempfile::tempdir().unwrap();
    let late = directory.path().join("late.sock");
    let ferry = Controlled::start_with(&["--connect-timeout", "3"]);
    let definition = ferry.definition("mode=ticks ticks=1000000", &[disk.socket(), &late]);
    ferry.put_json("vm.create", &definition).done();
    let first = Pending::ask(&ferry, "vm.boot");
    ferry.wait_until("the first connection", || {
        (ferry.info()["device_tree"]["disk0"]["state"] == "Idle").then_some(())
    });
    // The boot fails for the other disk, while this one is still being tried.
    disk.die();
    first.answer().refused(500, "disk0");
    ferry
        .put_json("vm.remove-device", &serde_json::json!({"id": "disk0"}))
        .done();
    std::thread::sleep(Duration::from_secs(2));
    let second = Pending::ask(&ferry, "vm.boot");
    std::thread::sleep(Duration::from_secs(2));
    assert!(second.is_pending(), "it had the time of the boot before");
    second.answer().refused(500, "late.sock");
}

#[test]
fn a_boot_that_touches_much_memory_can_be_left() {
    let ferry = Controlled::start();
    let mut definition = ferry.definition(WRITER, &[]);
    definition["memory"]["size"] = serde_json::json!(3u64 << 30);
    definition["memory"]["prefault"] = serde_json::json!(true);
    ferry.put_json("vm.create", &definition).done();
    let boot = Pending::ask(&ferry, "vm.boot");
    ferry.wait_until("a boot under way", || {
        (ferry.info()["transition"] == "being booted").then_some(())
    });
    ferry.put("vm.delete").done();
    // Unless the machine was quicker.
    let answer = boot.answer();
    assert!(
        answer.status == 204 || answer.text.contains("given up"),
        "{answer:?}"
    );
    ferry.get("vm.info").refused(404, "no virtual machine");
}
