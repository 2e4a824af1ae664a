//! What guests have for devices: back-ends that a test drives, or the real ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferry_tests::backend::{Backend, DeviceState, Running};
use ferry_tests::{Listener, Process, Qsd, Virtiofsd, pattern};

use crate::party::lock;

/// The devices of one side.
pub trait BackEnds: Send + Sync {
    /// The devices' names and their sockets.
    fn sockets(&self) -> Vec<(&'static str, PathBuf)>;
    /// Ferry's flags for them.
    fn flags(&self) -> Vec<String>;
    /// What a guest of this name does with them, slowly.
    fn guest(&self, name: &str) -> String;
    /// Whether the guest says something when they are dead.
    fn is_missed(&self) -> bool;
    /// As a process that is killed.
    fn die(&self);
    /// As a process that is stopped.
    fn hang(&self);
    fn wake(&self);
    /// Whether they end when their front-end leaves, if only some time later.
    fn end_when_left(&self) -> bool;
    /// Whether a front-end can connect, or is connected.
    fn is_usable(&self) -> bool;
    /// How often a front-end has connected, if that is known.
    fn connections(&self) -> Option<usize>;
    fn complaints(&self) -> Vec<String>;
    /// Those of the next side, with the same contents.
    fn heir(&self) -> Arc<dyn BackEnds>;
    /// The same, but for the one that can die or hang, in whose place there is another.
    fn renewed(self: Arc<Self>) -> Arc<dyn BackEnds>;
    /// Panics unless so many records are there.
    fn check(&self, records: u64);
}

/// A disk whose back-end has state and is driven by the test.
pub struct Scripted(Running);

/// Enough for all that a guest writes in a row's time.
const DISK_SIZE: &str = "1M";
const STATE: DeviceState = DeviceState {
    bytes: (1 << 20) + 17,
    seed: 5,
};
/// How many records the guest has in flight.
const DEPTH: u64 = 2;

impl Scripted {
    pub fn start() -> Arc<dyn BackEnds> {
        Arc::new(Scripted(Backend::blk(DISK_SIZE).with_state(STATE).start()))
    }
}

impl BackEnds for Scripted {
    fn sockets(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("disk0", self.0.socket().to_owned())]
    }

    fn flags(&self) -> Vec<String> {
        vec!["--disk".to_owned(), disk_flag(self.0.socket())]
    }

    fn guest(&self, _name: &str) -> String {
        disk_writer()
    }

    fn is_missed(&self) -> bool {
        true
    }

    fn die(&self) {
        self.0.die();
    }

    fn hang(&self) {
        self.0.hang();
    }

    fn wake(&self) {
        self.0.wake();
    }

    fn end_when_left(&self) -> bool {
        false
    }

    fn is_usable(&self) -> bool {
        true
    }

    fn connections(&self) -> Option<usize> {
        Some(self.0.connections())
    }

    fn complaints(&self) -> Vec<String> {
        self.0.complaints()
    }

    fn heir(&self) -> Arc<dyn BackEnds> {
        let heir = Backend::blk("0").sharing(&self.0).awaits_state(STATE);
        Arc::new(Scripted(heir.start()))
    }

    fn renewed(self: Arc<Self>) -> Arc<dyn BackEnds> {
        self.heir()
    }

    fn check(&self, records: u64) {
        check_disk(&self.0.disk(), records);
    }
}

/// A share on virtiofsd and a disk on qemu-storage-daemon. The guest works with one of them, and that is the one that dies or
/// hangs.
pub struct Real {
    disk: Mutex<Qsd>,
    share: Mutex<Virtiofsd>,
    used: Used,
}

/// What a guest works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    Disk,
    Share,
}

const BLOCK: usize = 512;

impl Real {
    pub fn start(directory: &Path, used: Used) -> Arc<dyn BackEnds> {
        let shared = directory.join("shared");
        fs::create_dir(&shared).unwrap();
        let image = directory.join("image");
        let disk = Qsd::serving(DISK_SIZE).on(&image).start();
        let share = Virtiofsd::options().sharing(&shared).start();
        Real::of(disk, share, used)
    }

    fn of(disk: Qsd, share: Virtiofsd, used: Used) -> Arc<dyn BackEnds> {
        listens(&disk);
        listens(&share);
        Arc::new(Real {
            disk: Mutex::new(disk),
            share: Mutex::new(share),
            used,
        })
    }

