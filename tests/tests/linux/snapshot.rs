//! Guests at work on a disk and a share, saved and brought back by other Ferries with other back-ends: their processes go on
//! with what they have open, and nothing is lost or done twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ferry_tests::{
    Ended, Guest, Left, Line, Qsd, QsdOptions, Restore, Snapshot, Successor, Virtiofsd,
    VirtiofsdOptions,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::records::{Loop, Setup, Writing};

/// How long virtiofsd has to find paths before the guest stands still.
const PREPARE: Duration = Duration::from_secs(1);
/// How long a guest is nowhere, at least, between a snapshot and its restore.
const AWAY: Duration = Duration::from_secs(1);
/// By how much a guest's clock may seem to be fast: what it says is heard a little later, and so is that it runs.
const TOLERANCE: Duration = Duration::from_secs(2);

/// Has the guest tell what has to stay as it is, and how often it has heard of a new generation.
const IDENTITY: &str = "
    identity() {
        echo boot-id=$(cat /proc/sys/kernel/random/boot_id) \
            generations=$(awk '/IO-APIC +17-edge/ { for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i; print n }' /proc/interrupts)
    }
    identity
    until told_to_end; do sleep 0.5; done
    identity";

/// Has the guest keep a file open that has no name any more.
const NAMELESS: &str = "
    exec 9<> /share/nameless
    echo first >&9
    rm /share/nameless
    echo nameless=open
    until told_to_end; do sleep 0.5; done
    if echo second >&9; then echo nameless=works; else echo nameless=broken; fi
    exec 9>&-";

#[test]
fn a_guest_goes_on_over_three_snapshots() {
    three_snapshots(1);
}

#[test]
fn a_guest_with_four_processors_goes_on_over_three_snapshots() {
    three_snapshots(4);
}

/// How a guest is brought back.
#[derive(Clone, Copy, Debug)]
enum By {
    Api,
    Flag,
    Adoption,
}

fn three_snapshots(cpus: u32) {
    let place = Place::new();
    let mut writing = Writing::start(Setup {
        script: IDENTITY,
        disk: place.disk(),
        share: place.share(),
        cpus,
        ..Setup::default()
    });
    let begin = Clock::of(&mut writing);
    let mut away = Duration::ZERO;
    for (name, by) in [("1", By::Api), ("2", By::Flag), ("3", By::Adoption)] {
        let directory = place.at(name);
        let (left, stopped) = saved(writing, &directory);
        let (disk, share) = (place.disk().start(), place.share().start());
        let restore = Restore::from(&directory)
            .device("disk0", &disk)
            .device("fs0", &share);
        sleep(AWAY);
        let guest = match by {
            By::Api => restored(&left, &restore),
            By::Adoption => restored(&left, &restore.mode("adopt")),
            By::Flag => {
                let mut guest = successor(&left).restoring(&restore).start();
                guest.wait_until("a running guest", is_running);
                guest
            }
        };
        away += stopped.elapsed();
        writing = Writing { guest, disk, share };
        writing.goes_on(Loop::Disk);
        writing.goes_on(Loop::Share);
    }
    // The last one is used up.
    assert!(place.at("2").join("manifest.json").exists());
    assert!(place.at("3").join("consumed.json").exists());
    let end = Clock::of(&mut writing);
    let (passed, here) = (end.time - begin.time, end.heard - begin.heard - away);
    println!(
        "the guest's clock has gone on by {passed:?}, while it was there for {here:?} at most"
    );
    assert!(passed <= here + TOLERANCE);
    let ended = writing.end_and_check();
    is_the_same_guest(&ended, 3);
}

#[test]
fn a_guest_and_its_copy_both_go_on_but_for_a_file_without_a_name() {
    let place = Place::new();
    // Even this option of virtiofsd does not make it refuse to be saved with such a file.
    let share = place.share().arg("--migration-confirm-paths");
    let mut writing = Writing::start(Setup {
        script: NAMELESS,
        disk: place.disk(),
        share,
        ..Setup::default()
    });
    writing.guest.wait_for("nameless=open");
    let directory = place.at("snapshot");
    let snapshot = Snapshot::to(&directory)
        .after("resume")
        .prepare(PREPARE)
        .hold(Duration::from_secs(100));
    let saving = writing.guest.begin_snapshot(&snapshot);
    writing.guest.wait_for_step("hold");
    let (copies, copy) = (place.copy(), writing.guest.copied());
    writing.guest.release().expect("it is held");
    saving.answer().expect("a snapshot");
    writing.goes_on(Loop::Disk);
    writing.goes_on(Loop::Share);
    writing.end_and_check().line("nameless=works");

    let disk = copies.disk().start();
    let restore = Restore::from(&directory).device("disk0", &disk);
    let guest = successor(&copy).start();
    // Not by virtiofsd as it is: it does not give the guest what it has not found.
    let share = copies.share().start();
    let refusal = guest.restore(&restore.clone().device("fs0", &share));
    let reasons = refusal.expect_err("a refusal").join(": ");
    for text in ["fs0", "CHECK_DEVICE_STATE", "its own log has the reason"] {
        assert!(reasons.contains(text), "no '{text}' in: {reasons}");
    }
    guest.get("vmm.ping");
    guest.api().get("vm.info").expect_err("no machine");
    // One that may lose a file loses that one alone.
    let share = copies
        .share()
        .arg("--migration-on-error=guest-error")
        .start();
    restores(&guest, &restore.device("fs0", &share));
    let mut writing = Writing { guest, disk, share };
    writing.goes_on(Loop::Disk);
    writing.goes_on(Loop::Share);
    writing.end_and_check().line("nameless=broken");
}

