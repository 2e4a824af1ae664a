//! With the real qemu-storage-daemon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::harness::{Event, HANG, HIGH, LOW, Observer, TestRam, failure, next, started};
use super::ring::Ring;
use super::storage_daemon::{
    IMAGE_SIZE, Speed, StorageDaemon, WRITE, places, read_sector, spec, start, submit, write_sector,
};
use crate::chain;
use crate::vhost_user::{DeviceState, Limits, VhostUserDevice};
use crate::virtio::{Activation, ActivationFailed, VirtioDevice};

#[test]
fn a_disk_works_before_and_after_a_reset() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut sectors = [0; 8];
    disk.device.read_config(0, &mut sectors);
    assert_eq!(u64::from_le_bytes(sectors), IMAGE_SIZE / 512);

    let mut ring = Ring::new(&ram, 0, LOW);
    // As the Linux driver does when it finds a device.
    disk.reset();
    for round in 1..=3u8 {
        ring.clear();
        disk.activate(&[&ring]);
        write_sector(&mut ring, &ram, 7, round);
        assert_eq!(read_sector(&mut ring, &ram, 7), [round; 512]);
        disk.reset();
    }
    assert_eq!(daemon.image()[7 * 512..8 * 512], [3; 512]);
}

#[test]
fn a_back_end_that_dies_fails_the_device_once() {
    let mut daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    daemon.kill();
    let error = failure(&disk.reports);
    assert!(chain(&error).contains("disk0"), "{}", chain(&error));
    assert!(chain(&error).contains("closed"), "{}", chain(&error));
    assert_eq!(next(&disk.events), Event::Failed);
    assert_eq!(disk.device.state(), DeviceState::Failed);

    disk.device.reset();
    assert_eq!(next(&disk.events), Event::ResetDone);
    disk.device.activate(Activation {
        features: disk.device.features(),
        queues: vec![ring.queue.clone()],
    });
    assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
    assert!(disk.reports.try_recv().is_err());
}

#[test]
fn two_queues_work_and_three_are_too_many() {
    let daemon = StorageDaemon::start(2, Speed::Full);
    let ram = TestRam::new();
    {
        let (observer, reports) = Observer::new();
        VhostUserDevice::start(
            spec(&daemon.socket(), 3),
            Limits::default(),
            Arc::clone(&ram.regions),
            observer,
        )
        .unwrap();
        let error = started(&reports).unwrap_err();
        assert!(!error.is_unreachable());
        assert!(chain(&error).contains("2 queues"), "{}", chain(&error));
    }
    let disk = start(spec(&daemon.socket(), 2), Limits::default(), &ram);
    let mut first = Ring::new(&ram, 0, LOW);
    let mut second = Ring::new(&ram, 1, HIGH);
    disk.activate(&[&first, &second]);
    write_sector(&mut first, &ram, 1, 0x11);
    assert_eq!(read_sector(&mut second, &ram, 1), [0x11; 512]);
}

#[test]
fn a_reset_takes_requests_along_that_nobody_announced() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    ram.write(places(0).data, &[0x5a; 512]);
    // Published, but the vCPU got no further.
    for sector in 0..4 {
        submit(&mut ring, &ram, 0, WRITE, sector);
    }
    disk.reset();
    assert_eq!(ring.used_index(), 4);
}

#[test]
fn a_reset_with_requests_in_flight_waits_for_them() {
    let daemon = StorageDaemon::start(1, Speed::Throttled(4));
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    for slot in 0..5 {
        submit(&mut ring, &ram, slot, WRITE, u64::from(slot));
    }
    ring.kick();
    disk.reset();
    assert_eq!(ring.used_index(), 5);
    for slot in 0..5 {
        assert_eq!(ram.read(places(slot).status, 1), [0]);
    }
    // The daemon has not been hurt by it.
    ring.clear();
    disk.activate(&[&ring]);
    write_sector(&mut ring, &ram, 9, 0x99);
}

#[test]
fn a_resized_image_reaches_the_guest() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    daemon.resize(2 * IMAGE_SIZE);
    assert_eq!(next(&disk.events), Event::ConfigChanged);
    let mut sectors = [0; 8];
    disk.device.read_config(0, &mut sectors);
    assert_eq!(u64::from_le_bytes(sectors), 2 * IMAGE_SIZE / 512);
}

#[test]
fn a_socket_without_a_listener_is_tried_and_then_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let ram = TestRam::new();
    let limits = Limits {
        connect: Duration::from_millis(100),
        ..Limits::default()
    };
    let (observer, reports) = Observer::new();
    let socket = directory.path().join("nobody.sock");
    VhostUserDevice::start(spec(&socket, 1), limits, Arc::clone(&ram.regions), observer).unwrap();
    let error = started(&reports).unwrap_err();
    assert!(error.is_unreachable(), "{}", chain(&error));
}

#[test]
fn dropping_the_device_closes_the_connection() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    // The daemon serves one client at a time: the second is served only when the first has gone.
    let first = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    drop(first.device);
    let began = Instant::now();
    let _second = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    assert!(began.elapsed() < HANG);
}

#[test]
fn a_daemon_that_stands_still_is_slow_and_then_dead() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let limits = Limits {
        request: Duration::from_millis(500),
        dead: Duration::from_secs(4),
        ..Limits::default()
    };
    let disk = start(spec(&daemon.socket(), 1), limits, &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    let activation = Activation {
        features: disk.device.features() & !(1 << 29),
        queues: vec![ring.queue.clone()],
    };

    daemon.signal(libc::SIGSTOP);
    disk.device.activate(activation.clone());
    assert!(disk.events.recv_timeout(limits.request * 3 / 2).is_err());
    daemon.signal(libc::SIGCONT);
    assert_eq!(next(&disk.events), Event::Activated(Ok(())));
    write_sector(&mut ring, &ram, 5, 0x55);
    disk.reset();

    daemon.signal(libc::SIGSTOP);
    disk.device.activate(activation);
    assert_eq!(next(&disk.events), Event::Activated(Err(ActivationFailed)));
    let line = chain(&failure(&disk.reports));
    assert!(line.contains("taken for dead"), "{line}");
    assert_eq!(disk.device.state(), DeviceState::Failed);
}
