//! What is left of a guest.

use super::{DONE, find, transcript};
use crate::lines::Line;

/// What is left of a virtual machine.
#[derive(Debug)]
pub struct Ended {
    /// Ferry's exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// Everything on the serial port.
    pub serial: Vec<Line>,
    /// Ferry's log.
    pub log: Vec<Line>,
}

impl Ended {
    /// Panics unless the guest finished what it was to do and powered off, and Ferry ended with status 0.
    pub fn succeeded(self) -> Self {
        if let Some(failure) = find(&self.serial, "FAIL") {
            panic!("{failure}\n{}", self.transcript());
        }
        let done = find(&self.serial, DONE).or_else(|| find(&self.serial, "ferry: test: ok"));
        assert!(
            done.is_some(),
            "the guest was not done\n{}",
            self.transcript()
        );
        self.with_status(0)
    }

    /// Panics unless Ferry ended with this status.
    pub fn with_status(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            Some(status),
            "exit status\n{}",
            self.transcript()
        );
        self
    }

    /// The first line on the serial port that contains `text`. Panics if there is none.
    pub fn line(&self, text: &str) -> Line {
        find(&self.serial, text)
            .unwrap_or_else(|| panic!("no '{text}' on the serial port\n{}", self.transcript()))
    }

    /// All lines on the serial port that contain `text`.
    pub fn lines(&self, text: &str) -> Vec<Line> {
        self.serial
            .iter()
            .filter(|line| line.0.contains(text))
            .cloned()
            .collect()
    }

    /// All lines in Ferry's log that contain `text`.
    pub fn log_lines(&self, text: &str) -> Vec<Line> {
        self.log
            .iter()
            .filter(|line| line.0.contains(text))
            .cloned()
            .collect()
    }

    /// The line in which Ferry counts the vCPUs' exits at its end.
    pub fn exits(&self) -> Line {
        find(&self.log, "vCPU exits:")
            .unwrap_or_else(|| panic!("no count of exits\n{}", self.transcript()))
    }

    /// Serial port and log, for a failed test's message.
    pub fn transcript(&self) -> String {
        transcript(&self.serial, &self.log)
    }
}
