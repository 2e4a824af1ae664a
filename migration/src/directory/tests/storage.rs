//! Storage that is full, read-only, in use, or goes away.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_directory_with_something_in_it_is_refused_and_kept() {
    let above = tempfile::tempdir().unwrap();
    fs::write(above.path().join("note"), "mine").unwrap();
    let error = Writer::create(above.path()).map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::NotEmpty { found, .. } if found == "note"),
        "{error}"
    );
    assert_eq!(names(above.path()), ["note"]);
    let file = above.path().join("note");
    let error = Writer::create(&file).map(drop).unwrap_err();
    assert!(error.to_string().contains("note"), "{error}");
}

#[test]
fn a_given_directory_is_kept_when_the_snapshot_fails_and_a_new_one_is_not() {
    let above = tempfile::tempdir().unwrap();
    fs::create_dir(above.path().join("lost+found")).unwrap();
    drop(written(above.path()).unwrap());
    assert_eq!(names(above.path()), ["lost+found"]);
    snapshot(above.path());
    restored(above.path()).unwrap();

    let (above, path) = new_place();
    drop(written(&path).unwrap());
    assert!(names(above.path()).is_empty());
    snapshot(&path);
}

#[test]
fn of_two_snapshots_at_once_into_one_directory_the_second_is_refused() {
    let (_above, path) = new_place();
    let first = Writer::create(&path).unwrap();
    let error = Writer::create(&path).map(drop).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(matches!(
        Reader::open(&path).map(drop),
        Err(Error::InUse { .. })
    ));
    drop(first);
    snapshot(&path);
}

#[test]
fn a_directory_that_vanishes_is_an_error_that_names_it() {
    let (_above, path) = new_place();
    let writer = written(&path).unwrap();
    fs::remove_dir_all(&path).unwrap();
    let error = writer.publish(description()).unwrap_err();
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );

    let writer = written(&path).unwrap();
    fs::rename(&path, path.with_extension("moved")).unwrap();
    let error = writer.publish(description()).unwrap_err();
    assert!(matches!(error, Error::Vanished { .. }), "{error}");
    assert!(names(&path.with_extension("moved")).is_empty());
}

#[test]
fn a_state_that_was_not_ended_is_not_published() {
    let (above, path) = new_place();
    let mut writer = Writer::create(&path).unwrap();
    let mut state = writer.begin_state().unwrap();
    state.save("__machine", &machine()).unwrap();
    drop(state);
    assert!(writer.publish(description()).is_err());
    assert!(names(above.path()).is_empty());
}

#[test]
fn a_directory_without_a_manifest_is_no_snapshot() {
    let above = tempfile::tempdir().unwrap();
    let error = Reader::open(above.path()).map(drop).unwrap_err();
    assert!(matches!(error, Error::NotASnapshot { .. }), "{error}");
    let error = Reader::open(&above.path().join("nothing"))
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().contains("nothing"), "{error}");
}

/// Runs a test that is otherwise ignored, in a process of its own that the closure may change.
fn helper(program: &[&str], test: &str, place: &Path) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut command = match program {
        [] => Command::new(&this),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(&this);
            command
        }
    };
    let test = format!("directory::tests::storage::{test}");
    command.args(["--ignored", "--exact", &test, "--nocapture"]);
    command.env("SNAPSHOT_PLACE", place).stdin(Stdio::null());
    command
}

fn place() -> std::path::PathBuf {
    std::env::var_os("SNAPSHOT_PLACE")
        .expect("is run by another test")
        .into()
}

#[test]
fn a_killed_writer_leaves_no_snapshot() {
    let (_above, path) = new_place();
    let mut child = helper(&[], "helper_that_writes_and_hangs", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !path.with_extension("written").exists() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(&path), ["ram0", "ram1", "state"]);
    let error = Reader::open(&path).map(drop).unwrap_err();
    assert!(matches!(error, Error::NotASnapshot { .. }), "{error}");
}

#[test]
#[ignore = "is run by another test"]
fn helper_that_writes_and_hangs() {
    let path = place();
    let _writer = written(&path).unwrap();
    fs::write(path.with_extension("written"), "").unwrap();
    std::thread::sleep(Duration::from_secs(120));
}

/// In a mount name space of their own, so that the file systems are gone with the process.
#[test]
fn full_and_read_only_file_systems_are_errors_that_name_file_and_reason() {
    let above = tempfile::tempdir().unwrap();
    let output = helper(
        &["unshare", "--user", "--map-root-user", "--mount"],
        "helper_with_small_file_systems",
        above.path(),
    )
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
    use std::error::Error as _;

    let place = place();
    // Each a little larger, until there is room for all: it fails at every step.
    let mut good = 0;
    let mut steps = std::collections::BTreeSet::new();
    for kib in (8..=400).step_by(4) {
        mount(
            &["-t", "tmpfs", "-o", &format!("size={kib}k"), "none"],
            &place,
        );
        match written(&place).and_then(|writer| writer.publish(description())) {
            Ok(_) => {
                restored(&place).unwrap();
                good += 1;
            }
            Err(error) => {
                assert!(names(&place).is_empty(), "{kib} KiB");
                assert!(
                    error.to_string().contains(place.to_str().unwrap()),
                    "{error}"
                );
                let mut reason = error.source().unwrap();
                while let Some(next) = reason.source() {
                    reason = next;
                }
                let reason = reason.to_string();
                assert!(
                    reason.contains("No space left"),
                    "{kib} KiB: {error}: {reason}"
                );
                steps.insert(error.to_string());
            }
        }
        let status = Command::new("umount").arg(&place).status();
        assert!(status.unwrap().success());
    }
    assert!(good > 10, "{good} of them were large enough");
    assert!(steps.len() >= 3, "{steps:?}");

    mount(&["-t", "tmpfs", "none"], &place);
    let path = place.join("snapshot");
    snapshot(&path);
    mount(&["-o", "remount,ro"], &place);
    for target in [place.join("new"), place.join("lost+found/x")] {
        let error = Writer::create(&target).map(drop).unwrap_err();
        assert!(
            error.to_string().contains(target.to_str().unwrap()),
            "{error}"
        );
    }
    restored(&path).unwrap();
    let error = Reader::open(&path).unwrap().adopt().map(drop).unwrap_err();
    assert!(error.to_string().contains("ram0"), "{error}");
    assert_eq!(verify(&path, &Unwatched).unwrap().damages, []);
}
