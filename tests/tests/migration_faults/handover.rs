//! What goes wrong while a guest is handed to another process of the same host, at every frame: afterwards it runs in one of the two
//! without anybody's being asked, unless it has died with its owner; and its back-end has not heard a word.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_tests::fault_proxy::{Act, FaultProxy, Place, When};
use tempfile::TempDir;
use vm_migration::link::Kind;

use crate::acts;
use crate::back_ends::{BackEnds, Scripted};
use crate::busy;
use crate::party::{Guest, Party, Route, lock, within};
use crate::said::{goes_straight_on, nothing_at};
use crate::scenario::{LASTING, REACHED, SETTLED, goes_on, writes};
use crate::turns::Turn;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillSource,
    KillDestination,
    /// For longer than anybody waits.
    StopSource,
    StopDestination,
    Cut,
    /// Nothing more gets through, and nobody is told.
    Freeze,
    KillDisk,
    /// For longer than anybody waits.
    HangDisk,
    CancelSource,
    CancelDestination,
    TerminateDestination,
    TerminateSource,
    DeleteSource,
    RebootSource,
}

impl Fault {
    const ALL: [Fault; 14] = [
        Fault::Freeze,
        Fault::KillSource,
        Fault::KillDestination,
        Fault::StopSource,
        Fault::StopDestination,
        Fault::Cut,
        Fault::KillDisk,
        Fault::HangDisk,
        Fault::CancelSource,
        Fault::CancelDestination,
        Fault::TerminateDestination,
        Fault::TerminateSource,
        Fault::DeleteSource,
        Fault::RebootSource,
    ];
}

/// How far the hand-over is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    /// The guest still runs at the source.
    Before,
    /// The source may have sent everything, and the destination does not have it.
    Sending,
    /// It has, and the source does not know.
    There,
    /// The source knows, or is about to.
    Ready,
    /// The commit is on its way.
    Given,
    /// The destination has the commit, or is about to.
    Taking,
    /// It has let the guest run.
    Taken,
    /// The source knows.
    Settled,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    place: Place,
    progress: Progress,
    fault: Fault,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { when, kind, nth } = self.place;
        let place = format!("{when:?} {kind} {nth}");
        write!(f, "hand-over {place:<19} {:?}", self.fault)
    }
}

/// Every frame of a hand-over, in its order.
pub fn rows() -> Vec<Row> {
    use When::{After, Before};
    let places = [
        // The source's process, the word and RAM; the destination's process; the connection.
        (Before, Kind::Handles, 1, Progress::Before),
        (After, Kind::Handles, 1, Progress::Before),
        (Before, Kind::Describe, 1, Progress::Before),
        (After, Kind::Describe, 1, Progress::Before),
        (Before, Kind::Handles, 2, Progress::Before),
        (After, Kind::Handles, 2, Progress::Before),
        (Before, Kind::Prepared, 1, Progress::Before),
        (After, Kind::Prepared, 1, Progress::Before),
        (Before, Kind::State, 1, Progress::Sending),
        (After, Kind::State, 1, Progress::Sending),
        (Before, Kind::StateEnd, 1, Progress::Sending),
        (Before, Kind::Handles, 3, Progress::Sending),
        (After, Kind::Handles, 3, Progress::Sending),
        (Before, Kind::End, 1, Progress::Sending),
        (After, Kind::End, 1, Progress::Ready),
        (Before, Kind::Ready, 1, Progress::There),
        (After, Kind::Ready, 1, Progress::Ready),
        (Before, Kind::Commit, 1, Progress::Given),
        (After, Kind::Commit, 1, Progress::Taking),
        (Before, Kind::Running, 1, Progress::Taken),
        (After, Kind::Running, 1, Progress::Settled),
        (Before, Kind::Bye, 1, Progress::Settled),
        (After, Kind::Bye, 1, Progress::Settled),
    ];
    let rows = Fault::ALL.into_iter().flat_map(|fault| {
        places.map(|(when, kind, nth, progress)| Row {
            place: Place { when, kind, nth },
            progress,
            fault,
        })
    });
    rows.collect()
}

/// Where the guest is in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Source,
    Destination,
    Nobody,
}

