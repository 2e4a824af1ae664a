//! What stands in for one of two Ferrys, and speaks the protocol.

use std::time::{Duration, Instant};

use ferry_tests::{Ferry, Guest};
use vm_migration::Unwatched;
use vm_migration::link::{
    Address, Error, Kind, Last, Link, Listener, Message, Patience, Purpose, StreamId,
};

use crate::common::{TICK, TICKS};

/// More than anything takes that these peers can draw out; most of it is the time for the commit.
pub const LONG: Duration = Duration::from_secs(50);

/// A guest whose Ferry does not wait for long.
pub fn hasty() -> Guest {
    waiting(1)
}

/// A guest whose Ferry waits for so many seconds.
pub fn waiting(seconds: u32) -> Guest {
    let guest = Ferry::tiny(TICKS).request_timeout(seconds);
    let mut guest = guest.dead_timeout(seconds).with_api().start();
    guest.goes_on(TICK);
    guest
}

pub fn hasty_receiver(guest: &Guest) -> Guest {
    waiting_receiver(guest, 1)
}

pub fn waiting_receiver(guest: &Guest, seconds: u32) -> Guest {
    let left = guest.beside();
    let limit = seconds.to_string();
    let successor = left.successor().arg("--request-timeout").arg(&limit);
    successor.arg("--dead-timeout").arg(&limit).start()
}

pub fn listener(url: &str) -> Listener {
    Listener::bind(&url.parse().unwrap(), None).unwrap()
}

pub fn accept(listener: &mut Listener) -> Link {
    let deadline = Some(Instant::now() + LONG);
    loop {
        let mut link = listener.accept(&Unwatched, deadline).unwrap();
        link.set_silence(LONG);
        // Who did not wait for that has hung up, and comes again.
        if link.accept_it().is_ok() {
            return link;
        }
    }
}

/// Takes what comes, until this.
pub fn take_until(link: &mut Link, wanted: Kind) {
    loop {
        let message = link.receive(&Unwatched).unwrap();
        let is_last = !matches!(message, Message::Describe { last: Last::No, .. });
        let kind = message.kind();
        if kind == wanted && is_last {
            return;
        }
        answer(link, kind);
    }
}

/// Says that it has all that was sent, if it is asked.
pub fn answer(link: &mut Link, kind: Kind) {
    if kind == Kind::Sync {
        link.send(&Message::Synced, &Unwatched).unwrap();
    }
}

pub fn dial(url: &str, attempt: StreamId, purpose: Purpose) -> Result<Link, Error> {
    let to: Address = url.parse().unwrap();
    let patience = Patience {
        connect: LONG,
        silence: LONG,
    };
    Link::connect(&to, None, attempt, purpose, patience, &Unwatched)
}

pub const MIGRATE: Purpose = Purpose::Migrate { connections: 1 };
