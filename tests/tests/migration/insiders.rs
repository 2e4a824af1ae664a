//! Peers that know the protocol, and misuse it: most of all, ones that only say that they are there.

use std::sync::mpsc::{TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferry_tests::{Asked, Guest, Receive, Send};
use vm_migration::Unwatched;
use vm_migration::link::{
    Error, Kind, Last, Link, Listener, Message, Outcome, Purpose, StreamId, Tally,
};
use vm_migration::pages::end_main;
use vm_migration::ram::BLOCK;

use crate::common::{TICK, because, has_bounds};
use crate::peer::{
    LONG, MIGRATE, accept, answer, dial, hasty, hasty_receiver, listener, take_until,
};

/// As fast as it goes, and now and then.
const PAUSES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(100)];

/// Says that it is there, until nobody listens any more.
fn flood(link: &mut Link, pause: Duration) -> Error {
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        if let Err(error) = link.send(&Message::Alive, &Unwatched) {
            return error;
        }
        std::thread::sleep(pause);
    }
    panic!("it is listened to for ever");
}

/// A receiver that answers well up to a point, and then only says that it is there.
fn receiver_that_stops_before(kind: Kind, url: &str, pause: Duration) -> JoinHandle<Listener> {
    let mut listener = listener(url);
    std::thread::spawn(move || {
        let mut link = accept(&mut listener);
        take_until(&mut link, Kind::Describe);
        if kind != Kind::Prepared {
            link.send(&Message::Prepared, &Unwatched).unwrap();
            take_until(&mut link, Kind::End);
        }
        if kind == Kind::Running {
            link.send(&Message::Ready, &Unwatched).unwrap();
            take_until(&mut link, Kind::Commit);
        }
        flood(&mut link, pause);
        listener
    })
}

#[test]
fn a_receiver_that_never_is_prepared_or_ready() {
    let mut guest = hasty();
    for pause in PAUSES {
        for kind in [Kind::Prepared, Kind::Ready] {
            let url = guest.unix_url();
            let peer = receiver_that_stops_before(kind, &url, pause);
            // Being prepared may take all the time that is allowed for RAM; what comes later has its own limits.
            let send = match kind {
                Kind::Prepared => Send::to(&url).connections(1).timeout_s(3),
                _ => Send::to(&url).connections(1),
            };
            guest.send(&send);
            guest.wait_for_failure(&[]);
            peer.join().unwrap();
            guest.goes_on(TICK);
        }
    }
    // One that is to be prepared may take all the time that is allowed; but a cancel is heard.
    let url = guest.unix_url();
    let peer = receiver_that_stops_before(Kind::Prepared, &url, Duration::ZERO);
    guest.send(&Send::to(&url).connections(1));
    guest.wait_for_phase("prepare");
    guest.cancel_migration().expect("an end");
    guest.wait_for_failure(&["cancel"]);
    peer.join().unwrap();
    guest.goes_on(TICK);
    has_bounds(&guest);
}

/// As something in between that passes one connection on: what can be done about it is said.
#[test]
fn a_receiver_that_takes_one_connection_only() {
    let mut guest = hasty();
    let url = guest.unix_url();
    let mut listener = listener(&url);
    let peer = std::thread::spawn(move || {
        let mut link = accept(&mut listener);
        drop(listener);
        take_until(&mut link, Kind::Describe);
        link.send(&Message::Prepared, &Unwatched).unwrap();
        link.receive(&Unwatched).map(|message| message.kind())
    });
    guest.send(&Send::to(&url));
    guest.wait_for_failure(&["connection 2 of 2", "connections=1"]);
    assert!(peer.join().unwrap().is_err(), "it says more than that");
    guest.goes_on(TICK);
    has_bounds(&guest);
}

