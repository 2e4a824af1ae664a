//! `ferryctl migrate`, `receive` and `migration`, between two Ferrys.

use std::path::PathBuf;

use ferry_tests::{Guest, Process, ferryctl};
use tempfile::TempDir;

use crate::common::{TICK, TICKS, WRITTEN, busy, heir, receiver, stateful, tiny};
use crate::converge::{REPORT, dirtying_at};
use crate::proxy::Proxy;

/// A ferryctl at work, and what it has said.
struct Command {
    process: Process,
    output: PathBuf,
    _directory: TempDir,
}

impl Command {
    fn start(guest: &Guest, words: &[&str]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let output = directory.path().join("output");
        let mut command = ferryctl(guest.api().socket());
        command.args(words);
        Command {
            process: Process::start(command, Some(&output)),
            output,
            _directory: directory,
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).expect("its output")
    }

    /// Waits for its end; returns its exit status and all that it has said.
    fn end(mut self) -> (Option<i32>, String) {
        let limit = std::time::Duration::from_secs(60);
        let status = self.process.wait(limit).expect("an end");
        (status.code(), self.said())
    }

    /// The same, when it has to succeed. Panics unless it has said all this, in this order.
    fn succeeds(self, texts: &[&str]) {
        let (status, said) = self.end();
        assert_eq!(status, Some(0), "{said}");
        holds(&said, texts);
    }

    /// The same, when it has to fail.
    fn fails(self, texts: &[&str]) {
        let (status, said) = self.end();
        assert_eq!(status, Some(1), "{said}");
        holds(&said, texts);
    }
}

fn holds(said: &str, texts: &[&str]) {
    let mut rest = said;
    for text in texts {
        let at = rest.find(text);
        let at = at.unwrap_or_else(|| panic!("no '{text}', or too early: {said}"));
        rest = &rest[at + text.len()..];
    }
}

/// Has a Ferry receive, and waits until it listens.
fn receive(there: &mut Guest, words: &[&str]) -> Command {
    let command = Command::start(there, &[&["receive"], words].concat());
    there.wait_until("a receiver that listens", |guest| {
        let events = guest.events();
        events.contains(&"receive-ready".to_owned()).then_some(())
    });
    command
}

/// Has a guest be moved over one connection with so many bytes a second: the way, what the receiver's command says, and the sender's.
fn commands_over(
    rate: u64,
    guest: &Guest,
    there: &mut Guest,
    words: &[&str],
) -> (Proxy, Command, Command) {
    let url = guest.unix_url();
    let proxy = Proxy::to(&url).slow(rate);
    let received = receive(there, &[&url]);
    let words = [&["migrate", proxy.url(), "--connections", "1"], words].concat();
    let sending = Command::start(guest, &words);
    (proxy, received, sending)
}

/// A guest that is being sent shows this in a later round than the first.
fn shows_later(guest: &mut Guest, command: &Command, text: &str) {
    guest.wait_until(&format!("{text}, while it is sent"), |_| {
        let said = command.said();
        let mut lines = said.lines().filter(|line| line.starts_with("precopy "));
        lines
            .any(|line| !line.starts_with("precopy 1 ") && line.contains(text))
            .then_some(())
    });
}

#[test]
fn a_guest_with_a_disk_is_sent_and_received() {
    let disk = stateful().start();
    let guest = busy(&disk);
    let next = heir(&disk).start();
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let socket = format!("disk0={}", next.socket().display());
    let received = receive(&mut there, &[&url, "--socket", &socket]);
    Command::start(&guest, &["migrate", &url, "--keep-source"]).succeeds(&[
        &format!("sent to {url}"),
        "the guest standing still for ",
        "precopy ",
        "64.0 MiB, ",
        "DOWNTIME",
        "pause ",
        "devices ",
        "disk0 ",
        "3.0 MiB",
        "commit ",
        "in all ",
        "the receiver meanwhile",
        "  devices ",
        "  resume ",
    ]);
    received.succeeds(&[&format!("received at {url}"), "DOWNTIME", "disk0 "]);
    there.goes_on(WRITTEN);
    assert_eq!(there.state(), "Running");
    assert_eq!(next.complaints(), Vec::<String>::new());
}

#[test]
fn progress_of_a_guest_that_writes_slower_than_it_is_sent() {
    let mut guest = dirtying_at(400, 1024);
    let mut there = receiver(&guest);
    // Each round takes half as long as the one before: there is time to see the second.
    let (proxy, received, sending) = commands_over(3 << 20, &guest, &mut there, &["--keep-source"]);
    guest.wait_until("a second round", |guest| {
        let migration = guest.try_migration()?;
        (migration["round"].as_u64()? > 1).then_some(())
    });
    // There is time to look, and nothing else changes.
    proxy.set_rate(64 << 10);
    shows_later(&mut guest, &sending, "ETA ");
    proxy.set_rate(0);
    sending.succeeds(&[
        "precopy 1  sent ",
        "/s, ",
        " MiB left",
        ", dirty ",
        "sent to ",
    ]);
    received.succeeds(&["precopy  received ", "received at "]);
    there.goes_on(REPORT);
    let gone = Command::start(&guest, &["migration"]);
    gone.succeeds(&["sent to ", " rounds", "DOWNTIME", "in all "]);
}

#[test]
fn a_guest_that_writes_faster_than_it_is_sent_is_cancelled() {
    let mut guest = dirtying_at(3000, 1100);
    let mut there = receiver(&guest);
    let (_proxy, received, sending) =
        commands_over(4 << 20, &guest, &mut there, &["--downtime-ms", "50"]);
    shows_later(&mut guest, &sending, "not converging");
    Command::start(&guest, &["migration"]).succeeds(&["being sent to ", "not converging"]);
    Command::start(&guest, &["migration", "cancel"]).succeeds(&[]);
    sending.fails(&["ferryctl: cannot move the guest", "cancel"]);
    received.fails(&["ferryctl: cannot receive"]);
    Command::start(&guest, &["migration"]).succeeds(&["not sent to ", "reason", "cancel"]);
    guest.goes_on(REPORT);
    assert_eq!(guest.state(), "Running");
}

#[test]
fn what_is_refused_is_said_with_its_reasons() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    let url = guest.unix_url();
    Command::start(&guest, &["migrate", &url]).fails(&["ferryctl: cannot ", "nobody listens"]);
    Command::start(&guest, &["receive", &url]).fails(&["ferryctl: cannot receive"]);
    Command::start(&guest, &["migration", "cancel"]).fails(&["ferryctl: cannot cancel"]);
    guest.goes_on(TICK);
}
