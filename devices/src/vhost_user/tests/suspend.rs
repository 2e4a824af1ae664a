//! Suspending and resuming a device whose back-end is honest.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{Event, HANG, HIGH, LOW, Observer, Report, TestRam, Transport, next, started};
use super::peer::{Offer, Peer, Reaction, Script, answer, base_answer, once};
use super::ring::Ring;
use crate::vhost_user::{
    BackendSpec, BackendState, DeviceState, Error, Generic, Limits, Profile, VhostUserDevice,
};
use crate::virtio::{Activation, ActivationFailed, VirtioDevice};

/// A device behind a peer, what it tells, and what the peer sees.
pub struct Disk {
    pub peer: Peer,
    pub device: Arc<VhostUserDevice>,
    pub events: Receiver<Event>,
    pub reports: Receiver<Report>,
}

pub type Outcome = Receiver<Result<(), Error>>;

pub fn suspend(device: &VhostUserDevice) -> Outcome {
    let (sender, receiver) = channel();
    device.suspend(move |outcome| sender.send(outcome).unwrap());
    receiver
}

pub fn resume(device: &VhostUserDevice) -> Outcome {
    let (sender, receiver) = channel();
    drop(device.resume(move |outcome| sender.send(outcome).unwrap()));
    receiver
}

/// What the order was answered, which is told once.
pub fn outcome(of: &Outcome) -> Result<(), Error> {
    let outcome = of.recv_timeout(HANG).unwrap();
    let again = of.recv_timeout(HANG).err();
    assert_eq!(again, Some(RecvTimeoutError::Disconnected), "told again");
    outcome
}

/// The messages that start a ring, in their order.
pub const RESTART: [&str; 6] = [
    "SET_VRING_NUM",
    "SET_VRING_BASE",
    "SET_VRING_ADDR",
    "SET_VRING_CALL",
    "SET_VRING_KICK",
    "SET_VRING_ENABLE",
];

/// Those that start two rings: none is started before all are set up.
pub fn restart_of_two() -> Vec<&'static str> {
    let (set_up, start) = RESTART.split_at(4);
    let [kick, enable] = [start[0], start[1]].map(|message| [message; 2]);
    [set_up, set_up, &kick, &enable].concat()
}

impl Disk {
    pub fn new(spec: BackendSpec, peer: Peer, limits: Limits, ram: &TestRam) -> Self {
        let (observer, reports) = Observer::new();
        VhostUserDevice::start(spec, limits, Arc::clone(&ram.regions), observer).unwrap();
        let device = started(&reports).unwrap();
        let (transport, events) = Transport::new();
        device.attach(transport);
        Disk {
            peer,
            device,
            events,
            reports,
        }
    }

    /// A disk with two queues whose back-end follows `script`.
    pub fn scripted(script: Script, limits: Limits, ram: &TestRam) -> Self {
        let peer = Peer::start(Offer::default(), script);
        let spec = BackendSpec {
            num_queues: 2,
            ..peer.disk()
        };
        Disk::new(spec, peer, limits, ram)
    }

    pub fn honest(ram: &TestRam) -> Self {
        Disk::scripted(Box::new(|_| Reaction::Honest), Limits::default(), ram)
    }

