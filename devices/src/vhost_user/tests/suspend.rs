//! Suspending and resuming, with a back-end that follows a script.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{Event, HANG, LOW, Observer, TestRam, Transport, next, started};
use super::peer::{Peer, Seen};
use super::ring::Ring;
use crate::vhost_user::{DeviceState, Error, Limits, VhostUserDevice};
use crate::virtio::{Activation, VirtioDevice};

pub struct Disk {
    pub peer: Peer,
    pub device: Arc<VhostUserDevice>,
    pub events: Receiver<Event>,
    pub reports: Receiver<super::harness::Report>,
}

pub type Outcome = Receiver<Result<(), Error>>;

pub fn suspend(device: &VhostUserDevice) -> Outcome {
    let (sender, receiver) = channel();
    device.suspend(move |outcome| sender.send(outcome).unwrap());
    receiver
}

pub fn resume(device: &VhostUserDevice) -> Outcome {
    let (sender, receiver) = channel();
    device.resume(move |outcome| sender.send(outcome).unwrap());
    receiver
}

/// What the order was answered, which is told once.
pub fn outcome(of: &Outcome) -> Result<(), Error> {
    let outcome = of.recv_timeout(HANG).unwrap();
    assert_eq!(
        of.recv_timeout(HANG).err(),
        Some(std::sync::mpsc::RecvTimeoutError::Disconnected),
        "answered again"
    );
    outcome
}

impl Disk {
    pub fn new(peer: Peer, limits: Limits, ram: &TestRam) -> Self {
        let (observer, reports) = Observer::new();
        VhostUserDevice::start(peer.disk(), limits, Arc::clone(&ram.regions), observer).unwrap();
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

    pub fn activate(&self, rings: &[&Ring<'_>]) {
        self.device.activate(Activation {
            features: self.device.features(),
            queues: rings.iter().map(|ring| ring.queue.clone()).collect(),
        });
        assert_eq!(next(&self.events), Event::Activated(Ok(())));
        while self.peer.seen.recv_timeout(Duration::ZERO).is_ok() {}
    }

    fn seen(&self) -> Vec<Seen> {
        self.peer.seen.try_iter().collect()
    }
}

fn codes(seen: &[Seen]) -> Vec<String> {
    seen.iter().map(|seen| seen.code.to_string()).collect()
}

#[test]
fn a_device_is_stopped_and_goes_on_from_there() {
    let ram = TestRam::new();
    let disk = Disk::new(Peer::honest(), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    outcome(&suspend(&disk.device)).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Suspended);
    assert_eq!(codes(&disk.seen()), ["GET_FEATURES", "GET_VRING_BASE"]);
    ring.queue.kick.read().unwrap();
    let _ = ring.queue.call.read();

    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(disk.device.state(), DeviceState::Active);
    let seen = disk.seen();
    assert_eq!(
        codes(&seen),
        [
            "SET_VRING_NUM",
            "SET_VRING_BASE",
            "SET_VRING_ADDR",
            "SET_VRING_CALL",
            "SET_VRING_KICK",
            "SET_VRING_ENABLE"
        ]
    );
    assert!(seen[1].is(FrontendReq::SET_VRING_BASE));
    assert_eq!(ring.queue.kick.read().unwrap(), 1, "looked at once");
    assert_eq!(ring.queue.call.read().unwrap(), 1, "one interrupt");
    assert!(disk.reports.try_recv().is_err());
}
