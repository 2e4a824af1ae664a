//! The lines of the event monitor, and what becomes of those for which the disk has no room.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::{LOOK, Shared};
use crate::events::{Event, Properties};
use crate::wire::EventReport;

/// What a pipe takes without blocking once it is ready (PIPE_BUF).
const PIECE: usize = 4096;

/// What is written: whole lines, in order, and where some are missing, how many.
pub struct Lines {
    file: File,
    /// The end of a line whose beginning is written.
    rest: Vec<u8>,
    /// Events that are missing, which the file does not tell yet.
    lost: u64,
    /// When the last event happened that was to be written.
    last: Duration,
}

/// Whether something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// It is, or begun, and its rest is kept.
    Found,
    /// Nothing of it: the disk is full.
    None,
}

impl Lines {
    /// Nothing is written yet.
    pub fn new(file: File) -> Self {
        Lines {
            file,
            rest: Vec::new(),
            lost: 0,
            last: Duration::ZERO,
        }
    }

    /// Writes an event, or counts it as lost.
    pub fn take(&mut self, shared: &Shared, event: &Event) -> io::Result<()> {
        self.last = event.since_start;
        if self.catch_up(shared)? == Room::Found && self.line(shared, event)? == Room::Found {
            return Ok(());
        }
        if self.lost == 0 {
            tracing::warn!("the event monitor's disk is full: events are lost until it has room");
        }
        self.lost += 1;
        Ok(())
    }

    /// Counts events that have not come this far.
    pub fn lose(&mut self, shared: &Shared, number: u64) -> io::Result<()> {
        self.lost += number;
        self.catch_up(shared).map(drop)
    }

    /// Writes what has to stand before the next event.
    fn catch_up(&mut self, shared: &Shared) -> io::Result<Room> {
        let rest = std::mem::take(&mut self.rest);
        if self.write(shared, &rest)? == Room::None {
            self.rest = rest;
            return Ok(Room::None);
        }
        if self.lost == 0 {
            return Ok(Room::Found);
        }
        let properties = Properties::from([("number".into(), self.lost.to_string())]);
        let event = Event {
            seq: 0,
            since_start: self.last,
            source: "vmm",
            event: "events-lost",
            properties,
        };
        let room = self.line(shared, &event)?;
        if room == Room::Found {
            tracing::warn!("the event monitor has lost {} events", self.lost);
            self.lost = 0;
        }
        Ok(room)
    }

    /// The last try.
    pub fn end(&mut self, shared: &Shared) -> io::Result<()> {
        match self.catch_up(shared)? {
            Room::Found => Ok(()),
            Room::None => Err(io::Error::other(format!(
                "its disk is full; {} events are lost",
                self.lost
            ))),
        }
    }

    fn line(&mut self, shared: &Shared, event: &Event) -> io::Result<Room> {
        if !self.rest.is_empty() {
            // It does not end the line before.
            return Ok(Room::None);
        }
        self.write(shared, &report(event))
    }

    /// Writes as the reader takes it.
    fn write(&mut self, shared: &Shared, bytes: &[u8]) -> io::Result<Room> {
        let mut rest = bytes;
        while !rest.is_empty() {
            wait_ready(shared, &self.file)?;
            match self.file.write(&rest[..rest.len().min(PIECE)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                    _ if !is_full(&error) => return Err(error),
                    _ if rest.len() == bytes.len() => return Ok(Room::None),
                    _ => {
                        self.rest = rest.to_vec();
                        return Ok(Room::Found);
                    }
                },
            }
        }
        Ok(Room::Found)
    }
}

/// One line of JSON.
fn report(event: &Event) -> Vec<u8> {
    let mut report = EventReport::from(event);
    report.seq = None;
    let mut line = crate::json::ascii(&report);
    line.push(b'\n');
    line
}

/// Whether there may be room again later.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Waits until the reader takes something, or the time for that is over.
fn wait_ready(shared: &Shared, file: &File) -> io::Result<()> {
    loop {
        let mut poll = libc::pollfd {
            fd: file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: `poll` is one valid pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, LOOK.as_millis() as libc::c_int) };
        let error = io::Error::last_os_error();
        match ready {
            0 => {}
            -1 if error.kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(error),
            _ => return Ok(()),
        }
        let end = shared.queue().end;
        if end.is_some_and(|end| end <= Instant::now()) {
            return Err(io::Error::other("its reader does not read"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn event(seq: u64) -> Event {
        Event {
            seq,
            since_start: Duration::from_secs(seq),
            source: "vm",
            event: "tick",
            properties: Properties::new(),
        }
    }

    fn full() -> File {
        File::options().write(true).open("/dev/full").unwrap()
    }

    /// The names of events and the numbers of lost ones, from whole lines of JSON.
    fn names(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let number = line["properties"]["number"].as_str();
                line["event"].as_str().unwrap().to_owned() + number.unwrap_or_default()
            })
            .collect()
    }

    #[test]
    fn a_full_disk_loses_events_until_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let shared = Shared::default();
        let mut lines = Lines::new(File::create(&path).unwrap());
        for round in 0..3 {
            lines.take(&shared, &event(1)).unwrap();
            let room = std::mem::replace(&mut lines.file, full());
            for seq in 0..5 + round {
                lines.take(&shared, &event(seq)).unwrap();
            }
            // The reader was too slow meanwhile, too.
            lines.lose(&shared, 2).unwrap();
            lines.file = room;
        }
        lines.end(&shared).unwrap();
        let lost = ["events-lost7", "events-lost8", "events-lost9"];
        let expected = lost.map(|lost| ["tick", lost]).concat();
        assert_eq!(names(&path), expected);
    }

    #[test]
    fn a_line_that_a_full_disk_has_cut_is_completed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let line = report(&event(1));
        let (begun, rest) = line.split_at(20);
        fs::write(&path, begun).unwrap();
        let shared = Shared::default();
        let mut lines = Lines::new(full());
        lines.rest = rest.to_vec();
        lines.take(&shared, &event(2)).unwrap();
        assert_eq!((lines.lost, &*lines.rest), (1, rest));
        lines.file = File::options().append(true).open(&path).unwrap();
        lines.take(&shared, &event(3)).unwrap();
        assert_eq!(names(&path), ["tick", "events-lost1", "tick"]);
    }
}
