//! Snapshots of released format versions, which have to be read for ever (or as long as the version is supported).

use super::*;

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

#[test]
fn a_snapshot_of_format_version_1_is_read() {
    restored(&golden()).unwrap();
    assert_eq!(verify(&golden(), &Unwatched).unwrap().damages, []);
    let inspection = inspect(&golden()).unwrap();
    assert_eq!(inspection.manifest.snapshot, description());
}

/// Whoever changes what is written has to give it a new version, and a new golden snapshot.
#[test]
fn what_is_written_today_is_format_version_1_byte_for_byte() {
    let (_above, path) = new_place();
    snapshot(&path);
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        fs::create_dir_all(golden()).unwrap();
        for name in names(&path) {
            fs::copy(path.join(&name), golden().join(&name)).unwrap();
        }
    }
    assert_eq!(names(&path), names(&golden()));
    for name in names(&path) {
        let (new, old) = (fs::read(path.join(&name)), fs::read(golden().join(&name)));
        assert!(new.unwrap() == old.unwrap(), "{name}");
    }
}
