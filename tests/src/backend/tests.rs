//! The back-end's state, moved by a front-end that is nothing but these few lines.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::message::FrontendReq as Req;
use super::wire::{self, Message, flags};
use super::{Backend, DeviceState, Direction, Done, Fault, Outcome, Running, feature, protocol};

const FEATURES: u64 = feature::VERSION_1 | feature::PROTOCOL_FEATURES;

/// A connection on which features and memory are agreed on.
struct FrontEnd(UnixStream);

impl FrontEnd {
    fn new(backend: &Running) -> Self {
        let mut front = FrontEnd(UnixStream::connect(backend.socket()).unwrap());
        front
            .0
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        front.tell(Req::SET_FEATURES, &FEATURES.to_ne_bytes(), vec![]);
        front.tell(
            Req::SET_PROTOCOL_FEATURES,
            &protocol::DEVICE_STATE.to_ne_bytes(),
            vec![],
        );
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(4096).unwrap();
        let mut table = vec![0; 40];
        table[0] = 1;
        table[16..24].copy_from_slice(&4096u64.to_ne_bytes());
        front.tell(Req::SET_MEM_TABLE, &table, vec![memory.into()]);
        front
    }

    fn tell(&mut self, request: Req, payload: &[u8], fds: Vec<OwnedFd>) {
        let message = Message::new(u32::from(request), flags::VERSION, payload.to_vec());
        wire::send(&self.0, &message.bytes(), &fds).unwrap();
    }

    fn ask(&mut self, request: Req, payload: &[u8], fds: Vec<OwnedFd>) -> Option<Message> {
        self.tell(request, payload, fds);
        wire::receive(&mut self.0).unwrap()
    }

