//! Guest RAM, a transport and an observer that only record.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use crate::vhost_user::{DeviceObserver, Error, RamRegion, VhostUserDevice};
use crate::virtio::{ActivationFailed, TransportEvents};

/// Long enough that only a hang exceeds it.
pub const HANG: Duration = Duration::from_secs(30);

/// Two regions of guest RAM in one memfd, at odd places.
pub struct TestRam {
    pub regions: Arc<[RamRegion]>,
}

pub const LOW: u64 = 0x10_0000;
pub const HIGH: u64 = 0x1_0000_0000;
const REGION: u64 = 4 << 20;

impl TestRam {
    pub fn new() -> Self {
        // SAFETY: the name is a C string.
        let raw = unsafe { libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(raw >= 0);
        // SAFETY: the descriptor is new and belongs to nobody else.
        let file = Arc::new(File::from(unsafe { OwnedFd::from_raw_fd(raw) }));
        file.set_len(0x20_0000 + 2 * REGION).unwrap();
        let region = |guest, offset| RamRegion {
            guest: GuestAddress(guest),
            size: REGION,
            file: Arc::clone(&file),
            offset,
        };
        TestRam {
            regions: Arc::new([region(LOW, 0x20_0000 + REGION), region(HIGH, 0x20_0000)]),
        }
    }

    /// The same RAM, in more regions than a memory table can hold.
    pub fn in_many_regions() -> Self {
        const PARTS: u64 = 8;
        let size = REGION / PARTS;
        let whole = TestRam::new();
        let parts = whole.regions.iter().flat_map(|region| {
            (0..PARTS).map(move |part| RamRegion {
                guest: GuestAddress(region.guest.0 + part * size),
                size,
                file: Arc::clone(&region.file),
                offset: region.offset + part * size,
            })
        });
        TestRam {
            regions: parts.collect(),
        }
    }

    fn locate(&self, address: u64) -> (&RamRegion, u64) {
        let region = self
            .regions
            .iter()
            .find(|region| (region.guest.0..region.guest.0 + region.size).contains(&address))
            .unwrap();
        (region, region.offset + address - region.guest.0)
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        let (region, offset) = self.locate(address);
        region.file.write_all_at(data, offset).unwrap();
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let (region, offset) = self.locate(address);
        let mut data = vec![0; length];
        region.file.read_exact_at(&mut data, offset).unwrap();
        data
    }

    pub fn read_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().unwrap())
    }
}

/// What a transport is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Activated(Result<(), ActivationFailed>),
    ResetDone,
    ConfigChanged,
    Failed,
}

/// A transport that notes what it is told.
pub struct Transport {
    sender: Mutex<Sender<Event>>,
}

impl Transport {
    pub fn new() -> (Arc<Self>, Receiver<Event>) {
        let (sender, receiver) = channel();
        let sender = Mutex::new(sender);
        (Arc::new(Transport { sender }), receiver)
    }

    fn note(&self, event: Event) {
        let _ = self.sender.lock().unwrap().send(event);
    }
}

impl TransportEvents for Transport {
    fn activated(&self, outcome: Result<(), ActivationFailed>) {
        self.note(Event::Activated(outcome));
    }

    fn reset_done(&self) {
        self.note(Event::ResetDone);
    }

    fn config_changed(&self) {
        self.note(Event::ConfigChanged);
    }

    fn failed(&self) {
        self.note(Event::Failed);
    }
}

/// What an observer is told.
pub enum Report {
    Ready(Result<Arc<VhostUserDevice>, Error>),
    Failed(Error),
}

/// An observer that notes what it is told.
pub struct Observer {
    sender: Mutex<Sender<Report>>,
}

impl Observer {
    pub fn new() -> (Arc<Self>, Receiver<Report>) {
        let (sender, receiver) = channel();
        let sender = Mutex::new(sender);
        (Arc::new(Observer { sender }), receiver)
    }
}

impl DeviceObserver for Observer {
    fn ready(&self, _id: &str, outcome: Result<Arc<VhostUserDevice>, Error>) {
        let _ = self.sender.lock().unwrap().send(Report::Ready(outcome));
    }

    fn failed(&self, _id: &str, error: &Error) {
        let _ = self
            .sender
            .lock()
            .unwrap()
            .send(Report::Failed(error.clone()));
    }
}

/// What the observer is told first.
pub fn started(reports: &Receiver<Report>) -> Result<Arc<VhostUserDevice>, Error> {
    match reports.recv_timeout(HANG).unwrap() {
        Report::Ready(outcome) => outcome,
        Report::Failed(error) => panic!("failed before it was ready: {error}"),
    }
}

/// The error that the observer is told next.
pub fn failure(reports: &Receiver<Report>) -> Error {
    match reports.recv_timeout(HANG).unwrap() {
        Report::Failed(error) => error,
        Report::Ready(_) => panic!("ready twice"),
    }
}

/// Where a back-end's program is: named by an environment variable, or on the path.
pub fn program(variable: &str, name: &str) -> PathBuf {
    match std::env::var_os(variable).filter(|value| !value.is_empty()) {
        Some(path) => path.into(),
        None => name.into(),
    }
}

/// Sends a signal to a child that has not been waited for; if it is to stop, waits until it has.
pub fn signal(pid: u32, signal: libc::c_int) {
    let pid = pid as libc::pid_t;
    // SAFETY: kill() takes no pointers; the child has not been waited for, so the pid is its.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    if signal != libc::SIGSTOP {
        return;
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result. A stopped child is only looked at.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) };
    assert_eq!(waited, pid);
    assert!(libc::WIFSTOPPED(status));
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(HANG).unwrap()
}
