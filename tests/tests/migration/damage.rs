//! Damage to the words on which it depends whose the guest is.

use std::time::Duration;

use ferry_tests::fault_proxy::{Act, Place, Then};
use ferry_tests::{Receive, Send};
use vm_migration::link::Kind;

use crate::common::{TICK, TICKS, because, moved_alone, receiver, tiny};
use crate::way::{Way, before};

/// Bytes of a frame's header that show damage at once: of its kind, its flags, and its checksum.
const BYTES: [usize; 3] = [1, 3, 8];

fn damage(kind: Kind, byte: usize) -> (Place, Act) {
    (before(kind), Act::Just(Then::Damage(byte)))
}

/// A sender that cannot read READY has not given its guest up.
#[test]
fn of_ready() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    for byte in BYTES {
        let mut there = receiver(&guest);
        let way = Way::with([damage(Kind::Ready, byte)]);
        let received = there.listen(&Receive::at(way.receiver()));
        guest.send(&Send::to(way.sender()));
        guest.wait_for_failure(&["the migration stream is wrong"]);
        because(received.answer(), &[]);
        guest.goes_on(TICK);
        assert!(
            !guest
                .events()
                .iter()
                .any(|it| it == "migration-unconfirmed")
        );
        assert!(there.api().get("vm.info").is_err(), "there is a machine");
    }
    moved_alone(guest).goes_on(TICK);
}

/// A receiver that cannot read COMMIT has not got the guest, and the sender is told so when it asks.
#[test]
fn of_commit() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    for byte in BYTES.into_iter().chain([16]) {
        let mut there = receiver(&guest);
        let way = Way::with([damage(Kind::Commit, byte)]);
        let received = there.listen(&Receive::at(way.receiver()));
        guest.send(&Send::to(way.sender()));
        because(received.answer(), &["the migration stream is wrong"]);
        guest.wait_for_failure(&["the attempt was discarded"]);
        guest.goes_on(TICK);
        assert!(there.api().get("vm.info").is_err(), "there is a machine");
    }
    moved_alone(guest).goes_on(TICK);
}

/// A sender that cannot read RUNNING asks, and asks again if it cannot read the answer.
#[test]
fn of_running_and_of_the_outcome() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    let lost = || -> (Place, Act) {
        let cut = Then::Cut(Duration::ZERO);
        (before(Kind::Running), Act::Just(cut))
    };
    let mut damages: Vec<Vec<(Place, Act)>> = BYTES
        .into_iter()
        .chain([20])
        .map(|byte| vec![damage(Kind::Running, byte)])
        .collect();
    for byte in BYTES.into_iter().chain([16]) {
        damages.push(vec![lost(), damage(Kind::Outcome, byte)]);
    }
    for due in damages {
        let mut there = receiver(&guest);
        let way = Way::with(due);
        let received = there.listen(&Receive::at(way.receiver()));
        guest.send(&Send::to(way.sender()).preserve_source());
        received.answer().expect("a guest");
        guest.wait_for_migration("done");
        assert!(
            guest
                .events()
                .iter()
                .any(|it| it == "migration-unconfirmed")
        );
        assert!(guest.api().get("vm.info").is_err(), "there is a machine");
        guest = there;
        guest.goes_on(TICK);
    }
}
