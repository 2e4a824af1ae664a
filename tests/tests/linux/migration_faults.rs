//! What goes wrong with migrations of a guest at work, at least one case for each of their phases: it goes on where it is to
//! go on, and the next attempt succeeds.

use std::time::Duration;

use ferry_tests::fault_proxy::{Act, FaultProxy, Place as At, Then, When};
use ferry_tests::{Asked, Guest, Qsd, Receive, Send, Virtiofsd};
use vm_migration::link::Kind;

use crate::info;
use crate::migration::{IDENTITY, LIMIT, path};
use crate::records::{Loop, Setup, Writing};
use crate::snapshot::{Place, is_the_same_guest, successor};

#[test]
fn a_guest_survives_faults_in_each_phase_of_a_migration() {
    let mut field = Field::new();
    while_it_runs(&mut field);
    while_it_stands_still(&mut field);
    around_the_commit(&mut field);
    let ended = field.writing.end_and_check();
    println!("{}", ended.transcript());
    is_the_same_guest(&ended, 0);
}

fn while_it_runs(field: &mut Field) {
    // When the two sides get to know each other: back-ends come later.
    let attempt = field.attempt(before(Kind::Describe, 1), cut());
    attempt.fails(&mut field.writing, &["connect", "prepare"]);

    // When the receiver has prepared itself.
    field.fails_by(before(Kind::Prepared, 1), cut(), &["prepare"]);

    // The receiver stands still until nobody waits for it any more.
    let stop = signalling(field.receiver.guest.pid(), libc::SIGSTOP);
    let attempt = field.attempt(before(Kind::Pages, 10), stop);
    println!("{}", field.writing.guest.wait_for_failure(&[]));
    field.receiver.guest.signal(libc::SIGCONT);
    field.has_failed(attempt, &["precopy"]);

    // When the guest is to come to rest, and its disk does not.
    let stop = signalling(field.writing.disk.process().id(), libc::SIGSTOP);
    let attempt = field.attempt(before(Kind::Pages, 10), stop);
    field.writing.guest.wait_for_phase("pause");
    field.writing.guest.cancel_migration().expect("a migration");
    field.writing.disk.process().signal(libc::SIGCONT);
    field.has_failed(attempt, &["pause"]);
}

fn while_it_stands_still(field: &mut Field) {
    // With the rest of RAM on its way, …
    let phases = ["ram", "machine", "devices"];
    field.fails_by(before(Kind::End, 1), cut(), &phases);

    // … when the receiver's disk dies, beside which its share lives on, …
    let kill = signalling(field.receiver.disk.process().id(), libc::SIGKILL);
    let at = before(Kind::State, 1);
    field.fails_by(at, kill, &["machine", "devices", "ready"]);
    field.receiver.disk = field.place.disk().start();

    // … when its share does not answer until the migration is given up, …
    let stop = signalling(field.receiver.share.process().id(), libc::SIGSTOP);
    let attempt = field.attempt(before(Kind::Chunk, 1), stop);
    field.writing.guest.wait_for_phase("ready");
    field.writing.guest.cancel_migration().expect("a migration");
    field.receiver.share.process().signal(libc::SIGCONT);
    field.has_failed(attempt, &["ready"]);

    // … when it dies, beside which its disk lives on, …
    let kill = signalling(field.receiver.share.process().id(), libc::SIGKILL);
    let attempt = field.attempt(before(Kind::Chunk, 1), kill);
    attempt.fails(&mut field.writing, &["devices", "ready"]);
    assert_eq!(field.receiver.disk.connected(), 1);
    field.receiver.share = field.place.share().start();

    // … when the receiver dies, …
    let kill = signalling(field.receiver.guest.pid(), libc::SIGKILL);
    let attempt = field.attempt(before(Kind::ChunkEnd, 1), kill);
    attempt.fails(&mut field.writing, &["devices", "ready"]);
    assert!(
        field.receiver.share.process().wait(LIMIT).is_some(),
        "virtiofsd has no front-end any more"
    );
    field.receiver = Party::beside(&field.writing, &field.place);

    // … when all is there, and somebody does not want it any more.
    let cancel = cancelling(&field.writing.guest);
    field.fails_by(before(Kind::Ready, 1), cancel, &["ready"]);
}

fn around_the_commit(field: &mut Field) {
    // When the guest has been handed over, and that gets lost. The sender asks, and has it go on.
    field.fails_by(before(Kind::Commit, 1), dark(), &["unconfirmed"]);

    // When it runs there, but nobody says so. The sender asks, and ends.
    let attempt = field.attempt(before(Kind::Running, 1), dark());
    field.writing.guest.wait_for_migration("unconfirmed");
    assert_eq!(info(&field.writing.guest)["state"], "Paused");
    attempt.receiving.answer().expect("a guest");
    field.moves_on().guest.departed();

    // The same, and the sender dies.
    let kill = signalling(field.writing.guest.pid(), libc::SIGKILL);
    let attempt = field.attempt(before(Kind::Running, 1), kill);
    attempt.receiving.answer().expect("a guest");
    field.moves_on();
}

/// Its owner is gone before anybody else was given it.
#[test]
fn a_guest_ends_with_a_sender_that_is_killed_before_the_commit() {
    let mut field = Field::new();
    let kill = signalling(field.writing.guest.pid(), libc::SIGKILL);
    let attempt = field.attempt(before(Kind::Ready, 1), kill);
    let refusal = attempt.receiving.answer().expect_err("no guest");
    println!("the receiver: {}", refusal.join(": "));
    field.receiver.is_ready_again();
    assert!(!field.writing.guest.is_running());
    field.writing.has_written_what_it_said();
}

