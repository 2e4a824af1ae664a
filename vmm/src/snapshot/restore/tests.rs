//! A snapshot of an older Ferry.

use std::fs::File;
use std::path::Path;

use ferry_devices::vhost_user::BackEndStateV1;
use tempfile::TempDir;
use vm_migration::Unwatched;
use vm_migration::stream::encode;

use super::super::{CONFIG, device_section};
use super::look::{Found, read};

/// A guest that Ferry 0.1 has saved: two vCPUs, a disk on qemu-storage-daemon, a share on virtiofsd 1.14 with an open
/// file. Its RAM is left out.
fn golden() -> (TempDir, Found) {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    let directory = TempDir::new().unwrap();
    for name in ["manifest.json", "state"] {
        std::fs::copy(kept.join(name), directory.path().join(name)).unwrap();
    }
    let ram = File::create(directory.path().join("ram0")).unwrap();
    ram.set_len(64 << 20).unwrap();
    let found = read(directory.path(), &Unwatched).unwrap();
    (directory, found)
}

#[test]
fn a_snapshot_of_every_version_is_read() {
    let (_directory, found) = golden();
    let ids: Vec<&str> = found
        .machine
        .functions
        .iter()
        .map(|it| it.id.as_str())
        .collect();
    assert_eq!(ids, ["disk0", "fs0"]);
    assert_eq!(found.machine.vcpus.len(), 2);
    assert!(found.machine.serial.is_some());
    assert_eq!(found.config.disks[0].backend.id, "disk0");
    assert_eq!(found.config.fs[0].tag, "home");
    let carried: Vec<bool> = found
        .rests
        .iter()
        .map(|rest| rest.back_end == BackEndStateV1::Carried)
        .collect();
    assert_eq!(carried, [false, true]);
    assert!(found.rests.iter().all(|rest| !rest.rings.is_empty()));
}

/// Whoever changes a struct that is saved has to give it a new version, and keep the old one for reading.
#[test]
fn what_is_read_would_be_written_as_it_was() {
    let (_directory, found) = golden();
    let Found {
        reader,
        config: _,
        machine,
        rests,
    } = found;
    let mut stream = reader.state().unwrap();
    let mut section = |name: &str| {
        let mut section = stream.section(name).unwrap();
        let bytes = section.read_all(1 << 20).unwrap();
        section.finish().unwrap();
        bytes
    };
    section(CONFIG);
    for (index, vcpu) in machine.vcpus.iter().enumerate() {
        assert!(section(&format!("vcpu/{index}")) == encode(vcpu).unwrap());
    }
    assert!(section("chips") == encode(&machine.chips).unwrap());
    assert!(section("clock") == encode(&machine.clock).unwrap());
    assert!(section("generation") == encode(&machine.generation).unwrap());
    assert!(section("pci") == encode(&machine.pci).unwrap());
    assert!(section("serial") == encode(machine.serial.as_ref().unwrap()).unwrap());
    for function in &machine.functions {
        assert!(section(&format!("pci/{}", function.id)) == encode(&function.state).unwrap());
    }
    for (function, rest) in machine.functions.iter().zip(&rests) {
        assert!(section(&device_section(&function.id)) == encode(rest).unwrap());
    }
}
