//! Peers that lie, or do not know better: neither side is lost, and the next migration is a good one.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use ferry_tests::backend::{Backend, DeviceState, Running};
use ferry_tests::fault_proxy::{Act, FaultProxy, Then};
use ferry_tests::{Asked, Guest, Receive, Send};
use tempfile::TempDir;
use vm_migration::link::Kind;

use crate::common::{
    BUSY_SIZE, TICK, WRITTEN, busy, has_bounds, moved_alone, optional_heir, receiver,
};
use crate::peer::{accept, listener, waiting, waiting_receiver};
use crate::proxy::{Damage, Proxy, Way};
use crate::way::before;

/// Bytes of the preamble, and of the answer to it.
const PREAMBLE: usize = 48;
/// Bytes of a frame's header.
const HEADER: usize = 16;

/// A guest, its receiver, and the disks of both.
struct Scene {
    guest: Guest,
    there: Guest,
    next: Running,
    received: Option<Asked>,
    url: String,
    _disk: Running,
}

fn disk() -> Backend {
    Backend::blk(BUSY_SIZE).with_state(DeviceState::new("100K", 3))
}

impl Scene {
    fn new() -> Self {
        let disk = disk().start();
        let guest = busy(&disk);
        let next = optional_heir(&disk).start();
        let there = receiver(&guest);
        let url = guest.unix_url();
        Scene {
            guest,
            there,
            next,
            received: None,
            url,
            _disk: disk,
        }
    }

    /// The receiver listens, as before or again.
    fn listens(&mut self) {
        let waits = |there: &Guest| {
            let migration = there.try_migration()?;
            (migration["phase"] == "listen" && migration["state"] == "under-way").then_some(())
        };
        if waits(&self.there).is_some() {
            return;
        }
        if let Some(received) = self.received.take() {
            received.answer().expect_err("no guest has come");
        }
        assert!(
            self.there.api().get("vm.info").is_err(),
            "there is a machine"
        );
        let receive = Receive::at(&self.url).device("disk0", &self.next);
        self.received = Some(self.there.listen(&receive));
    }

    fn sending_fails(&mut self, to: &str) {
        self.sending_over_fails(2, to);
    }

    fn sending_over_fails(&mut self, connections: u32, to: &str) {
        self.guest.send(&Send::to(to).connections(connections));
        let ended = self.guest.wait_until("the end of the migration", |guest| {
            let migration = guest.try_migration()?;
            (migration["state"] != "under-way").then_some(migration)
        });
        assert_eq!(ended["state"], "failed", "{ended}");
        assert!(!ended["error"].as_array().expect("reasons").is_empty());
    }

    /// The guest is where it was, and a good migration succeeds.
    fn ends_well(mut self) {
        self.listens();
        self.guest.goes_on(WRITTEN);
        self.guest.send(&Send::to(&self.url).preserve_source());
        let received = self.received.take().expect("a receiver that listens");
        if let Err(reasons) = received.answer() {
            panic!(
                "{reasons:?}: {:?}, {:?}",
                self.next.complaints(),
                self.next.transfers()
            );
        }
        has_bounds(&self.guest);
        has_bounds(&self.there);
        self.there.goes_on(WRITTEN);
        assert_eq!(self.next.complaints(), Vec::<String>::new());
    }

