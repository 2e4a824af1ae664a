use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::*;
use crate::Watch;
use crate::manifest::{After, Bits, Cpu, Description, Device, DeviceState, Hex};
use crate::ram::{BLOCK, RamPart, Unwatched};
use crate::stream::{self, Form, Label, Saved, StreamId};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct MachineState {
    serial: [u8; 8],
    pending: Vec<u16>,
}

impl Saved for MachineState {
    const SCHEMA: &'static str = "machine";
    const VERSION: u16 = 1;
}

fn machine() -> MachineState {
    MachineState {
        serial: *b"serial\r\n",
        pending: vec![1, 3, 500],
    }
}

fn back_end_state() -> Vec<u8> {
    (0..100_000u32).map(|i| (i / 7) as u8).collect()
}

const RAM: u64 = 3 * BLOCK + 8192;

/// RAM with data in its first, second and last block.
fn ram() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(RAM).unwrap();
    file.write_all_at(b"boot code", 0x7000).unwrap();
    file.write_all_at(&[0x55; 5000], BLOCK + 100).unwrap();
    file.write_all_at(b"the end", RAM - 7).unwrap();
    file
}

fn description() -> Description {
    Description {
        ferry: "0.1.0".into(),
        created: "2026-02-03T04:05:06Z".into(),
        after: After::Stop,
        paused_ms: 12,
        cpu: Cpu {
            count: 1,
            tsc_khz: 2_400_000,
            features: vec!["avx2".into()],
            ..Cpu::default()
        },
        devices: vec![Device {
            id: "fs0".into(),
            virtio_type: 26,
            capacity: None,
            config: Hex(vec![b'f', b's', 0, 0]),
            queues: 2,
            queue_sizes: vec![128, 128],
            features: Bits(1 << 32),
            protocol_features: Bits(1 << 19),
            state: DeviceState::Saved { bytes: 100_000 },
        }],
    }
}

/// Everything but the manifest.
fn written(path: &Path) -> Result<Writer, Error> {
    let mut writer = Writer::create_with_id(path, StreamId(*b"a snapshot of ID"))?;
    let mut state = writer.begin_state()?;
    let broken = |source| Error::State {
        path: path.join("state"),
        source,
    };
    state.save("__machine", &machine()).map_err(broken)?;
    let label = Label {
        name: "fs0/back-end".into(),
        form: Form::Chunks,
        schema: "vhost-user".into(),
        version: 1,
    };
    state
        .save_chunks::<stream::Error>(label, 1 << 20, |append| {
            let state = back_end_state();
            state.chunks(30_000).try_for_each(append)
        })
        .map_err(broken)?;
    let ram = ram();
    let part = |offset, bytes| RamPart {
        file: &ram,
        offset,
        bytes,
    };
    writer.save_ram(0, part(0, 2 * BLOCK), &Unwatched)?;
    writer.save_ram(4 << 30, part(2 * BLOCK, RAM - 2 * BLOCK), &Unwatched)?;
    writer.finish_state(state)?;
    Ok(writer)
}

fn snapshot(path: &Path) {
    written(path).unwrap().publish(description()).unwrap();
}

