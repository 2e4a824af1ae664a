//! Several questions that are on their way at a time, and a peer that writes its bytes by hand.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq;

use super::harness::HANG;
use super::peer::answer;
use super::wire::{LIMITS, SHORT, Wire, is_violation, number, question, wire};
use crate::vhost_user::connection::Reply;
use crate::vhost_user::message::HEADER_SIZE;
use crate::vhost_user::{Cause, Limits, Violation};

const THREE: [FrontendReq; 3] = [
    FrontendReq::GET_FEATURES,
    FrontendReq::GET_QUEUE_NUM,
    FrontendReq::GET_PROTOCOL_FEATURES,
];

fn ask_all(
    wire: &mut Wire,
    requests: &[FrontendReq],
    patience: Duration,
) -> Result<Vec<Reply>, Cause> {
    ask_all_within(wire, requests, || patience)
}

fn ask_all_within(
    wire: &mut Wire,
    requests: &[FrontendReq],
    patience: impl Fn() -> Duration,
) -> Result<Vec<Reply>, Cause> {
    let questions: Vec<_> = requests.iter().copied().map(question).collect();
    let mut replies = Vec::new();
    wire.connection.ask_all(&questions, patience, |_, reply| {
        replies.push(reply);
        Ok(())
    })?;
    Ok(replies)
}

/// What the peer answers to one of `THREE`.
fn answer_to(request: FrontendReq, value: u64) -> Vec<u8> {
    answer(request.into(), &number(value))
}

/// Answers `THREE` with 0, 1 and 2, as far as they are among `which`.
fn answer_those(wire: &mut Wire, which: &[u64]) {
    for at in which {
        let bytes = answer_to(THREE[*at as usize], *at);
        wire.peer.write_all(&bytes).unwrap();
    }
}

/// Waits for all of `THREE`, and answers those with 0, 1 and 2.
fn answers_after_all(wire: &Wire, which: impl Iterator<Item = u64>) -> JoinHandle<()> {
    let mut peer = wire.peer.try_clone().unwrap();
    let answers: Vec<_> = which.map(|at| answer_to(THREE[at as usize], at)).collect();
    thread::spawn(move || {
        peer.read_exact(&mut [0; 3 * HEADER_SIZE]).unwrap();
        peer.write_all(&answers.concat()).unwrap();
    })
}

#[test]
fn all_are_sent_before_the_first_is_answered() {
    let mut wire = wire(LIMITS);
    let replier = answers_after_all(&wire, 0..3);
    let replies = ask_all(&mut wire, &THREE, HANG).unwrap();
    let values: Vec<_> = replies.into_iter().map(|reply| reply.payload).collect();
    assert_eq!(values, [0, 1, 2].map(number));
    replier.join().unwrap();
    assert!(wire.connection.dead_at().is_none());
    assert!(ask_all(&mut wire, &[], HANG).unwrap().is_empty());
}

#[test]
fn answers_that_are_late_are_for_nobody() {
    for answered in 0..3 {
        let mut wire = wire(LIMITS);
        let replier = answers_after_all(&wire, 0..answered);
        // Three are sent, and those that are answered are waited for.
        let unhurried = Cell::new(3 + answered);
        let patience = || match unhurried.get() {
            0 => SHORT,
            left => {
                unhurried.set(left - 1);
                HANG
            }
        };
        let late = ask_all_within(&mut wire, &THREE, patience).unwrap_err();
        let expected = THREE[answered as usize].into();
        assert!(
            matches!(late, Cause::Late { request, .. } if request == expected),
            "{late}"
        );
        replier.join().unwrap();

        // One comes while nothing is asked, and the others with the next question.
        let rest: Vec<_> = (answered..3).collect();
        answer_those(&mut wire, &rest[..1]);
        wire.connection.idle().unwrap();
        assert_eq!(wire.connection.dead_at().is_none(), rest.len() == 1);
        answer_those(&mut wire, &rest[1..]);
        let mut peer = wire.peer.try_clone().unwrap();
        let replier = thread::spawn(move || {
            peer.read_exact(&mut [0; HEADER_SIZE]).unwrap();
            let bytes = answer_to(FrontendReq::GET_QUEUE_NUM, 7);
            peer.write_all(&bytes).unwrap();
        });
        let reply = wire.ask(FrontendReq::GET_QUEUE_NUM, HANG).unwrap();
        assert_eq!(reply.payload, number(7));
        replier.join().unwrap();
    }
}