fn expected(row: &Row) -> &'static [Left] {
    use Left::{Destination, Nobody, Source};
    use Progress::{Given, Ready, Settled, Taken, Taking, There};
    let before_ready = row.progress < Ready;
    let is_given = row.progress >= Given;
    match (row.fault, row.progress) {
        // One that has everything goes on, if it is not just being told otherwise.
        (Fault::KillSource, Progress::Before) => &[Nobody],
        // What was sent before may still arrive.
        (Fault::KillSource, Progress::Sending) => &[Nobody, Destination],
        (Fault::KillSource, _) => &[Destination],
        // The commit may come between the frame and that.
        (Fault::KillDestination, Ready | Taking) => &[Source, Nobody],
        (Fault::KillDestination, Taken | Settled) => &[Nobody],
        // A word that was said before may still arrive.
        (Fault::KillDestination, _) => &[Source],
        (Fault::TerminateDestination, Ready | Taking) => &[Source, Nobody],
        (Fault::TerminateDestination, Taken | Settled) => &[Nobody],
        (Fault::TerminateDestination, _) => &[Source],
        (Fault::Cut | Fault::Freeze | Fault::CancelDestination, Ready | Taking) => {
            &[Source, Destination]
        }
        (Fault::Cut | Fault::Freeze | Fault::CancelDestination, Taken | Settled) => &[Destination],
        (Fault::Cut | Fault::Freeze | Fault::CancelDestination, _) => &[Source],
        (Fault::CancelSource, _) if before_ready => &[Source],
        (Fault::CancelSource, Ready) => &[Source, Destination],
        (Fault::CancelSource, _) => &[Destination],
        // Who ends the guest ends it, unless it runs there already.
        (Fault::TerminateSource | Fault::DeleteSource, Ready | Given | Taking) => {
            &[Nobody, Destination]
        }
        (Fault::TerminateSource | Fault::DeleteSource, Taken | Settled) => &[Destination],
        (Fault::TerminateSource | Fault::DeleteSource, _) => &[Nobody],
        // A boot of its own cannot be taken over.
        (Fault::RebootSource, Ready | Given | Taking) => &[Source, Destination],
        (Fault::RebootSource, Taken | Settled) => &[Destination],
        (Fault::RebootSource, _) => &[Source],
        // They only take time, maybe too much of it.
        (Fault::StopSource | Fault::StopDestination, Taken | Settled) => &[Destination],
        (Fault::StopSource | Fault::StopDestination, _) => &[Source, Destination],
        // Nobody asks it anything.
        (Fault::HangDisk, _) => &[Destination],
        (Fault::KillDisk, There) if is_given => &[Destination],
        (Fault::KillDisk, _) => &[Source, Destination],
    }
}

/// Both processes, and the disk that goes from one to the other.
struct Field {
    directory: TempDir,
    source: Arc<Party>,
    destination: Arc<Party>,
    disk: Arc<dyn BackEnds>,
    quiet_until: Arc<Mutex<Instant>>,
}

/// Plays a row; says what came of it.
pub fn play(row: &Row) -> String {
    loop {
        if let Some(what) = play_once(row) {
            return what;
        }
    }
}

/// None if the machine was too busy for the row's place to come.
fn play_once(row: &Row) -> Option<String> {
    let turn = Turn::wait();
    let directory = TempDir::new().unwrap();
    let disk = Scripted::start();
    let path = directory.path();
    let source = Party::with_guest("source", path, &disk.guest("source"), &disk.flags());
    let destination = Party::empty("destination", path);
    writes(&source);
    let field = Field {
        source: Arc::new(source),
        destination: Arc::new(destination),
        disk,
        quiet_until: Arc::new(Mutex::new(Instant::now())),
        directory,
    };
    let played = std::panic::AssertUnwindSafe(|| field.play(row, turn));
    std::panic::catch_unwind(played).unwrap_or_else(|panic| {
        let parties = [&field.source, &field.destination];
        let text: String = parties.iter().map(|party| party.transcript()).collect();
        eprintln!("--- {row}\n{text}");
        std::panic::resume_unwind(panic)
    })
}

impl Field {
    fn route(&self, sender: &str, receiver: &str) -> Route {
        let at = |name| self.directory.path().join(name);
        let mut route = Route::unix(&at(sender), &at(receiver));
        route.local = true;
        route
    }

