//! Events, and who reads them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

fn number(seq: u64) -> Properties {
    Properties::from([("number".into(), seq.to_string())])
}

fn waiting(log: &EventLog) -> u64 {
    lock(&log.monitor).as_ref().map_or(0, Writer::waiting)
}

#[test]
fn the_last_events_are_kept_in_order() {
    let log = EventLog::new(None).unwrap();
    assert!(log.after(0).is_empty());
    for seq in 1..=KEPT as u64 + 10 {
        log.publish("vm", "tick", number(seq));
    }
    let events = log.after(0);
    assert_eq!(events.len(), KEPT);
    assert_eq!(events[0].seq, 11);
    assert!(events.is_sorted_by_key(|event| (event.seq, event.since_start)));
    assert!(
        events
            .iter()
            .all(|event| event.properties == number(event.seq))
    );
    assert_eq!(log.after(KEPT as u64 + 8).len(), 2);
    assert!(log.after(KEPT as u64 + 10).is_empty());
    // A number of another Ferry.
    assert_eq!(log.after(KEPT as u64 + 11).len(), KEPT);
}

#[test]
fn a_monitor_is_a_path_or_a_descriptor() {
    assert_eq!("path=/a".parse(), Ok(Monitor::Path("/a".into())));
    assert_eq!("path=\"/a,b\"".parse(), Ok(Monitor::Path("/a,b".into())));
    assert_eq!("fd=7".parse(), Ok(Monitor::Fd(7)));
    for wrong in [
        "",
        "/a",
        "path=",
        "fd=",
        "fd=-1",
        "fd=x",
        "fd=99999999999",
        "path=/a,fd=7",
    ] {
        assert!(wrong.parse::<Monitor>().is_err(), "{wrong}");
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_file_gets_each_event_as_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    for run in 0..2 {
        let log = EventLog::new(Some(Monitor::Path(path.clone()))).unwrap();
        log.publish("vm", "booted", Properties::new());
        let properties = Properties::from([("id".into(), "d\u{e9}0".into())]);
        log.publish("device", "failed", properties);
        drop(log);
        // The end has written everything.
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.is_ascii());
        let lines = lines(&text);
        assert_eq!(lines.len(), 2 * (run + 1));
        let line = &lines[2 * run + 1];
        assert!(line["timestamp"]["secs"].is_u64() && line["timestamp"]["nanos"].is_u64());
        assert_eq!(line["source"], "device");
        assert_eq!(line["event"], "failed");
        assert_eq!(line["properties"], json!({"id": "d\u{e9}0"}));
        assert_eq!(line.as_object().unwrap().len(), 4);
    }
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_monitor_that_cannot_be_opened_is_an_error() {
    for monitor in [
        Monitor::Path("/nonexistent/x".into()),
        Monitor::Fd(1_000_000),
    ] {
        EventLog::new(Some(monitor)).unwrap_err();
    }
    let readable = File::open("/dev/null").unwrap();
    EventLog::new(Some(Monitor::Fd(readable.as_raw_fd()))).unwrap_err();
}

#[test]
fn a_fifo_may_have_its_reader_later() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: `name` ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let log = EventLog::new(Some(Monitor::Path(path.clone()))).unwrap();
    log.publish("vm", "booted", Properties::new());
    let mut reader = BufReader::new(File::open(&path).unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(lines(&line)[0]["event"], "booted");
}

#[test]
fn a_reader_that_does_not_read_loses_events_and_is_told_how_many() {
    let (mut reader, writer) = io::pipe().unwrap();
    let log = EventLog::new(Some(Monitor::Fd(writer.as_raw_fd()))).unwrap();
    drop(writer);
    // A pipe takes 64 KiB, and the log's queue and the thread each take some.
    let published = 10_000_u64;
    for seq in 1..=published {
        log.publish("vm", "tick", number(seq));
    }
    let begun = Instant::now();
    let text = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    // It reads now: what comes after the loss is written, too.
    while waiting(&log) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(1));
    }
    log.publish("vm", "last", Properties::new());
    drop(log);
    let lines = lines(&text.join().unwrap());
    let mut next = 1;
    let mut losses = 0;
    for line in &lines {
        let number = line["properties"]["number"].as_str();
        let number = number.map(|number| number.parse::<u64>().unwrap());
        match line["event"].as_str().unwrap() {
            "tick" => {
                assert_eq!(number, Some(next));
                next += 1;
            }
            "events-lost" => {
                losses += 1;
                next += number.unwrap();
            }
            _ => assert_eq!(next, published + 1),
        }
    }
    assert!(losses > 0);
    assert_eq!(lines.last().unwrap()["event"], "last");
}

#[test]
fn the_end_does_not_wait_for_a_reader_that_does_not_read() {
    let (reader, writer) = io::pipe().unwrap();
    let log = EventLog::new(Some(Monitor::Fd(writer.as_raw_fd()))).unwrap();
    for seq in 1..=10_000 {
        log.publish("vm", "tick", number(seq));
    }
    let begun = Instant::now();
    drop(log);
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(reader);
}

#[test]
fn a_full_disk_does_not_end_the_monitor() {
    let log = EventLog::new(Some(Monitor::Path("/dev/full".into()))).unwrap();
    let begun = Instant::now();
    for seq in 1..=10 {
        log.publish("vm", "tick", number(seq));
        // The thread goes on taking them.
        while waiting(&log) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
