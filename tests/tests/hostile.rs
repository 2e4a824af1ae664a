//! Back-ends that break the protocol, or are slow, or silent: whatever they do, the outcome is bounded and is
//! one of three, and Ferry names the device and the reason.
//!
//! The guest tries the disk once, resets it, and goes on; see `guest/blk.c`.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use ferry_tests::backend::message::FrontendReq as Req;
use ferry_tests::backend::{
    Backend, Misbehaviour as Does, Running, When, feature, protocol, request_name,
};
use ferry_tests::{Ended, Ferry};

const CMDLINE: &str = "mode=blk-try+blk-reset+ticks patience=20000 ticks=3 period=10";

/// What is to come of it.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Ferry ends with status 1 before the guest has run, and says this.
    NoStart(&'static str),
    /// The guest runs, finds its disk broken, resets it and goes on; Ferry says this, once.
    DeviceFails(&'static str),
    /// Disk and guest work, although the log has this to say (nothing in particular if empty).
    Works(&'static str),
}
use Outcome::{DeviceFails, NoStart, Works};

/// --request-timeout and --dead-timeout, in seconds, and something in between.
const REQUEST: u32 = 2;
const LATE: Duration = Duration::from_secs(3);
const DEAD: u32 = 5;

fn backend() -> Backend {
    Backend::blk("1M")
}

fn ferry(disk: &Running) -> Ferry {
    Ferry::tiny(CMDLINE)
        .request_timeout(REQUEST)
        .dead_timeout(DEAD)
        .with_disk(disk)
}

/// A row of a table.
struct Row {
    name: String,
    backend: Backend,
    outcome: Outcome,
}

impl Row {
    /// Runs a guest with this back-end and finds out whether the outcome is the expected one.
    fn check(self) -> Result<(), String> {
        let disk = self.backend.start();
        let ended = ferry(&disk).run();
        judge(&ended, self.outcome)
            .map_err(|reason| format!("{}: {reason}\n{}", self.name, ended.transcript()))
    }
}

fn judge(ended: &Ended, expected: Outcome) -> Result<(), String> {
    let problem = |what: &str| Err(format!("expected {expected:?}, but {what}"));
    let (status, says) = match expected {
        NoStart(says) => (1, says),
        DeviceFails(says) | Works(says) => (0, says),
    };
    if ended.status != Some(status) {
        return problem(&format!("Ferry's status is {:?}", ended.status));
    }
    if !says.is_empty() {
        let lines = ended.log_lines(says);
        if lines.len() != 1 || !lines[0].0.contains("disk0") {
            return problem(&format!("the log says so {} times", lines.len()));
        }
    }
    if let NoStart(_) = expected {
        return match ended.serial.is_empty() {
            true => Ok(()),
            false => problem("the guest has run"),
        };
    }
    if ended.lines("tiny: tick n=2").len() != 1 || ended.lines("tiny: done").len() != 1 {
        return problem("the guest did not go on");
    }
    let outcome = |line: &str| ended.line(line).get("outcome").map(str::to_owned);
    let tried = match expected {
        Works(_) => "works",
        _ => "needs-reset",
    };
    if outcome("blk-try outcome=").as_deref() != Some(tried) {
        return problem("the disk did something else");
    }
    match outcome("blk-reset outcome=").as_deref() {
        Some("works") => Ok(()),
        _ => problem("the reset did not end"),
    }
}

/// Checks all rows, a few at a time, and reports all that failed.
fn check_all(rows: Vec<Row>) {
    let count = rows.len();
    let rows = Mutex::new(rows.into_iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let row = rows.lock().unwrap().next();
                    let Some(row) = row else {
                        return;
                    };
                    if let Err(failure) = row.check() {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {count} rows:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn row(name: &str, backend: Backend, outcome: Outcome) -> Row {
    Row {
        name: name.to_owned(),
        backend,
        outcome,
    }
}

/// A row in which one message goes wrong.
fn at(request: Req, does: Does, outcome: Outcome) -> Row {
    let backend = backend().on(When::Nth(request, 1), does);
    row(&format!("{does:?} at {request:?}"), backend, outcome)
}

/// The messages of a whole life with a back-end that behaves, up to a guest's reset, and how many of them
/// come before the guest runs.
fn messages() -> (Vec<Req>, usize) {
    let disk = backend().start();
    let ended = ferry(&disk).run();
    judge(&ended, Works("")).unwrap();
    assert_eq!(disk.complaints(), Vec::<String>::new());
    let codes: Vec<Req> = disk
        .received()
        .iter()
        .map(|message| Req::try_from(message.code).unwrap())
        .collect();
    let before = codes
        .iter()
        .position(|code| *code == Req::SET_FEATURES)
        .unwrap();
    assert!(codes[..before].contains(&Req::GET_CONFIG) && codes.contains(&Req::GET_VRING_BASE));
    (codes, before)
}

/// One row for each message, by its place in the sequence.
fn at_each_message(does: Does, outcome: impl Fn(usize, Req, bool) -> Outcome) -> Vec<Row> {
    let (codes, before) = messages();
    let rows = codes.iter().enumerate().map(|(i, code)| {
        let name = format!(
            "{does:?} at message {}, {}",
            i + 1,
            request_name(u32::from(*code))
        );
        let backend = backend().on(When::NthOfAll(i + 1), does);
        row(&name, backend, outcome(i, *code, i < before))
    });
    rows.collect()
}

#[test]
fn closes_at_each_message() {
    let (codes, _) = messages();
    let reset = codes
        .iter()
        .position(|code| *code == Req::GET_VRING_BASE)
        .unwrap();
    check_all(at_each_message(Does::Close, |i, _, before| match before {
        true => NoStart("the back-end closed the connection"),
        // At the reset the guest has already had what it wanted.
        false if i >= reset => Works("the back-end closed the connection"),
        false => DeviceFails("the back-end closed the connection"),
    }));
}

#[test]
fn never_answers_at_each_message() {
    let (codes, _) = messages();
    let reset = codes
        .iter()
        .position(|code| *code == Req::GET_VRING_BASE)
        .unwrap();
    check_all(at_each_message(Does::NeverAnswer, |i, code, before| {
        // From there on the ring runs and requests are served, answers or not.
        let runs = i >= reset || code == Req::SET_VRING_ENABLE;
        match (before, runs) {
            (true, _) if code == Req::GET_FEATURES => NoStart("or serves another front-end"),
            (true, _) => NoStart("the back-end has not answered"),
            (false, true) => Works("is taken for dead"),
            (false, false) => DeviceFails("is taken for dead"),
        }
    }));
}

#[test]
fn answers_late() {
    // Later than --request-timeout, earlier than --dead-timeout: the device lives on.
    check_all(at_each_message(
        Does::Late(LATE),
        |_, _, before| match before {
            // Before the guest runs a user waits, so there it ends. (A message without an answer delays the next one.)
            true => NoStart("the back-end has not answered"),
            false => Works(""),
        },
    ));
}

#[test]
fn wrong_answers_before_the_guest_runs() {
    let violated = NoStart("violated the vhost-user protocol");
    let mut rows = Vec::new();
    for request in [
        Req::GET_FEATURES,
        Req::GET_QUEUE_NUM,
        Req::SET_OWNER,
        Req::GET_CONFIG,
        Req::SET_BACKEND_REQ_FD,
    ] {
        for does in [
            Does::WrongRequest,
            Does::Longer(1),
            Does::Longer(4000),
            Does::Shorter(1),
            Does::ClaimsSize(0x7fff_ffff),
            Does::ClaimsSize(u32::MAX),
            Does::Flags(0),
            Does::Flags(1),
            Does::Flags(6),
            Does::Flags(0xffff_fff5),
            Does::Fds(1),
            Does::Fds(33),
        ] {
            rows.push(at(request, does, violated));
        }
        rows.push(at(
            request,
            Does::HalfHeader,
            NoStart("the back-end has not answered"),
        ));
    }
    check_all(rows);
}

#[test]
fn wrong_answers_while_the_guest_runs() {
    let violated = DeviceFails("violated the vhost-user protocol");
    let mut rows = Vec::new();
    for request in [
        Req::SET_FEATURES,
        Req::SET_MEM_TABLE,
        Req::SET_VRING_ADDR,
        Req::SET_VRING_KICK,
    ] {
        for does in [
            Does::WrongRequest,
            Does::Longer(1),
            Does::Shorter(8),
            Does::ClaimsSize(u32::MAX),
            Does::Flags(1),
            Does::Fds(1),
            Does::Fds(33),
            Does::AnswerTwice,
        ] {
            rows.push(at(request, does, violated));
        }
        rows.push(at(
            request,
            Does::HalfHeader,
            DeviceFails("is taken for dead"),
        ));
        rows.push(at(request, Does::Refuse, DeviceFails("refused")));
    }
    // At the reset the guest has already had what it wanted.
    let violated = Works("violated the vhost-user protocol");
    for request in [Req::GET_VRING_BASE, Req::RESET_DEVICE] {
        for does in [
            Does::WrongRequest,
            Does::Longer(1),
            Does::Shorter(1),
            Does::Flags(1),
            Does::Fds(33),
        ] {
            rows.push(at(request, does, violated));
        }
    }
    check_all(rows);
}

#[test]
fn offers_what_makes_no_sense() {
    check_all(vec![
        row(
            "no VERSION_1",
            backend().withholds(feature::VERSION_1),
            NoStart("does not offer VIRTIO_F_VERSION_1"),
        ),
        row(
            "no protocol features",
            backend().withholds(feature::PROTOCOL_FEATURES),
            NoStart("does not offer VHOST_USER_F_PROTOCOL_FEATURES"),
        ),
        row(
            "no CONFIG",
            backend().withholds_protocol(protocol::CONFIG),
            NoStart("CONFIG"),
        ),
        row(
            "all features",
            backend().offers(feature::FORBIDDEN),
            Works(""),
        ),
        row(
            "all protocol features",
            backend().offers_protocol(u64::MAX),
            Works(""),
        ),
        row(
            "no queues",
            backend().claims_queues(0),
            NoStart("has 0 queues"),
        ),
        row("65535 queues", backend().claims_queues(65535), Works("")),
        row(
            "very many queues",
            backend().claims_queues(u64::MAX),
            Works(""),
        ),
        row(
            "no configuration space",
            backend().config_size(0),
            NoStart("not usable"),
        ),
        row(
            "a short configuration space",
            backend().config_size(40),
            Works(""),
        ),
        row(
            "a long configuration space",
            backend().config_size(256),
            Works(""),
        ),
        row(
            "a configuration space that is longer than asked for",
            backend().on(When::Each(Req::GET_CONFIG), Does::Longer(196)),
            NoStart("violated the vhost-user protocol"),
        ),
        row(
            "no configuration space after all",
            backend().on(When::Each(Req::GET_CONFIG), Does::Refuse),
            NoStart("not usable"),
        ),
    ]);
}

#[test]
fn features_that_it_may_not_offer_do_not_reach_the_guest() {
    let disk = backend().offers(feature::FORBIDDEN).start();
    let ended = ferry(&disk).run().succeeded();
    let offered = ended.line("blk-try outcome=").number("offered");
    assert_eq!(offered & feature::FORBIDDEN, 0, "{offered:#x}");
    assert_ne!(offered & feature::VERSION_1, 0);
    assert_eq!(disk.accepted_features() & feature::FORBIDDEN, 0);
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn a_device_that_failed_to_start_can_be_started_again() {
    // The connection lives on after a refusal, so the second attempt works.
    let disk = backend()
        .on(When::Nth(Req::SET_MEM_TABLE, 1), Does::Refuse)
        .start();
    let ended = Ferry::tiny(&CMDLINE.replace("blk-reset", "blk-reset+blk-try"))
        .with_disk(&disk)
        .run()
        .succeeded();
    let outcomes: Vec<String> = ended
        .lines("blk-try outcome=")
        .iter()
        .map(|line| line.get("outcome").unwrap().to_owned())
        .collect();
    assert_eq!(outcomes, ["needs-reset", "works"]);
    assert_eq!(disk.connections(), 1);
}

/// A header of a request on the back-end channel.
fn channel_request(code: u32, flags: u32, size: u32) -> Vec<u8> {
    [code, flags, size]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect()
}

#[test]
fn the_back_end_channel_is_no_way_in() {
    let garbage = [
        ("flags", channel_request(2, 0xffff_fff0, 0), 0),
        ("size", channel_request(2, 1, u32::MAX), 0),
        ("file descriptors", channel_request(2, 1, 0), 3),
        ("an answer to nothing", channel_request(2, 5, 8), 0),
    ];
    for (name, bytes, fds) in garbage {
        let disk = backend().start();
        let mut guest = Ferry::tiny("mode=blk-try+ticks ticks=1000 period=10")
            .with_disk(&disk)
            .start();
        guest.wait_for("blk-try outcome=works");
        disk.send_on_channel(&bytes, fds);
        let report = guest.wait_for_log("the device has failed");
        assert!(
            report.0.contains("disk0") && report.0.contains("back-end channel"),
            "{name}: {report}"
        );
        assert!(guest.is_running(), "{name}");
        guest.terminate().with_status(0);
    }
}

#[test]
fn a_flood_of_changes_is_taken() {
    let disk = backend().start();
    let mut guest = Ferry::tiny("mode=blk-try+ticks+blk-try ticks=10 period=50")
        .with_disk(&disk)
        .start();
    guest.wait_for("blk-try outcome=works");
    let change = channel_request(2, 1, 0);
    for _ in 0..200 {
        disk.send_on_channel(&change, 0);
    }
    let ended = guest.end().succeeded();
    assert_eq!(ended.lines("blk-try outcome=works").len(), 2);
    assert!(
        ended.log_lines("failed").is_empty(),
        "{}",
        ended.transcript()
    );
}
