//! Back-ends that break the protocol at each message of a pause and of the resumption after it: the guest goes on, with
//! its disk or without, and pauses work again.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use ferry_tests::backend::message::FrontendReq as Req;
use ferry_tests::backend::{Backend, Misbehaviour as Does, Running, When};

use crate::controlled::Controlled;

/// Once it has written, the disk is idle, so that each message of a pause is known.
const GUEST: &str = "mode=blk-writer+ticks op=write count=100 report=50 ticks=1000000 period=10";

const TIMEOUTS: [&str; 4] = ["--request-timeout", "2", "--dead-timeout", "6"];
const LATE: Duration = Duration::from_secs(3);

/// What a pause asks of a disk with one queue, and which of these messages in the back-end's life that is.
const PAUSE: [(Req, usize); 2] = [(Req::GET_FEATURES, 2), (Req::GET_VRING_BASE, 1)];

/// The same of what follows it.
const RESUME: [(Req, usize); 6] = [
    (Req::SET_VRING_NUM, 2),
    (Req::SET_VRING_BASE, 2),
    (Req::SET_VRING_ADDR, 2),
    (Req::SET_VRING_CALL, 2),
    (Req::SET_VRING_KICK, 2),
    (Req::SET_VRING_ENABLE, 2),
];

/// What is to come of it.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// The pause fails, and so does the disk, for this reason.
    PauseFails(&'static str),
    /// The pause is given up when its time is over; later the disk fails, for this reason.
    GivenUpAndDead(&'static str),
    /// The pause is given up when its time is over; the disk works on.
    GivenUp,
    /// The pause succeeds; going on, the disk fails, for this reason.
    ResumeFails(&'static str),
    /// Nothing comes of it.
    Works,
}
use Outcome::{GivenUp, GivenUpAndDead, PauseFails, ResumeFails, Works};

struct Row {
    at: (Req, usize),
    does: Does,
    outcome: Outcome,
}

fn rows(at: &[(Req, usize)], does: Does, outcome: Outcome) -> impl Iterator<Item = Row> {
    at.iter().map(move |&at| Row { at, does, outcome })
}

impl Row {
    fn check(&self) {
        let (request, n) = self.at;
        let disk = Backend::blk("1M")
            .on(When::Nth(request, n), self.does)
            .start();
        let ferry = Controlled::start_with(&TIMEOUTS);
        ferry.boot(GUEST, &[disk.socket()]);
        ferry.wait_for_more("tick", 1);
        let pause = ferry.put("vm.pause");
        match self.outcome {
            PauseFails(reason) => pause.refused(500, reason),
            GivenUp | GivenUpAndDead(_) => pause.refused(500, "not brought to rest"),
            ResumeFails(_) => {
                pause.done();
                ferry.put("vm.resume").refused(500, "disk0");
            }
            Works => {
                pause.done();
                let resume = ferry.put("vm.resume");
                // The answer says so when the disk is later than the guest.
                if resume.status != 204 {
                    resume.refused(500, "disk0: not restarted");
                }
            }
        }
        assert_eq!(ferry.state(), "Running");
        ferry.wait_for_more("tick", 3);
        match self.outcome {
            PauseFails(reason) | GivenUpAndDead(reason) | ResumeFails(reason) => {
                has_failed(&ferry, reason);
            }
            GivenUp | Works => works(&ferry, &disk),
        }
        // What has failed is not waited for, and what works works.
        ferry.wait_until("a pause that succeeds", || {
            (ferry.put("vm.pause").status == 204).then_some(())
        });
        ferry.put("vm.resume").done();
        ferry.wait_for_more("tick", 3);
    }
}

fn state(ferry: &Controlled) -> String {
    let info = ferry.info();
    let state = info["device_tree"]["disk0"]["state"].as_str();
    state.expect("a state").to_owned()
}

/// The disk has failed, which is logged once.
fn has_failed(ferry: &Controlled, reason: &str) {
    ferry.wait_until("a failed disk", || (state(ferry) == "Failed").then_some(()));
    let log = ferry.log();
    let lines = log.lines().filter(|line| line.contains("has failed"));
    let lines: Vec<&str> = lines.collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(
        lines[0].contains("disk0") && lines[0].contains(reason),
        "{log}"
    );
}

fn works(ferry: &Controlled, disk: &Running) {
    ferry.wait_until("a disk that runs", || {
        (state(ferry) == "Active").then_some(())
    });
    assert!(!ferry.log().contains("has failed"), "{}", ferry.log());
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

/// Checks all rows, a few at a time, and reports all that failed.
fn check_all(rows: impl Iterator<Item = Row>) {
    let rows = Mutex::new(rows.collect::<Vec<_>>().into_iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let row = rows.lock().unwrap().next();
                    let Some(row) = row else {
                        return;
                    };
                    let name = format!("{:?} at {:?}: {:?}", row.does, row.at, row.outcome);
                    if thread::scope(|scope| scope.spawn(|| row.check()).join()).is_err() {
                        failures.lock().unwrap().push(name);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn it_closes_at_each_message_of_a_pause() {
    let reason = "closed the connection";
    check_all(rows(&PAUSE, Does::Close, PauseFails(reason)).chain(rows(
        &RESUME,
        Does::Close,
        ResumeFails(reason),
    )));
}

#[test]
fn it_never_answers_at_each_message_of_a_pause() {
    let reason = "taken for dead";
    check_all(
        rows(&PAUSE, Does::NeverAnswer, GivenUpAndDead(reason)).chain(rows(
            &RESUME,
            Does::NeverAnswer,
            ResumeFails(reason),
        )),
    );
}

#[test]
fn it_answers_each_message_of_a_pause_late() {
    check_all(rows(&PAUSE, Does::Late(LATE), GivenUp).chain(rows(
        &RESUME,
        Does::Late(LATE),
        Works,
    )));
}

#[test]
fn it_answers_something_else_at_each_message_of_a_pause() {
    let reason = "violated the vhost-user protocol";
    let wrong = [
        Does::WrongRequest,
        Does::Longer(1),
        Does::Shorter(1),
        Does::ClaimsSize(u32::MAX),
        Does::Flags(1),
        Does::Fds(1),
        Does::Fds(33),
    ];
    check_all(wrong.into_iter().flat_map(|does| {
        rows(&PAUSE, does, PauseFails(reason)).chain(rows(&RESUME[1..2], does, ResumeFails(reason)))
    }));
}

#[test]
fn it_refuses_to_go_on_after_a_pause() {
    check_all(rows(&RESUME, Does::Refuse, ResumeFails("refused")));
}

#[test]
fn it_says_that_it_stopped_where_it_cannot_have_been() {
    // Queue 0 at an index that was never made available, and another queue.
    let answers = [0x1234u64 << 32, 1];
    check_all(answers.into_iter().flat_map(|answer| {
        rows(
            &PAUSE[1..],
            Does::Number(answer),
            PauseFails("violated the vhost-user protocol"),
        )
    }));
}
