//! `snapshot inspect` and `snapshot verify`, which need no Ferry.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::{Outcome, prints, run};

/// No Ferry listens here.
const NOWHERE: &str = "/nonexistent";

/// A copy of a snapshot that is kept for tests.
fn snapshot() -> TempDir {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migration/tests/golden/v1");
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(kept).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    directory
}

fn look(words: &[&str], directory: &TempDir) -> Outcome {
    let path = directory.path().to_str().unwrap();
    run(
        Path::new(NOWHERE),
        &[&["snapshot"], words, &[path]].concat(),
    )
}

#[test]
fn a_snapshot_is_described() {
    let directory = snapshot();
    let path = directory.path().to_str().unwrap();
    let printed = prints(Path::new(NOWHERE), &["snapshot", "inspect", path]);
    assert!(
        printed.starts_with(&format!("snapshot  {path} (")),
        "{printed}"
    );
    assert!(
        printed.contains("\n  fs0       virtio type 26"),
        "{printed}"
    );
    let printed = prints(Path::new(NOWHERE), &["snapshot", "inspect", path, "--json"]);
    let value: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(value["directory"], path);
    assert_eq!(value["manifest"]["snapshot"]["devices"][0]["id"], "fs0");
    assert!(value["taken_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn a_sound_snapshot_is_said_to_be_so() {
    let directory = snapshot();
    let outcome = look(&["verify"], &directory);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    assert!(outcome.stdout.contains(" is sound: "), "{outcome:?}");
    let outcome = look(&["verify", "--json"], &directory);
    let path = directory.path().display();
    assert_eq!(
        outcome.stdout,
        format!("{{\"damages\":[],\"directory\":\"{path}\",\"sound\":true}}\n")
    );
}

#[test]
fn damage_is_found_and_named() {
    let directory = snapshot();
    let ram = directory.path().join("ram0");
    let mut bytes = fs::read(&ram).unwrap();
    bytes[0x7003] ^= 4;
    fs::write(&ram, bytes).unwrap();
    let outcome = look(&["verify"], &directory);
    let path = directory.path().display();
    assert_eq!(outcome.status, 1);
    assert_eq!(
        outcome.stderr,
        format!("ferryctl: cannot verify the snapshot: {path} is damaged in 1 place\n")
    );
    assert!(
        outcome
            .stdout
            .contains("\n  ram0: 1 blocks of 1 MiB are damaged"),
        "{outcome:?}"
    );
    let outcome = look(&["verify", "--json"], &directory);
    assert_eq!(outcome.status, 1);
    let value: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(value["sound"], false);
    assert_eq!(value["damages"][0]["part"], "ram0");
}

#[test]
fn what_is_no_snapshot_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    for (word, goal) in [("inspect", "inspect"), ("verify", "verify")] {
        let outcome = look(&[word], &directory);
        let report = format!("ferryctl: cannot {goal} the snapshot: {path} is no snapshot");
        assert_eq!(outcome.status, 1, "{outcome:?}");
        assert!(outcome.stderr.starts_with(&report), "{outcome:?}");
        assert_eq!(outcome.stdout, "");
    }
    let directory = snapshot();
    let manifest = directory.path().join("manifest.json");
    let text = fs::read_to_string(&manifest)
        .unwrap()
        .replace("\"fs0\"", "\"fs1\"");
    fs::write(&manifest, text).unwrap();
    let outcome = look(&["verify"], &directory);
    assert_eq!(outcome.status, 1, "{outcome:?}");
    assert!(
        outcome.stderr.contains("manifest.json\n  because "),
        "{outcome:?}"
    );
}
