//! What a receiver of a migration says to the sender.
//!
//! The first byte chooses the kind of connection, the rest is what comes behind the receiver's answer to the preamble, or,
//! for one choice, in its place. Whatever it is, the sender ends, without a panic.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vm_migration::Unwatched;
use vm_migration::link::{Address, Error, Last, Link, Message, Patience, Purpose, StreamId};
use vm_migration::pages::end_main;

#[path = "../common/frames.rs"]
mod frames;

static RECEIVER: OnceLock<UnixListener> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    let (purpose, index) = match choice % 4 {
        1 => (Purpose::Join { index: 1 }, 1),
        2 => (Purpose::Ask, 0),
        _ => (Purpose::Migrate { connections: 1 }, 0),
    };
    if choice % 4 == 3 {
        hear(purpose, bytes);
        return;
    }
    let answer = frames::introduction([1, 0, 0, 0]);
    let mut right = bytes.to_vec();
    frames::repair(&mut right, index, frames::Side::Receiver);
    for bytes in [bytes, &right] {
        hear(purpose, &[&answer[..], bytes].concat());
    }
});

fn hear(purpose: Purpose, bytes: &[u8]) {
    let path = frames::socket_path();
    let listener = RECEIVER.get_or_init(|| {
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(&path).expect("it can listen")
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut client, _) = listener.accept().expect("it listens");
            // A sender that has heard enough is gone.
            let _ = client.write_all(bytes);
            let _ = client.shutdown(Shutdown::Write);
            let mut waste = [0; 4096];
            while client.read(&mut waste).is_ok_and(|got| got != 0) {}
        });
        let patience = Patience {
            connect: Duration::from_secs(4),
            silence: Duration::from_secs(4),
        };
        let attempt = StreamId(frames::ATTEMPT);
        let address = Address::Unix(path.clone());
        let link = Link::connect(&address, None, attempt, purpose, patience, &Unwatched);
        if let Ok(mut link) = link {
            talk(&mut link).expect_err("everything ends");
            link.receive(&Unwatched).expect_err("and stays so");
        }
    });
}

fn talk(link: &mut Link) -> Result<(), Error> {
    let watch = &Unwatched;
    if let Purpose::Migrate { .. } = link.purpose() {
        let (piece, last) = (&b"a machine"[..], Last::Yes);
        link.send(&Message::Describe { piece, last }, watch)?;
    }
    loop {
        match link.receive(watch)? {
            Message::Prepared => {
                let (gpa, bytes) = (0, 4096);
                link.send(&Message::Zeros { gpa, bytes }, watch)?;
                link.send(&Message::StateEnd, watch)?;
                end_main(std::slice::from_mut(link), watch)?;
            }
            Message::Ready => {
                let good_for = Duration::from_secs(1);
                link.send(&Message::Commit { good_for }, watch)?;
            }
            Message::Running { .. } => link.send(&Message::Bye, watch)?,
            Message::Outcome(_) => (),
            other => unreachable!("{other:?} is not for a sender"),
        }
    }
}
