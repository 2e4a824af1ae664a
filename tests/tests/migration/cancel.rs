//! Migrations that are given up, on either side, in every phase that can be held: the guest goes on where it was, and the
//! next attempt at the same receiver succeeds.

use ferry_tests::backend::message::FrontendReq as Req;
use ferry_tests::backend::{Backend, Direction, Fault, Running};
use ferry_tests::fault_proxy::{Halt, Place, Then};
use ferry_tests::{Guest, Receive, Send};
use vm_migration::link::Kind;

use crate::common::{
    BUSY_SIZE, FULL_BYTES, SLOW, STATE, TICK, TICKS, WRITTEN, because, busy, full, heir, logging,
    moved_to, receiver, stateful, tiny,
};
use crate::proxy::Proxy;
use crate::way::{Way, before};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Sender,
    Receiver,
}

const SIDES: [Side; 2] = [Side::Sender, Side::Receiver];

/// What holds a migration in a phase.
struct Held {
    disk: Backend,
    next: fn(&Running) -> Backend,
    /// The phase on the side that cancels.
    phase: [&'static str; 2],
    /// The transfer that hangs then, which is to have begun: the next one does not.
    hangs: Option<Direction>,
    /// Bytes a second.
    rate: u64,
}

fn given_up(held: Held, side: Side) {
    let disk = held.disk.start();
    let mut guest = match held.rate {
        0 => busy(&disk),
        _ => full(&disk),
    };
    let next = (held.next)(&disk).start();
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let proxy = Proxy::to(&url).slow(held.rate);
    let received = there.listen(&Receive::at(&url).device("disk0", &next));
    guest.send(&Send::to(proxy.url()));
    let (asked, phase) = match side {
        Side::Sender => (&mut guest, held.phase[0]),
        Side::Receiver => (&mut there, held.phase[1]),
    };
    asked.wait_for_phase(phase);
    if let Some(direction) = held.hangs {
        let backend = match direction {
            Direction::Save => &disk,
            Direction::Load => &next,
        };
        let begun = || backend.count(Req::SET_DEVICE_STATE_FD) > 0;
        asked.wait_until("a transfer", |_| begun().then_some(()));
    }
    asked.cancel_migration().expect("an end");
    proxy.set_rate(0);
    guest.wait_for_failure(&["cancel"]);
    guest.goes_on(WRITTEN);
    because(received.answer(), &[]);
    there.wait_for_migration("failed");
    assert!(there.api().get("vm.info").is_err(), "there is a machine");

    let mut there = moved_to(guest, there, &next);
    there.goes_on(WRITTEN);
    assert_eq!(next.holds_state(), Some(STATE));
    for disk in [&disk, &next] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

#[test]
fn while_ram_is_copied() {
    for side in SIDES {
        given_up(
            Held {
                disk: stateful(),
                next: heir,
                phase: ["precopy", "precopy"],
                hangs: None,
                rate: SLOW,
            },
            side,
        );
    }
}

/// A frame does not get through: it is not waited for, and neither is what comes behind it.
#[test]
fn in_the_midst_of_a_round() {
    let disk = stateful().start();
    let mut guest = full(&disk);
    let next = heir(&disk).start();
    let mut there = receiver(&guest);
    for (side, connections) in [1, 2]
        .iter()
        .flat_map(|count| SIDES.map(|side| (side, *count)))
    {
        let (pages, at_pages) = Halt::new();
        let third = Place {
            nth: 3,
            ..before(Kind::Pages)
        };
        let way = Way::with([(third, at_pages)]);
        let received = there.listen(&Receive::at(way.receiver()).device("disk0", &next));
        guest.send(&Send::to(way.sender()).connections(connections));
        pages.reached();
        let asked = match side {
            Side::Sender => &guest,
            Side::Receiver => &there,
        };
        asked.cancel_migration().expect("an end");
        guest.wait_for_failure(&["cancel"]);
        guest.goes_on(WRITTEN);
        pages.then(Then::PassOn);
        because(received.answer(), &[]);
        let sent = guest.migration()["ram"]["sent_bytes"].as_u64();
        let sent = sent.expect("a number");
        // Another connection's part may have got through.
        let most = FULL_BYTES / 4 * 3;
        assert!(sent < most, "{side:?}, {connections}: {sent}");
    }
    let mut there = moved_to(guest, there, &next);
    there.goes_on(WRITTEN);
    for disk in [&disk, &next] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

#[test]
fn while_a_back_end_saves() {
    for side in SIDES {
        given_up(
            Held {
                disk: stateful().in_transfer(Direction::Save, 1, Fault::HangAt(100_000)),
                next: heir,
                phase: ["devices", "devices"],
                hangs: Some(Direction::Save),
                rate: 0,
            },
            side,
        );
    }
}

#[test]
fn while_a_back_end_loads() {
    for side in SIDES {
        given_up(
            Held {
                disk: stateful(),
                next: |old| heir(old).in_transfer(Direction::Load, 1, Fault::HangAt(100_000)),
                phase: ["devices", "devices"],
                hangs: Some(Direction::Load),
                rate: 0,
            },
            side,
        );
    }
}

/// Requests that do not come to an end keep the guest from standing still.
#[test]
fn while_the_guest_comes_to_rest() {
    let disk = logging(BUSY_SIZE).start();
    let mut guest = busy(&disk);
    let next = heir(&disk).start();
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    guest.hold_requests(&disk);
    let received = there.listen(&Receive::at(&url).device("disk0", &next));
    guest.send(&Send::to(&url));
    guest.wait_for_phase("pause");
    guest.cancel_migration().expect("an end");
    because(received.answer(), &[]);
    disk.release_requests();
    guest.wait_for_failure(&["cancel"]);
    guest.goes_on(WRITTEN);
    for disk in [&disk, &next] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

/// READY has been sent, and does not arrive.
#[test]
fn while_the_receiver_waits_for_the_commit() {
    for side in SIDES {
        let disk = stateful().start();
        let mut guest = busy(&disk);
        let next = heir(&disk).start();
        let mut there = receiver(&guest);
        let (ready, at_ready) = Halt::new();
        let way = Way::with([(before(Kind::Ready), at_ready)]);
        let received = there.listen(&Receive::at(way.receiver()).device("disk0", &next));
        guest.send(&Send::to(way.sender()));
        ready.reached();
        guest.wait_for_phase("ready");
        assert_eq!(there.migration()["phase"], "ready");
        assert_eq!(next.requests(), 0);
        let (asked, reasons) = match side {
            Side::Sender => (&guest, &["cancel"][..]),
            // Its word comes behind READY: it depends on that moment whether it is heard before COMMIT is sent.
            Side::Receiver => (&there, &[][..]),
        };
        asked.cancel_migration().expect("an end");
        ready.then(Then::PassOn);
        because(received.answer(), &[]);
        guest.wait_for_failure(reasons);
        guest.goes_on(WRITTEN);
        assert_eq!(next.requests(), 0);
        let mut there = moved_to(guest, there, &next);
        there.goes_on(WRITTEN);
    }
}

fn listening(guest: &Guest) -> (Guest, ferry_tests::Asked) {
    let mut there = receiver(guest);
    let url = guest.unix_url();
    let received = there.listen(&Receive::at(&url));
    assert_eq!(there.migration()["phase"], "listen");
    assert!(received.is_pending());
    (there, received)
}

#[test]
fn a_receiver_that_waits_for_a_sender() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    let (there, received) = listening(&guest);
    there.cancel_migration().expect("an end");
    because(received.answer(), &["cancel"]);
    let (there, received) = listening(&guest);
    there.put("vm.delete");
    because(received.answer(), &["vm.delete"]);
    // It is of use still.
    drop(there);
    let (there, _received) = listening(&guest);
    // SIGTERM ends it at once.
    assert_eq!(there.terminate().status, Some(0));
}

/// A sender that connects to a receiver which says nothing gives up by itself, or when it is told to.
#[test]
fn a_receiver_that_says_nothing() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let _received = there.listen(&Receive::at(&url));
    let proxy = Proxy::to(&url);
    proxy.hold(crate::proxy::Way::ToSender);
    guest.send(&Send::to(proxy.url()));
    guest.wait_for_phase("connect");
    guest.cancel_migration().expect("an end");
    guest.wait_for_failure(&["cancel"]);
    guest.send(&Send::to(proxy.url()));
    // After its limit.
    guest.wait_for_failure(&[]);
    guest.goes_on(TICK);
}
