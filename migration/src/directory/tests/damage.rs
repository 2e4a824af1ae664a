//! Damage is found, named, and never accepted.

use super::*;

/// Places worth a flip: everything small, and of RAM a byte in each page with data, in a hole, and at the end.
fn flips(path: &Path) -> Vec<(String, u64)> {
    let mut places = Vec::new();
    for name in names(path) {
        let length = fs::metadata(path.join(&name)).unwrap().len();
        let step = match name.as_str() {
            "manifest.json" => 1,
            "state" => 97,
            _ => 200_003,
        };
        places.extend((0..length).step_by(step).map(|at| (name.clone(), at)));
        places.extend((0..length.min(200)).map(|at| (name.clone(), at)));
        places.extend((length - 200..length).map(|at| (name.clone(), at)));
    }
    places
}

fn flip(path: &Path, at: u64, mask: u8) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ mask], at).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_is_found_by_verify_and_by_a_restore() {
    let (_above, path) = new_place();
    snapshot(&path);
    let manifest = Reader::open(&path).unwrap().manifest().clone();
    for (index, (name, at)) in flips(&path).into_iter().enumerate() {
        let mask = 1 << (index % 8);
        let file = path.join(&name);
        flip(&file, at, mask);
        let report = match verify(&path, &Unwatched) {
            Ok(verification) => {
                // RAM whose checksums are damaged is named as well.
                assert!(
                    (1..=2).contains(&verification.damages.len()),
                    "{name} {at}: {verification}"
                );
                verification.damages[0].to_string()
            }
            Err(error) => {
                assert_eq!(name, "manifest.json", "{at}: {error}");
                error.to_string()
            }
        };
        let begun = manifest.state.sections.iter().rev();
        let part = match name.as_str() {
            "state" if at < stream::HEADER_BYTES => "header".to_owned(),
            "state" if at + stream::END_BYTES >= manifest.state.bytes => "end".to_owned(),
            "state" => begun
                .filter(|section| section.offset <= at)
                .map(|section| section.name.clone())
                .next()
                .unwrap(),
            _ => name.clone(),
        };
        assert!(
            report.contains(&part),
            "{name} {at}: {part} is not in {report}"
        );
        // Header and end matter only to those who read the state in order.
        if !["header", "end"].contains(&part.as_str()) {
            assert!(restored(&path).is_err(), "{name} {at}");
        }
        flip(&file, at, mask);
    }
    restored(&path).unwrap();
    assert_eq!(verify(&path, &Unwatched).unwrap().damages, []);
}

#[test]
fn files_of_another_length_are_refused_at_once() {
    for (name, change) in [("state", -1), ("state", 1), ("ram0", -4096), ("ram1", 1)] {
        let (_above, path) = new_place();
        snapshot(&path);
        let file = File::options().write(true).open(path.join(name)).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length.checked_add_signed(change).unwrap())
            .unwrap();
        let error = Reader::open(&path).map(drop).unwrap_err();
        assert!(matches!(error, Error::Length { .. }));
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn files_that_are_missing_or_something_else_are_named() {
    let replace: [fn(&Path); 3] = [
        |_| {},
        |path| symlink("/dev/zero", path).unwrap(),
        |path| {
            let status = std::process::Command::new("mkfifo").arg(path).status();
            assert!(status.unwrap().success());
        },
    ];
    for name in ["state", "ram0"] {
        for replace in replace {
            let (_above, path) = new_place();
            snapshot(&path);
            fs::remove_file(path.join(name)).unwrap();
            replace(&path.join(name));
            let error = Reader::open(&path).map(drop).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

#[test]
fn all_damages_are_listed() {
    let (_above, path) = new_place();
    snapshot(&path);
    let manifest = Reader::open(&path).unwrap().manifest().clone();
    for index in [0, 1, 3] {
        flip(
            &path.join("state"),
            manifest.state.sections[index].offset + 70,
            1,
        );
    }
    flip(&path.join("ram0"), BLOCK + 100, 1);
    let damages = verify(&path, &Unwatched).unwrap().damages;
    let parts: Vec<_> = damages.iter().map(|damage| damage.part.as_str()).collect();
    let expected = [
        "section __machine",
        "section fs0/back-end",
        "section __ram1",
        "ram0",
        "ram1",
    ];
    assert_eq!(parts, expected);
    assert!(damages[3].what.contains("0x100000"), "{}", damages[3]);
    assert!(damages[4].what.contains("__ram1"), "{}", damages[4]);
    assert!(
        Reader::open(&path)
            .unwrap()
            .check_sections(&Unwatched)
            .is_err()
    );
}

#[test]
fn files_of_two_snapshots_do_not_mix() {
    let (_above, path) = new_place();
    snapshot(&path);
    let (_other_above, other) = new_place();
    let mut writer = Writer::create(&other).unwrap();
    let mut state = writer.begin_state().unwrap();
    state.save("__machine", &machine()).unwrap();
    writer.finish_state(state).unwrap();
    writer.publish(description()).unwrap();
    fs::copy(other.join("manifest.json"), path.join("manifest.json")).unwrap();
    assert!(restored(&path).is_err());
}
