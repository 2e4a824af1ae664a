//! What a guest and its process are connected to goes along: the serial port's far end, the API's socket, the event monitor.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ferry_tests::fault_proxy::{self, FaultProxy, Halt, Then, When};
use ferry_tests::{Receive, complete_lines, ferry_binary};
use serde_json::Value;
use vm_migration::link::Kind;

use crate::common::{TICK, TICKS, heir, local, tiny};
use crate::place::{ECHO, LIMIT, Place, drain, said};

/// How often the guest moves.
const TIMES: usize = 10;
/// The longest pause between two lines that are typed.
const TYPING: Duration = Duration::from_millis(3);

/// Types numbered lines until it is told to stop; returns how many.
fn typist(mut to: impl Write + Send + 'static, stop: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let stop = stop.clone();
    thread::spawn(move || {
        let mut count = 0;
        loop {
            to.write_all(format!("line n={count}\n").as_bytes())
                .expect("a far end");
            count += 1;
            if stop.load(Ordering::Relaxed) {
                return count;
            }
            thread::sleep(TYPING);
        }
    })
}

/// Ticks from the first one on, and typed lines from the first one on: each once, in order.
fn check(text: &[u8], typed: u64) {
    let text = String::from_utf8_lossy(text);
    let lines = complete_lines(&text);
    let numbers = |what: &str| -> Vec<u64> {
        let lines = lines.iter().filter(|line| line.0.contains(what));
        lines.map(|line| line.number("n")).collect()
    };
    let ticks = numbers("tick n=");
    assert!(ticks.len() > TIMES, "{text}");
    let first = ticks[0];
    assert!(
        ticks.iter().copied().eq(first..first + ticks.len() as u64),
        "{text}"
    );
    assert_eq!(numbers("typed line n="), (0..typed).collect::<Vec<_>>());
}

/// Has the guest move while it talks and is talked to, over a far end that is read all the time.
fn talk(place: &Place, from: impl Read + Send + 'static, to: impl Write + Send + 'static) {
    let mut from = from;
    let stop = Arc::new(AtomicBool::new(false));
    // The last one, once it is known.
    let (last, expected) = mpsc::channel::<u64>();
    let reader = thread::spawn(move || {
        let (mut text, mut typed) = (Vec::new(), None);
        let begin = Instant::now();
        while drain(&mut from, &mut text) {
            typed = typed.or_else(|| expected.try_recv().ok());
            let has_said = |line: u64| {
                let line = format!("typed line n={}", line - 1);
                let lines = complete_lines(&String::from_utf8_lossy(&text));
                lines.iter().any(|it| it.0.ends_with(&line))
            };
            if typed.is_some_and(has_said) || begin.elapsed() > LIMIT {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        text
    });
    let typist = typist(to, &stop);
    for _ in 0..TIMES {
        place.succeed();
    }
    stop.store(true, Ordering::Relaxed);
    let typed = typist.join().expect("a typist");
    last.send(typed).expect("a reader");
    check(&reader.join().expect("a reader"), typed);
}

#[test]
fn a_client_of_the_serial_socket_notices_nothing() {
    let mut place = Place::start(ECHO, "socket=serial", &[]);
    let client = UnixStream::connect(place.path("serial")).expect("a client");
    let typing = client.try_clone().expect("a descriptor");
    client.set_nonblocking(true).expect("a socket");
    let kept = client.try_clone().expect("a descriptor");
    talk(&place, client, Typing(typing));
    // The next client is served by the last process.
    drop(kept);
    place.wait_until("another client", || {
        let mut next = UnixStream::connect(place.path("serial")).ok()?;
        next.set_read_timeout(Some(Duration::from_millis(500)))
            .ok()?;
        (next.read(&mut [0; 64]).ok()? > 0).then_some(())
    });
    assert!(place.first.wait(LIMIT).expect("an end").success());
    assert!(place.path("serial").exists());
    place.end();
    assert!(
        !place.path("serial").exists(),
        "the serial port's socket stays"
    );
}

/// A writer that waits for room on a socket or terminal that does not wait itself.
struct Typing<W>(W);

impl<W: Write> Write for Typing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(1));
                }
                outcome => return outcome,
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn whoever_is_on_the_pseudo_terminal_notices_nothing() {
    let place = Place::start(ECHO, "pty", &[]);
    let log = fs::read_to_string(&place.log).expect("a log");
    let (_, path) = log.split_once("the serial port is at ").expect("its path");
    let path = path.lines().next().expect("a line").to_owned();
    let open = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        options.open(&path).expect("a terminal")
    };
    talk(&place, open(), Typing(open()));
    place.end();
}

