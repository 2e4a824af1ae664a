//! Devices that are handed from one handle to another, as between two processes, while their back-ends work on.

use std::sync::Arc;
use std::sync::mpsc::channel;

use vhost::vhost_user::message::FrontendReq;

use super::harness::{Event, HANG, HIGH, LOW, Observer, TestRam, Transport, failure, next};
use super::peer::{Offer, Peer, Reaction, Script, count, once};
use super::ring::{Ring, SIZE};
use super::storage_daemon::{
    Running, Speed, StorageDaemon, WRITE, places, read_sector, spec, start, submit, write_sector,
};
use super::suspend::{outcome, resume, suspend};
use crate::vhost_user::{
    BackendSpec, Cause, DeviceState, Error, Limits, Live, LiveStateV1, PartsV1, VhostUserDevice,
};
use crate::virtio::VirtioDevice;

/// Requests that fit into the ring, with three descriptors each.
const SLOTS: u16 = SIZE / 3;

fn lend(device: &VhostUserDevice) -> Result<Live, Error> {
    let (sender, lent) = channel();
    device.lend(move |outcome| sender.send(outcome).unwrap());
    lent.recv_timeout(HANG).unwrap()
}

fn take_over(spec: BackendSpec, ram: &TestRam, live: Live) -> Running {
    // As on its way through a socket.
    let state = vm_migration::stream::encode(&live.state).unwrap();
    let live = Live {
        state: vm_migration::stream::decode::<LiveStateV1>(&state).unwrap(),
        ..live
    };
    let (observer, reports) = Observer::new();
    let ram = Arc::clone(&ram.regions);
    let device = VhostUserDevice::take_over(spec, Limits::default(), ram, live, observer).unwrap();
    let (transport, events) = Transport::new();
    device.attach(transport);
    Running {
        device,
        reports,
        events,
    }
}

#[test]
fn requests_in_flight_are_completed_for_the_next_one_a_hundred_times() {
    let daemon = StorageDaemon::start(1, Speed::Throttled(1000));
    let ram = TestRam::new();
    let spec = spec(&daemon.socket(), 1);
    let mut disk = start(spec.clone(), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    for turn in 0..100u64 {
        for slot in 0..SLOTS {
            ram.write(places(slot).data, &[turn as u8; 512]);
            submit(&mut ring, &ram, slot, WRITE, turn * 8 + u64::from(slot));
        }
        // A processor may have been stopped before it could say so.
        if turn % 2 == 0 {
            ring.kick();
        }
        let live = lend(&disk.device).unwrap();
        let next = take_over(spec.clone(), &ram, live);
        assert_eq!(next.device.state(), DeviceState::Active);
        drop(disk);
        disk = next;
        outcome(&resume(&disk.device)).unwrap();
        ring.wait();
        assert!((0..SLOTS).all(|slot| ram.read(places(slot).status, 1) == [0]));
    }
    // It is as any other device.
    outcome(&suspend(&disk.device)).unwrap();
    assert_eq!(ring.used_index(), 100 * SLOTS);
    outcome(&resume(&disk.device)).unwrap();
    assert_eq!(read_sector(&mut ring, &ram, 99 * 8), [99; 512]);
    disk.reset();
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    write_sector(&mut ring, &ram, 0, 0x55);
}

#[test]
fn a_device_that_nobody_takes_goes_on() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    for turn in 0..3 {
        let live = lend(&disk.device).unwrap();
        assert!(matches!(
            *lend(&disk.device).unwrap_err().cause,
            Cause::NotAtRest { .. }
        ));
        if turn > 0 {
            drop(take_over(spec(&daemon.socket(), 1), &ram, live));
        }
        outcome(&resume(&disk.device)).unwrap();
        write_sector(&mut ring, &ram, turn, turn as u8);
    }
}

#[test]
fn one_that_is_reset_while_it_is_lent_is_as_any_other() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let disk = start(spec(&daemon.socket(), 1), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    drop(lend(&disk.device).unwrap());
    disk.reset();
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    write_sector(&mut ring, &ram, 0, 7);
    drop(lend(&disk.device).unwrap());
    outcome(&resume(&disk.device)).unwrap();
    write_sector(&mut ring, &ram, 1, 8);
}

#[test]
fn one_that_is_suspended_or_idle_stays_so() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let spec = spec(&daemon.socket(), 1);
    let disk = start(spec.clone(), Limits::default(), &ram);
    let disk = take_over(spec.clone(), &ram, lend(&disk.device).unwrap());
    assert_eq!(disk.device.state(), DeviceState::Idle);
    outcome(&resume(&disk.device)).unwrap();
    let mut ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    write_sector(&mut ring, &ram, 0, 1);
    outcome(&suspend(&disk.device)).unwrap();
    let next = take_over(spec, &ram, lend(&disk.device).unwrap());
    drop(disk);
    assert_eq!(next.device.state(), DeviceState::Suspended);
    outcome(&resume(&next.device)).unwrap();
    assert_eq!(next.device.state(), DeviceState::Active);
    write_sector(&mut ring, &ram, 1, 2);
}

