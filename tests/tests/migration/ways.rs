//! A guest at work with a real disk and a real shared directory, moved from Ferry to Ferry over every kind of connection:
//! every record is written once, open files stay open, and the old back-ends are left.

use std::path::Path;
use std::time::{Duration, Instant};

use ferry_tests::keys::Authority;
use ferry_tests::{Guest, Listener, Qsd, Receive, Restore, Send, Virtiofsd, loopback_url, pattern};
use tempfile::TempDir;

use crate::common::{receiver, tiny};

const RECORD: usize = 512;
const RECORDS: u32 = 1500;
const BLOCK: usize = 4096;
const BLOCKS: u32 = 200;

/// What the guest's disk and directory are on the host, and the back-ends that serve them now.
pub struct Served {
    directory: TempDir,
    disk: Qsd,
    share: Virtiofsd,
}

impl Served {
    pub fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("shared")).unwrap();
        let (disk, share) = daemons(directory.path());
        Served {
            directory,
            disk,
            share,
        }
    }

    pub fn guest(&self) -> Guest {
        let cmdline = format!(
            "mode=blk-writer+fuse count={RECORDS} depth=8 report=20 file=open blocks={BLOCKS} seed=4 end=halt"
        );
        let mut guest = tiny(&cmdline)
            .with_disk(&self.disk)
            .with_fs(&self.share, "home")
            .start();
        guest.wait_for("blk written=");
        guest
    }

    /// Moves the guest to new back-ends for the same disk and directory.
    pub fn move_over(&mut self, guest: Guest, send: &Send, receive: Receive) -> Guest {
        assert_eq!(self.disk.connected(), 1);
        let (disk, share) = daemons(self.directory.path());
        let receive = receive.device("disk0", &disk).device("fs0", &share);
        let there = receiver(&guest);
        let guest = guest.migrated_to(there, send, &receive);
        // It closes its end when it finds the other one closed.
        let begun = Instant::now();
        while self.disk.connected() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the old disk");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(disk.connected(), 1);
        self.disk = disk;
        let mut old = std::mem::replace(&mut self.share, share);
        // It ends when its front-end has left.
        let status = old.process().wait(Duration::from_secs(20));
        assert!(status.is_some(), "the old virtiofsd is still connected to");
        guest
    }

    /// New back-ends for the same disk and directory.
    pub fn renew(&mut self) {
        (self.disk, self.share) = daemons(self.directory.path());
    }

    /// Names them.
    pub fn named(&self, restore: Restore) -> Restore {
        restore
            .device("disk0", &self.disk)
            .device("fs0", &self.share)
    }

    pub fn verify(&self, guest: Guest) {
        let ended = guest.finished();
        ended.line(&format!("blk verified={RECORDS}"));
        ended.line(&format!("fuse verified={BLOCKS}"));
        let records = self.disk.read(RECORD * RECORDS as usize);
        assert!(records == pattern::blocks(RECORD, 4, RECORDS));
        let file = std::fs::read(self.directory.path().join("shared/open")).unwrap();
        assert!(file == pattern::blocks(BLOCK, 4, BLOCKS));
    }
}

fn daemons(directory: &Path) -> (Qsd, Virtiofsd) {
    let disk = Qsd::serving("2M").on(&directory.join("disk.img")).start();
    let share = Virtiofsd::options().sharing(&directory.join("shared"));
    let share = share.start();
    // Neither says when it listens.
    for socket in [disk.socket(), share.socket()] {
        for _ in 0..2000 {
            if socket.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    (disk, share)
}

/// From the first Ferry to the second, the third and the fourth, while the guest uses the disk and the directory.
fn three_times(
    send: impl Fn(&str) -> Send,
    receive: impl Fn(&str) -> Receive,
    url: impl Fn(&Guest) -> String,
) {
    let mut served = Served::new();
    let mut guest = served.guest();
    for text in ["blk written=", "blk verified=", "fuse at="] {
        guest.wait_for(text);
        let url = url(&guest);
        guest = served.move_over(guest, &send(&url), receive(&url));
    }
    guest.goes_on("fuse ");
    served.verify(guest);
}

#[test]
fn over_unix_sockets() {
    three_times(Send::to, Receive::at, Guest::unix_url);
}

#[test]
fn over_tcp() {
    three_times(Send::to, Receive::at, |_| loopback_url());
}

#[test]
fn over_four_tcp_connections() {
    three_times(
        |url| Send::to(url).connections(4),
        Receive::at,
        |_| loopback_url(),
    );
}

#[test]
fn over_four_unix_connections() {
    three_times(
        |url| Send::to(url).connections(4),
        Receive::at,
        Guest::unix_url,
    );
}

#[test]
fn over_tls() {
    let authority = Authority::new();
    let (here, there) = (authority.keys("127.0.0.1"), authority.keys("127.0.0.1"));
    for connections in [1, 4] {
        three_times(
            |url| Send::to(url).tls_dir(here.path()).connections(connections),
            |url| Receive::at(url).tls_dir(there.path()),
            |_| loopback_url(),
        );
    }
}

#[test]
fn a_stranger_is_refused_over_tls() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (good, bad) = (ours.keys("127.0.0.1"), theirs.keys("127.0.0.1"));
    let mut guest = tiny("mode=ticks ticks=1000000 period=10").start();
    guest.goes_on("tick n=");
    let mut there = receiver(&guest);
    let url = loopback_url();
    let received = there.listen(&Receive::at(&url).tls_dir(good.path()));
    // With another authority's certificate, and without any.
    for send in [Send::to(&url).tls_dir(bad.path()), Send::to(&url)] {
        guest.send(&send);
        guest.wait_for_failure(&["127.0.0.1"]);
        guest.goes_on("tick n=");
        assert!(received.is_pending());
    }
    guest.send(&Send::to(&url).tls_dir(good.path()));
    received.answer().expect("a guest");
    guest.departed();
    there.goes_on("tick n=");
}