#[test]
fn output_that_nobody_reads_waits_for_its_reader() {
    // No client: all of it waits, in one process after the other.
    let place = Place::start(ECHO, "socket=serial", &[]);
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(100));
        place.succeed();
    }
    let mut client = UnixStream::connect(place.path("serial")).expect("a client");
    client.set_nonblocking(true).expect("a socket");
    let mut text = Vec::new();
    place.wait_until("ticks", || {
        assert!(drain(&mut client, &mut text));
        let ticks = String::from_utf8_lossy(&text).matches("tick n=").count();
        (ticks > 60).then_some(())
    });
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = complete_lines(&text);
    let ticks = lines.iter().filter(|line| line.0.contains("tick n="));
    let mut numbers = ticks.map(|line| line.number("n")).zip(0..);
    assert!(numbers.all(|(is, should)| is == should), "{text}");
    place.end();
}

#[test]
fn a_terminal_stays_with_the_old_process() {
    let place = Place::start(ECHO, "tty", &[]);
    let ferry = ferry_binary();
    let ferry = ferry.to_str().expect("UTF-8");
    let refused = place.run(&["--exec", ferry]);
    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(
        text.contains("terminal") && text.contains("name another place"),
        "{text}"
    );
    assert!(
        text.contains("the guest goes on in the old process"),
        "{text}"
    );
    assert_eq!(place.pid(), u64::from(place.first.id()));
    let elsewhere = format!("file={}", place.path("serial").display());
    let moved = place.run(&["--exec", ferry, "--serial", &elsewhere]);
    assert!(moved.status.success(), "{}", said(&moved));
    place.wait_until("ticks", || {
        let text = fs::read_to_string(place.path("serial")).ok()?;
        text.contains("tick n=").then_some(())
    });
    place.end();
}

#[test]
fn a_guest_that_gets_another_serial_port_leaves_no_socket_behind() {
    let place = Place::start(ECHO, "socket=serial", &[]);
    let ferry = ferry_binary();
    let elsewhere = format!("file={}", place.path("after").display());
    let words = [
        "--exec",
        ferry.to_str().expect("UTF-8"),
        "--serial",
        &elsewhere,
    ];
    let moved = place.run(&words);
    assert!(moved.status.success(), "{}", said(&moved));
    // What nobody has read comes first.
    let text = place.wait_until("ticks", || {
        let text = fs::read_to_string(place.path("after")).ok()?;
        (text.matches("tick n=").count() > 20).then_some(text)
    });
    assert!(text.contains("tick n=0"), "{text}");
    assert!(!place.path("serial").exists());
    place.end();
}

#[test]
fn a_client_of_the_api_is_always_answered_by_the_one_or_the_other() {
    let serial = "file=serial";
    let place = Place::start(ECHO, serial, &[]);
    let stop = Arc::new(AtomicBool::new(false));
    // Who has answered each of them last.
    let last: Vec<_> = (0..3).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let clients: Vec<_> = last
        .iter()
        .map(|last| {
            let (stop, last, client) = (stop.clone(), last.clone(), place.client());
            thread::spawn(move || {
                let mut pids: Vec<u64> = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let info = client.get("vm.info").expect("an answer");
                    let info: Value = serde_json::from_slice(&info.body).expect("JSON");
                    assert_eq!(info["state"], "Running");
                    let ping = client.get("vmm.ping").expect("an answer");
                    let ping: Value = serde_json::from_slice(&ping.body).expect("JSON");
                    let pid = ping["pid"].as_u64().expect("a number");
                    if pids.last() != Some(&pid) {
                        assert!(!pids.contains(&pid), "{pids:?} {pid}");
                        pids.push(pid);
                    }
                    last.store(pid, Ordering::Relaxed);
                    // The processes that come and go need the processors too.
                    thread::sleep(Duration::from_millis(1));
                }
                pids
            })
        })
        .collect();
    let all_have_been_answered = || {
        let pid = place.pid();
        place.wait_until("answers", || {
            let has_answered = |last: &Arc<AtomicU64>| last.load(Ordering::Relaxed) == pid;
            last.iter().all(has_answered).then_some(())
        });
    };
    all_have_been_answered();
    for _ in 0..TIMES {
        place.succeed();
        all_have_been_answered();
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert_eq!(client.join().expect("a client").len(), TIMES + 1);
    }
    place.end();
}