/// The guest may run there, for all that is known; whoever knows better can have it back.
#[test]
fn a_receiver_that_never_says_what_has_become_of_the_guest() {
    let mut guest = hasty();
    for pause in PAUSES {
        let url = guest.unix_url();
        let peer = receiver_that_stops_before(Kind::Running, &url, pause);
        guest.send(&Send::to(&url).connections(1));
        guest.wait_for_migration("unconfirmed");
        let mut listener = peer.join().unwrap();
        // To who asks it only says the same.
        let asked = std::thread::spawn(move || {
            for _ in 0..2 {
                let mut link = accept(&mut listener);
                assert_eq!(link.purpose(), Purpose::Ask);
                flood(&mut link, pause);
            }
            listener
        });
        let listener = asked.join().unwrap();
        assert_eq!(guest.migration()["state"], "unconfirmed");
        guest.put("vm.migration-reclaim");
        guest.wait_for_failure(&["vm.migration-reclaim"]);
        drop(listener);
        guest.goes_on(TICK);
    }
    has_bounds(&guest);
}

/// Only what says that it does not run there lets it go on here.
#[test]
fn a_receiver_that_does_not_know_what_has_become_of_the_guest() {
    let mut guest = hasty();
    let endings = [
        (Outcome::NeverStarted, "could not be started"),
        (Outcome::Discarded, "was discarded"),
    ];
    for (ending, reason) in endings {
        let url = guest.unix_url();
        let mut listener = listener(&url);
        guest.send(&Send::to(&url).connections(1));
        let mut link = accept(&mut listener);
        take_until(&mut link, Kind::Describe);
        link.send(&Message::Prepared, &Unwatched).unwrap();
        take_until(&mut link, Kind::End);
        link.send(&Message::Ready, &Unwatched).unwrap();
        take_until(&mut link, Kind::Commit);
        drop(link);
        for outcome in [Outcome::Unknown, Outcome::Waiting, Outcome::Unknown, ending] {
            let mut link = accept(&mut listener);
            assert_eq!(link.purpose(), Purpose::Ask);
            // It has asked again, so the answer before this one was none.
            assert_eq!(guest.migration()["state"], "unconfirmed");
            link.send(&Message::Outcome(outcome), &Unwatched).unwrap();
        }
        guest.wait_for_failure(&[reason]);
        guest.goes_on(TICK);
    }
}

/// Stands between a sender and a receiver, up to READY; knows what both say.
struct Between {
    guest: Guest,
    there: Guest,
    received: Option<Asked>,
    url: String,
    to_sender: Link,
    to_receiver: Link,
}

impl Between {
    fn connected() -> Between {
        Between::connected_for(MIGRATE)
    }

    /// The receiver is told that it is for this.
    fn connected_for(purpose: Purpose) -> Between {
        let guest = hasty();
        let mut there = hasty_receiver(&guest);
        let url = guest.unix_url();
        let received = there.listen(&Receive::at(&url));
        let own = guest.unix_url();
        let mut listener = listener(&own);
        guest.send(&Send::to(&own).connections(1));
        let to_sender = accept(&mut listener);
        let to_receiver = dial(&url, to_sender.attempt(), purpose).unwrap();
        Between {
            guest,
            there,
            received: Some(received),
            url,
            to_sender,
            to_receiver,
        }
    }

    /// Passes on what the sender says, up to this; the last word of it, too.
    fn pass_until(&mut self, wanted: Kind) {
        loop {
            let message = self.to_sender.receive(&Unwatched).unwrap();
            let kind = message.kind();
            let is_last = !matches!(message, Message::Describe { last: Last::No, .. });
            match kind {
                // What was sent is for each connection to say.
                Kind::End => {
                    end_main(std::slice::from_mut(&mut self.to_receiver), &Unwatched).unwrap();
                }
                _ => self.to_receiver.send(&message, &Unwatched).unwrap(),
            }
            if kind == wanted && is_last {
                return;
            }
            answer(&mut self.to_sender, kind);
        }
    }

