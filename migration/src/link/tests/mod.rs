//! Two sides over real sockets; strangers on either end.

mod alive;
mod handles;
mod hostile;
mod meeting;
mod order;
mod placement;
mod tls;
mod waiting;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::pages::{Progress, RamTarget, Region, end_extra, end_main, send_all};
use crate::ram::RamPart;
use crate::watch::{Unwatched, Watch};

pub(super) const ATTEMPT: StreamId = StreamId([0x5a; 16]);
pub(super) const COMMIT: Message<'static> = Message::Commit {
    good_for: Duration::from_micros(0x0102_0304_0506),
};
/// RAM: some pages with data in every block.
pub(super) const BYTES: u64 = 4 << 20;
/// Nothing in these tests may take this long.
pub(super) const TOO_LONG: Duration = Duration::from_secs(20);

/// What a sender of this version says first.
pub(super) fn preamble(purpose: Purpose) -> wire::Preamble {
    wire::Preamble {
        oldest: OLDEST,
        newest: NEWEST,
        purpose,
        attempt: ATTEMPT,
    }
}

pub(super) fn patience(silence: Duration) -> Patience {
    Patience {
        connect: TOO_LONG,
        silence,
    }
}

/// Ends what it watches when it is told to.
#[derive(Default)]
pub(super) struct Button(AtomicBool);

impl Button {
    pub(super) fn press(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Watch for Button {
    fn done(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A directory, with a unix socket to be in it.
pub(super) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        Place {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("socket")
    }

    pub(super) fn address(&self) -> Address {
        Address::Unix(self.path())
    }
}

pub(super) fn tcp() -> Address {
    "tcp:127.0.0.1:0".parse().unwrap()
}

/// A sender's connection, with the patience of these tests.
pub(super) fn connect(to: &Address, tls: Option<&Tls>, purpose: Purpose) -> Result<Link, Error> {
    Link::connect(to, tls, ATTEMPT, purpose, patience(TOO_LONG), &Unwatched)
}

/// Both ends of a connection over this listener.
pub(super) fn pair(listener: &mut Listener, tls: Option<&Tls>, purpose: Purpose) -> [Link; 2] {
    let address = listener.address().clone();
    thread::scope(|scope| {
        let sender = scope.spawn(|| connect(&address, tls, purpose));
        let mut receiver = listener.accept(&Unwatched, None).unwrap();
        receiver.set_silence(TOO_LONG);
        receiver.accept_it().unwrap();
        [sender.join().unwrap().unwrap(), receiver]
    })
}

/// Both ends of a main connection over a unix socket.
pub(super) fn main_pair() -> [Link; 2] {
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    pair(&mut listener, None, Purpose::Migrate { connections: 1 })
}

/// Both ends where RAM is due.
pub(super) fn copying_pair() -> [Link; 2] {
    let [mut sender, mut receiver] = main_pair();
    sender.send(&whole(b"it"), &Unwatched).unwrap();
    receiver.receive(&Unwatched).unwrap();
    receiver.send(&Message::Prepared, &Unwatched).unwrap();
    sender.receive(&Unwatched).unwrap();
    [sender, receiver]
}

pub(super) fn whole(piece: &[u8]) -> Message<'_> {
    Message::Describe {
        piece,
        last: Last::Yes,
    }
}

pub(super) fn ram() -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(BYTES).unwrap();
    file
}

pub(super) fn filled_ram() -> File {
    let file = ram();
    for block in 0..4u64 {
        let data: Vec<u8> = (0..3000).map(|n| (n * 7 + block * 13) as u8).collect();
        file.write_all_at(&data, block * BLOCK + 4096 * block + 100)
            .unwrap();
    }
    file
}

pub(super) fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; BYTES as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub(super) fn region(file: &File) -> Region<'_> {
    let part = RamPart {
        file,
        offset: 0,
        bytes: BYTES,
    };
    Region::new(0, part)
}

pub(super) fn timings() -> Vec<Timing> {
    let name = |name: &str| name.to_owned();
    vec![
        Timing {
            name: name("load"),
            micros: 1234,
        },
        Timing {
            name: name("vCPUs"),
            micros: 0,
        },
    ]
}

