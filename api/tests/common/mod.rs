//! A server with an owner that follows a script, and clients that speak raw bytes.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what cannot be unwrapped has failed the test"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferry_api::config::{
    BackendConfig, CpusConfig, DiskConfig, FsConfig, MemoryConfig, PayloadConfig, SerialConfig,
    VmConfig,
};
use ferry_api::control::{
    Answer as Answered, Control, DeviceInfo, DeviceState, Refusal, RefusalKind, Reply, Request,
    Response, VmInfo, VmState,
};
use ferry_api::events::EventLog;
use ferry_api::migration::{MigrationProgress, MigrationState, MigrationUrl, Phase, Role};
use ferry_api::server::{Limits, Server, ServerSocket, SocketPlace};
use ferry_api::snapshot::{DeviceProgress, Operation, Progress, Status, Step};
use tempfile::TempDir;

/// Far above what anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An owner that notes what it is asked, and holds pauses, snapshots, restores and receptions back.
#[derive(Debug, Default)]
pub struct Script {
    pub asked: Mutex<Vec<Request>>,
    pub held: Mutex<Vec<Reply>>,
    /// How a snapshot or restore stands.
    pub progress: Mutex<Option<Progress>>,
    /// How a migration does.
    pub migration: Mutex<Option<MigrationProgress>>,
    /// Whether nobody is left who could answer how a migration does.
    pub is_ending: AtomicBool,
}

impl Control for Script {
    fn submit(&self, request: Request, reply: Reply) {
        self.asked.lock().unwrap().push(request.clone());
        match request {
            Request::Info => reply.answer(Ok(Response::Info(Box::new(info())))),
            Request::Counters => {
                let disk = BTreeMap::from([("queue0_kicks".into(), 7), ("reconnects".into(), 1)]);
                let counters = BTreeMap::from([("root".into(), disk)]);
                reply.answer(Ok(Response::Counters(counters)));
            }
            Request::Pause => self.held.lock().unwrap().push(reply),
            Request::Snapshot(request) => {
                let step = request.hold.map_or(Step::Ram, |_| Step::Hold);
                let progress = progress(Operation::Snapshot, request.destination, step);
                *self.progress.lock().unwrap() = Some(progress);
                self.held.lock().unwrap().push(reply);
            }
            Request::Restore(request) => {
                let progress = progress(Operation::Restore, request.source, Step::Ram);
                *self.progress.lock().unwrap() = Some(progress);
                self.held.lock().unwrap().push(reply);
            }
            Request::Progress => reply.answer(match &*self.progress.lock().unwrap() {
                Some(progress) => Ok(Response::Progress(Box::new(progress.clone()))),
                None => Err(Refusal::new(RefusalKind::NotFound, "nothing was saved yet")),
            }),
            Request::SendMigration(request) => {
                let progress = migration(Role::Send, request.destination, Phase::Precopy);
                *self.migration.lock().unwrap() = Some(progress);
                reply.answer(Ok(Response::Done));
            }
            Request::ReceiveMigration(request) => {
                let progress = migration(Role::Receive, request.receiver, Phase::Listen);
                *self.migration.lock().unwrap() = Some(progress);
                self.held.lock().unwrap().push(reply);
            }
            // Dropped.
            Request::Migration if self.is_ending.load(Ordering::Relaxed) => {}
            Request::Migration => reply.answer(match &*self.migration.lock().unwrap() {
                Some(progress) => Ok(Response::Migration(Box::new(progress.clone()))),
                None => Err(Refusal::new(RefusalKind::NotFound, "nothing was moved yet")),
            }),
            Request::CancelMigration => {
                self.end_migration(Err(Refusal::new(RefusalKind::Failed, "it was cancelled")));
                reply.answer(Ok(Response::Done));
            }
            Request::ReleaseHold => {
                self.end(Ok(Response::Done));
                reply.answer(Ok(Response::Done));
            }
            Request::Cancel => {
                self.end(Err(Refusal::new(RefusalKind::Failed, "it was cancelled")));
                reply.answer(Ok(Response::Done));
            }
            Request::Resume => reply.answer(Err(Refusal {
                kind: RefusalKind::Failed,
                chain: vec!["cannot resume".into(), "the guest l\u{e4}uft".into()],
            })),
            Request::RemoveDevice(id) => reply.answer(Err(Refusal::new(
                RefusalKind::NotFound,
                format!("there is no device {id}"),
            ))),
            Request::AddFs(_) => reply.answer(Err(Refusal::new(RefusalKind::Duplicate, "taken"))),
            // Dropped.
            Request::Reboot => {}
            _ => reply.answer(Ok(Response::Done)),
        }
    }
}

impl Script {
    /// Changes how the migration stands.
    pub fn migration(&self, change: impl FnOnce(&mut MigrationProgress)) {
        change(self.migration.lock().unwrap().as_mut().unwrap());
    }

    /// Ends the migration, on either side.
    pub fn end_migration(&self, answer: Answered) {
        self.migration(|progress| {
            progress.state = match &answer {
                Ok(_) => MigrationState::Done,
                Err(_) => MigrationState::Failed,
            };
            progress.error = answer.clone().err().map_or(Vec::new(), |it| it.chain);
        });
        for reply in self.held.lock().unwrap().drain(..) {
            reply.answer(answer.clone());
        }
    }