    /// Passes on all that the sender says of its guest, pages of every other block over `extra`, of which something else is said than
    /// what went over it, as far as `wrong` says so.
    fn pass_over_two(&mut self, extra: &mut Link, wrong: Tally) {
        loop {
            let message = self.to_sender.receive(&Unwatched).unwrap();
            let kind = message.kind();
            match &message {
                Message::Pages { gpa, .. } | Message::Zeros { gpa, .. } if gpa / BLOCK % 2 == 1 => {
                    extra.send(&message, &Unwatched).unwrap();
                }
                Message::End { .. } => {
                    let sent = [self.to_receiver.sent(), extra.sent()];
                    assert!(sent.iter().all(|tally| tally.frames > 0), "{sent:?}");
                    let end = |tallies: &[Tally]| Message::End {
                        tallies: tallies.to_vec().into(),
                    };
                    extra.send(&end(&sent[1..]), &Unwatched).unwrap();
                    let said = Tally {
                        frames: sent[1].frames + wrong.frames,
                        digest: sent[1].digest ^ wrong.digest,
                    };
                    let all = end(&[sent[0], said]);
                    self.to_receiver.send(&all, &Unwatched).unwrap();
                    return;
                }
                _ => self.to_receiver.send(&message, &Unwatched).unwrap(),
            }
            answer(&mut self.to_sender, kind);
        }
    }

    fn prepared(&mut self) {
        self.pass_until(Kind::Describe);
        take_until(&mut self.to_receiver, Kind::Prepared);
        self.to_sender.send(&Message::Prepared, &Unwatched).unwrap();
    }

    fn ready(&mut self) {
        self.prepared();
        self.pass_until(Kind::End);
        take_until(&mut self.to_receiver, Kind::Ready);
    }

    /// The guest is where it was, nobody has come, for these reasons, and neither side has grown.
    fn ends(self, reasons: &[&str]) -> (Guest, Guest) {
        let Between {
            mut guest,
            there,
            received,
            to_sender,
            to_receiver,
            ..
        } = self;
        drop((to_sender, to_receiver));
        guest.wait_for_failure(&[]);
        guest.goes_on(TICK);
        because(received.expect("a receiver").answer(), reasons);
        assert!(there.api().get("vm.info").is_err(), "there is a machine");
        has_bounds(&guest);
        has_bounds(&there);
        (guest, there)
    }
}

/// Others come all the time, and are not who is waited for.
#[test]
fn a_sender_whose_second_connection_never_comes() {
    let mut between = Between::connected_for(Purpose::Migrate { connections: 2 });
    between.prepared();
    let url = between.url.clone();
    let (told, heard) = channel::<()>();
    let strangers = std::thread::spawn(move || {
        let attempt = StreamId::draw().unwrap();
        let mut refused = 0;
        while heard.try_recv() == Err(TryRecvError::Empty) {
            if let Err(Error::Refused { .. }) = dial(&url, attempt, MIGRATE) {
                refused += 1;
            }
        }
        refused
    });
    let error = flood(&mut between.to_receiver, PAUSES[1]);
    drop(told);
    assert!(strangers.join().unwrap() > 0);
    assert!(matches!(error, Error::PeerFailed { .. }), "{error}");
    between.ends(&["connection 2 of 2 has not come", "connections=1"]);
}

/// Each connection is right by itself.
#[test]
fn a_sender_that_says_something_else_of_its_second_connection() {
    for (frames, digest) in [(0, 0), (1, 0), (0, 1)] {
        let wrong = Tally { frames, digest };
        let mut between = Between::connected_for(Purpose::Migrate { connections: 2 });
        between.prepared();
        let attempt = between.to_sender.attempt();
        let mut extra = dial(&between.url, attempt, Purpose::Join { index: 1 }).unwrap();
        between.pass_over_two(&mut extra, wrong);
        let mut reasons: &[&str] = &[];
        if wrong == Tally::default() {
            take_until(&mut between.to_receiver, Kind::Ready);
        } else {
            reasons = &["count or digest of all frames"];
            let error = between
                .to_receiver
                .receive(&Unwatched)
                .map(|message| message.kind());
            let error = error.expect_err("READY, or something else");
            assert!(matches!(error, Error::PeerFailed { .. }), "{error}");
        }
        between.ends(reasons);
    }
}