/// A guest at work, and a receiver for it.
struct Field {
    place: Place,
    writing: Writing,
    receiver: Party,
    /// How many attempts there were.
    attempts: u32,
}

impl Field {
    fn new() -> Self {
        let place = Place::new();
        let writing = Writing::start(Setup {
            script: IDENTITY,
            disk: place.disk(),
            share: place.share(),
            // So long a receiver is waited for that says nothing.
            request_timeout: 20,
            ..Setup::default()
        });
        Field {
            receiver: Party::beside(&writing, &place),
            place,
            writing,
            attempts: 0,
        }
    }

    /// Begins a migration, and waits until something has been done to it.
    fn attempt(&mut self, at: At, act: Act) -> Attempt {
        self.attempts += 1;
        let url = self.writing.guest.unix_url();
        let between = self.place.at(&format!("proxy-{}", self.attempts));
        let proxy = FaultProxy::start(&between, path(&url), [(at, act)]);
        let receive = Receive::at(&url)
            .device("disk0", &self.receiver.disk)
            .device("fs0", &self.receiver.share);
        let receiving = self.receiver.guest.listen(&receive);
        // The end of the second connection is that of the RAM.
        let send = Send::to(&format!("unix:{}", between.display())).connections(2);
        self.writing.guest.send(&send);
        assert!(
            proxy.wait(LIMIT),
            "{at:?}\n{}",
            self.writing.guest.transcript()
        );
        Attempt { receiving, proxy }
    }

    /// A migration fails by what is done to it, in one of these phases.
    fn fails_by(&mut self, at: At, act: Act, phases: &[&str]) {
        let attempt = self.attempt(at, act);
        self.has_failed(attempt, phases);
    }

    /// It fails, and the receiver has lost nothing that is not dead.
    fn has_failed(&mut self, attempt: Attempt, phases: &[&str]) {
        attempt.fails(&mut self.writing, phases);
        self.receiver.is_ready_again();
    }

    /// The guest runs at the receiver, and there is another one for it; returns what it has left.
    fn moves_on(&mut self) -> Writing {
        let next = Party::beside(&self.writing, &self.place);
        let Party { guest, disk, share } = std::mem::replace(&mut self.receiver, next);
        let left = std::mem::replace(&mut self.writing, Writing { guest, disk, share });
        assert_eq!(info(&self.writing.guest)["state"], "Running");
        self.writing.goes_on(Loop::Disk);
        self.writing.goes_on(Loop::Share);
        left
    }
}

/// A receiver with its back-ends.
struct Party {
    guest: Guest,
    disk: Qsd,
    share: Virtiofsd,
}

impl Party {
    fn beside(writing: &Writing, place: &Place) -> Self {
        Party {
            guest: successor(&writing.guest.beside()).start(),
            disk: place.disk().start(),
            share: place.share().start(),
        }
    }

    /// It has no guest, and has not lost its back-ends.
    fn is_ready_again(&mut self) {
        assert!(self.guest.api().get("vm.info").is_err(), "it has a machine");
        assert!(
            self.share.process().wait(Duration::ZERO).is_none(),
            "virtiofsd has lost its front-end\n{}",
            self.guest.transcript()
        );
        let disk_is_dead = self.disk.process().wait(Duration::ZERO).is_some();
        assert!(disk_is_dead || self.disk.connected() == 1, "the disk");
    }
}

/// A migration that somebody interferes with.
struct Attempt {
    receiving: Asked,
    proxy: FaultProxy,
}

impl Attempt {
    /// It fails in one of these phases, and the guest goes on where it was.
    fn fails(self, writing: &mut Writing, phases: &[&str]) {
        println!("{}", writing.guest.wait_for_failure(&[]));
        let refusal = self.receiving.answer().expect_err("no guest");
        println!("the receiver: {}", refusal.join(": "));
        drop(self.proxy);
        let report = writing.guest.migration();
        let entered = report["phases"].as_array().expect("phases").iter();
        let mut entered = entered.rev().filter_map(|phase| phase["phase"].as_str());
        let last = entered.find(|phase| *phase != "resume");
        assert!(
            last.is_some_and(|last| phases.contains(&last)),
            "not in {phases:?}: {report}"
        );
        assert_eq!(
            info(&writing.guest)["state"],
            "Running",
            "{}",
            writing.guest.transcript()
        );
        writing.goes_on(Loop::Disk);
        writing.goes_on(Loop::Share);
    }
}

pub fn before(kind: Kind, nth: u32) -> At {
    At {
        when: When::Before,
        kind,
        nth,
    }
}

/// Cuts the connection.
fn cut() -> Act {
    Act::Just(Then::Cut(Duration::ZERO))
}

/// The same, and for a while nobody gets through.
fn dark() -> Act {
    Act::Just(Then::Cut(Duration::from_secs(3)))
}

/// Gives the migration up, from its sender's side.
fn cancelling(sender: &Guest) -> Act {
    let client = sender.api().clone();
    Act::ask(move || {
        client.put("vm.migration-cancel", b"").expect("a migration");
        Then::PassOn
    })
}

/// Sends a signal to a Ferry or a back-end.
pub fn signalling(process: u32, signal: i32) -> Act {
    Act::ask(move || {
        // SAFETY: the process is a child of this one, which waits for it only later.
        unsafe { libc::kill(process as libc::pid_t, signal) };
        Then::PassOn
    })
}