    /// Ends the snapshot or restore.
    pub fn end(&self, answer: Answered) {
        if let Some(progress) = &mut *self.progress.lock().unwrap() {
            progress.status = match &answer {
                Ok(_) => Status::Done,
                Err(_) => Status::Failed,
            };
            progress.error = answer.clone().err().map_or(Vec::new(), |it| it.chain);
        }
        for reply in self.held.lock().unwrap().drain(..) {
            reply.answer(answer.clone());
        }
    }
}

fn migration(role: Role, url: MigrationUrl, phase: Phase) -> MigrationProgress {
    let ms = Duration::from_millis;
    let round = match role {
        Role::Send => 2,
        Role::Receive => 0,
    };
    MigrationProgress {
        role,
        url,
        attempt: "5a".repeat(16),
        state: MigrationState::UnderWay,
        phase,
        phases: vec![
            (Phase::Connect, Duration::from_micros(1_250)),
            (phase, ms(1200)),
        ],
        peer_phases: Vec::new(),
        elapsed: ms(1234),
        round,
        ram_total: 1 << 30,
        ram_sent: 512 << 20,
        ram_remaining: 100 << 20,
        ram_rate: 30 << 20,
        dirty_rate: 20 << 20,
        throttle: 0,
        downtime_estimate: Some(ms(42)),
        downtime: None,
        devices: Vec::new(),
        error: Vec::new(),
    }
}

fn progress(operation: Operation, directory: PathBuf, step: Step) -> Progress {
    let ms = Duration::from_millis;
    Progress {
        operation,
        directory,
        status: Status::UnderWay,
        step,
        steps: vec![(Step::Check, ms(3)), (step, Duration::from_micros(180_900))],
        elapsed: ms(1234),
        paused: ms(213),
        ram_done: 512 << 20,
        ram_total: 1 << 30,
        ram_rate: 2 << 30,
        devices: vec![DeviceProgress {
            id: "home".into(),
            bytes: 5000,
            elapsed: ms(12),
            checked: true,
        }],
        error: Vec::new(),
    }
}

pub fn info() -> VmInfo {
    let backend = |id: &str| BackendConfig {
        id: id.into(),
        socket: format!("/tmp/{id}.sock").into(),
        num_queues: 1,
        queue_size: 128,
    };
    VmInfo {
        config: VmConfig {
            payload: PayloadConfig {
                kernel: "/boot/vmlinuz".into(),
                initramfs: None,
                cmdline: "console=ttyS0".into(),
            },
            cpus: CpusConfig {
                boot_vcpus: 2,
                max_vcpus: 2,
            },
            memory: MemoryConfig {
                size: 512 << 20,
                shared: true,
                hugepages: false,
                hugepage_size: None,
                prefault: false,
            },
            disks: vec![DiskConfig {
                backend: backend("root"),
                readonly: false,
            }],
            fs: vec![FsConfig {
                backend: backend("home"),
                tag: "h\u{f6}me".into(),
            }],
            vhost_user: Vec::new(),
            serial: SerialConfig::Tty,
        },
        state: VmState::Running,
        transition: Some("being paused"),
        memory_actual_size: 512 << 20,
        devices: vec![DeviceInfo {
            id: "root".into(),
            device_type: 2,
            pci_bdf: Some("0000:00:01.0".into()),
            state: DeviceState::Failed,
            error: vec!["the back-end of root is gone".into()],
            features: Some(1 << 32),
        }],
    }
}

pub struct TestServer {
    pub server: Option<Server>,
    pub script: Arc<Script>,
    pub events: Arc<EventLog>,
    pub path: PathBuf,
    _directory: TempDir,
}

impl TestServer {
    pub fn start() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api");
        let script = Arc::new(Script::default());
        let events = Arc::new(EventLog::new(None).unwrap());
        let socket = ServerSocket::open(&SocketPlace::Path(path.clone())).unwrap();
        let server = Server::start(socket, script.clone(), events.clone(), limits).unwrap();
        TestServer {
            server: Some(server),
            script,
            events,
            path,
            _directory: directory,
        }
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// One request on a connection of its own; the head of the answer, and its body.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(&request(method, path, body)).unwrap();
        receive(&mut stream)
    }

    /// Returns once the owner has been asked `number` times.
    pub fn wait_asked(&self, number: usize) {
        wait_until(|| self.script.asked.lock().unwrap().len() >= number);
    }
}

pub fn wait_until(condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// As existing clients send it.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let mut text =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if !body.is_empty() {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text += "\r\n";
    text += body;
    text.into_bytes()
}

#[derive(Debug)]
pub struct Answer {
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub fn chain(&self) -> Vec<String> {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Reads one answer by exactly the marks that existing clients go by.
pub fn receive(stream: &mut UnixStream) -> Answer {
    try_receive(stream).expect("the connection ended without an answer")
}

pub fn try_receive(stream: &mut UnixStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let end = loop {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
        if bytes.ends_with(b"\r\n\r\n") {
            break bytes.len();
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let length = head.split_once("Content-Length: ").map_or(0, |(_, rest)| {
        rest.split("\r\n").next().unwrap().parse().unwrap()
    });
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    assert!(body.is_ascii());
    Some(Answer {
        head,
        body: String::from_utf8(body).unwrap(),
    })
}
