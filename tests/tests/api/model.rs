//! Random requests by several clients at once, compared with a model.
//!
//! The model knows the states, the transitions, and what each request does in them. Ferry's answers are right if there is
//! an order in which the model gives the same ones. Each request has its place somewhere between its beginning and its
//! answer; one that is carried out has two, because during the transition others are refused.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use ferry_api::client::Client;
use ferry_tests::backend::Backend;

use crate::controlled::{Controlled, get, put};
use crate::life_cycle::TICKS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Absent,
    Created,
    Booting,
    Running,
    Pausing,
    Paused,
    Resuming,
    Rebooting,
    ShuttingDown,
    Shutdown,
    Deleting,
}

use State::*;

const REQUESTS: [&str; 10] = [
    "vm.create",
    "vm.boot",
    "vm.pause",
    "vm.resume",
    "vm.shutdown",
    "vm.reboot",
    "vm.delete",
    "vm.info",
    "vm.power-button",
    "vm.remove-device",
];

/// The state after a request has been accepted, or the status of its refusal.
fn accept(state: State, request: &str) -> Result<State, u16> {
    match (request, state) {
        ("vm.info", Absent) => Err(404),
        ("vm.info", _) => Ok(state),
        ("vm.create", Absent) => Ok(Created),
        ("vm.create", _) => Err(500),
        ("vm.delete", Absent) => Ok(Absent),
        ("vm.delete", _) => Ok(Deleting),
        (_, Absent | Deleting) => Err(404),
        ("vm.power-button", Running | Resuming) => Ok(state),
        // There is no device of that name.
        ("vm.remove-device", Created | Shutdown) => Err(404),
        ("vm.boot", Created | Shutdown) => Ok(Booting),
        ("vm.pause", Running) => Ok(Pausing),
        ("vm.resume", Paused) => Ok(Resuming),
        ("vm.shutdown", Booting | Running | Pausing | Paused | Resuming | Rebooting) => {
            Ok(ShuttingDown)
        }
        ("vm.reboot", Running | Pausing | Paused | Resuming) => Ok(Rebooting),
        _ => Err(500),
    }
}

/// The state after a request has been carried out. If it was overtaken by another one, it changes nothing any more.
fn finish(state: State, request: &str) -> State {
    match (request, state) {
        ("vm.boot", Booting) | ("vm.resume", Resuming) | ("vm.reboot", Rebooting) => Running,
        ("vm.pause", Pausing) => Paused,
        ("vm.shutdown", ShuttingDown) => Shutdown,
        ("vm.delete", Deleting) => Absent,
        _ => state,
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
    /// Whether it was accepted, and then another request took the ground from under it.
    fn was_overtaken(&self) -> bool {
        ["given up", "ended meanwhile"]
            .iter()
            .any(|text| self.text.contains(text))
    }

    fn succeeded(&self) -> bool {
        matches!(self.status, 200 | 204)
    }

    /// The state that its acceptance or refusal leads to from `state`, if the model agrees with its answer.
    fn accepted(&self, state: State) -> Option<State> {
        match accept(state, self.request) {
            Ok(next) => (self.succeeded() || self.was_overtaken()).then_some(next),
            Err(status) => (self.status == status && !self.was_overtaken()).then_some(state),
        }
    }
}

/// A place in the order.
#[derive(Clone, Copy)]
enum Step<'a> {
    Accepted(&'a Event),
    Finished(&'a Event),
}

impl Step<'_> {
    fn event(&self) -> &Event {
        match self {
            Step::Accepted(event) | Step::Finished(event) => event,
        }
    }

    fn next(&self, state: State) -> Option<State> {
        match self {
            Step::Accepted(event) => event.accepted(state),
            Step::Finished(event) => Some(finish(state, event.request)),
        }
    }
}

/// The states that an order with which the model agrees may end in; none if there is no such order.
fn explain(events: &[Event]) -> HashSet<State> {
    let mut steps: Vec<Step<'_>> = events.iter().map(Step::Accepted).collect();
    let count = steps.len();
    let carried_out = events.iter().filter(|event| event.succeeded());
    steps.extend(carried_out.map(Step::Finished));
    let accepted_at = |event: &Event| (0..count).find(|&at| std::ptr::eq(steps[at].event(), event));

    let mut seen = HashSet::new();
    let mut ends = HashSet::new();
    let mut open = vec![(Absent, 0u128)];
    while let Some((state, done)) = open.pop() {
        if !seen.insert((state, done)) {
            continue;
        }
        if done == (1 << steps.len()) - 1 {
            ends.insert(state);
            continue;
        }
        let is_left = |at: &usize| done & (1 << at) == 0;
        let left = (0..steps.len()).filter(is_left);
        // The next one has begun before any other that is left has ended.
        let bound = left.clone().map(|at| steps[at].event().ended).min();
        for at in left.filter(|&at| Some(steps[at].event().begun) <= bound) {
            if let Step::Finished(event) = steps[at]
                && accepted_at(event).is_none_or(|accepted| is_left(&accepted))
            {
                continue;
            }
            if let Some(next) = steps[at].next(state) {
                open.push((next, done | 1 << at));
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
        "vm.remove-device" => r#"{"id":"nothing"}"#,
        _ => "",
    };
    let begun = start.elapsed();
    let answer = match request {
        "vm.info" => get(client, request),
        _ => put(client, request, body.as_bytes()),
    };
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
    const EACH: usize = 14;
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
