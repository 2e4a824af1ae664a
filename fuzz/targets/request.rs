//! Requests to the API: a line with method and path, and the body after it.
//!
//! Whatever they hold, reading them ends without a panic; what is taken is described in JSON that means the same.
#![no_main]

use ferry_api::control::Request;
use ferry_api::server::{Action, read_action};
use ferry_api::wire;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let line = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let body = parts.next().unwrap_or_default();
    let (method, target) = line.split_once(' ').unwrap_or(("PUT", &line));
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    match read_action(method, path, query, body) {
        Ok(Action::Ask(request)) => describes_itself(&request),
        Ok(_) => {}
        Err(failure) => {
            assert!((400..500).contains(&failure.status));
            assert!(!failure.chain.is_empty());
            assert!(failure.chain.iter().all(|reason| reason.len() < 2000));
        }
    }
});

/// The JSON made of what was read is read as the same.
fn describes_itself(request: &Request) {
    let (path, json) = match request {
        Request::Create(config) => {
            config.cpus.check().expect("the processors were checked");
            config.memory.check().expect("the memory was checked");
            (
                "/api/v1/vm.create",
                serde_json::to_vec(&wire::VmConfig::from(&**config)),
            )
        }
        Request::AddDisk(disk) => {
            disk.check().expect("the disk was checked");
            (
                "/api/v1/vm.add-disk",
                serde_json::to_vec(&wire::Disk::from(&**disk)),
            )
        }
        Request::AddFs(fs) => {
            fs.check().expect("the share was checked");
            (
                "/api/v1/vm.add-fs",
                serde_json::to_vec(&wire::Fs::from(&**fs)),
            )
        }
        Request::Snapshot(snapshot) => {
            snapshot.check().expect("the snapshot was checked");
            assert!(snapshot.destination.is_absolute());
            (
                "/api/v1/vm.snapshot",
                serde_json::to_vec(&wire::Snapshot::from(&**snapshot)),
            )
        }
        Request::Restore(restore) => {
            restore.check().expect("the restore was checked");
            assert!(restore.source.is_absolute());
            (
                "/api/v1/vm.restore",
                serde_json::to_vec(&wire::Restore::from(&**restore)),
            )
        }
        _ => return,
    };
    let json = json.expect("it can be written");
    assert_eq!(
        read_action("PUT", path, None, &json),
        Ok(Action::Ask(request.clone()))
    );
}
