//! A back-end that misbehaves at each message in turn: every outcome is bounded, named and told once.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use super::harness::{
    Event, HANG, LOW, Observer, Report, TestRam, Transport, failure, next, started,
};
use super::peer::{Offer, Peer, Reaction, Script, answer};
use super::ring::Ring;
use crate::chain;
use crate::vhost_user::{DeviceState, Error, Limits, VhostUserDevice};
use crate::virtio::{Activation, VirtioDevice};

const QUICK: Limits = Limits {
    connect: HANG,
    request: Duration::from_millis(300),
    dead: Duration::from_millis(600),
};

/// How a device's whole life with a back-end went.
enum Outcome {
    /// Nothing was amiss.
    Fine,
    /// It never came up.
    NotStarted(Error),
    /// It came up and failed.
    Failed(Error),
}

/// Starts a device, activates it, resets it, and checks that every call is answered.
fn live(peer: &Peer, limits: Limits, ram: &TestRam) -> Outcome {
    let (observer, reports) = Observer::new();
    VhostUserDevice::start(peer.disk(), limits, Arc::clone(&ram.regions), observer).unwrap();
    let device = match started(&reports) {
        Ok(device) => device,
        Err(error) => return Outcome::NotStarted(error),
    };
    let (transport, events) = Transport::new();
    device.attach(transport);
    let ring = Ring::new(ram, 0, LOW);
    device.activate(Activation {
        features: device.features(),
        queues: vec![ring.queue.clone()],
    });
    answered(&events, |event| matches!(event, Event::Activated(_)));
    device.reset();
    answered(&events, |event| *event == Event::ResetDone);
    if device.state() == DeviceState::Idle {
        assert!(device.error().is_none());
        return Outcome::Fine;
    }
    assert_eq!(device.state(), DeviceState::Failed);
    let error = failure(&reports);
    assert!(device.error().is_some());
    told_once(&reports);
    Outcome::Failed(error)
}

/// The answer comes; a failure may be told before it.
fn answered(events: &Receiver<Event>, is_answer: impl Fn(&Event) -> bool) {
    let first = next(events);
    if is_answer(&first) {
        return;
    }
    assert_eq!(first, Event::Failed);
    assert!(is_answer(&next(events)));
}

fn told_once(reports: &Receiver<Report>) {
    assert!(reports.try_recv().is_err());
}

fn at(number: usize, reaction: impl Fn(u32) -> Reaction + Send + 'static) -> Script {
    Box::new(move |seen| match seen.number == number {
        true => reaction(seen.code.0),
        false => Reaction::Honest,
    })
}

/// How many messages an undisturbed life takes.
fn messages(ram: &TestRam) -> usize {
    let peer = Peer::honest();
    assert!(matches!(live(&peer, Limits::default(), ram), Outcome::Fine));
    peer.seen.try_iter().count()
}

/// Does `reaction` at each message in turn; each time the device fails, with `words` in the reason.
fn at_each_message(limits: Limits, words: &[&str], reaction: fn(u32) -> Reaction) {
    let ram = TestRam::new();
    let count = messages(&ram);
    assert!(count > 15);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let lives: Vec<_> = (0..count)
            .map(|number| {
                scope.spawn(move || {
                    let peer = Peer::start(Offer::default(), at(number, reaction));
                    live(&peer, limits, &TestRam::new())
                })
            })
            .collect();
        lives.into_iter().map(|life| life.join().unwrap()).collect()
    });
    let mut not_started = 0;
    let mut failed = 0;
    for (number, outcome) in outcomes.iter().enumerate() {
        let error = match outcome {
            Outcome::Fine => continue,
            Outcome::NotStarted(error) => {
                not_started += 1;
                error
            }
            Outcome::Failed(error) => {
                failed += 1;
                error
            }
        };
        let line = chain(error);
        assert!(line.contains("disk0"), "{line}");
        assert!(
            words.iter().any(|word| line.contains(word)),
            "message {number}: {line}"
        );
    }
    // Two messages of the start have no answer that could be wrong.
    assert!(not_started >= 5 && failed >= 8, "{not_started} {failed}");
}

#[test]
fn it_closes_at_each_message() {
    at_each_message(Limits::default(), &["closed"], |_| Reaction::Close);
}

#[test]
fn it_never_answers_at_each_message() {
    // Or the answer to the next request comes, which has been sent already.
    let words = ["has not answered", "its answer is to request SET_VRING_"];
    at_each_message(QUICK, &words, |_| Reaction::Silence);
}

#[test]
fn it_answers_something_else_at_each_message() {
    at_each_message(Limits::default(), &["request", "nobody asked"], |code| {
        Reaction::Send(answer(code + 1, &[0; 8]), 0)
    });
}

#[test]
fn it_answers_with_a_wrong_size_at_each_message() {
    let words = ["bytes of payload", "nobody asked", "request"];
    at_each_message(Limits::default(), &words, |code| {
        Reaction::Send(answer(code, &[0; 7]), 0)
    });
}

#[test]
fn it_sends_33_file_descriptors_at_each_message() {
    let words = ["file descriptors", "nobody asked", "request"];
    at_each_message(Limits::default(), &words, |code| {
        Reaction::Send(answer(code, &[0; 8]), 33)
    });
}

#[test]
fn it_says_more_than_it_was_asked_at_each_message() {
    at_each_message(Limits::default(), &["nobody asked", "request"], |_| {
        Reaction::Extra(vec![1; 12])
    });
}

#[test]
fn it_sends_garbage_at_each_message() {
    let words = ["request", "nobody asked"];
    at_each_message(Limits::default(), &words, |_| {
        Reaction::Send(vec![0xff; 100], 0)
    });
}
