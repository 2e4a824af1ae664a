//! One row: a guest is sent, something happens, and what is left is looked at, and sent again.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_tests::fault_proxy::{Act, FaultProxy, Place};
use ferry_tests::keys::{Authority, Keys};
use ferry_tests::loopback_url;
use serde_json::Value;
use tempfile::TempDir;
use vm_migration::link::Kind;

use crate::acts;
use crate::back_ends::{BackEnds, Real, Scripted, Used};
use crate::busy;
use crate::expected::expected;
use crate::party::{Guest, Party, Route, lock, within};
use crate::said::{goes_straight_on, nothing_at};
use crate::table::{At, Devices, Fault, Owner, Row};
use crate::turns::Turn;
use crate::wire::Wire;

/// How long it may take until the row's place comes.
pub const REACHED: Duration = Duration::from_secs(60);
/// What stays as it is for so long is taken for the end.
pub const LASTING: Duration = Duration::from_millis(500);
/// More than the longest of the receiver's limits, which is that for the commit: 30 s and a request's.
pub const SETTLED: Duration = Duration::from_secs(60);

/// Both sides, and what their guest has.
struct Field {
    directory: TempDir,
    source: Arc<Party>,
    destination: Arc<Party>,
    source_disk: Arc<dyn BackEnds>,
    destination_disk: Arc<dyn BackEnds>,
    /// Until when somebody is stopped or hangs.
    quiet_until: Arc<Mutex<Instant>>,
}

/// The way from the source to the destination, and what is in it.
struct Link {
    route: Route,
    proxy: Proxy,
    _keys: Option<Keys>,
}

enum Proxy {
    Frames(FaultProxy),
    Bytes(Wire),
}

impl Proxy {
    fn wait(&self, limit: Duration) -> bool {
        match self {
            Proxy::Frames(proxy) => proxy.wait(limit),
            Proxy::Bytes(wire) => wire.wait(limit),
        }
    }