    fn play(&self, row: &Row, turn: Turn) -> Option<String> {
        let route = self.route("proxy", "receiver");
        let at = |name| self.directory.path().join(name);
        let due = [(row.place, self.act(row.fault))];
        let proxy = FaultProxy::start(&at("proxy"), &at("receiver"), due);
        let received = self.destination.receive(&route, &[]);
        let sent = self.source.send(&route);
        assert!(sent.is_ok(), "{sent:?}");
        if !proxy.wait(REACHED) {
            let kinds = proxy.kinds();
            let [here, there] = [&self.source, &self.destination].map(|party| party.migration());
            let missed = format!("it has not come to that: {kinds:?}, {here} / {there}");
            let is_busy = busy::is_why(&format!("{} {}", here["error"], there["error"]));
            assert!(is_busy, "{missed}");
            return None;
        }
        drop(turn);
        let begun = Instant::now();
        let left = self.settle(row);
        let took = begun.elapsed().as_secs_f32();
        drop((proxy, received));
        let expected = expected(row);
        assert!(
            expected.contains(&left),
            "{left:?} instead of {expected:?}; {} / {}",
            self.source.migration(),
            self.destination.migration()
        );
        let [here, there] = [&self.source, &self.destination].map(|party| party.serial());
        if left == Left::Source {
            nothing_at(&there);
        }
        let mut was_at = vec![here];
        was_at.extend((left != Left::Source).then_some(there));
        // One that has begun anew counts anew.
        let counts_on = row.fault != Fault::RebootSource || left == Left::Destination;
        if counts_on {
            goes_straight_on(&was_at);
        }
        let is_dead = row.fault == Fault::KillDisk;
        assert_eq!(self.disk.complaints(), Vec::<String>::new());
        if left == Left::Nobody || is_dead {
            return Some(format!("{left:?} after {took:.1} s"));
        }
        assert_eq!(self.disk.connections(), Some(1));
        self.again(left, &mut was_at);
        if counts_on {
            goes_straight_on(&was_at);
        }
        assert_eq!(self.disk.connections(), Some(1));
        Some(format!("{left:?} after {took:.1} s, and on"))
    }

    fn act(&self, fault: Fault) -> Act {
        let (source, destination) = (Arc::clone(&self.source), Arc::clone(&self.destination));
        let (disk, quiet) = (Arc::clone(&self.disk), Arc::clone(&self.quiet_until));
        match fault {
            Fault::KillSource => acts::kill(source),
            Fault::KillDestination => acts::kill(destination),
            Fault::StopSource => acts::stop(source, quiet),
            Fault::StopDestination => acts::stop(destination, quiet),
            Fault::Cut => acts::cut(),
            Fault::Freeze => acts::freeze(),
            Fault::KillDisk => acts::pass(move || disk.die()),
            Fault::HangDisk => acts::hang(disk, quiet),
            Fault::CancelSource => acts::cancel(source),
            Fault::CancelDestination => acts::cancel(destination),
            Fault::TerminateDestination => acts::terminate(destination),
            Fault::TerminateSource => acts::terminate(source),
            Fault::DeleteSource => acts::ask(source, "vm.delete"),
            Fault::RebootSource => acts::ask(source, "vm.reboot"),
        }
    }

    /// Waits until it is clear whose the guest is. It is never both's.
    fn settle(&self, row: &Row) -> Left {
        let mut since: Option<(Left, Instant)> = None;
        let mut last = None;
        let settled = within(SETTLED, || {
            if Instant::now() < *lock(&self.quiet_until) {
                return None;
            }
            // In this order, what runs there cannot come from here in between.
            let destination = self.destination.guest();
            let source = self.source.guest();
            assert!(
                !(source.runs() && destination.runs()),
                "the guest runs twice"
            );
            let state = self.source.migration_state();
            last = Some((source.clone(), destination.clone(), state.clone()));
            let gone = |guest: &Guest| matches!(guest, Guest::Gone | Guest::Absent);
            let left = match (&source, &destination) {
                (here, there) if there.runs() && gone(here) => Left::Destination,
                (here, other) if here.runs() && gone(other) && state == "failed" => Left::Source,
                (here, there) if gone(here) && gone(there) => Left::Nobody,
                _ => return None,
            };
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
        match left {
            // All that can be said of it is that it runs.
            _ if row.fault == Fault::KillDisk => {}
            Left::Source => goes_on(&self.source),
            Left::Destination => goes_on(&self.destination),
            Left::Nobody => {}
        }
        left
    }

    /// Whoever has it hands it to a third process.
    fn again(&self, left: Left, was_at: &mut Vec<std::path::PathBuf>) {
        let owner = match left {
            Left::Source => &self.source,
            _ => &self.destination,
        };
        let _turn = Turn::wait();
        let third = Party::empty("third", self.directory.path());
        let route = self.route("third-receiver", "third-receiver");
        let received = third.receive(&route, &[]);
        owner.send(&route).unwrap();
        let answer = received.recv_timeout(Duration::from_secs(60));
        assert_eq!(answer, Ok(Ok(())), "{}", owner.migration());
        goes_on(&third);
        was_at.push(third.serial());
    }
}