#[test]
fn answers_come_in_the_order_of_the_questions() {
    let mut wire = wire(LIMITS);
    let replier = answers_after_all(&wire, [0, 2].into_iter());
    let cause = ask_all(&mut wire, &THREE, HANG).unwrap_err();
    let wrong = Violation::WrongRequest(THREE[2].into());
    assert!(is_violation(&cause, &wrong), "{cause}");
    assert!(matches!(
        wire.ask(FrontendReq::GET_FEATURES, HANG),
        Err(Cause::Poisoned)
    ));
    replier.join().unwrap();
}

/// As those of the `vhost` crate do, and virtiofsd.
#[test]
fn what_a_back_end_did_not_like_is_known_when_it_closes() {
    let mut wire = wire(LIMITS);
    let mut peer = std::mem::replace(&mut wire.peer, UnixStream::pair().unwrap().0);
    let replier = thread::spawn(move || {
        // It does not read the others.
        peer.read_exact(&mut [0; HEADER_SIZE]).unwrap();
        peer.write_all(&answer_to(THREE[0], 1)).unwrap();
    });
    let refused = |request, _| Err(Cause::Refused { request });
    let questions = THREE.map(question);
    let cause = wire
        .connection
        .ask_all(&questions, || HANG, refused)
        .unwrap_err();
    let first = THREE[0].into();
    assert!(
        matches!(cause, Cause::Refused { request } if request == first),
        "{cause}"
    );
    replier.join().unwrap();
    let cause = wire.connection.idle().unwrap_err();
    assert!(matches!(cause, Cause::Closed { .. }), "{cause}");
}

/// A back-end that waits until its answers are taken before it reads on, and more questions than a socket has room for.
#[test]
fn neither_side_waits_for_the_other() {
    const MANY: usize = 5000;
    let mut wire = wire(LIMITS);
    let mut peer = wire.peer.try_clone().unwrap();
    let replier = thread::spawn(move || {
        for value in 0..MANY as u64 {
            peer.read_exact(&mut [0; HEADER_SIZE]).unwrap();
            let bytes = answer_to(FrontendReq::GET_FEATURES, value);
            peer.write_all(&bytes).unwrap();
        }
    });
    let replies = ask_all(&mut wire, &[FrontendReq::GET_FEATURES; MANY], HANG).unwrap();
    let values = replies.into_iter().map(|reply| reply.payload);
    assert!(values.eq((0..MANY as u64).map(|value| number(value).to_vec())));
    replier.join().unwrap();
}

/// What a back-end was asked behind something else it cannot answer before that.
#[test]
fn each_answer_has_its_own_time() {
    const APART: Duration = Duration::from_millis(700);
    let limits = Limits {
        dead: Duration::from_secs(1),
        ..LIMITS
    };
    let mut wire = wire(limits);
    let mut peer = wire.peer.try_clone().unwrap();
    let replier = thread::spawn(move || {
        for request in THREE {
            peer.read_exact(&mut [0; HEADER_SIZE]).unwrap();
            thread::sleep(APART);
            peer.write_all(&answer_to(request, 0)).unwrap();
        }
    });
    let began = Instant::now();
    assert_eq!(ask_all(&mut wire, &THREE, HANG).unwrap().len(), 3);
    assert!(began.elapsed() > limits.dead);
    replier.join().unwrap();
}

/// A back-end that stands still with its socket full.
#[test]
fn what_could_not_be_sent_goes_out_before_the_next_question() {
    // Too large for the socket, all in all.
    let payload = vec![7; 64 << 10];
    let mut wire = wire(LIMITS);
    let large: Vec<_> = THREE
        .iter()
        .cycle()
        .take(12)
        .map(|request| {
            let mut large = question(*request);
            large.request.payload = &payload;
            large
        })
        .collect();
    let late = wire
        .connection
        .ask_all(&large, || SHORT, |_, _| Ok(()))
        .unwrap_err();
    assert!(matches!(late, Cause::Late { .. }), "{late}");
    // An answer to the first one, while the last of them is still on its way.
    answer_those(&mut wire, &[0]);
    wire.connection.idle().unwrap();
    assert!(wire.connection.dead_at().is_some());
    let mut peer = wire.peer.try_clone().unwrap();
    let replier = thread::spawn(move || {
        let mut requests = Vec::new();
        loop {
            let mut header = [0; HEADER_SIZE];
            peer.read_exact(&mut header).unwrap();
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
            let mut bytes = vec![0; word(8) as usize];
            peer.read_exact(&mut bytes).unwrap();
            requests.push(word(0));
            if requests.len() > 1 {
                peer.write_all(&answer(word(0), &number(5))).unwrap();
            }
            if bytes.is_empty() {
                return requests.len();
            }
        }
    });
    let reply = wire.ask(FrontendReq::GET_QUEUE_NUM, HANG).unwrap();
    assert_eq!(reply.payload, number(5));
    // Those that had been sent, at least in part, and this one.
    assert!((3..=12).contains(&replier.join().unwrap()));
}
