//! What a sender says to a receiver of a migration.
//!
//! The first byte chooses the kind of connection, the rest are its frames. Whatever they are, the receiver ends, without a
//! panic. They are tried as they are, and again with checksums made right.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use vm_migration::Unwatched;
use vm_migration::link::{Address, Error, Last, Link, Listener, Message, Outcome, Purpose};
use vm_migration::pages::{RamTarget, Region};
use vm_migration::ram::RamPart;

#[path = "../shared/frames.rs"]
mod frames;

const RAM: u64 = 3 << 20;

thread_local! {
    static RECEIVER: RefCell<Receiver> = RefCell::new(Receiver::new());
}

struct Receiver {
    listener: Listener,
    ram: RamTarget,
    _file: File,
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    let numbers = match choice % 3 {
        0 => [1, 1, 1, 2],
        1 => [1, 1, 2, 1],
        _ => [1, 1, 3, 0],
    };
    let index = u16::from(choice % 3 == 1);
    let mut right = bytes.to_vec();
    frames::repair(&mut right, index, frames::Side::Sender);
    RECEIVER.with_borrow_mut(|receiver| {
        receiver.hear(numbers, bytes);
        receiver.hear(numbers, &right);
    });
});

impl Receiver {
    fn new() -> Self {
        let path = frames::socket_path();
        let listener = Listener::bind(&Address::Unix(path.clone()), None).expect("it can listen");
        let path = path.with_extension("ram");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("a file can be made");
        std::fs::remove_file(path).expect("it is there");
        file.set_len(RAM).expect("it can be large");
        let part = RamPart {
            file: &file,
            offset: 0,
            bytes: RAM,
        };
        let ram = RamTarget::new(&[Region::new(1 << 20, part)], 2).expect("it is RAM");
        Receiver {
            listener,
            ram,
            _file: file,
        }
    }

    fn hear(&mut self, numbers: [u16; 4], bytes: &[u8]) {
        let Address::Unix(path) = self.listener.address() else {
            unreachable!("it is one");
        };
        // All of it fits into the socket.
        let mut client = UnixStream::connect(path).expect("it listens");
        client
            .write_all(&frames::introduction(numbers))
            .and_then(|()| client.write_all(bytes))
            .and_then(|()| client.shutdown(Shutdown::Write))
            .expect("it listens");
        let mut link = self.listener.accept(&Unwatched, None).expect("it is right");
        link.accept_it().expect("it is there");
        answer(&mut link, &self.ram).expect_err("everything ends");
        link.receive(&Unwatched).expect_err("and stays so");
    }
}

fn answer(link: &mut Link, ram: &RamTarget) -> Result<(), Error> {
    let watch = &Unwatched;
    if link.purpose() == Purpose::Ask {
        link.send(&Message::Outcome(Outcome::Waiting), watch)?;
    }
    loop {
        let connection = link.purpose();
        let reply = match link.receive_into(ram, watch)? {
            Message::Describe {
                last: Last::Yes, ..
            } => Message::Prepared,
            Message::End { tallies } if tallies.len() == 2 => Message::Ready,
            Message::Commit => Message::Running {
                timings: Vec::new().into(),
            },
            message => {
                let own = connection.index() == 1;
                assert!(!own || matches!(message, Message::End { .. }));
                continue;
            }
        };
        link.send(&reply, watch)?;
    }
}
