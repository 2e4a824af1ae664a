//! With the real virtiofsd.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tempfile::TempDir;
use vm_migration::Saveability;

use super::harness::{
    Event, HANG, HIGH, LOW, Observer, Report, TestRam, Transport, eventually, next, program,
    started,
};
use super::ring::{Buffer, BufferAccess, Ring};
use super::suspend::{outcome, resume, suspend};
use crate::chain;
use crate::vhost_user::{BackendSpec, Fs, Limits, Profile, VhostUserDevice};
use crate::virtio::{Activation, VirtioDevice};

/// A running virtiofsd, ended when dropped.
pub struct Virtiofsd {
    child: RefCell<Child>,
    directory: TempDir,
}

impl Virtiofsd {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        Self::serving(directory, &shared, &[])
    }

    /// One that shares `shared`, with more options. `directory` is for its socket.
    pub fn serving(directory: TempDir, shared: &Path, options: &[&str]) -> Self {
        let child = Command::new(program("FERRY_VIRTIOFSD", "virtiofsd"))
            .arg("--socket-path")
            .arg(directory.path().join("fs.sock"))
            .arg("--shared-dir")
            .arg(shared)
            .args(["--sandbox", "none", "--seccomp", "none"])
            .args(options)
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

    /// Stops the process or lets it go on.
    pub fn signal(&self, signal: libc::c_int) {
        super::harness::signal(self.child.borrow().id(), signal);
    }

    pub fn has_exited(&self) -> bool {
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
pub const ANSWER: u64 = HIGH + 0x10_0000;
const ANSWER_LENGTH: usize = 256;

/// Sends a FUSE request and returns the answer, whose header says success.
pub fn fuse(ring: &mut Ring<'_>, ram: &TestRam, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
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

pub fn init(ring: &mut Ring<'_>, ram: &TestRam) {
    let mut body = [7u32, 38, 0, 0].map(u32::to_le_bytes).concat();
    body.resize(64, 0);
    let answer = fuse(ring, ram, 26, 0, &body);
    assert_eq!(answer[16..20], 7u32.to_le_bytes());
}

pub fn root_mode(ring: &mut Ring<'_>, ram: &TestRam) -> u32 {
    let answer = fuse(ring, ram, 3, 1, &[0; 16]);
    // Past the answer's header and the validity comes the attribute, whose mode is at 60.
    let at = 16 + 16 + 60;
    u32::from_le_bytes(answer[at..at + 4].try_into().unwrap())
}

/// A device behind a virtiofsd.
pub struct Share {
    pub device: Arc<VhostUserDevice>,
    pub events: Receiver<Event>,
    pub reports: Receiver<Report>,
}

impl Share {
    pub fn new(daemon: &Virtiofsd, ram: &TestRam) -> Self {
        let (observer, reports) = Observer::new();
        VhostUserDevice::start(
            daemon.spec(),
            // The daemon may take long to start on a busy machine.
            Limits {
                connect: HANG,
                ..Limits::default()
            },
            Arc::clone(&ram.regions),
            observer,
        )
        .unwrap();
        let device = match started(&reports) {
            Ok(device) => device,
            Err(error) => panic!("{}", chain(&error)),
        };
        let (transport, events) = Transport::new();
        device.attach(transport);
        Share {
            device,
            events,
            reports,
        }
    }

    pub fn activate(&self, rings: &[&Ring<'_>]) {
        self.device.activate(Activation {
            features: self.device.features() & !(1 << 29),
            queues: rings.iter().map(|ring| ring.queue.clone()).collect(),
        });
        assert_eq!(next(&self.events), Event::Activated(Ok(())));
    }

    pub fn reset(&self) {
        self.device.reset();
        assert_eq!(next(&self.events), Event::ResetDone);
    }
}

#[test]
fn a_shared_directory_works_before_and_after_a_reset() {
    let daemon = Virtiofsd::start();
    let ram = TestRam::new();
    let share = Share::new(&daemon, &ram);
    assert_eq!(share.device.saveability(), Saveability::Saved);
    let mut high_priority = Ring::new(&ram, 0, LOW);
    let mut requests = Ring::new(&ram, 1, HIGH);
    for _ in 0..3 {
        high_priority.clear();
        requests.clear();
        share.activate(&[&high_priority, &requests]);
        init(&mut requests, &ram);
        assert_eq!(root_mode(&mut requests, &ram) & 0o170_000, 0o040_000);
        share.reset();
    }
    assert!(!daemon.has_exited());
    // It ends with its connection, and the device's worker closes that.
    drop(share.device);
    eventually("virtiofsd lives on", || daemon.has_exited());
}

#[test]
fn a_shared_directory_is_suspended_and_goes_on_with_what_it_knew() {
    let daemon = Virtiofsd::start();
    let ram = TestRam::new();
    let share = Share::new(&daemon, &ram);
    let high_priority = Ring::new(&ram, 0, LOW);
    let mut requests = Ring::new(&ram, 1, HIGH);
    share.activate(&[&high_priority, &requests]);
    init(&mut requests, &ram);
    for _ in 0..100 {
        outcome(&suspend(&share.device)).unwrap();
        outcome(&resume(&share.device)).unwrap();
        // Without another INIT.
        assert_eq!(root_mode(&mut requests, &ram) & 0o170_000, 0o040_000);
    }
    assert_eq!(requests.used_index(), 101);

    for signal_late in [false, true] {
        daemon.signal(libc::SIGSTOP);
        let suspended = suspend(&share.device);
        assert!(suspended.recv_timeout(Duration::from_millis(200)).is_err());
        let resumed = resume(&share.device);
        if signal_late {
            // The guest is reset before the back-end goes on.
            share.device.reset();
        }
        daemon.signal(libc::SIGCONT);
        assert!(outcome(&suspended).is_err());
        outcome(&resumed).unwrap();
        if signal_late {
            assert_eq!(next(&share.events), Event::ResetDone);
            break;
        }
        assert_eq!(root_mode(&mut requests, &ram) & 0o170_000, 0o040_000);
        outcome(&suspend(&share.device)).unwrap();
        outcome(&resume(&share.device)).unwrap();
    }
    let high_priority = Ring::new(&ram, 0, LOW);
    let mut requests = Ring::new(&ram, 1, HIGH);
    share.activate(&[&high_priority, &requests]);
    init(&mut requests, &ram);
    // And a reset in place of going on.
    outcome(&suspend(&share.device)).unwrap();
    share.reset();
    assert!(share.reports.try_recv().is_err());
}
