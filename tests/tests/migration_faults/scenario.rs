//! One row: a guest is sent, something happens, and what is left is looked at, and sent again.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_tests::backend::{Backend, DeviceState, Running};
use ferry_tests::fault_proxy::{Act, FaultProxy, Place, Then};
use ferry_tests::pattern;
use serde_json::Value;
use tempfile::TempDir;

use crate::expected::expected;
use crate::party::{Guest, Party, lock, within};
use crate::table::{Fault, Row};

/// Longer than anybody waits for an answer.
const LONG: Duration = Duration::from_secs(5);
/// How long there is no way through a connection that was cut.
const DARK: Duration = Duration::from_millis(700);
/// More than the longest of the receiver's limits, which is that for the commit: 30 s and a request's.
const SETTLED: Duration = Duration::from_secs(60);

/// Writes slowly for ever, or nearly so; without a disk, it goes on all the same.
const CMDLINE: &str = "mode=blk-writer+ticks op=write count=60000 report=8 pace=10 patience=600000 ticks=1000000 \
                       period=50 timer=lapic";
const DISK_SIZE: &str = "32M";
const STATE: DeviceState = DeviceState {
    bytes: (2 << 20) + 17,
    seed: 5,
};
/// How many records the guest has in flight.
const DEPTH: u64 = 4;

/// Both sides, and what their guest has.
struct Field {
    directory: TempDir,
    source: Arc<Party>,
    destination: Arc<Party>,
    source_disk: Arc<Running>,
    destination_disk: Arc<Running>,
    /// Until when somebody is stopped or hangs.
    quiet_until: Arc<Mutex<Instant>>,
}

/// Who has the guest in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Source,
    Destination,
    /// It stands still at the source, and there is nobody who could be asked.
    Unconfirmed,
    Nobody,
}

/// Plays a row; says what came of it.
pub fn run(row: &Row) -> String {
    let field = Field::new();
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| field.play(row)));
    played.unwrap_or_else(|panic| {
        let mut text = format!("--- {row}\n");
        for party in [&field.source, &field.destination] {
            text += &party.transcript();
        }
        eprintln!("{text}");
        std::panic::resume_unwind(panic)
    })
}

impl Field {
    fn new() -> Field {
        let directory = TempDir::new().unwrap();
        let source_disk = Backend::blk(DISK_SIZE).with_state(STATE).start();
        let destination_disk = heir(&source_disk);
        let source = guest_on("source", &directory, &source_disk);
        let destination = Party::empty("destination", directory.path());
        let field = Field {
            directory,
            source: Arc::new(source),
            destination: Arc::new(destination),
            source_disk: Arc::new(source_disk),
            destination_disk: Arc::new(destination_disk),
            quiet_until: Arc::new(Mutex::new(Instant::now())),
        };
        writes(&field.source);
        field
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn play(&self, row: &Row) -> String {
        let due = row.before.iter().copied().chain([(row.place, row.fault)]);
        let due: Vec<(Place, Act)> = due.map(|(place, fault)| (place, self.act(fault))).collect();
        let proxy = FaultProxy::start(&self.at("proxy"), &self.at("receiver"), due);
        let disk = [("disk0", self.destination_disk.socket())];
        let received = self.destination.receive(&self.at("receiver"), &disk);
        self.source.send(&self.at("proxy")).unwrap();
        assert!(
            proxy.wait(Duration::from_secs(30)),
            "{row}: it has not come to that; there were {:?}",
            proxy.kinds()
        );
        let begun = Instant::now();
        let left = self.settle(&received);
        let took = begun.elapsed().as_secs_f32();
        drop(proxy);
        let expected = expected(row);
        assert!(expected.allows(left), "{left:?} instead of {expected:?}");
        let left = match left {
            Left::Unconfirmed => {
                self.reclaim();
                Left::Source
            }
            left => left,
        };
        let again = self.again(row, left);
        self.check_disk();
        format!("{left:?} after {took:.1} s ({expected:?}); {again}")
    }

    fn act(&self, fault: Fault) -> Act {
        let (source, destination) = (Arc::clone(&self.source), Arc::clone(&self.destination));
        let disks = [&self.source_disk, &self.destination_disk].map(Arc::clone);
        let quiet = Arc::clone(&self.quiet_until);
        let pass = |act: Box<dyn FnOnce() + Send>| -> Act {
            Box::new(move || {
                act();
                Then::PassOn
            })
        };
        let request = |party: Arc<Party>, route: &'static str| -> Act {
            pass(Box::new(move || {
                let _ = party.put(route, &Value::Null);
            }))
        };
        let [source_disk, destination_disk] = disks;
        match fault {
            Fault::KillSource => pass(Box::new(move || source.kill())),
            Fault::KillDestination => pass(Box::new(move || destination.kill())),
            Fault::StopSource => pass(Box::new(move || stop(source, &quiet))),
            Fault::StopDestination => pass(Box::new(move || stop(destination, &quiet))),
            Fault::Cut => Box::new(|| Then::Cut(DARK)),
            Fault::Freeze => Box::new(|| Then::Freeze),
            Fault::KillSourceDisk => pass(Box::new(move || source_disk.die())),
            Fault::KillDestinationDisk => pass(Box::new(move || destination_disk.die())),
            Fault::HangSourceDisk => pass(Box::new(move || hang(source_disk, &quiet))),
            Fault::HangDestinationDisk => pass(Box::new(move || hang(destination_disk, &quiet))),
            Fault::CancelSource => request(source, "vm.migration-cancel"),
            Fault::CancelDestination => request(destination, "vm.migration-cancel"),
            // It is answered when all is cleaned up, and the frame does not wait for that.
            Fault::DeleteDestination => pass(Box::new(move || {
                std::thread::spawn(move || destination.put("vm.delete", &Value::Null));
                std::thread::sleep(Duration::from_millis(100));
            })),
            Fault::TerminateDestination => {
                pass(Box::new(move || destination.signal(libc::SIGTERM)))
            }
        }
    }