#[test]
fn the_back_end_hears_nothing() {
    let peer = Peer::honest();
    let ram = TestRam::new();
    let mut disk = start(peer.disk(), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    let before = count(&peer.seen);
    assert!(!before.is_empty());
    for _ in 0..3 {
        let live = lend(&disk.device).unwrap();
        disk = take_over(peer.disk(), &ram, live);
        outcome(&resume(&disk.device)).unwrap();
    }
    assert_eq!(count(&peer.seen), Default::default());
    // One that follows says something.
    disk.reset();
    assert!(!count(&peer.seen).is_empty());
    // What the last one kicks is what the first one was given.
    assert!(ring.queue.kick.read().is_ok());
    assert!(ring.queue.call.read().is_ok());
}

#[test]
fn an_announcement_that_comes_meanwhile_is_for_the_next_one() {
    let ram = TestRam::new();
    let (sender, channels) = channel();
    let script: Script = Box::new(move |seen| {
        if seen.is(FrontendReq::SET_BACKEND_REQ_FD) {
            sender.send(seen.fds[0].try_clone().unwrap()).unwrap();
        }
        Reaction::Honest
    });
    let peer = Peer::start(Offer::default(), script);
    let disk = start(peer.disk(), Limits::default(), &ram);
    let channel = channels.recv_timeout(HANG).unwrap();
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    let live = lend(&disk.device).unwrap();
    let _channel = super::channel::announce(channel);
    let next_one = take_over(peer.disk(), &ram, live);
    drop(disk);
    count(&peer.seen);
    outcome(&resume(&next_one.device)).unwrap();
    // It asks what has changed.
    let asked = peer.seen.recv_timeout(HANG).unwrap();
    assert!(asked.is(FrontendReq::GET_CONFIG));
}

#[test]
fn a_death_meanwhile_is_noticed_by_whoever_goes_on() {
    for is_taken in [false, true] {
        let mut daemon = StorageDaemon::start(1, Speed::Full);
        let ram = TestRam::new();
        let spec = spec(&daemon.socket(), 1);
        let disk = start(spec.clone(), Limits::default(), &ram);
        let ring = Ring::new(&ram, 0, LOW);
        disk.activate(&[&ring]);
        let live = lend(&disk.device).unwrap();
        daemon.kill();
        let disk = match is_taken {
            true => take_over(spec, &ram, live),
            false => disk,
        };
        let _ = outcome(&resume(&disk.device));
        failure(&disk.reports);
        assert_eq!(next(&disk.events), Event::Failed);
    }
}

fn parts(live: &Live) -> PartsV1 {
    live.state.rings[0].parts
}

#[test]
fn what_does_not_fit_is_refused() {
    let daemon = StorageDaemon::start(1, Speed::Full);
    let ram = TestRam::new();
    let spec = spec(&daemon.socket(), 1);
    let disk = start(spec.clone(), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    type Damage = fn(&mut Live);
    let connection: [Damage; 3] = [
        |live| drop(live.fds.pop()),
        |live| live.fds.clear(),
        |live| live.state.has_channel = !live.state.has_channel,
    ];
    let rings: [Damage; 6] = [
        |live| live.state.rings[0].parts.index = 1,
        |live| live.state.rings[0].parts.used = HIGH - 8,
        |live| {
            live.state.former = vec![PartsV1 {
                index: 1,
                ..parts(live)
            }]
        },
        |live| live.state.former = vec![parts(live); 2],
        |live| live.state.former = vec![parts(live); 1 << 16],
        |live| live.state.features = Some(u64::MAX),
    ];
    let writes: [Damage; 5] = [
        |live| live.state.writes = vec![(0, vec![])],
        |live| live.state.writes = vec![(0, vec![0; 257])],
        |live| live.state.writes = vec![(32, vec![0]); 17],
        |live| live.state.writes = vec![(live.state.config.len() as u32, vec![0])],
        |live| live.state.writes = vec![(u32::MAX, vec![0])],
    ];
    let agreement: [Damage; 5] = [
        |live| live.state.negotiated.protocol = u64::MAX,
        |live| live.state.negotiated.config_size = 257,
        |live| live.state.config.push(0),
        |live| live.state.config.clear(),
        |live| {
            for config in [&mut live.state.config, &mut live.state.negotiated.config] {
                config.resize(257, 0);
            }
        },
    ];
    let damages = [&connection[..], &rings, &writes, &agreement].concat();
    for (number, damage) in damages.into_iter().enumerate() {
        let mut live = lend(&disk.device).unwrap();
        damage(&mut live);
        let (observer, _reports) = Observer::new();
        let ram = Arc::clone(&ram.regions);
        let taken =
            VhostUserDevice::take_over(spec.clone(), Limits::default(), ram, live, observer);
        assert!(taken.is_err(), "{number}");
        outcome(&resume(&disk.device)).unwrap();
    }
    // As much as there can be.
    let mut live = lend(&disk.device).unwrap();
    live.state.writes = vec![(0, live.state.config.clone()); 16];
    live.state.former = vec![parts(&live)];
    drop(take_over(spec, &ram, live));
}

#[test]
fn an_answer_that_is_owed_is_taken_first() {
    let peer = Peer::start(
        Offer::default(),
        once(
            FrontendReq::SET_CONFIG,
            Reaction::Late(std::time::Duration::from_millis(300)),
        ),
    );
    let ram = TestRam::new();
    let disk = start(peer.disk(), Limits::default(), &ram);
    let ring = Ring::new(&ram, 0, LOW);
    disk.activate(&[&ring]);
    disk.device.write_config(32, &[1]);
    let live = lend(&disk.device).unwrap();
    let next = take_over(peer.disk(), &ram, live);
    drop(disk);
    outcome(&resume(&next.device)).unwrap();
    next.reset();
}
