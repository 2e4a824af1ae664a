//! A guest without devices: its time and its serial port go on.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ferry_tests::{Left, Line, Restore, Snapshot};

use crate::common::{Place, TICK, TICKS, names, saved, tiny};

/// What Ferry says where a guest reads the host's counter, and its time goes on without it.
const NO_COUNTER: &str = "shows guests the host's time stamp counter";

/// Every tick is there once, in order, and the guest's clock went on from where it stood, unless it is not its own.
fn check(serial: &[Line], count: u64, clock: Clock) {
    let ticks: Vec<&Line> = serial.iter().filter(|line| line.0.contains(TICK)).collect();
    let numbers: Vec<u64> = ticks.iter().map(|line| line.number("n")).collect();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    for pair in ticks.windows(2) {
        let (before, after) = (pair[0].number("ms"), pair[1].number("ms"));
        let jumps = clock == Clock::Own && after >= before + 3000;
        assert!(after >= before && !jumps, "{}, then {}", pair[0], pair[1]);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Own,
    TheHosts,
}

fn ticks_go_on(timer: &str, restored: impl Fn(&Left, &Restore) -> ferry_tests::Guest) {
    let place = Place::new();
    let mut guest = tiny(&format!("mode=ticks ticks=1500 period=10 timer={timer}")).start();
    let mut clock = Clock::Own;
    for generation in ["1", "2", "3"] {
        guest.goes_on(TICK);
        let left = saved(guest, &place.at(generation));
        std::thread::sleep(Duration::from_secs(3));
        guest = restored(&left, &Restore::from(&place.at(generation)));
        guest.goes_on(TICK);
        if guest.log().iter().any(|line| line.0.contains(NO_COUNTER)) {
            clock = Clock::TheHosts;
        }
    }
    check(&guest.end().succeeded().serial, 1500, clock);
}

#[test]
fn ticks_of_a_spinning_guest_go_on_three_times() {
    ticks_go_on("tsc", Left::restored);
}

#[test]
fn ticks_of_a_sleeping_guest_go_on_three_times() {
    ticks_go_on("lapic", Left::restored);
}

#[test]
fn ticks_go_on_when_the_command_line_restores() {
    ticks_go_on("tsc", |left, restore| {
        left.successor().restoring(restore).start()
    });
}

#[test]
fn a_client_that_pauses_and_resumes_by_itself_is_served() {
    let place = Place::new();
    let directory = place.at("given");
    std::fs::create_dir(&directory).unwrap();
    let mut guest = tiny("mode=ticks ticks=100 period=20").start();
    guest.wait_for(TICK);
    guest.put("vm.pause");
    guest.snapshot(&Snapshot::of_paused(&directory));
    assert_eq!(guest.state(), "Paused");
    guest.stands_still(TICK);
    guest.put("vm.resume");
    check(&guest.end().succeeded().serial, 100, Clock::TheHosts);
}

#[test]
fn a_snapshot_is_the_users_alone_and_a_manifest_anyone_can_read() {
    let place = Place::new();
    let directory = place.at("new");
    let mut guest = tiny(TICKS).start();
    guest.wait_for(TICK);
    guest.snapshot(&Snapshot::to(&directory));
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&directory), 0o700);
    let names = names(&directory);
    assert_eq!(names, ["manifest.json", "ram0", "state"]);
    for name in names {
        assert_eq!(mode(&directory.join(&name)), 0o600, "{name}");
    }
    let manifest = std::fs::read(directory.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["memory"][0]["bytes"], 64 << 20);
    // The guest has touched a fraction of its RAM.
    use std::os::unix::fs::MetadataExt;
    let ram = directory.join("ram0").metadata().unwrap();
    assert!(ram.blocks() * 512 < 8 << 20, "{} blocks", ram.blocks());
}

#[test]
fn a_restored_guest_waits_if_it_is_to() {
    let place = Place::new();
    let mut guest = tiny(TICKS).start();
    guest.wait_for(TICK);
    let left = saved(guest, &place.at("1"));
    let mut guest = left.restored(&Restore::from(&place.at("1")).paused());
    assert_eq!(guest.state(), "Paused");
    guest.stands_still(TICK);
    guest.put("vm.resume");
    guest.goes_on(TICK);
}

#[test]
fn a_snapshot_can_be_restored_again_and_again() {
    let place = Place::new();
    let mut guest = tiny(TICKS).start();
    guest.wait_for(TICK);
    let left = saved(guest, &place.at("1"));
    for _ in 0..3 {
        let mut guest = left.restored(&Restore::from(&place.at("1")));
        guest.goes_on(TICK);
    }
}