    fn begin(&mut self, direction: u32, end: OwnedFd) -> Option<Message> {
        let payload = [direction.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
        self.ask(Req::SET_DEVICE_STATE_FD, &payload, vec![end])
    }

    fn save(&mut self) -> (PipeReader, Message) {
        let (ours, theirs) = io::pipe().unwrap();
        let reply = self.begin(0, theirs.into()).unwrap();
        (ours, reply)
    }

    fn load(&mut self) -> (PipeWriter, Message) {
        let (theirs, ours) = io::pipe().unwrap();
        let reply = self.begin(1, theirs.into()).unwrap();
        (ours, reply)
    }

    fn check(&mut self) -> u64 {
        self.ask(Req::CHECK_DEVICE_STATE, &[], vec![])
            .unwrap()
            .number()
    }
}

fn backend(state: DeviceState) -> Backend {
    Backend::blk("64K").with_state(state)
}

/// The bytes of a state.
fn bytes(state: DeviceState) -> Vec<u8> {
    let mut bytes = vec![0; state.bytes as usize];
    crate::pattern::stream(state.seed, 0, &mut bytes);
    bytes
}

#[test]
fn a_state_of_any_size_is_saved_and_loaded() {
    for size in ["0", "1", "1048575", "1M", "1048577"] {
        let state = DeviceState::new(size, 3);
        let old = backend(state).start();
        let mut front = FrontEnd::new(&old);
        let (mut pipe, reply) = front.save();
        assert_eq!((reply.number(), reply.fds.len()), (1 << 8, 0));
        let mut saved = Vec::new();
        pipe.read_to_end(&mut saved).unwrap();
        assert!(saved == bytes(state));
        assert_eq!(front.check(), 0);

        let new = Backend::blk("64K").awaits_state(state).start();
        assert_eq!(new.holds_state(), None);
        let mut front = FrontEnd::new(&new);
        let (mut pipe, _) = front.load();
        pipe.write_all(&saved).unwrap();
        drop(pipe);
        assert_eq!(front.check(), 0);
        assert_eq!(new.holds_state(), Some(state));
        let loaded = Done {
            direction: Direction::Load,
            bytes: state.bytes,
            outcome: Outcome::Good,
        };
        assert_eq!(new.transfers(), [loaded]);
        assert_eq!((old.complaints(), new.complaints()), (vec![], vec![]));
    }
}

#[test]
fn another_state_is_noticed() {
    let state = DeviceState::new("100000", 3);
    let good = bytes(state);
    let mut changed = good.clone();
    changed[77777] ^= 1;
    for wrong in [&good[..99999], &[&good[..], &[0]].concat(), &changed] {
        let new = Backend::blk("64K").awaits_state(state).start();
        let mut front = FrontEnd::new(&new);
        let (mut pipe, _) = front.load();
        let _ = pipe.write_all(wrong);
        drop(pipe);
        assert_eq!(front.check(), 1);
        assert_eq!(new.holds_state(), None);
    }
}

#[test]
fn what_is_asked_in_a_wrong_order_is_a_complaint() {
    let state = DeviceState::new("100000", 3);
    let old = backend(state).start();
    let mut front = FrontEnd::new(&old);
    front.check();
    assert!(old.complaints()[0].contains("no state has been moved"));
    // The end has not been read yet.
    let (_pipe, _) = front.save();
    front.check();
    assert!(old.complaints()[1].contains("before the end"));
    // The other end is still open.
    let (_pipe, _) = front.load();
    front.check();
    assert!(old.complaints()[2].contains("before the end"));
    // A reader's end for a save.
    front.begin(0, File::open("/dev/null").unwrap().into());
    assert!(old.complaints()[3].contains("wrong end"));
    let mut call = [0; 8].to_vec();
    call[1] = 0;
    front.tell(Req::SET_VRING_CALL, &call, vec![null()]);
    front.tell(Req::SET_VRING_KICK, &call, vec![null()]);
    front.check();
    let complaints = old.complaints();
    assert!(
        complaints
            .iter()
            .any(|text| text.contains("SET_VRING_KICK")),
        "{complaints:?}"
    );
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

#[test]
fn a_descriptor_of_its_own_is_used() {
    let state = DeviceState::new("1M", 5);
    let old = backend(state)
        .in_transfer(Direction::Save, 1, Fault::ReturnFd)
        .in_transfer(Direction::Load, 1, Fault::ReturnFd)
        .start();
    let mut front = FrontEnd::new(&old);
    let (mut unused, mut reply) = front.save();
    assert_eq!(reply.number(), 0);
    let mut saved = Vec::new();
    File::from(reply.fds.pop().unwrap())
        .read_to_end(&mut saved)
        .unwrap();
    assert!(saved == bytes(state));
    assert_eq!(unused.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(front.check(), 0);
    let (_unused, mut reply) = front.load();
    let mut pipe = File::from(reply.fds.pop().unwrap());
    pipe.write_all(&saved).unwrap();
    drop(pipe);
    assert_eq!(front.check(), 0);
    assert_eq!(old.complaints(), Vec::<String>::new());
}

#[test]
fn wrong_answers_are_as_told_and_the_next_attempt_is_good() {
    for (fault, number, fds) in [
        (Fault::Refuse, 0x101, 0),
        (Fault::RefuseWithFd, 1, 1),
        (Fault::NoFd, 0, 0),
        (Fault::UnannouncedFd, 0x100, 1),
        (Fault::TwoFds, 0, 2),
    ] {
        let state = DeviceState::new("1M", 5);
        let old = backend(state)
            .in_transfer(Direction::Save, 1, fault)
            .start();
        let mut front = FrontEnd::new(&old);
        let (_, reply) = front.save();
        assert_eq!(
            (reply.number(), reply.fds.len()),
            (number, fds),
            "{fault:?}"
        );
        let (mut pipe, _) = front.save();
        pipe.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(front.check(), 0);
    }
}

#[test]
fn a_transfer_that_hangs_ends_with_its_pipe() {
    let state = DeviceState::new("1M", 5);
    for at in [0, 1 << 19, 1 << 20] {
        let old = backend(state)
            .in_transfer(Direction::Save, 1, Fault::HangAt(at))
            .in_transfer(Direction::Load, 1, Fault::HangAt(at))
            .start();
        let mut front = FrontEnd::new(&old);
        let (mut pipe, _) = front.save();
        let mut part = vec![0; at as usize];
        pipe.read_exact(&mut part).unwrap();
        assert!(bytes(state).starts_with(&part));
        drop(pipe);
        let (mut pipe, _) = front.save();
        assert_eq!(pipe.read_to_end(&mut Vec::new()).unwrap(), 1 << 20);
        assert_eq!(front.check(), 0);

        let (mut pipe, _) = front.load();
        let writer = thread::spawn(move || pipe.write_all(&bytes(state)[..at as usize]));
        writer.join().unwrap().unwrap();
        let (mut pipe, _) = front.load();
        pipe.write_all(&bytes(state)).unwrap();
        drop(pipe);
        assert_eq!(front.check(), 0);
        assert_eq!(old.complaints(), Vec::<String>::new());
    }
}

#[test]
fn a_transfer_that_stops_fails_its_check() {
    let state = DeviceState::new("1M", 5);
    let old = backend(state)
        .in_transfer(Direction::Save, 1, Fault::StopAt(1000))
        .in_transfer(Direction::Load, 1, Fault::StopAt(1000))
        .start();
    let mut front = FrontEnd::new(&old);
    let (mut pipe, _) = front.save();
    assert_eq!(pipe.read_to_end(&mut Vec::new()).unwrap(), 1000);
    assert_eq!(front.check(), 1);
    let (mut pipe, _) = front.load();
    let error = pipe.write_all(&bytes(state)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    drop(pipe);
    assert_eq!(front.check(), 1);
}

#[test]
fn a_back_end_that_dies_takes_pipe_and_connection_with_it() {
    let state = DeviceState::new("1M", 5);
    let old = backend(state)
        .in_transfer(Direction::Save, 1, Fault::DieAt(1000))
        .start();
    let mut front = FrontEnd::new(&old);
    let (mut pipe, _) = front.save();
    assert_eq!(pipe.read_to_end(&mut Vec::new()).unwrap(), 1000);
    assert!(wire::receive(&mut front.0).unwrap().is_none());
    UnixStream::connect(old.socket()).unwrap_err();
}