    pub fn post_activation(&self, rings: &[&Ring<'_>]) {
        self.device.activate(Activation {
            features: self.device.features(),
            queues: rings.iter().map(|ring| ring.queue.clone()).collect(),
        });
    }

    /// Activates the device, and forgets what the peer saw of it.
    pub fn activate(&self, rings: &[&Ring<'_>]) {
        self.post_activation(rings);
        assert_eq!(next(&self.events), Event::Activated(Ok(())));
        self.codes();
        for ring in rings {
            ring.queue.kick.read().unwrap();
        }
    }

    pub fn reset(&self) {
        self.device.reset();
        assert_eq!(next(&self.events), Event::ResetDone);
    }

    /// The messages that the peer has seen since the last call.
    pub fn codes(&self) -> Vec<String> {
        let seen = self.peer.seen.try_iter();
        seen.map(|seen| seen.code.to_string()).collect()
    }

    pub fn is_well(&self) {
        assert!(self.reports.try_recv().is_err());
        assert!(self.events.try_recv().is_err());
        assert!(self.device.error().is_none());
    }
}

/// Answers GET_VRING_BASE with the bases given, in turn.
fn bases(bases: &'static [[u32; 2]]) -> Script {
    let mut bases = bases.iter();
    Box::new(move |seen| match seen.is(FrontendReq::GET_VRING_BASE) {
        true => {
            let [queue, base] = bases.next().unwrap();
            Reaction::Send(base_answer(*queue, *base), 0)
        }
        false => Reaction::Honest,
    })
}

#[test]
fn a_device_is_stopped_and_goes_on_from_there() {
    let ram = TestRam::new();
    let script = bases(&[[0, 7], [1, 65535]]);
    let disk = Disk::scripted(script, Limits::default(), &ram);
    let (mut first, mut second) = (Ring::new(&ram, 0, LOW), Ring::new(&ram, 1, HIGH));
    disk.activate(&[&first, &second]);
    first.offer(7);
    first.pretend_used(7);
    second.offer(65535);
    second.pretend_used(65535);

    outcome(&suspend(&disk.device)).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Suspended);
    assert_eq!(
        disk.codes(),
        ["GET_FEATURES", "GET_VRING_BASE", "GET_VRING_BASE"]
    );
    for ring in [&first, &second] {
        assert!(ring.queue.kick.read().is_err(), "nothing to look at");
        assert!(ring.queue.call.read().is_err(), "no interrupt yet");
    }

    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Active);
    let seen: Vec<_> = disk.peer.seen.try_iter().collect();
    let codes: Vec<_> = seen.iter().map(|seen| seen.code.to_string()).collect();
    assert_eq!(codes, restart_of_two());
    assert_eq!(seen[1].payload, [0u32, 7].map(u32::to_ne_bytes).concat());
    assert_eq!(
        seen[5].payload,
        [1u32, 65535].map(u32::to_ne_bytes).concat()
    );
    for ring in [&first, &second] {
        assert_eq!(ring.queue.kick.read().unwrap(), 1, "looked at once");
        assert_eq!(ring.queue.call.read().unwrap(), 1, "one interrupt");
    }
    disk.is_well();
}

#[test]
fn what_is_not_running_has_nothing_to_stop() {
    let ram = TestRam::new();
    let disk = Disk::honest(&ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.codes();
    // Before any activation, and after a reset.
    for _ in 0..2 {
        outcome(&suspend(&disk.device)).unwrap();
        assert_eq!(disk.device.state(), DeviceState::Idle);
        outcome(&resume(&disk.device)).unwrap();
        assert_eq!(disk.codes(), Vec::<String>::new());
        disk.activate(&[&ring]);
        disk.reset();
        disk.codes();
    }
    disk.is_well();
}

#[test]
fn what_runs_is_not_started_again_and_what_stands_not_stopped_again() {
    let ram = TestRam::new();
    let disk = Disk::honest(&ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.codes(), Vec::<String>::new());
    assert_eq!(disk.device.state(), DeviceState::Active);
    outcome(&suspend(&disk.device)).unwrap();
    disk.codes();
    outcome(&suspend(&disk.device)).unwrap();
    assert_eq!(disk.codes(), ["GET_FEATURES"]);
    assert_eq!(disk.device.state(), DeviceState::Suspended);
}

#[test]
fn an_activation_and_a_reset_asked_for_before_come_first() {
    let ram = TestRam::new();
    let late = || Reaction::Late(std::time::Duration::from_millis(200));
    let script = once(FrontendReq::SET_FEATURES, late());
    let disk = Disk::scripted(script, Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.post_activation(&[&ring]);
    let suspended = suspend(&disk.device);
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
    outcome(&suspended).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Suspended);
    outcome(&resume(&disk.device)).unwrap();

    disk.device.reset();
    let suspended = suspend(&disk.device);
    assert_eq!(next(&disk.events), Event::ResetDone);
    outcome(&suspended).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Idle);
    disk.is_well();
}

#[test]
fn a_suspended_device_can_be_reset_and_activated_anew() {
    let ram = TestRam::new();
    let disk = Disk::honest(&ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    outcome(&suspend(&disk.device)).unwrap();
    disk.codes();
    disk.reset();
    assert_eq!(disk.codes(), ["RESET_DEVICE"]);
    assert_eq!(disk.device.state(), DeviceState::Idle);
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.codes(), Vec::<String>::new());
    disk.post_activation(&[&ring]);
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
    disk.is_well();
}