#[test]
fn a_sender_that_never_commits() {
    let mut between = Between::connected();
    between.ready();
    flood(&mut between.to_receiver, PAUSES[1]);
    between.ends(&["has not handed the guest over"]);
}

/// While it may have a lot to say, the receiver listens; but a cancel is heard.
#[test]
fn a_sender_that_never_sends_its_guest() {
    for pause in PAUSES {
        let mut between = Between::connected();
        between.prepared();
        let mut to_receiver = between.to_receiver;
        let flood = std::thread::spawn(move || {
            flood(&mut to_receiver, pause);
            to_receiver
        });
        between.there.wait_for_phase("precopy");
        std::thread::sleep(2 * PAUSES[1]);
        between.there.cancel_migration().expect("an end");
        between.to_receiver = flood.join().unwrap();
        between.ends(&["cancel"]);
    }
}

/// As long as it only is there, it may have a reason; but not for ever.
#[test]
fn a_side_that_does_not_go_on() {
    const REASON: &str = "has not gone on for";
    let [hectic, calm] = PAUSES;
    // Before it has described its guest.
    let mut guest = hasty();
    let mut there = hasty_receiver(&guest);
    let url = guest.unix_url();
    let received = there.listen(&Receive::at(&url));
    let mut link = dial(&url, StreamId::draw().unwrap(), MIGRATE).unwrap();
    flood(&mut link, hectic);
    because(received.answer(), &[REASON, "described"]);
    // One that is to prepare itself, however long the guest may take.
    let url = guest.unix_url();
    let peer = receiver_that_stops_before(Kind::Prepared, &url, hectic);
    let send = Send::to(&url).connections(1).timeout_strategy("ignore");
    guest.send(&send);
    guest.wait_for_failure(&[REASON, "prepares"]);
    peer.join().unwrap();
    guest.goes_on(TICK);
    // Before it has sent RAM.
    let mut between = Between::connected();
    between.prepared();
    flood(&mut between.to_receiver, calm);
    between.ends(&[REASON, "RAM"]);
}

/// The guest has come, and the receiver goes on answering whoever asks.
#[test]
fn a_sender_that_never_says_goodbye() {
    let mut between = Between::connected();
    between.ready();
    between.to_sender.send(&Message::Ready, &Unwatched).unwrap();
    between.pass_until(Kind::Commit);
    take_until(&mut between.to_receiver, Kind::Running);
    let timings = Vec::new().into();
    let running = Message::Running { since: 0, timings };
    between.to_sender.send(&running, &Unwatched).unwrap();
    take_until(&mut between.to_sender, Kind::Bye);
    between.guest.departed();
    flood(&mut between.to_receiver, PAUSES[0]);
    let attempt = between.to_sender.attempt();
    let mut link = dial(&between.url, attempt, Purpose::Ask).unwrap();
    let outcome = link.receive(&Unwatched).unwrap();
    assert_eq!(outcome, Message::Outcome(Outcome::Running));
    between.there.goes_on(TICK);
    has_bounds(&between.there);
}

/// It would make the receiver say of the first attempt what became of the second.
#[test]
fn a_second_attempt_with_the_number_of_the_first() {
    let mut between = Between::connected();
    between.prepared();
    let attempt = between.to_sender.attempt();
    let url = between.url.clone();
    let (guest, mut there) = between.ends(&[]);
    let received = there.listen(&Receive::at(&url));
    match dial(&url, attempt, MIGRATE) {
        Err(Error::Refused { reason, .. }) => assert!(reason.contains("already"), "{reason}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was taken"),
    }
    assert!(received.is_pending());
    guest.send(&Send::to(&url).connections(1));
    received.answer().expect("a guest");
    guest.departed();
    there.goes_on(TICK);
}
