//! A share whose back-end stands still (SIGSTOP) for a while: what is asked of Ferry meanwhile ends with a clear
//! error or waits, the guest goes on, and afterwards the same device works.

use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use ferry_api::client::{ClientError, Reply};
use ferry_tests::Guest;

use crate::info;
use crate::records::{Loop, Setup, Writing};

/// Ferry's limit for an attempt, in seconds.
const REQUEST_TIMEOUT: u32 = 5;
/// How long virtiofsd stands still.
const STANDSTILL: Duration = Duration::from_secs(20);

fn writing() -> Writing {
    Writing::start(Setup {
        request_timeout: REQUEST_TIMEOUT,
        ..Setup::default()
    })
}

#[test]
fn a_pause_fails_while_virtiofsd_stands_still() {
    let mut writing = writing();
    let stopped = Standstill::begin(&mut writing);
    let pause = Asked::of(&writing.guest, "vm.pause");
    answers_meanwhile(&mut writing.guest, "being paused");
    let error = pause.answer().expect_err("nothing of the share has ended");
    let reasons = error.chain();
    assert!(
        reasons[0].contains("the guest could not be paused, and goes on"),
        "{reasons:?}"
    );
    assert!(
        reasons[1].contains("fs0") && reasons[1].contains("5s"),
        "{reasons:?}"
    );
    assert_eq!(info(&writing.guest)["state"], "Running");
    writing.goes_on(Loop::Disk);
    stopped.end(&mut writing);
    writing.goes_on(Loop::Share);
    // The second attempt succeeds.
    writing.guest.put("vm.pause");
    assert_eq!(info(&writing.guest)["state"], "Paused");
    writing.guest.put("vm.resume");
    writing.goes_on(Loop::Disk);
    writing.goes_on(Loop::Share);
    let ended = writing.end_and_check();
    assert!(
        ended.log_lines("failed").is_empty(),
        "{}",
        ended.transcript()
    );
}

#[test]
fn a_guest_is_resumed_while_virtiofsd_stands_still() {
    let mut writing = writing();
    writing.guest.put("vm.pause");
    let stopped = Standstill::begin(&mut writing);
    let resume = Asked::of(&writing.guest, "vm.resume");
    answers_meanwhile(&mut writing.guest, "being resumed");
    writing.goes_on(Loop::Disk);
    let reasons = resume
        .answer()
        .expect_err("a late device")
        .chain()
        .join(": ");
    assert!(
        reasons.contains("the guest runs again") && reasons.contains("fs0"),
        "{reasons}"
    );
    assert_eq!(info(&writing.guest)["state"], "Running");
    stopped.end(&mut writing);
    writing.goes_on(Loop::Share);
    writing.guest.put("vm.pause");
    writing.guest.put("vm.resume");
    writing.goes_on(Loop::Disk);
    writing.goes_on(Loop::Share);
    writing.end_and_check();
}

#[test]
fn a_reboot_waits_while_virtiofsd_stands_still() {
    let mut writing = writing();
    let stopped = Standstill::begin(&mut writing);
    let reboot = Asked::of(&writing.guest, "vm.reboot");
    answers_meanwhile(&mut writing.guest, "being rebooted");
    let reasons = reboot
        .answer()
        .expect_err("a late device")
        .chain()
        .join(": ");
    assert!(
        reasons.contains("starts again") && reasons.contains("fs0"),
        "{reasons}"
    );
    stopped.end(&mut writing);
    writing.begins_anew();
    let ended = writing.end_and_check();
    assert!(
        ended.log_lines("failed").is_empty(),
        "{}",
        ended.transcript()
    );
}

/// Asks where the machine stands, and whether anyone listens, while something else is under way.
fn answers_meanwhile(guest: &mut Guest, transition: &str) {
    // The other request may still be on its way.
    guest.wait_until(&format!("transition '{transition}'"), |guest| {
        (info(guest)["transition"] == transition).then_some(())
    });
    guest.api().get("vmm.ping").expect("it listens");
    guest.api().get("vm.counters").expect("it counts");
    assert_eq!(info(guest)["transition"], transition, "it is over already");
}

/// virtiofsd, standing still.
struct Standstill {
    began: Instant,
    /// How many records there were on the share.
    written: u64,
}

impl Standstill {
    fn begin(writing: &mut Writing) -> Self {
        writing.share.process().signal(libc::SIGSTOP);
        Standstill {
            began: Instant::now(),
            written: writing.written(Loop::Share),
        }
    }

    /// Waits for the end of the time, and lets virtiofsd go on.
    fn end(self, writing: &mut Writing) {
        sleep(STANDSTILL.saturating_sub(self.began.elapsed()));
        // The last record before it may have completed ten.
        assert!(writing.written(Loop::Share) <= self.written + 10);
        writing.share.process().signal(libc::SIGCONT);
    }
}

/// A request under way.
struct Asked(thread::JoinHandle<Result<Reply, ClientError>>);

impl Asked {
    fn of(guest: &Guest, route: &'static str) -> Self {
        let api = guest.api().clone();
        Asked(thread::spawn(move || api.put(route, b"")))
    }

    fn answer(self) -> Result<Reply, ClientError> {
        self.0.join().expect("the client's thread")
    }
}
