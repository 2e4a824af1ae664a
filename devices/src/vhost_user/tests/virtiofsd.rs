//! With the real virtiofsd.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;
use vm_migration::Saveability;

use super::harness::{
    Event, HIGH, LOW, Observer, TestRam, Transport, eventually, next, program, started,
};
use super::ring::{Buffer, BufferAccess, Ring};
use crate::vhost_user::{BackendSpec, Fs, Limits, Profile, VhostUserDevice, chain};
use crate::virtio::{Activation, VirtioDevice};

/// A running virtiofsd, ended when dropped.
struct Virtiofsd {
    child: RefCell<Child>,
    directory: TempDir,
}

impl Virtiofsd {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        let child = Command::new(program("FERRY_VIRTIOFSD", "virtiofsd"))
            .arg("--socket-path")
            .arg(directory.path().join("fs.sock"))
            .arg("--shared-dir")
            .arg(&shared)
            .args(["--sandbox", "none", "--seccomp", "none"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("virtiofsd (or FERRY_VIRTIOFSD) is needed; `cargo xtask test` provides it");
        Virtiofsd {
            child: RefCell::new(child),
            directory,
        }
    }

    fn spec(&self) -> BackendSpec {
        BackendSpec {
            id: "fs0".into(),
            socket: self.socket(),
            num_queues: 1,
            queue_size: 128,
            profile: Profile::Fs(Fs {
                tag: "shared".into(),
            }),
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("fs.sock")
    }

    fn has_exited(&self) -> bool {
        self.child.borrow_mut().try_wait().unwrap().is_some()
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

const REQUEST: u64 = LOW + 0x10_0000;
const ANSWER: u64 = HIGH + 0x10_0000;
const ANSWER_LENGTH: usize = 256;

/// Sends a FUSE request and returns the answer, whose header says success.
fn fuse(ring: &mut Ring<'_>, ram: &TestRam, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let length = 40 + body.len();
    let mut request = Vec::new();
    request.extend_from_slice(&(length as u32).to_le_bytes());
    request.extend_from_slice(&opcode.to_le_bytes());
    request.extend_from_slice(&77u64.to_le_bytes());
    request.extend_from_slice(&node.to_le_bytes());
    request.extend_from_slice(&[0; 16]);
    request.extend_from_slice(body);
    ram.write(REQUEST, &request);
    ram.write(ANSWER, &[0; ANSWER_LENGTH]);
    ring.publish(
        0,
        &[
            Buffer {
                address: REQUEST,
                length: length as u32,
                access: BufferAccess::DeviceReads,
            },
            Buffer {
                address: ANSWER,
                length: ANSWER_LENGTH as u32,
                access: BufferAccess::DeviceWrites,
            },
        ],
    );
    ring.kick();
    ring.wait();
    let answer = ram.read(ANSWER, ANSWER_LENGTH);
    assert_eq!(answer[4..8], [0; 4], "the request failed");
    assert_eq!(answer[8..16], 77u64.to_le_bytes());
    answer
}

fn init(ring: &mut Ring<'_>, ram: &TestRam) {
    let mut body = [7u32, 38, 0, 0].map(u32::to_le_bytes).concat();
    body.resize(64, 0);
    let answer = fuse(ring, ram, 26, 0, &body);
    assert_eq!(answer[16..20], 7u32.to_le_bytes());
}

fn root_mode(ring: &mut Ring<'_>, ram: &TestRam) -> u32 {
    let answer = fuse(ring, ram, 3, 1, &[0; 16]);
    // Past the answer's header and the validity comes the attribute, whose mode is at 60.
    let at = 16 + 16 + 60;
    u32::from_le_bytes(answer[at..at + 4].try_into().unwrap())
}

#[test]
fn a_shared_directory_works_before_and_after_a_reset() {
    let daemon = Virtiofsd::start();
    let ram = TestRam::new();
    let (observer, reports) = Observer::new();
    VhostUserDevice::start(
        daemon.spec(),
        Limits::default(),
        Arc::clone(&ram.regions),
        observer,
    )
    .unwrap();
    let device = match started(&reports) {
        Ok(device) => device,
        Err(error) => panic!("{}", chain(&error)),
    };
    assert_eq!(device.saveability(), Saveability::Saved);
    let (transport, events) = Transport::new();
    device.attach(transport);
    let mut high_priority = Ring::new(&ram, 0, LOW);
    let mut requests = Ring::new(&ram, 1, HIGH);
    for _ in 0..3 {
        high_priority.clear();
        requests.clear();
        device.activate(Activation {
            features: device.features() & !(1 << 29),
            queues: vec![high_priority.queue.clone(), requests.queue.clone()],
        });
        assert_eq!(next(&events), Event::Activated(Ok(())));
        init(&mut requests, &ram);
        assert_eq!(root_mode(&mut requests, &ram) & 0o170_000, 0o040_000);
        device.reset();
        assert_eq!(next(&events), Event::ResetDone);
    }
    assert!(!daemon.has_exited());
    // It ends with its connection, and the device's worker closes that.
    drop(device);
    eventually("virtiofsd lives on", || daemon.has_exited());
}
