//! Random requests by several clients at once, compared with a model.
//!
//! The model knows four states and what each request does in them. Ferry's answers are right if there is an order of all
//! requests, each of them somewhere between its beginning and its answer, in which the model gives the same answers.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use ferry_api::client::Client;
use ferry_tests::backend::Backend;

use crate::controlled::{Controlled, put};
use crate::life_cycle::TICKS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Absent,
    Created,
    Running,
    Paused,
    Shutdown,
}

use State::*;

const REQUESTS: [&str; 7] = [
    "vm.create",
    "vm.boot",
    "vm.pause",
    "vm.resume",
    "vm.shutdown",
    "vm.reboot",
    "vm.delete",
];

/// The state after a request, or the status of its refusal.
fn model(state: State, request: &str) -> Result<State, u16> {
    match (request, state) {
        ("vm.create", Absent) => Ok(Created),
        ("vm.create", _) => Err(500),
        ("vm.delete", _) => Ok(Absent),
        (_, Absent) => Err(404),
        ("vm.boot", Created | Shutdown) => Ok(Running),
        ("vm.pause", Running) => Ok(Paused),
        ("vm.resume", Paused) => Ok(Running),
        ("vm.shutdown", Running | Paused) => Ok(Shutdown),
        ("vm.reboot", Running | Paused) => Ok(Running),
        _ => Err(500),
    }
}

/// A request and its answer.
#[derive(Clone)]
struct Event {
    request: &'static str,
    status: u16,
    text: String,
    /// Since the round began.
    begun: Duration,
    ended: Duration,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Event {
            request,
            status,
            ref text,
            begun,
            ended,
        } = self;
        let length = ended - begun;
        write!(f, "{begun:?} for {length:?}: {request} -> {status} {text}")
    }
}

impl Event {
    /// Whether another request has taken the ground from under this one. Then it may have done its work before that, or
    /// not.
    fn was_overtaken(&self) -> bool {
        ["given up", "ended meanwhile"]
            .iter()
            .any(|text| self.text.contains(text))
    }

    /// The states that this event may lead to from `state`.
    fn outcomes(&self, state: State) -> Vec<State> {
        match model(state, self.request) {
            Ok(next) if self.status == 204 => vec![next],
            Ok(next) if self.was_overtaken() => vec![next, state],
            Err(status) if self.status == status => vec![state],
            _ => Vec::new(),
        }
    }
}

/// Whether there is an order that the model agrees with, and which states it may end in.
fn explain(events: &[Event]) -> HashSet<State> {
    let mut seen = HashSet::new();
    let mut ends = HashSet::new();
    let mut open = vec![(Absent, 0u64)];
    let all = (1u64 << events.len()) - 1;
    while let Some((state, done)) = open.pop() {
        if !seen.insert((state, done)) {
            continue;
        }
        if done == all {
            ends.insert(state);
            continue;
        }
        let left = || (0..events.len()).filter(|index| done & (1 << index) == 0);
        // The next one has begun before any other that is left has ended.
        let bound = left().map(|index| events[index].ended).min();
        for index in left().filter(|&index| Some(events[index].begun) <= bound) {
            for next in events[index].outcomes(state) {
                open.push((next, done | 1 << index));
            }
        }
    }
    ends
}

/// Numbers that look random, the same for the same seed (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn ask(client: &Client, request: &'static str, definition: &str, start: Instant) -> Event {
    let body = match request {
        "vm.create" => definition,
        _ => "",
    };
    let begun = start.elapsed();
    let answer = put(client, request, body.as_bytes());
    Event {
        request,
        status: answer.status,
        text: answer.text,
        begun,
        ended: start.elapsed(),
    }
}

#[test]
fn random_requests_by_several_clients_are_answered_as_by_the_model() {
    const CLIENTS: u64 = 4;
    const EACH: usize = 12;
    let disk = Backend::blk("1M").start();
    let guest = format!("mode=blk-writer+ticks op=write count=50 ticks=1000000 {TICKS}");
    for round in 1..=12u64 {
        let seed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let ferry = Controlled::start();
        let definition = ferry.definition(&guest, &[disk.socket()]).to_string();
        let start = Instant::now();
        let barrier = Arc::new(Barrier::new(CLIENTS as usize));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (client, barrier) = (ferry.client(), barrier.clone());
                let definition = definition.clone();
                std::thread::spawn(move || {
                    let mut random = Random(seed + number);
                    barrier.wait();
                    (0..EACH)
                        .map(|_| {
                            let index = random.next(REQUESTS.len() as u64) as usize;
                            ask(&client, REQUESTS[index], &definition, start)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let mut events: Vec<Event> = Vec::new();
        for client in clients {
            events.extend(client.join().expect("a client"));
        }
        events.sort_by_key(|event| event.begun);
        let ends = explain(&events);
        let state = match ferry.get("vm.info").status {
            404 => "Absent".to_owned(),
            _ => ferry.state(),
        };
        assert!(
            ends.iter().any(|end| format!("{end:?}") == state),
            "round {round}: Ferry is {state}, the model {ends:?}, after {events:#?}\n{}",
            ferry.log()
        );
        ferry.put("vmm.shutdown").done();
        assert_eq!(ferry.end(), 0);
    }
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn the_model_finds_a_wrong_answer() {
    let event = |request, status, begun: u64, ended: u64| Event {
        request,
        status,
        text: String::new(),
        begun: Duration::from_millis(begun),
        ended: Duration::from_millis(ended),
    };
    let right = [
        event("vm.create", 204, 0, 1),
        event("vm.pause", 500, 2, 9),
        event("vm.boot", 204, 3, 8),
    ];
    assert_eq!(explain(&right), HashSet::from([Running]));
    let wrong = [
        event("vm.create", 204, 0, 1),
        event("vm.boot", 204, 2, 3),
        event("vm.pause", 500, 4, 5),
    ];
    assert_eq!(explain(&wrong), HashSet::new());
}