    /// Another one for the same disk.
    fn next_disk(&self) -> Qsd {
        Qsd::serving(DISK_SIZE).on(lock(&self.disk).image()).start()
    }

    /// Another one for the same directory.
    fn next_share(&self) -> Virtiofsd {
        let shared = lock(&self.share).shared().to_owned();
        Virtiofsd::options().sharing(&shared).start()
    }

    /// Does something with the one that is used.
    fn with_used(&self, act: impl FnOnce(&mut Process)) {
        match self.used {
            Used::Disk => act(lock(&self.disk).process()),
            Used::Share => act(lock(&self.share).process()),
        }
    }

    fn signal(&self, signal: i32) {
        self.with_used(|process| {
            if is_alive(process) {
                process.signal(signal);
            }
        });
    }
}

fn replace<B: Listener>(old: &Mutex<B>, new: B) {
    listens(&new);
    *lock(old) = new;
}

/// Waits until one can connect.
fn listens(back_end: &impl Listener) {
    let limit = Duration::from_secs(60);
    let socket = back_end.socket();
    crate::party::within(limit, || socket.exists().then_some(())).unwrap();
}

fn is_alive(process: &mut Process) -> bool {
    matches!(process.child().try_wait(), Ok(None))
}

impl BackEnds for Real {
    fn sockets(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("disk0", lock(&self.disk).socket().to_owned()),
            ("fs0", lock(&self.share).socket().to_owned()),
        ]
    }

    fn flags(&self) -> Vec<String> {
        let share = lock(&self.share).socket().display().to_string();
        vec![
            "--disk".to_owned(),
            disk_flag(lock(&self.disk).socket()),
            "--fs".to_owned(),
            format!("tag=home,socket={share},id=fs0"),
        ]
    }

    fn guest(&self, name: &str) -> String {
        match self.used {
            // A share that has not been used has no state.
            Used::Disk => format!(
                "{} file={name} blocks=1 block=512",
                disk_writer().replace("mode=", "mode=fuse+")
            ),
            Used::Share => {
                format!("mode=fuse op=write file={name} blocks=20000 block=512 report=1 pace=200")
            }
        }
    }

    fn is_missed(&self) -> bool {
        self.used == Used::Disk
    }

    fn die(&self) {
        self.with_used(Process::kill);
    }

    fn hang(&self) {
        self.signal(libc::SIGSTOP);
    }

    fn wake(&self) {
        self.signal(libc::SIGCONT);
    }

    /// A virtiofsd does.
    fn end_when_left(&self) -> bool {
        true
    }

    fn is_usable(&self) -> bool {
        is_alive(lock(&self.share).process()) && is_alive(lock(&self.disk).process())
    }

    fn connections(&self) -> Option<usize> {
        None
    }

    fn complaints(&self) -> Vec<String> {
        Vec::new()
    }

    fn heir(&self) -> Arc<dyn BackEnds> {
        Real::of(self.next_disk(), self.next_share(), self.used)
    }

    fn renewed(self: Arc<Self>) -> Arc<dyn BackEnds> {
        match self.used {
            Used::Disk => replace(&self.disk, self.next_disk()),
            Used::Share => replace(&self.share, self.next_share()),
        }
        self
    }

    fn check(&self, records: u64) {
        match self.used {
            Used::Disk => check_disk(&fs::read(lock(&self.disk).image()).unwrap(), records),
            Used::Share => {
                let file = lock(&self.share).shared().join("source");
                let written = fs::read(file).unwrap();
                let expected = pattern::blocks(BLOCK, 1, records as u32);
                assert!(
                    written.starts_with(&expected),
                    "the file does not begin with {records} records"
                );
            }
        }
    }
}

/// Writes one record after the other. Without its disk it goes on all the same, once it is told.
fn disk_writer() -> String {
    "mode=blk-writer+ticks op=write count=2000 depth=2 report=2 pace=200 patience=600000 \
     ticks=1000000 period=200 timer=lapic"
        .to_owned()
}

fn check_disk(disk: &[u8], records: u64) {
    for number in 0..records.saturating_sub(DEPTH) {
        let at = number as usize * 512;
        assert!(
            disk[at..at + 512] == pattern::block(512, 1, number as u32),
            "record {number} of {records} is not there"
        );
    }
}

fn disk_flag(socket: &Path) -> String {
    let socket = socket.display();
    format!("vhost_user=on,socket={socket},id=disk0,num_queues=1")
}