    /// What has come, as far as that can be seen.
    fn kinds(&self) -> Vec<Kind> {
        match self {
            Proxy::Frames(proxy) => proxy.kinds(),
            Proxy::Bytes(_) => Vec::new(),
        }
    }
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

/// It has not come to the place of the row.
#[derive(Debug)]
#[expect(dead_code, reason = "it is printed")]
pub struct Missed {
    /// What has come.
    kinds: Vec<Kind>,
    /// What both sides have said of their failure.
    pub reasons: [Value; 2],
}

/// Plays a row; says what came of it.
pub fn run(row: &Row) -> Result<String, Missed> {
    let turn = Turn::wait();
    let field = Field::new(row.devices);
    let played = catch_unwind(AssertUnwindSafe(|| field.play(row, turn)));
    played.unwrap_or_else(|panic| {
        let mut text = format!("--- {row}\n");
        for party in [&field.source, &field.destination] {
            text += &party.transcript();
        }
        eprintln!("{text}");
        resume_unwind(panic)
    })
}

impl Field {
    fn new(devices: Devices) -> Field {
        let directory = TempDir::new().unwrap();
        let source_disk = match devices {
            Devices::Scripted => Scripted::start(),
            Devices::Share => Real::start(directory.path(), Used::Share),
            Devices::Disk => Real::start(directory.path(), Used::Disk),
        };
        let destination_disk = source_disk.heir();
        let source = guest_on("source", &directory, &*source_disk);
        let destination = Party::empty("destination", directory.path());
        let field = Field {
            directory,
            source: Arc::new(source),
            destination: Arc::new(destination),
            source_disk,
            destination_disk,
            quiet_until: Arc::new(Mutex::new(Instant::now())),
        };
        writes(&field.source);
        field
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn play(&self, row: &Row, turn: Turn) -> Result<String, Missed> {
        let link = self.link(row);
        let sockets = self.destination_disk.sockets();
        let received = self.destination.receive(&link.route, &sockets);
        self.source.send(&link.route).unwrap();
        if !link.proxy.wait(REACHED) {
            return Err(Missed {
                kinds: link.proxy.kinds(),
                reasons: [&self.source, &self.destination]
                    .map(|it| it.migration()["error"].clone()),
            });
        }
        drop(turn);
        let begun = Instant::now();
        let left = self.settle(&received, row);
        let took = begun.elapsed().as_secs_f32();
        self.end_what_never_goes_on(row.fault);
        drop(link);
        let expected = expected(row);
        assert!(expected.allows(left), "{left:?} instead of {expected:?}");
        let [here, there] = [&self.source, &self.destination].map(|party| party.serial());
        let mut was_at = match left {
            Left::Source | Left::Unconfirmed => vec![here],
            Left::Destination | Left::Nobody => vec![here, there.clone()],
        };
        let stayed = matches!(left, Left::Source | Left::Unconfirmed);
        // One that was killed may have had the guest before nobody could be asked.
        let has_not_started = left == Left::Source || row.owner < Owner::Taking;
        let left = match left {
            Left::Unconfirmed => {
                self.reclaim();
                Left::Source
            }
            left => left,
        };
        self.check_records();
        goes_straight_on(&was_at);
        let again = self.again(row, left, &mut was_at);
        if left != Left::Nobody {
            self.check_records();
        }
        goes_straight_on(&was_at);
        if stayed && has_not_started {
            nothing_at(&there);
        }
        Ok(format!(
            "{left:?} after {took:.1} s ({expected:?}); {again}"
        ))
    }

    /// The way on which it happens.
    fn link(&self, row: &Row) -> Link {
        let mut route = Route::unix(&self.at("proxy"), &self.at("receiver"));
        route.connections = row.connections;
        match row.at {
            At::Frame(place) => {
                let due = row.before.iter().copied().chain([(place, row.fault)]);
                let due: Vec<(Place, Act)> =
                    due.map(|(place, fault)| (place, self.act(fault))).collect();
                let proxy = FaultProxy::start(&self.at("proxy"), &self.at("receiver"), due);
                Link {
                    route,
                    proxy: Proxy::Frames(proxy),
                    _keys: None,
                }
            }
            At::Byte(after) => {
                let keys = Authority::new().keys("127.0.0.1");
                route.receiver = loopback_url();
                let wire = Wire::start(&route.receiver, after, self.act(row.fault));
                route.sender = wire.url().to_owned();
                route.tls = Some(keys.path().to_owned());
                Link {
                    route,
                    proxy: Proxy::Bytes(wire),
                    _keys: Some(keys),
                }
            }
        }
    }

    fn act(&self, fault: Fault) -> Act {
        let (source, destination) = (Arc::clone(&self.source), Arc::clone(&self.destination));
        let disks = [&self.source_disk, &self.destination_disk].map(Arc::clone);
        let [source_disk, destination_disk] = disks;
        let quiet = Arc::clone(&self.quiet_until);
        match fault {
            Fault::KillSource => acts::kill(source),
            Fault::KillDestination => acts::kill(destination),
            Fault::StopSource => acts::stop(source, quiet),
            Fault::StopDestination => acts::stop(destination, quiet),
            Fault::Cut => acts::cut(),
            Fault::CutOne => acts::cut_one(),
            Fault::Freeze => acts::freeze(),
            Fault::KillSourceDisk => acts::pass(move || source_disk.die()),
            Fault::KillDestinationDisk => acts::pass(move || destination_disk.die()),
            Fault::HangSourceDisk => acts::hang(source_disk, quiet),
            Fault::HangDestinationDisk => acts::hang(destination_disk, quiet),
            Fault::StopSourceForGood => acts::pass(move || source.stop_for_good()),
            Fault::StopDestinationForGood => acts::pass(move || destination.stop_for_good()),
            Fault::HangSourceDiskForGood => acts::pass(move || source_disk.hang()),
            Fault::HangDestinationDiskForGood => acts::pass(move || destination_disk.hang()),
            Fault::CancelSource => acts::cancel(source),
            Fault::CancelDestination => acts::cancel(destination),
            Fault::DeleteDestination => acts::ask(destination, "vm.delete"),
            Fault::TerminateDestination => acts::terminate(destination),
        }
    }

    /// Waits until it is clear whose the guest is. It is never both's.
    fn settle(&self, received: &Receiver<Result<(), String>>, row: &Row) -> Left {
        let mut answered = false;
        let mut last = None;
        let mut since: Option<(Left, Instant)> = None;
        let settled = within(SETTLED, || {
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
            let left = match (&source, &destination) {
                (source, there) if there.runs() && gone(source) => Some(Left::Destination),
                (here, other) if here.runs() && gone(other) => {
                    (state == "failed").then_some(Left::Source)
                }
                (Guest::There(_), Guest::Gone) => {
                    (state == "unconfirmed").then_some(Left::Unconfirmed)
                }
                (source, destination) if gone(source) && gone(destination) => Some(Left::Nobody),
                _ => None,
            }?;
            // What was asked for may still be being done.
            match since {
                Some((before, since)) if before == left => {
                    (since.elapsed() >= LASTING).then_some(left)
                }
                _ => {
                    since = Some((left, Instant::now()));
                    None
                }
            }
        });
        let left = settled.unwrap_or_else(|| panic!("no clarity within {SETTLED:?}: {last:?}"));
        let dead = has_no_disk(left, row.fault);
        if dead && row.owner >= Owner::Destination {
            // It may have hung when all was asked of it that is asked without the guest. Then its end is what is noticed.
            self.end_what_never_goes_on(row.fault);
        }
        match left {
            // All that can be said of it is that it runs.
            Left::Source | Left::Destination if dead && !self.source_disk.is_missed() => {}
            Left::Source => goes_on(&self.source),
            Left::Destination => goes_on(&self.destination),
            Left::Unconfirmed => stands_still(&self.source),
            Left::Nobody => {}
        }
        left
    }

    /// As whoever finds it would.
    fn end_what_never_goes_on(&self, fault: Fault) {
        match fault {
            Fault::StopSourceForGood => self.source.kill(),
            Fault::StopDestinationForGood => self.destination.kill(),
            Fault::HangSourceDiskForGood => self.source_disk.die(),
            Fault::HangDestinationDiskForGood => self.destination_disk.die(),
            _ => {}
        }
    }

    fn reclaim(&self) {
        self.source
            .put("vm.migration-reclaim", &Value::Null)
            .unwrap();
        self.source.within("guest", Duration::from_secs(60), || {
            self.source.guest().runs().then_some(())
        });
        goes_on(&self.source);
    }

    /// Sends the guest again, with nothing in the way.
    fn again(&self, row: &Row, left: Left, was_at: &mut Vec<PathBuf>) -> String {
        let quiet = *lock(&self.quiet_until);
        std::thread::sleep(quiet.saturating_duration_since(Instant::now()));
        if has_no_disk(left, row.fault) {
            return "it has lost its disk".to_owned();
        }
        let _turn = Turn::wait();
        match left {
            Left::Source => {
                let (to, is_old) = self.successor(&self.destination);
                let disk = &self.destination_disk;
                // One that has not answered in time has not been agreed with, and was left.
                let is_lost =
                    row.fault == Fault::HangDestinationDisk || row.fault.ends_destination_disk();
                let kept = is_old && row.fault != Fault::DeleteDestination;
                let disk = match kept {
                    true if is_lost => Arc::clone(disk).renewed(),
                    true => Arc::clone(disk),
                    false => after_leaving(disk, row.fault.ends_destination_disk()),
                };
                assert!(!kept || disk.is_usable(), "the back-ends have ended");
                self.move_on(&self.source, &to, &*disk);
                was_at.push(to.serial());
                if let (true, Some(connections)) = (kept, disk.connections()) {
                    assert!(connections <= 1, "the back-end was left and found again");
                }
                assert_eq!(self.source_disk.complaints(), Vec::<String>::new());
                assert_eq!(disk.complaints(), Vec::<String>::new());
                "moved again".to_owned()
            }
            Left::Destination => {
                let (to, _) = self.successor(&self.source);
                let disk = after_leaving(&self.source_disk, row.fault.ends_source_disk());
                self.move_on(&self.destination, &to, &*disk);
                was_at.push(to.serial());
                assert_eq!(self.destination_disk.complaints(), Vec::<String>::new());
                assert_eq!(disk.complaints(), Vec::<String>::new());
                "moved back".to_owned()
            }
            Left::Nobody if self.destination.is_alive() && !self.source.is_alive() => {
                let disk = after_leaving(&self.source_disk, false);
                let another = guest_on("another", &self.directory, &*disk);
                writes(&another);
                let disk = &self.destination_disk;
                assert!(disk.is_usable(), "the back-ends have ended");
                self.move_on(&another, &self.destination, &**disk);
                *was_at = vec![another.serial(), self.destination.serial()];
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

    /// Sends the guest.
    fn move_on(&self, from: &Party, to: &Party, disk: &dyn BackEnds) {
        let mut outcome = self.try_to_move(from, to, disk);
        while let Err(reasons) = &outcome
            && busy::is_why(reasons)
        {
            outcome = self.try_to_move(from, to, disk);
        }
        if let Err(reasons) = outcome {
            panic!(
                "{}: the second attempt: {reasons}\n{}\n{}\n{:?}\n{}{}",
                to.name,
                from.migration(),
                to.migration(),
                disk.complaints(),
                from.transcript(),
                to.transcript()
            );
        }
        let limit = Duration::from_secs(60);
        to.within("guest", limit, || to.guest().runs().then_some(()));
        from.within("end of the guest", limit, || {
            (from.guest() == Guest::Absent).then_some(())
        });
        goes_on(to);
    }

    fn try_to_move(&self, from: &Party, to: &Party, disk: &dyn BackEnds) -> Result<(), String> {
        let route = Route::unix(&self.at("again"), &self.at("again"));
        let received = to.receive(&route, &disk.sockets());
        let limit = Duration::from_secs(60);
        let sent = within(limit, || from.send(&route).ok());
        assert!(sent.is_some(), "{}: {:?}", from.name, from.send(&route));
        let received = received.recv_timeout(limit);
        let received = received.unwrap_or_else(|error| Err(error.to_string()));
        // Only the side that has lost patience knows that.
        received.map_err(|reasons| {
            let ended = || Some(from.migration()).filter(|it| it["state"] != "under-way");
            let sent = within(limit, ended).unwrap_or_default();
            format!("{reasons}; the sender: {}", sent["error"])
        })
    }

    /// What the guest knows to be written is there.
    fn check_records(&self) {
        let written = [&self.source, &self.destination].map(|party| party.said().1);
        let written = written.into_iter().max().unwrap_or(0);
        self.source_disk.check(written);
    }
}

/// Whether the guest has lost its disk.
fn has_no_disk(left: Left, fault: Fault) -> bool {
    match left {
        Left::Source => fault.ends_source_disk(),
        Left::Destination => fault.ends_destination_disk(),
        Left::Unconfirmed | Left::Nobody => false,
    }
}

/// The back-ends that a front-end has left, if they are still there, or others.
fn after_leaving(disk: &Arc<dyn BackEnds>, was_killed: bool) -> Arc<dyn BackEnds> {
    match was_killed || disk.end_when_left() {
        true => disk.heir(),
        false => Arc::clone(disk),
    }
}

fn guest_on(name: &'static str, directory: &TempDir, disk: &dyn BackEnds) -> Party {
    Party::with_guest(name, directory.path(), &disk.guest(name), &disk.flags())
}

/// Waits for the first records.
pub fn writes(party: &Party) {
    party.within("record", Duration::from_secs(60), || {
        (party.said().1 > 0).then_some(())
    });
}

/// Waits until the guest has said something new.
pub fn goes_on(party: &Party) {
    let (before, _) = party.said();
    party.within("word of the guest", Duration::from_secs(60), || {
        (party.said().0 > before + 1).then_some(())
    });
}

fn stands_still(party: &Party) {
    std::thread::sleep(Duration::from_millis(100));
    let before = party.said();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(party.said(), before, "{}: the guest runs", party.name);
}