/// What a restore in memory mode `copy` reads.
fn restored(path: &Path) -> Result<File, Error> {
    let reader = Reader::open(path)?;
    reader.must_have(&["__machine", "fs0/back-end"])?;
    assert_eq!(reader.load::<MachineState>("__machine")?, machine());
    let mut section = reader.section("fs0/back-end")?;
    let mut state = Vec::new();
    let loaded = section.open().and_then(|section| {
        section.load_chunks("vhost-user", 1 << 20, |data| {
            state.extend_from_slice(data);
            Ok::<_, stream::Error>(())
        })
    });
    loaded.map_err(|source| reader.state_error(source))?;
    assert!(state == back_end_state());
    let new = tempfile::tempfile().unwrap();
    new.set_len(RAM).unwrap();
    let mut offset = 0;
    for region in &reader.manifest().memory {
        let part = RamPart {
            file: &new,
            offset,
            bytes: region.bytes,
        };
        reader.load_ram(region, part, &Unwatched)?;
        offset += region.bytes;
    }
    assert!(content(&new) == content(&ram()));
    Ok(new)
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn new_place() -> (TempDir, std::path::PathBuf) {
    let above = tempfile::tempdir().unwrap();
    let path = above.path().join("snapshot");
    (above, path)
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

mod damage;
mod golden;
mod storage;

#[test]
fn a_snapshot_is_restored_inspected_and_verified() {
    let (_above, path) = new_place();
    snapshot(&path);
    assert_eq!(names(&path), ["manifest.json", "ram0", "ram1", "state"]);
    restored(&path).unwrap();
    let text = inspect(&path).unwrap().to_string();
    for word in [
        "TSC 2400000 kHz",
        "fs0",
        "state of 100000 bytes",
        "__machine",
        "was stopped",
    ] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    let verification = verify(&path, &Unwatched).unwrap();
    assert_eq!(verification.damages, []);
    assert!(
        verification
            .to_string()
            .contains("is sound: 4 sections, 2 regions")
    );
    let reader = Reader::open(&path).unwrap();
    reader.check_sections(&Unwatched).unwrap();
}

#[test]
fn checking_the_sections_can_be_given_up() {
    /// Says so when it is asked for the second time, in the middle of a section.
    struct Once(AtomicBool);

    impl Watch for Once {
        fn done(&self, _: u64) {}

        fn cancelled(&self) -> bool {
            self.0.swap(true, Ordering::Relaxed)
        }
    }

    let (_above, path) = new_place();
    snapshot(&path);
    let reader = Reader::open(&path).unwrap();
    let error = reader
        .check_sections(&Once(AtomicBool::new(false)))
        .unwrap_err();
    let given_up = |error: &Error| {
        matches!(error, Error::State { source, .. }
            if matches!(source.cause, stream::Cause::Cancelled))
    };
    assert!(given_up(&error), "{error:?}");
}

#[test]
fn the_sections_come_in_order_too() {
    let (_above, path) = new_place();
    snapshot(&path);
    let reader = Reader::open(&path).unwrap();
    let mut stream = reader.state().unwrap();
    assert_eq!(stream.load::<MachineState>("__machine").unwrap(), machine());
    stream.section("fs0/back-end").unwrap().skip().unwrap();
    stream.section("__ram0").unwrap().skip().unwrap();
    stream.section("__ram1").unwrap().skip().unwrap();
    let (_, summary) = stream.finish().unwrap();
    assert_eq!(summary.digest, reader.manifest().state.digest.0);
}

#[test]
fn only_the_owner_may_read_it_and_holes_stay_holes() {
    let (_above, path) = new_place();
    snapshot(&path);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for name in names(&path) {
        assert_eq!(mode(&path.join(&name)), 0o600, "{name}");
    }
    let taken = |name| fs::metadata(path.join(name)).unwrap().blocks() * 512;
    assert!(taken("ram0") <= 4 * 4096);
    assert!(taken("ram1") <= 4096);
}

#[test]
fn sections_that_nobody_expects_or_has_are_named() {
    let (_above, path) = new_place();
    snapshot(&path);
    let reader = Reader::open(&path).unwrap();
    let text = |names: &[&str]| match reader.must_have(names) {
        Err(Error::State { source, .. }) => format!("{source}: {}", source.cause),
        other => panic!("{other:?}"),
    };
    let missing = text(&["__machine", "fs0/back-end", "disk0"]);
    assert!(
        missing.contains("section disk0") && missing.contains("missing"),
        "{missing}"
    );
    let unknown = text(&["__machine"]);
    assert!(unknown.contains("section fs0/back-end"), "{unknown}");
    assert!(reader.section("disk0").is_err());
}

#[test]
fn adopting_uses_the_snapshot_up_at_the_last_moment() {
    let (_above, path) = new_place();
    snapshot(&path);
    let adoption = Reader::open(&path).unwrap().adopt().unwrap();
    assert!(matches!(Reader::open(&path), Err(Error::InUse { .. })));
    let loaded: MachineState = adoption.reader().load("__machine").unwrap();
    assert_eq!(loaded, machine());
    drop(adoption);
    restored(&path).unwrap();

    let files = Reader::open(&path)
        .unwrap()
        .adopt()
        .unwrap()
        .consume()
        .unwrap();
    assert_eq!(files.len(), 2);
    assert!(
        files[0].metadata().unwrap().blocks() * 512 >= 2 * BLOCK
            || crate::sys::is_tmpfs(&files[0]).unwrap(),
        "holes are not reserved"
    );
    files[0].write_all_at(b"the guest runs", 0).unwrap();
    let error = Reader::open(&path).map(drop).unwrap_err();
    assert!(matches!(error, Error::Consumed { .. }), "{error}");
    assert!(matches!(inspect(&path), Err(Error::Consumed { .. })));
}

#[test]
fn nobody_adopts_what_another_one_reads() {
    let (_above, path) = new_place();
    snapshot(&path);
    let other = Reader::open(&path).unwrap();
    let reader = Reader::open(&path).unwrap();
    assert!(matches!(reader.adopt().map(drop), Err(Error::InUse { .. })));
    drop(other);
    Reader::open(&path).unwrap().adopt().map(drop).unwrap();
}
