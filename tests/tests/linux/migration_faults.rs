//! What goes wrong with migrations of a guest at work, one case for each of their parts: it goes on where it is to go on, and
//! the next attempt succeeds.

use std::time::Duration;

use ferry_tests::fault_proxy::{Act, FaultProxy, Place as At, Then, When};
use ferry_tests::{Asked, Guest, Qsd, Receive, Send, Virtiofsd};
use vm_migration::link::Kind;

use crate::info;
use crate::migration::{IDENTITY, LIMIT, path};
use crate::records::{Loop, Setup, Writing};
use crate::snapshot::{Place, is_the_same_guest, successor};

#[test]
fn a_guest_survives_faults_in_each_part_of_a_migration() {
    let place = Place::new();
    let mut writing = Writing::start(Setup {
        script: IDENTITY,
        disk: place.disk(),
        share: place.share(),
        ..Setup::default()
    });
    let mut receiver = Party::beside(&writing, &place);

    // While the receiver prepares itself; while the guest runs; while it stands still, and the receiver's back-end has its
    // state already; when all is there.
    let cancel = cancelling(&writing.guest);
    for (name, at, act) in [
        ("1", before(Kind::Prepared, 1), cut()),
        ("2", before(Kind::Pages, 10), cut()),
        ("3", before(Kind::End, 1), cut()),
        ("4", before(Kind::Ready, 1), cancel),
    ] {
        let attempt = Attempt::begin(&writing, &mut receiver, &place, name, at, act);
        attempt.fails(&mut writing, &mut receiver);
        receiver.is_ready_again();
    }

    // While it stands still, and the receiver's back-end dies.
    let kill = killing(receiver.share.process().id());
    let at = before(Kind::Chunk, 1);
    let attempt = Attempt::begin(&writing, &mut receiver, &place, "5", at, kill);
    attempt.fails(&mut writing, &mut receiver);

    // The same, and the receiver dies.
    let mut receiver = Party::beside(&writing, &place);
    let kill = killing(receiver.guest.pid());
    let at = before(Kind::ChunkEnd, 1);
    let attempt = Attempt::begin(&writing, &mut receiver, &place, "6", at, kill);
    attempt.fails(&mut writing, &mut receiver);
    assert!(
        receiver.share.process().wait(LIMIT).is_some(),
        "virtiofsd has no front-end any more"
    );

    // When the guest has been handed over, and runs there, but nobody says so. The sender asks, and ends.
    let mut receiver = Party::beside(&writing, &place);
    let dark = Act::Just(Then::Cut(Duration::from_secs(3)));
    let at = before(Kind::Running, 1);
    let attempt = Attempt::begin(&writing, &mut receiver, &place, "7", at, dark);
    writing.guest.wait_for_migration("unconfirmed");
    assert_eq!(info(&writing.guest)["state"], "Paused");
    attempt.receiving.answer().expect("a guest");
    writing.guest.departed();
    let mut writing = receiver.with_guest();

    // The same, and the sender dies.
    let mut receiver = Party::beside(&writing, &place);
    let kill = killing(writing.guest.pid());
    let at = before(Kind::Running, 1);
    let attempt = Attempt::begin(&writing, &mut receiver, &place, "8", at, kill);
    attempt.receiving.answer().expect("a guest");
    drop(writing);
    writing = receiver.with_guest();
    let ended = writing.end_and_check();
    println!("{}", ended.transcript());
    is_the_same_guest(&ended, 0);
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

    /// It has no guest, and has not lost its back-end.
    fn is_ready_again(&mut self) {
        assert!(self.guest.api().get("vm.info").is_err(), "it has a machine");
        assert!(
            self.share.process().wait(Duration::ZERO).is_none(),
            "virtiofsd has lost its front-end\n{}",
            self.guest.transcript()
        );
    }

    /// The guest runs there now.
    fn with_guest(self) -> Writing {
        let Party { guest, disk, share } = self;
        let mut writing = Writing { guest, disk, share };
        assert_eq!(info(&writing.guest)["state"], "Running");
        writing.goes_on(Loop::Disk);
        writing.goes_on(Loop::Share);
        writing
    }
}

/// A migration that somebody interferes with.
struct Attempt {
    receiving: Asked,
    proxy: FaultProxy,
}

impl Attempt {
    fn begin(
        writing: &Writing,
        receiver: &mut Party,
        place: &Place,
        name: &str,
        at: At,
        act: Act,
    ) -> Self {
        let url = writing.guest.unix_url();
        let between = place.at(&format!("proxy-{name}"));
        let proxy = FaultProxy::start(&between, path(&url), [(at, act)]);
        let receive = Receive::at(&url)
            .device("disk0", &receiver.disk)
            .device("fs0", &receiver.share);
        let receiving = receiver.guest.listen(&receive);
        writing
            .guest
            .send(&Send::to(&format!("unix:{}", between.display())));
        assert!(proxy.wait(LIMIT), "{at:?}\n{}", writing.guest.transcript());
        Attempt { receiving, proxy }
    }

    /// It fails, and the guest goes on where it was.
    fn fails(self, writing: &mut Writing, receiver: &mut Party) {
        println!("{}", writing.guest.wait_for_failure(&[]));
        let refusal = self.receiving.answer().expect_err("no guest");
        println!("the receiver: {}", refusal.join(": "));
        drop(self.proxy);
        assert_eq!(
            info(&writing.guest)["state"],
            "Running",
            "{}",
            receiver.guest.transcript()
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

/// Gives the migration up, from its sender's side.
fn cancelling(sender: &Guest) -> Act {
    let client = sender.api().clone();
    Act::ask(move || {
        client.put("vm.migration-cancel", b"").expect("a migration");
        Then::PassOn
    })
}

/// Kills a Ferry or a back-end.
pub fn killing(process: u32) -> Act {
    Act::ask(move || {
        // SAFETY: the process is a child of this one, which waits for it only later.
        unsafe { libc::kill(process as libc::pid_t, libc::SIGKILL) };
        Then::PassOn
    })
}
