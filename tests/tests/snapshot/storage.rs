//! Where a snapshot goes to: full, read-only, in use, going away. The snapshot fails, and the guest goes on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ferry_tests::{Restore, Snapshot};

use crate::common::{
    Place, TICK, TICKS, WRITTEN, because, busy, names, next_is_good, saved, stateful, tiny,
};

#[test]
fn a_directory_that_another_ferry_writes_to() {
    let place = Place::new();
    let (mut first, mut second) = (tiny(TICKS).start(), tiny(TICKS).start());
    first.wait_for(TICK);
    second.wait_for(TICK);
    let held = Snapshot::to(&place.at("1")).hold(Duration::from_secs(50));
    let held = first.begin_snapshot(&held);
    first.wait_until("a guest that is held", |guest| {
        let progress = guest.api().get("vm.progress").ok()?;
        String::from_utf8_lossy(&progress.body)
            .contains(r#""step":"hold""#)
            .then_some(())
    });
    because(second.try_snapshot(&Snapshot::to(&place.at("1"))), &["use"]);
    second.goes_on(TICK);
    first.release().unwrap();
    held.answer().unwrap();
    let left = first.kill();
    let mut guest = left.restored(&Restore::from(&place.at("1")));
    guest.goes_on(TICK);
}

#[test]
fn a_directory_that_vanishes() {
    let place = Place::new();
    let disk = stateful().start();
    let mut guest = busy(&disk);
    let snapshot = Snapshot::to(&place.at("1")).hold(Duration::from_secs(50));
    let snapshot = guest.begin_snapshot(&snapshot);
    guest.wait_until("the step hold", |guest| {
        let progress = guest.api().get("vm.progress").ok()?;
        String::from_utf8_lossy(&progress.body)
            .contains(r#""step":"hold""#)
            .then_some(())
    });
    std::fs::remove_dir_all(place.at("1")).unwrap();
    guest.release().unwrap();
    because(snapshot.answer(), &[place.at("1").to_str().unwrap()]);
    assert!(!place.at("1").exists());
    next_is_good(guest, &disk, WRITTEN);
}

#[test]
fn a_killed_ferry_leaves_no_snapshot() {
    let place = Place::new();
    let disk = stateful().start();
    let mut guest = busy(&disk);
    let snapshot = Snapshot::to(&place.at("1")).hold(Duration::from_secs(50));
    let _pending = guest.begin_snapshot(&snapshot);
    guest.wait_until("the state's file", |_| {
        place.at("1").join("state").exists().then_some(())
    });
    let left = guest.kill();
    let ferry = left.successor().start();
    because(
        ferry.restore(&Restore::from(&place.at("1"))),
        &[place.at("1").to_str().unwrap()],
    );
}

/// In a mount name space of their own, so that the file systems are gone with the process.
#[test]
fn full_and_read_only_file_systems() {
    let above = Place::new();
    std::fs::create_dir(above.at("mount")).unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "storage::helper_with_small_file_systems",
            "--nocapture",
        ])
        .env("SNAPSHOT_PLACE", above.at("mount"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn mount(arguments: &[&str], path: &Path) {
    let status = Command::new("mount").args(arguments).arg(path).status();
    assert!(status.unwrap().success(), "mount {arguments:?}");
}

#[test]
#[ignore = "is run by another test"]
fn helper_with_small_file_systems() {
    let place = std::env::var_os("SNAPSHOT_PLACE").expect("is run by another test");
    let place = PathBuf::from(place);
    let mut guest = tiny(TICKS).start();
    guest.wait_for(TICK);
    let (mut good, mut bad) = (0, 0);
    // Each a little larger: it fails at every step, and in the end there is room for all.
    for kib in [16, 32, 64, 128, 256, 512, 768, 1024, 2048, 4096, 8192] {
        mount(
            &["-t", "tmpfs", "-o", &format!("size={kib}k"), "none"],
            &place,
        );
        match guest.try_snapshot(&Snapshot::to(&place)) {
            Ok(_) => good += 1,
            Err(reasons) => {
                because(Err(reasons), &["No space left", place.to_str().unwrap()]);
                assert!(names(&place).is_empty(), "{kib} KiB");
                bad += 1;
            }
        }
        guest.goes_on(TICK);
        let status = Command::new("umount").arg(&place).status();
        assert!(status.unwrap().success());
    }
    assert!(good >= 2 && bad >= 2, "{good} good, {bad} bad");

    mount(&["-t", "tmpfs", "none"], &place);
    let left = saved(guest, &place.join("good"));
    mount(&["-o", "remount,ro"], &place);
    let mut guest = left.restored(&Restore::from(&place.join("good")));
    guest.goes_on(TICK);
    because(
        guest.try_snapshot(&Snapshot::to(&place.join("new"))),
        &["Read-only"],
    );
    guest.goes_on(TICK);
    let other = left.successor().start();
    because(
        other.restore(&Restore::from(&place.join("good")).mode("adopt")),
        &["ram0"],
    );
}