    fn connect(&self) -> UnixStream {
        let path = self.url.strip_prefix("unix:").expect("a unix socket");
        let stream = UnixStream::connect(path).expect("a receiver that listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// Says something to the receiver and hears it out, until it hangs up.
    fn say(&self, bytes: &[u8]) {
        let mut stream = self.connect();
        // It may hang up before it has heard everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.take(1 << 20).read_to_end(&mut answer);
    }

    /// Waits until the receiver is done with a sender that is gone.
    fn settled(&mut self) {
        self.there
            .wait_until("a receiver that waits or has failed", |there| {
                let migration = there.try_migration()?;
                let waits = migration["phase"] == "listen" || migration["state"] == "failed";
                waits.then_some(())
            });
    }
}

fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    ferry_tests::pattern::stream(seed, 0, &mut noise);
    noise
}

/// What a sender says in a migration over one connection, until it waits for the receiver for the first time while it sends RAM.
fn recorded(scene: &mut Scene) -> Vec<u8> {
    scene.listens();
    let proxy = Proxy::to(&scene.url).damaged(Way::ToSender, 1 << 40, Damage::Flip);
    proxy.set_rate(0);
    // It is cut off before the receiver answers that.
    let proxy = proxy.damaged(Way::ToSender, TO_SENDER_BEFORE_SYNCED, Damage::Cut);
    scene.sending_over_fails(1, proxy.url());
    proxy.recorded(Way::ToReceiver)
}

/// The answer to the preamble, and PREPARED.
const TO_SENDER_BEFORE_SYNCED: u64 = (PREAMBLE + HEADER) as u64;

/// Whatever of a sender's first words is damaged, cut off or lost.
#[test]
fn a_stream_that_is_damaged_at_its_beginning() {
    let mut scene = Scene::new();
    // Far less than a sender says of its guest before it hears anything.
    let ends = [
        0, 7, 9, 16, 40, 47, 48, 49, 50, 52, 55, 56, 63, 64, 72, 80, 1000,
    ];
    for at in ends {
        for damage in [
            Damage::Flip,
            Damage::Cut,
            Damage::Insert(noise(at as u32, 100)),
        ] {
            scene.listens();
            let proxy = Proxy::to(&scene.url).damaged(Way::ToReceiver, at, damage);
            scene.sending_fails(proxy.url());
            drop(proxy);
            scene.settled();
        }
    }
    scene.ends_well();
}

/// Whatever frame of a sender is damaged, or the last one to arrive.
#[test]
fn a_stream_that_is_damaged_later() {
    // Over two connections it is the extra one that ends first.
    let kinds = [
        (Kind::Round, 2),
        (Kind::Pages, 2),
        (Kind::State, 2),
        (Kind::StateEnd, 2),
        (Kind::Chunk, 2),
        (Kind::ChunkEnd, 2),
        (Kind::End, 2),
        (Kind::End, 1),
    ];
    // Bytes of a header: of its kind, its flags, and its checksum.
    let damages = [1, 3, 8].map(Then::Damage);
    let damages = damages.into_iter().chain([Then::Cut(Duration::ZERO)]);
    let mut scene = Scene::new();
    let place = TempDir::new().unwrap();
    for (number, (kind, connections)) in kinds.into_iter().enumerate() {
        for (part, damage) in damages.clone().enumerate() {
            scene.listens();
            let at = place.path().join(format!("{number}-{part}"));
            let to = scene.url.strip_prefix("unix:").expect("a unix socket");
            let act = Act::Just(damage);
            let proxy = FaultProxy::start(&at, to.as_ref(), [(before(kind), act)]);
            scene.sending_over_fails(connections, &format!("unix:{}", at.display()));
            drop(proxy);
            scene.settled();
        }
    }
    scene.ends_well();
}

/// Whatever of a receiver's words is.
#[test]
fn a_receiver_whose_answers_are_damaged() {
    let mut scene = Scene::new();
    for at in [0, 8, 10, 12, 16, 33, 47, 48, 50, 52, 55, 56, 63] {
        for damage in [
            Damage::Flip,
            Damage::Cut,
            Damage::Insert(noise(at as u32, 100)),
        ] {
            scene.listens();
            let proxy = Proxy::to(&scene.url).damaged(Way::ToSender, at, damage);
            scene.sending_fails(proxy.url());
            drop(proxy);
            scene.guest.goes_on(WRITTEN);
            scene.settled();
        }
    }
    scene.ends_well();
}

#[test]
fn noise_instead_of_a_sender() {
    let mut scene = Scene::new();
    for (seed, bytes) in [(1, 0), (2, 1), (3, 47), (4, 48), (5, 4096), (6, 4 << 20)] {
        scene.listens();
        scene.say(&noise(seed, bytes));
        scene.say(&vec![0; bytes]);
    }
    scene.ends_well();
}

#[test]
fn many_who_say_nothing() {
    let mut scene = Scene::new();
    scene.listens();
    let silent: Vec<UnixStream> = (0..100).map(|_| scene.connect()).collect();
    scene.there.get("vmm.ping");
    scene.ends_well();
    drop(silent);
}

/// What a sender has said, said again: as it was, cut off, and with frames that are too long.
#[test]
fn a_recording_of_a_sender() {
    let mut scene = Scene::new();
    let words = recorded(&mut scene);
    for part in [words.len(), words.len() / 2, 48, 47, 64, 100] {
        scene.listens();
        scene.say(&words[..part]);
        scene.settled();
    }
    // Everything twice.
    scene.listens();
    scene.say(&[&words[..], &words[48..]].concat());
    scene.settled();
    for length in [u32::MAX, 1 << 31, (1 << 20) + 9, 0] {
        let mut words = words.clone();
        words[52..56].copy_from_slice(&length.to_be_bytes());
        scene.listens();
        scene.say(&words);
        scene.settled();
    }
    scene.ends_well();
}

/// What a receiver has said when a guest came, said again to the next one who sends it: as it was, and behind a right answer to the preamble.
#[test]
fn a_recording_of_a_receiver() {
    let guest = waiting(8);
    let url = guest.unix_url();
    let proxy = Proxy::to(&url);
    let there = waiting_receiver(&guest, 8);
    let send = Send::to(proxy.url()).connections(1);
    let mut guest = guest.migrated_to(there, &send, &Receive::at(&url));
    let words = proxy.recorded(Way::ToSender);
    // PREPARED, READY, and RUNNING with something.
    assert!(words.len() > PREAMBLE + 3 * HEADER, "{} bytes", words.len());
    for (is_right, reason) in [(false, "another attempt"), (true, "checksum")] {
        guest.goes_on(TICK);
        let place = TempDir::new().unwrap();
        let path = place.path().join("liar");
        let socket = UnixListener::bind(&path).unwrap();
        let words = words.clone();
        let liar = std::thread::spawn(move || {
            let (mut sender, _) = socket.accept().unwrap();
            let begin = if is_right { PREAMBLE } else { 0 };
            if is_right {
                let answer = right_answer(&mut sender, place.path());
                sender.write_all(&answer).unwrap();
            }
            // It may hang up before it has heard everything.
            let _ = sender.write_all(&words[begin..]);
            let _ = sender.read_to_end(&mut Vec::new());
        });
        guest.send(&Send::to(&format!("unix:{}", path.display())).connections(1));
        guest.wait_for_failure(&[reason]);
        liar.join().unwrap();
    }
    guest.goes_on(TICK);
    moved_alone(guest).goes_on(TICK);
}

/// What a receiver answers to who introduces itself here.
fn right_answer(sender: &mut UnixStream, place: &Path) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    sender.read_exact(&mut bytes).unwrap();
    let path = place.join("right");
    let mut listener = listener(&format!("unix:{}", path.display()));
    let mut client = UnixStream::connect(path).unwrap();
    client.write_all(&bytes).unwrap();
    let _link = accept(&mut listener);
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// A receiver that is none.
#[test]
fn whatever_a_receiver_answers_the_guest_goes_on() {
    let mut scene = Scene::new();
    let place = TempDir::new().unwrap();
    let answers = [
        vec![],
        noise(1, 10),
        noise(2, 48),
        noise(3, 1 << 20),
        vec![0; 1 << 20],
        vec![0xff; 48],
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let path = place.path().join(number.to_string());
        let listener = UnixListener::bind(&path).unwrap();
        let liar = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let limit = Some(Duration::from_secs(20));
            stream.set_write_timeout(limit).unwrap();
            let _ = stream.write_all(&answer);
        });
        let url = format!("unix:{}", path.display());
        scene.guest.send(&Send::to(&url));
        scene.guest.wait_for_failure(&[path.to_str().unwrap()]);
        liar.join().unwrap();
        scene.guest.goes_on(WRITTEN);
    }
    scene.ends_well();
}