/// Whole lines of JSON, in which each process has all its say before the next one.
fn check_events(text: &str, times: usize) {
    assert!(text.ends_with('\n'));
    let events: Vec<String> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"))
        })
        .map(|event| event["event"].as_str().expect("a name").to_owned())
        .collect();
    let marks = [
        "migration-started",
        "migration-finished",
        "shutdown",
        "receive-finished",
    ];
    let found: Vec<&str> = events
        .iter()
        .map(String::as_str)
        .filter(|event| marks.contains(event))
        .collect();
    let mut expected = marks.repeat(times);
    // The last process has not gone on.
    expected.push("shutdown");
    assert_eq!(found, expected, "{events:?}");
}

#[test]
fn the_event_monitor_gets_the_events_of_one_process_after_the_other() {
    let monitor = |name: &str| vec!["--event-monitor".to_owned(), format!("path={name}")];
    let place = Place::start(ECHO, "file=serial", &monitor("events"));
    for _ in 0..TIMES {
        place.succeed();
    }
    place.end();
    check_events(
        &fs::read_to_string(place.path("events")).expect("events"),
        TIMES,
    );
}

/// Who names a monitor for the new process wants that one.
#[test]
fn a_monitor_of_the_new_process_stays_and_goes_on_to_the_next() {
    let words = ["--event-monitor".to_owned(), "path=events".to_owned()];
    let place = Place::start(ECHO, "file=serial", &words);
    let ferry = ferry_binary();
    let own = place.path("own");
    let monitor = format!("path={}", own.display());
    let output = place.run(&[
        "--exec",
        ferry.to_str().expect("UTF-8"),
        "--",
        "--event-monitor",
        &monitor,
    ]);
    assert!(output.status.success(), "{}", said(&output));
    for _ in 0..2 {
        place.succeed();
    }
    place.end();
    let count = |path: &Path| {
        let text = fs::read_to_string(path).expect("events");
        text.matches(r#""receive-finished""#).count()
    };
    assert_eq!((count(&place.path("events")), count(&own)), (0, 3));
}

/// The client is connected already: whoever comes later waits for the process that is to answer.
#[test]
fn a_guest_that_is_deleted_while_its_process_is_replaced_leaves_a_process_that_answers() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    let mut there = heir(&guest);
    let way = guest.unix_url();
    let to = guest.unix_url();
    let path = |url: &str| PathBuf::from(url.strip_prefix("unix:").expect("a path"));
    let (commit, at_commit) = Halt::new();
    let before_commit = fault_proxy::Place {
        when: When::Before,
        kind: Kind::Commit,
        nth: 1,
    };
    let _proxy = FaultProxy::start(&path(&way), &path(&to), [(before_commit, at_commit)]);
    let received = there.listen(&Receive::at(&to));
    let mut client = UnixStream::connect(guest.api().socket()).expect("a client");
    guest.send(&local(&way).with("successor", true.into()));
    commit.reached();
    write!(
        client,
        "PUT /api/v1/vm.delete HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    )
    .expect("a client");
    client.set_read_timeout(Some(LIMIT)).expect("a client");
    let mut answer = [0; 12];
    client.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 204");
    let pid = crate::place::get(guest.api(), "vmm.ping")["pid"].clone();
    assert_eq!(pid, guest.pid());
    commit.then(Then::PassOn);
    received.answer().expect_err("the guest is deleted");
}

#[test]
fn a_fifo_as_event_monitor_gets_whole_lines_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("events");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    );
    made.expect("a FIFO");
    let mut reader = open_fifo(&path);
    let words = ["--event-monitor".to_owned(), "path=events".to_owned()];
    let place = Place::start_in(directory, ECHO, "file=serial", &words);
    let mut text = Vec::new();
    for _ in 0..3 {
        place.succeed();
        drain(&mut reader, &mut text);
    }
    place.end();
    drain(&mut reader, &mut text);
    check_events(&String::from_utf8_lossy(&text), 3);
}

fn open_fifo(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    options.open(path).expect("a FIFO")
}