    /// Waits until it is clear whose the guest is. It is never both's.
    fn settle(&self, received: &Receiver<Result<(), String>>) -> Left {
        let mut answered = false;
        let mut last = None;
        let settled = within("clarity", SETTLED, || {
            answered |= !matches!(received.try_recv(), Err(TryRecvError::Empty));
            // In this order, what runs there cannot come from here in between.
            let destination = self.destination.guest();
            let source = self.source.guest();
            assert!(
                !(source.runs() && destination.runs()),
                "the guest runs twice"
            );
            let state = self.source.migration_state();
            last = Some((source.clone(), destination.clone(), state.clone(), answered));
            let gone = |guest: &Guest| matches!(guest, Guest::Gone | Guest::Absent);
            if !answered && destination != Guest::Gone {
                return None;
            }
            match (&source, &destination) {
                (source, there) if there.runs() && gone(source) => Some(Left::Destination),
                (here, other) if here.runs() && gone(other) => {
                    (state == "failed").then_some(Left::Source)
                }
                (Guest::There(_), Guest::Gone) => {
                    (state == "unconfirmed").then_some(Left::Unconfirmed)
                }
                (source, destination) if gone(source) && gone(destination) => Some(Left::Nobody),
                _ => None,
            }
        });
        let left = settled.unwrap_or_else(|| panic!("no clarity within {SETTLED:?}: {last:?}"));
        match left {
            Left::Source => goes_on(&self.source),
            Left::Destination => goes_on(&self.destination),
            Left::Unconfirmed => stands_still(&self.source),
            Left::Nobody => {}
        }
        left
    }

    fn reclaim(&self) {
        self.source
            .put("vm.migration-reclaim", &Value::Null)
            .unwrap();
        self.source.within("guest", Duration::from_secs(20), || {
            self.source.guest().runs().then_some(())
        });
        goes_on(&self.source);
    }