/// A whole migration, as a sender does it.
pub(super) fn send_guest(links: &mut [Link], from: &File) -> Result<Vec<Timing>, Error> {
    let watch = &Unwatched;
    let main = &mut links[0];
    let piece = b"half";
    let last = Last::No;
    main.send(&Message::Describe { piece, last }, watch)?;
    main.send(&Message::Alive, watch)?;
    main.send(&whole(b" a machine"), watch)?;
    assert_eq!(main.receive(watch)?, Message::Prepared);
    main.send(&Message::Round { number: 0 }, watch)?;
    send_all(links, &[region(from)], &Progress::default(), watch)?;
    let main = &mut links[0];
    let zeros = Message::Zeros {
        gpa: 0,
        bytes: 4096,
    };
    main.send(&zeros, watch)?;
    let data = &[9; 4096][..];
    main.send(&Message::Pages { gpa: 0, data }, watch)?;
    main.send(&Message::State(b"the state"), watch)?;
    for (device, data) in [(0, &b"chunk"[..]), (7, b"another"), (0, b"and one more")] {
        main.send(&Message::Chunk { device, data }, watch)?;
    }
    for (device, total) in [(7, 7), (0, 17)] {
        main.send(&Message::ChunkEnd { device, total }, watch)?;
    }
    main.send(&Message::StateEnd, watch)?;
    end_extra(links, watch)?;
    end_main(links, watch)?;
    let main = &mut links[0];
    assert_eq!(main.receive(watch)?, Message::Ready);
    main.send(&COMMIT, watch)?;
    let Message::Running { since: 7, timings } = main.receive(watch)? else {
        panic!("nothing else is admitted");
    };
    let timings = timings.into_owned();
    main.send(&Message::Bye, watch)?;
    Ok(timings)
}

/// A whole migration, as a receiver does it.
pub(super) fn receive_guest(mut links: Vec<Link>, to: &File) -> Result<(), Error> {
    let watch = &Unwatched;
    let connections = links.len() as u16;
    let ram = RamTarget::new(&[region(to)], connections).unwrap();
    let (main, extra) = links.split_first_mut().unwrap();
    while let Message::Describe { last: Last::No, .. } = main.receive(watch)? {}
    main.send(&Message::Prepared, watch)?;
    let main = &mut links_main(main, extra, &ram)?;
    main.send(&Message::Ready, watch)?;
    assert_eq!(main.receive(watch)?, COMMIT);
    let timings = timings().into();
    main.send(&Message::Running { since: 7, timings }, watch)?;
    assert_eq!(main.receive(watch)?, Message::Bye);
    Ok(())
}

fn links_main<'a>(
    main: &'a mut Link,
    extra: &mut [Link],
    ram: &RamTarget,
) -> Result<&'a mut Link, Error> {
    let received = thread::scope(|scope| {
        let receive = |link: &mut Link| {
            let kind = link.receive_into(ram, &Unwatched)?.kind();
            assert_eq!(kind, Kind::End);
            Ok(link.received())
        };
        let extra: Vec<_> = extra
            .iter_mut()
            .map(|link| scope.spawn(move || receive(link)))
            .collect();
        let mut kind = Kind::Round;
        while kind != Kind::End {
            kind = main.receive_into(ram, &Unwatched)?.kind();
        }
        let extra = extra.into_iter().map(|thread| thread.join().unwrap());
        extra.collect::<Result<Vec<Tally>, Error>>()
    })?;
    assert!(received.iter().all(|tally| tally.frames != 0));
    Ok(main)
}

/// The bytes of a whole migration: from the sender, and from the receiver, with their preambles.
pub(super) fn recorded() -> [Vec<u8>; 2] {
    let place = Place::new();
    let outer = UnixListener::bind(place.path()).unwrap();
    let inner = Place::new();
    let mut listener = Listener::bind(&inner.address(), None).unwrap();
    let tape = |mut from: UnixStream, mut to: UnixStream| {
        move || {
            let mut bytes = Vec::new();
            let mut buffer = vec![0; 1 << 16];
            loop {
                match from.read(&mut buffer).unwrap_or(0) {
                    0 => break,
                    got => {
                        bytes.extend(&buffer[..got]);
                        let _ = to.write_all(&buffer[..got]);
                    }
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Write);
            bytes
        }
    };
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let purpose = Purpose::Migrate { connections: 1 };
            let link = connect(&place.address(), None, purpose).unwrap();
            send_guest(&mut [link], &filled_ram()).unwrap()
        });
        let (client, _) = outer.accept().unwrap();
        let server = UnixStream::connect(inner.path()).unwrap();
        let there = scope.spawn(tape(
            client.try_clone().unwrap(),
            server.try_clone().unwrap(),
        ));
        let back = scope.spawn(tape(server, client));
        let mut link = listener.accept(&Unwatched, None).unwrap();
        link.accept_it().unwrap();
        receive_guest(vec![link], &ram()).unwrap();
        assert_eq!(sender.join().unwrap(), timings());
        [there.join().unwrap(), back.join().unwrap()]
    })
}