/// Takes a snapshot with which the guest ends, and kills Ferry and the back-ends. Returns, too, since when it stands still.
pub fn saved(mut writing: Writing, directory: &Path) -> (Left, Instant) {
    let snapshot = Snapshot::to(directory).after("stop").prepare(PREPARE);
    writing.guest.snapshot(&snapshot);
    let progress = writing.guest.progress();
    let paused = progress["paused_ms"].as_u64().expect("it was paused");
    let stopped = Instant::now() - Duration::from_millis(paused);
    assert!(progress["devices"]["fs0"]["bytes"].as_u64() > Some(0));
    let left = writing.guest.kill();
    writing.disk.process().kill();
    writing.share.process().kill();
    (left, stopped)
}

/// Brings the guest back in a new Ferry, through its API.
pub fn restored(left: &Left, restore: &Restore) -> Guest {
    let guest = successor(left).start();
    restores(&guest, restore);
    guest
}

/// Whether there is a guest, and it runs.
fn is_running(guest: &Guest) -> Option<()> {
    let reply = guest.api().get("vm.info").ok()?;
    let info: Value = serde_json::from_slice(&reply.body).expect("JSON");
    (info["state"] == "Running").then_some(())
}

/// Panics if the restore fails.
fn restores(guest: &Guest, restore: &Restore) {
    if let Err(reasons) = guest.restore(restore) {
        panic!("{}\n{}", reasons.join(": "), guest.transcript());
    }
}

/// The next Ferry for a guest, as patient as the first.
pub fn successor(left: &Left) -> Successor<'_> {
    let limits = [
        ("--connect-timeout", "60"),
        ("--request-timeout", "60"),
        ("--dead-timeout", "120"),
    ];
    limits
        .iter()
        .fold(left.successor(), |ferry, (flag, seconds)| {
            ferry.arg(flag).arg(seconds)
        })
}

/// Panics unless the same kernel has gone on with the same processes, and has heard of so many new generations.
pub fn is_the_same_guest(ended: &Ended, generations: u64) {
    let [before, after] = &ended.lines("boot-id=")[..] else {
        panic!("not two boot ids\n{}", ended.transcript());
    };
    assert_eq!(before.get("boot-id"), after.get("boot-id"));
    let heard = after.number("generations") - before.number("generations");
    assert_eq!(heard, generations, "{}", ended.transcript());
    for which in [Loop::Disk, Loop::Share] {
        let lines = ended.lines(&format!("{} at=", which.label()));
        let of_one_process = |pair: &[Line]| {
            pair[0].get("pid") == pair[1].get("pid")
                && pair[0].number("at") + 10 == pair[1].number("at")
                && pair[0].number("ms") < pair[1].number("ms")
        };
        assert!(
            lines.windows(2).all(of_one_process),
            "{}",
            ended.transcript()
        );
    }
}

/// What the guest's monotonic clock says.
pub struct Clock {
    pub time: Duration,
    pub heard: Instant,
}

impl Clock {
    /// Waits until the guest says it.
    pub fn of(writing: &mut Writing) -> Self {
        writing.goes_on(Loop::Disk);
        let heard = Instant::now();
        let serial = writing.guest.serial();
        let line = serial.iter().rev().find(|line| line.0.contains("disk at="));
        let line = line.expect("it goes on");
        Clock {
            time: Duration::from_millis(line.number("ms")),
            heard,
        }
    }
}

/// Where a guest's disk, its share and its snapshots are.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Place(TempDir::new().expect("a temporary directory"));
        fs::create_dir(place.at("share")).expect("a directory to share");
        place
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn disk(&self) -> QsdOptions {
        Qsd::serving("64M").on(&self.at("disk.img")).queues(2)
    }

    pub fn share(&self) -> VirtiofsdOptions {
        Virtiofsd::options().sharing(&self.at("share"))
    }

    /// Another disk and another share with the same contents.
    fn copy(&self) -> Self {
        let copy = Place(TempDir::new().expect("a temporary directory"));
        let mut cp = Command::new("cp");
        cp.args(["--archive", "--sparse=always"])
            .args([self.at("disk.img"), self.at("share")])
            .arg(copy.0.path());
        assert!(cp.status().expect("cp").success());
        copy
    }
}
