//! A back-end with state inside: a peer that hands it over and takes it, except where its script says otherwise.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::message::FrontendReq;
use vm_migration::Watch;

use super::harness::{HANG, LOW, TestRam};
use super::peer::{LEAST_FEATURES, Offer, Peer, Reaction, Script, Seen, answer};
use super::ring::Ring;
use super::suspend::{Disk, outcome, suspend};
use crate::vhost_user::{
    BackendSpec, Fs, Limits, Profile, StateError, StateLimits, VhostUserDevice,
};

pub const BEGIN: FrontendReq = FrontendReq::SET_DEVICE_STATE_FD;
pub const CHECK: FrontendReq = FrontendReq::CHECK_DEVICE_STATE;
pub const LOG_ALL: u64 = 1 << 26;

/// Long for a test, and short for a back-end that hangs.
pub const SHORT: Duration = Duration::from_millis(800);

/// Patient with what is honest.
pub const PATIENT: StateLimits = StateLimits {
    reply: HANG,
    silence: HANG,
    most: 1 << 30,
};

/// Gives up soon.
pub const IMPATIENT: StateLimits = StateLimits {
    reply: SHORT,
    silence: SHORT,
    most: 1 << 30,
};

/// The answer to SET_DEVICE_STATE_FD.
pub fn begin_answer(value: u64) -> Vec<u8> {
    answer(BEGIN.into(), &value.to_ne_bytes())
}

/// The answer to CHECK_DEVICE_STATE.
pub fn check_answer(value: u64) -> Vec<u8> {
    answer(CHECK.into(), &value.to_ne_bytes())
}

/// A state that looks like no other part of itself.
pub fn blob(size: usize) -> Vec<u8> {
    let mut number = 1u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        number = number
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A script for a back-end that has its end of the pipe moved by `save` or `load`, on threads of their own, and does what
/// `exception` says where that is not [`Reaction::Honest`].
pub fn moved_by(
    save: impl Fn(File) + Send + Clone + 'static,
    load: impl Fn(File) + Send + Clone + 'static,
    mut exception: Script,
) -> Script {
    Box::new(move |seen| {
        let reaction = exception(seen);
        if seen.is(BEGIN) && matches!(reaction, Reaction::Honest | Reaction::Late(_)) {
            let (end, save, load) = (end(seen), save.clone(), load.clone());
            let direction = seen.payload[0];
            thread::spawn(move || match direction {
                0 => save(end),
                _ => load(end),
            });
        }
        reaction
    })
}

/// The back-end's end of the pipe.
pub fn end(seen: &Seen) -> File {
    assert_eq!(seen.fds.len(), 1);
    assert_eq!(seen.payload[1..], [0; 7], "phase 0");
    File::from(seen.fds[0].try_clone().unwrap())
}

/// A back-end whose state is `state`, and which tells what was loaded into it.
pub fn with_state(state: Vec<u8>, exception: Script) -> StatefulScript {
    let (teller, loaded) = channel::<Vec<u8>>();
    let script = moved_by(
        move |mut end| {
            // Whoever gives up does not read on.
            let _ = end.write_all(&state);
        },
        move |mut end| {
            let mut bytes = Vec::new();
            end.read_to_end(&mut bytes).unwrap();
            let _ = teller.send(bytes);
        },
        exception,
    );
    StatefulScript { script, loaded }
}

pub struct StatefulScript {
    pub script: Script,
    pub loaded: Receiver<Vec<u8>>,
}

pub fn honestly() -> Script {
    Box::new(|_| Reaction::Honest)
}

pub fn offer() -> Offer {
    Offer {
        features: LEAST_FEATURES | LOG_ALL,
        protocol: Offer::default().protocol | Protocol::DEVICE_STATE | Protocol::LOG_SHMFD,
        ..Offer::default()
    }
}

/// A shared directory with one queue behind a peer that follows `script`.
pub fn share(script: Script, limits: Limits, ram: &TestRam) -> Disk {
    let peer = Peer::start(offer(), script);
    let spec = BackendSpec {
        id: "fs0".into(),
        profile: Profile::Fs(Fs {
            tag: "shared".into(),
        }),
        ..peer.disk()
    };
    Disk::new(spec, peer, limits, ram)
}

/// The same, suspended with ring 0 at `LOW`.
pub fn suspended(script: Script, limits: Limits, ram: &TestRam) -> Disk {
    let disk = share(script, limits, ram);
    let ring = Ring::new(ram, 0, LOW);
    disk.activate(&[&ring]);
    outcome(&suspend(&disk.device)).unwrap();
    disk.codes();
    disk
}

/// Counts, and cancels when it is told to.
#[derive(Default)]
pub struct Counting {
    pub bytes: AtomicU64,
    pub cancel: AtomicBool,
}

impl Watch for Counting {
    fn done(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// Saves the state of a suspended device.
pub fn save(device: &VhostUserDevice, limits: &StateLimits) -> Result<Vec<u8>, StateError> {
    let watch = Counting::default();
    let mut state = Vec::new();
    let transfer = device.begin_save(limits);
    let count = transfer.read(
        &mut |data| {
            state.extend_from_slice(data);
            Ok(())
        },
        &watch,
    )?;
    assert_eq!(count, state.len() as u64);
    assert_eq!(count, watch.bytes.load(Ordering::Relaxed));
    Ok(state)
}

/// Loads a state into a device that is being restored.
pub fn load(
    device: &VhostUserDevice,
    limits: &StateLimits,
    state: &[u8],
) -> Result<u64, StateError> {
    let watch = Counting::default();
    let mut loading = device.begin_load(limits);
    // In odd pieces.
    for piece in state.chunks(77_777) {
        loading.write(piece, &watch)?;
    }
    let count = loading.finish(&watch)?;
    assert_eq!(count, watch.bytes.load(Ordering::Relaxed));
    Ok(count)
}
