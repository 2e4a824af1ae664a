//! Moving the state of the real virtiofsd.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use super::harness::{HIGH, LOW, TestRam, eventually, failure};
use super::logging::{start_log, taken};
use super::moving::{PATIENT, load, save};
use super::ring::Ring;
use super::suspend::{outcome, resume, suspend};
use super::virtiofsd::{Share, Virtiofsd, fuse, init, root_mode};
use crate::chain;
use crate::vhost_user::{
    BackEndStateV1, DeviceState, DirtyLog, StateError, StateStep, VhostUserDevice, VhostUserStateV1,
};
use crate::virtio::{Activation, VirtioDevice};

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const ROOT: u64 = 1;

/// How many files the guest knows.
const FILES: usize = 300;

pub fn daemon(shared: &Path) -> Virtiofsd {
    Virtiofsd::serving(tempfile::tempdir().unwrap(), shared, &[])
}

pub fn shared_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        let path = directory.path().join(format!("file{number}"));
        std::fs::write(path, format!("contents of {number}")).unwrap();
    }
    directory
}

fn prepare(device: &VhostUserDevice) {
    let (sender, receiver) = channel();
    device.prepare_save(move |outcome| sender.send(outcome).unwrap());
    outcome(&receiver).unwrap();
}

/// The guest's driver: two queues, files it knows, and one that it holds open.
pub struct Guest<'a> {
    pub ram: &'a TestRam,
    high_priority: Ring<'a>,
    requests: Ring<'a>,
    features: u64,
    open: [u64; 2],
    /// The number of that one.
    opened: usize,
}

impl<'a> Guest<'a> {
    pub fn start(share: &Share, ram: &'a TestRam) -> Self {
        Self::start_with(share, ram, FILES)
    }

    /// One that knows so many files.
    pub fn start_with(share: &Share, ram: &'a TestRam, files: usize) -> Self {
        let mut guest = Guest {
            ram,
            high_priority: Ring::new(ram, 0, LOW),
            requests: Ring::new(ram, 1, HIGH),
            features: share.device.features() & !(1 << 29),
            open: [0; 2],
            opened: files / 2,
        };
        share.activate(&[&guest.high_priority, &guest.requests]);
        init(&mut guest.requests, ram);
        for number in 0..files {
            let node = guest.look_up(number);
            if number == files / 2 {
                let answer = fuse(&mut guest.requests, ram, OPEN, node, &[0; 8]);
                guest.open = [node, word(&answer, 16)];
            }
        }
        guest
    }

    fn look_up(&mut self, number: usize) -> u64 {
        let name = format!("file{number}\0");
        let answer = fuse(&mut self.requests, self.ram, LOOKUP, ROOT, name.as_bytes());
        word(&answer, 16)
    }

    /// What it reads from the file that it holds open.
    fn read(&mut self) -> Vec<u8> {
        let [node, handle] = self.open;
        let mut body = [handle, 0].map(u64::to_le_bytes).concat();
        body.extend_from_slice(&64u32.to_le_bytes());
        body.resize(40, 0);
        let answer = fuse(&mut self.requests, self.ram, READ, node, &body);
        let length = u32::from_le_bytes(answer[..4].try_into().unwrap()) as usize;
        answer[16..length].to_vec()
    }

    pub fn is_well(&mut self) {
        let contents = format!("contents of {}", self.opened);
        assert_eq!(self.read(), contents.as_bytes());
        assert_eq!(
            root_mode(&mut self.requests, self.ram) & 0o170_000,
            0o040_000
        );
    }

    fn activation(&self) -> Option<Activation> {
        let queues = vec![
            self.high_priority.queue.clone(),
            self.requests.queue.clone(),
        ];
        let features = self.features;
        Some(Activation { features, queues })
    }