#[test]
fn an_activation_that_failed_is_stopped_and_left_to_the_guest() {
    let ram = TestRam::new();
    let refusal = answer(FrontendReq::SET_VRING_ENABLE.into(), &1u64.to_ne_bytes());
    let script = once(FrontendReq::SET_VRING_ENABLE, Reaction::Send(refusal, 0));
    let disk = Disk::scripted(script, Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.post_activation(&[&ring]);
    assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
    disk.codes();
    // The driver did not notice, and nobody is going to serve this.
    ring.offer(1);
    outcome(&suspend(&disk.device)).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Suspended);
    assert_eq!(disk.codes(), ["GET_FEATURES", "GET_VRING_BASE"]);
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.codes(), Vec::<String>::new());
    assert_eq!(disk.device.state(), DeviceState::Idle);
    disk.reset();
    assert_eq!(disk.codes(), ["RESET_DEVICE"]);
    ring.clear();
    disk.post_activation(&[&ring]);
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
    disk.is_well();
}

#[test]
fn requests_that_nobody_announced_are_waited_for() {
    let ram = TestRam::new();
    let disk = Disk::honest(&ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    ring.offer(1);
    let suspended = suspend(&disk.device);
    // The back-end's side of the ring: woken by the kick alone.
    while ring.queue.kick.read().is_err() {
        thread::yield_now();
    }
    assert!(suspended.try_recv().is_err());
    assert!(!disk.codes().contains(&"GET_VRING_BASE".to_string()));
    ring.pretend_used(1);
    // It says 0 where it should say 1; that is another test's.
    let error = outcome(&suspended).unwrap_err();
    assert!(error.to_string().contains("disk0"));
}

#[test]
fn buffers_that_are_parked_are_not_waited_for() {
    for (base, fine) in [(0, true), (3, true), (8, true), (9, false), (65535, false)] {
        let ram = TestRam::new();
        let script = once(
            FrontendReq::GET_VRING_BASE,
            Reaction::Send(base_answer(0, base), 0),
        );
        let peer = Peer::start(Offer::default(), script);
        let spec = BackendSpec {
            profile: Profile::Generic(Generic {
                device_type: 4,
                state: BackendState::None,
                drain: Vec::new(),
                config: None,
            }),
            ..peer.disk()
        };
        let device = Disk::new(spec, peer, Limits::default(), &ram);
        let mut ring = Ring::new(&ram, 0, LOW);
        device.activate(&[&ring]);
        ring.offer(8);
        let outcome = outcome(&suspend(&device.device));
        assert_eq!(outcome.is_ok(), fine, "base {base}");
        let expected = match fine {
            true => DeviceState::Suspended,
            false => DeviceState::Failed,
        };
        assert_eq!(device.device.state(), expected);
    }
}

#[test]
fn what_happens_is_counted() {
    let ram = TestRam::new();
    let disk = Disk::honest(&ram);
    let mut ring = Ring::new(&ram, 1, LOW);
    assert_eq!(disk.device.rings(), []);
    assert_eq!(disk.device.accepted_features(), None);
    disk.activate(&[&ring]);
    assert_eq!(
        disk.device.accepted_features(),
        Some(disk.device.features())
    );
    ring.offer(5);
    ring.pretend_used(3);
    let rings = disk.device.rings();
    assert_eq!(rings.len(), 1);
    assert_eq!((rings[0].index, rings[0].size), (1, ring.queue.size));
    assert_eq!((rings[0].available, rings[0].used), (5, 3));
    ring.clear();
    for _ in 0..2 {
        outcome(&suspend(&disk.device)).unwrap();
        outcome(&resume(&disk.device)).unwrap();
    }
    disk.reset();
    assert_eq!(disk.device.rings(), []);
    let counters = disk.device.counters();
    assert_eq!((counters.activations, counters.resets), (1, 1));
    assert_eq!((counters.suspends, counters.resumes), (2, 2));
    assert_eq!(counters.late_answers, 0);
}