    /// Sends the guest again, with nothing in the way.
    fn again(&self, row: &Row, left: Left) -> String {
        let quiet = *lock(&self.quiet_until);
        std::thread::sleep(quiet.saturating_duration_since(Instant::now()));
        let disk_of_guest_is_dead = match left {
            Left::Source => row.fault == Fault::KillSourceDisk,
            Left::Destination => row.fault == Fault::KillDestinationDisk,
            Left::Unconfirmed | Left::Nobody => false,
        };
        if disk_of_guest_is_dead {
            return "it has lost its disk".to_owned();
        }
        match left {
            Left::Source => {
                let (to, old) = self.successor(&self.destination);
                let new =
                    (row.fault == Fault::KillDestinationDisk).then(|| heir(&self.source_disk));
                let disk = new.as_ref().unwrap_or(&self.destination_disk);
                self.move_on(&self.source, &to, disk);
                if old && new.is_none() && row.fault != Fault::DeleteDestination {
                    assert!(
                        disk.connections() <= 1,
                        "the back-end was left and found again"
                    );
                }
                assert_eq!(self.source_disk.complaints(), Vec::<String>::new());
                assert_eq!(disk.complaints(), Vec::<String>::new());
                "moved again".to_owned()
            }
            Left::Destination => {
                let (to, _) = self.successor(&self.source);
                let new = heir(&self.source_disk);
                let disk = match row.fault {
                    Fault::KillSourceDisk => &new,
                    _ => &self.source_disk,
                };
                self.move_on(&self.destination, &to, disk);
                assert_eq!(self.destination_disk.complaints(), Vec::<String>::new());
                assert_eq!(disk.complaints(), Vec::<String>::new());
                "moved back".to_owned()
            }
            Left::Nobody if self.destination.is_alive() && !self.source.is_alive() => {
                let another = guest_on("another", &self.directory, &self.source_disk);
                writes(&another);
                self.move_on(&another, &self.destination, &self.destination_disk);
                "another one received".to_owned()
            }
            Left::Nobody | Left::Unconfirmed => "ended".to_owned(),
        }
    }

    /// The Ferry that takes the guest, and whether it is the old one.
    fn successor(&self, party: &Arc<Party>) -> (Arc<Party>, bool) {
        match party.is_alive() {
            true => (Arc::clone(party), true),
            false => (
                Arc::new(Party::empty("third", self.directory.path())),
                false,
            ),
        }
    }

    fn move_on(&self, from: &Party, to: &Party, disk: &Running) {
        let at = self.at("again");
        let received = to.receive(&at, &[("disk0", disk.socket())]);
        let limit = Duration::from_secs(20);
        let sent = within("sending", limit, || from.send(&at).ok());
        assert!(sent.is_some(), "{}: {:?}", from.name, from.send(&at));
        match received.recv_timeout(limit) {
            Ok(Ok(())) => {}
            other => panic!(
                "{}: the second attempt: {other:?}\n{}{}",
                to.name,
                from.transcript(),
                to.transcript()
            ),
        }
        to.within("guest", limit, || to.guest().runs().then_some(()));
        from.within("end of the guest", limit, || {
            (from.guest() == Guest::Absent).then_some(())
        });
        goes_on(to);
    }

    /// What the guest knows to be written is there.
    fn check_disk(&self) {
        let written = [&self.source, &self.destination].map(|party| party.said().1);
        let written = written.into_iter().max().unwrap_or(0);
        let disk = self.source_disk.disk();
        for number in 0..written.saturating_sub(DEPTH) {
            let at = number as usize * 512;
            assert!(
                disk[at..at + 512] == pattern::block(512, 1, number as u32),
                "record {number} of {written} is not there"
            );
        }
    }
}

fn guest_on(name: &'static str, directory: &TempDir, disk: &Running) -> Party {
    let disk = disk.socket().display();
    let disk = format!("vhost_user=on,socket={disk},id=disk0,num_queues=1");
    Party::with_guest(
        name,
        directory.path(),
        CMDLINE,
        &["--disk".to_owned(), disk],
    )
}

/// The back-end of the other side.
fn heir(disk: &Running) -> Running {
    Backend::blk("0").sharing(disk).awaits_state(STATE).start()
}

fn stop(party: Arc<Party>, quiet_until: &Mutex<Instant>) {
    party.signal(libc::SIGSTOP);
    *lock(quiet_until) = Instant::now() + LONG;
    std::thread::spawn(move || {
        std::thread::sleep(LONG);
        party.signal(libc::SIGCONT);
    });
}

fn hang(disk: Arc<Running>, quiet_until: &Mutex<Instant>) {
    disk.hang();
    *lock(quiet_until) = Instant::now() + LONG;
    std::thread::spawn(move || {
        std::thread::sleep(LONG);
        disk.wake();
    });
}

/// Waits for the first records.
fn writes(party: &Party) {
    party.within("record", Duration::from_secs(20), || {
        (party.said().1 > 0).then_some(())
    });
}

/// Waits until the guest has said something new.
fn goes_on(party: &Party) {
    let (before, _) = party.said();
    party.within("word of the guest", Duration::from_secs(20), || {
        (party.said().0 > before + 1).then_some(())
    });
}

fn stands_still(party: &Party) {
    std::thread::sleep(Duration::from_millis(100));
    let before = party.said();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(party.said(), before, "{}: the guest runs", party.name);
}