    pub fn restore(&self, share: &Share, state: &VhostUserStateV1) {
        let (sender, receiver) = channel();
        let tell = move |outcome| sender.send(outcome).unwrap();
        share.device.restore(self.activation(), state, tell);
        outcome(&receiver).unwrap();
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn a_guest_goes_on_with_its_files_behind_one_virtiofsd_after_another() {
    let shared = shared_directory();
    let ram = TestRam::new();
    let first = daemon(shared.path());
    let mut share = Share::new(&first, &ram);
    let mut guest = Guest::start(&share, &ram);
    let mut daemons = vec![first];
    for round in 0..3 {
        // Once with preparation, once without, once with the log that prepares, too.
        match round {
            0 => prepare(&share.device),
            1 => {}
            _ => {
                let log = Arc::new(DirtyLog::new(&ram.regions).unwrap());
                outcome(&start_log(&share.device, &log)).unwrap();
                guest.is_well();
                assert!(!taken(&log).is_empty());
            }
        }
        outcome(&suspend(&share.device)).unwrap();
        let rest = share.device.rest().unwrap();
        assert_eq!(rest.back_end, BackEndStateV1::Carried);
        let state = save(&share.device, &PATIENT).unwrap();
        assert!(state.len() > FILES, "{} bytes", state.len());

        let next = daemon(shared.path());
        let destination = Share::new(&next, &ram);
        guest.restore(&destination, &rest);
        load(&destination.device, &PATIENT, &state).unwrap();
        assert_eq!(destination.device.state(), DeviceState::Suspended);
        assert_eq!(destination.device.rest().unwrap(), rest);
        let again = save(&destination.device, &PATIENT).unwrap();
        assert_eq!(again.len(), state.len());
        outcome(&resume(&destination.device)).unwrap();
        guest.is_well();
        assert!(share.reports.try_recv().is_err());
        assert!(destination.reports.try_recv().is_err());
        share = destination;
        daemons.push(next);
    }
    let (last, others) = daemons.split_last().unwrap();
    for daemon in others {
        eventually("it ends with its connection", || daemon.has_exited());
    }
    assert!(!last.has_exited());
}

#[test]
fn a_guest_goes_on_after_saves_that_succeed_and_saves_that_do_not() {
    let shared = shared_directory();
    let ram = TestRam::new();
    let daemon = daemon(shared.path());
    let share = Share::new(&daemon, &ram);
    let mut guest = Guest::start(&share, &ram);
    let mut sizes = Vec::new();
    for round in 0..20 {
        if round % 2 == 0 {
            prepare(&share.device);
        }
        outcome(&suspend(&share.device)).unwrap();
        if round % 3 == 0 {
            drop(share.device.begin_save(&PATIENT));
        }
        sizes.push(save(&share.device, &PATIENT).unwrap().len());
        outcome(&resume(&share.device)).unwrap();
        guest.is_well();
    }
    // In virtiofsd, what is left of a save that was given up could take from the next one what it collects.
    sizes.dedup();
    assert_eq!(sizes.len(), 1, "{sizes:?}");
    assert!(share.reports.try_recv().is_err());
}

#[test]
fn a_state_that_was_damaged_does_not_start_a_guest() {
    let shared = shared_directory();
    let ram = TestRam::new();
    let first = daemon(shared.path());
    let source = Share::new(&first, &ram);
    let guest = Guest::start(&source, &ram);
    outcome(&suspend(&source.device)).unwrap();
    let rest = source.device.rest().unwrap();
    let state = save(&source.device, &PATIENT).unwrap();
    let truncated = state[..state.len() / 2].to_vec();
    let mut garbage = state.clone();
    garbage.fill(0xff);
    for damaged in [truncated, garbage, Vec::new()] {
        let next = daemon(shared.path());
        let destination = Share::new(&next, &ram);
        guest.restore(&destination, &rest);
        match load(&destination.device, &PATIENT, &damaged) {
            Err(StateError::BackEnd(error)) => {
                assert!(matches!(error.step, StateStep::Check | StateStep::Write));
                let line = chain(&error);
                assert!(
                    line.contains("log has the reason") || line.contains("own log"),
                    "{line}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(destination.device.state(), DeviceState::Changing);
        assert!(outcome(&resume(&destination.device)).is_err());
        let line = chain(&failure(&destination.reports));
        assert!(line.contains("was not restored"), "{line}");
        outcome(&resume(&destination.device)).unwrap();
        assert_eq!(destination.device.state(), DeviceState::Failed);
    }
    // The source still has its guest.
    outcome(&resume(&source.device)).unwrap();
    let mut guest = guest;
    guest.is_well();
}

/// By its default the source saves what it cannot find, and the destination refuses that.
#[test]
fn a_file_that_cannot_be_found_again_is_refused_and_the_source_goes_on() {
    let shared = shared_directory();
    let ram = TestRam::new();
    let first = daemon(shared.path());
    let source = Share::new(&first, &ram);
    let mut guest = Guest::start(&source, &ram);
    std::fs::remove_file(shared.path().join(format!("file{}", FILES / 2))).unwrap();
    for round in 0..2 {
        if round == 0 {
            prepare(&source.device);
        }
        outcome(&suspend(&source.device)).unwrap();
        let rest = source.device.rest().unwrap();
        let state = save(&source.device, &PATIENT).unwrap();
        let next = daemon(shared.path());
        let destination = Share::new(&next, &ram);
        guest.restore(&destination, &rest);
        let Err(StateError::BackEnd(error)) = load(&destination.device, &PATIENT, &state) else {
            panic!("it was found");
        };
        assert_eq!(error.step, StateStep::Check);
        let line = chain(&error);
        assert!(line.contains("its own log has the reason"), "{line}");
        outcome(&resume(&source.device)).unwrap();
        guest.is_well();
    }
    assert!(source.reports.try_recv().is_err());
}
