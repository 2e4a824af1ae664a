//! Sides that say that they are there, and nothing else.

use super::*;
use crate::link::order::Side;
use crate::link::wire::{Direction, FRAME_HEADER};

const SHORT: Duration = Duration::from_millis(200);
/// As fast as it goes, and now and then.
const PAUSES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(10)];

/// Does something while the other side takes nothing, and says that it is there.
fn flooded<T>(mut other: Link, pause: Duration, act: impl FnOnce() -> T) -> T {
    let over = Button::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.cancelled() && other.send(&Message::Alive, &over).is_ok() {
                thread::sleep(pause);
            }
        });
        let begun = Instant::now();
        let outcome = act();
        over.press();
        assert!(begun.elapsed() < TOO_LONG);
        outcome
    })
}

/// Sends until nothing more is taken.
fn fill(link: &mut Link, watch: &dyn Watch) -> Error {
    let data = vec![1; FRAME_DATA_MOST];
    let pages = Message::Pages {
        gpa: 0,
        data: &data,
    };
    loop {
        if let Err(error) = link.send(&pages, watch) {
            return error;
        }
    }
}

/// Presses a button after a while.
fn cancelled<T>(act: impl FnOnce(&Button) -> T) -> T {
    let button = Button::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            button.press();
        });
        act(&button)
    })
}

#[test]
fn one_that_takes_nothing_is_given_up() {
    for pause in PAUSES {
        let [mut sender, receiver] = copying_pair();
        sender.set_silence(SHORT);
        let error = flooded(receiver, pause, || fill(&mut sender, &Unwatched));
        assert!(matches!(error, Error::Silent { .. }), "{error}");
    }
}

#[test]
fn a_write_that_is_blocked_can_be_cancelled() {
    for pause in PAUSES {
        let [mut sender, receiver] = copying_pair();
        let error = flooded(receiver, pause, || {
            cancelled(|watch| fill(&mut sender, watch))
        });
        assert!(error.is_cancelled(), "{error}");
    }
}

#[test]
fn a_message_that_does_not_come_is_late() {
    for pause in PAUSES {
        for from_sender in [true, false] {
            let [sender, receiver] = copying_pair();
            let (mut hears, floods) = match from_sender {
                true => (receiver, sender),
                false => (sender, receiver),
            };
            let message = flooded(floods, pause, || {
                let deadline = Instant::now() + SHORT;
                let message = hears.receive_for(&Unwatched, deadline);
                assert!(Instant::now() >= deadline);
                message.map(|message| message.is_none())
            });
            assert!(message.unwrap());
        }
    }
}

#[test]
fn a_wait_without_a_deadline_can_be_cancelled() {
    for pause in PAUSES {
        let [sender, mut receiver] = copying_pair();
        let error = flooded(sender, pause, || {
            cancelled(|watch| receiver.receive(watch).map(drop).unwrap_err())
        });
        assert!(error.is_cancelled(), "{error}");
    }
}

#[test]
fn nobody_waits_for_last_words_that_do_not_come() {
    for pause in PAUSES {
        let [mut sender, receiver] = copying_pair();
        flooded(receiver, pause, || {
            let lost = Error::Closed {
                peer: sender.peer().clone(),
                step: "while RAM is copied over an extra connection",
            };
            assert!(sender.explain(lost).is_lost());
            sender.notice().unwrap();
            sender.give_up(&Failure::new(["enough"]));
        });
    }
}

/// What is behind it is not lost.
#[test]
fn a_failure_behind_many_of_them_is_heard() {
    let [mut sender, mut receiver] = copying_pair();
    for _ in 0..1000 {
        receiver.send(&Message::Alive, &Unwatched).unwrap();
    }
    receiver.give_up(&Failure::new(["no room"]));
    let error = fill(&mut sender, &Unwatched);
    assert!(matches!(error, Error::PeerFailed { .. }), "{error}");
}

/// A message whose bytes come one by one is late like one that does not come, and then it is there.
#[test]
fn a_message_that_trickles_is_late_and_not_lost() {
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    let mut client = UnixStream::connect(place.path()).unwrap();
    let purpose = Purpose::Join { index: 1 };
    client.write_all(&preamble(purpose).encode()).unwrap();
    let mut link = listener.accept(&Unwatched, None).unwrap();
    link.accept_it().unwrap();
    let data = [7; 4096];
    let head = 0u64.to_be_bytes();
    let header = Direction::new(ATTEMPT, 1, Side::Sender).header(Kind::Pages, &head, &data);
    let frame = [&header[..], &head, &data].concat();
    let (slow, rest) = frame.split_at(FRAME_HEADER + 100);
    thread::scope(|scope| {
        scope.spawn(|| {
            for byte in slow {
                client.write_all(&[*byte]).unwrap();
                thread::sleep(Duration::from_millis(3));
            }
        });
        let deadline = Instant::now() + Duration::from_millis(100);
        assert_eq!(link.receive_for(&Unwatched, deadline).unwrap(), None);
    });
    client.write_all(rest).unwrap();
    let message = link.receive(&Unwatched).unwrap();
    assert_eq!(
        message,
        Message::Pages {
            gpa: 0,
            data: &data
        }
    );
}
