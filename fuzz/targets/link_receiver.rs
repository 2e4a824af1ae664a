//! What a sender says to a receiver of a migration.
//!
//! The first byte chooses the kind of connection, the rest are its frames. Whatever they are, the receiver ends, without a
//! panic. They are tried as they are, and again with checksums made right. A hand-over brings descriptors along, and with them the
//! other bits of the first byte say how many.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};
use std::slice;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vm_migration::Unwatched;
use vm_migration::link::{
    Address, Error, HANDLES_MOST, Last, Link, Listener, Message, Outcome, Purpose,
};
use vm_migration::pages::{RamTarget, Region};
use vm_migration::ram::RamPart;

#[path = "../common/frames.rs"]
mod frames;

const RAM: u64 = 3 << 20;

thread_local! {
    static RECEIVER: RefCell<Receiver> = RefCell::new(Receiver::new());
}

struct Receiver {
    listener: Listener,
    ram: RamTarget<'static>,
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    let numbers = match choice % 4 {
        0 => [1, 1, 1, 2],
        1 => [1, 1, 2, 1],
        2 => [1, 1, 3, 0],
        _ => [1, 1, 4, 0],
    };
    let index = u16::from(choice % 4 == 1);
    let handles = match choice % 4 {
        3 => usize::from(choice / 4).min(HANDLES_MOST),
        _ => 0,
    };
    let mut right = bytes.to_vec();
    frames::repair(&mut right, index, frames::Side::Sender);
    RECEIVER.with_borrow_mut(|receiver| {
        receiver.hear(numbers, handles, bytes);
        receiver.hear(numbers, handles, &right);
    });
});

impl Receiver {
    fn new() -> Self {
        let path = frames::socket_path();
        let listener = Listener::bind(&Address::Unix(path), None).expect("it can listen");
        // SAFETY: the name is a string with its end; the call has no other memory arguments.
        let fd = unsafe { libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "a file can be made");
        // SAFETY: the descriptor is new, and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(RAM).expect("it can be large");
        // Both stay for ever.
        let file: &'static File = Box::leak(Box::new(file));
        let start = map(file);
        let part = RamPart {
            file,
            offset: 0,
            bytes: RAM,
        };
        // SAFETY: all of the file is mapped, and nobody has references into it.
        let region = unsafe { Region::new(1 << 20, part).mapped_at(start) };
        let ram = RamTarget::new(&[region], 2).expect("it is RAM");
        Receiver { listener, ram }
    }

    fn hear(&mut self, numbers: [u16; 4], handles: usize, bytes: &[u8]) {
        let Address::Unix(path) = self.listener.address() else {
            unreachable!("it is one");
        };
        // All of it fits into the socket.
        let mut client = UnixStream::connect(path).expect("it listens");
        client
            .write_all(&frames::introduction(numbers))
            .and_then(|()| write_with(&mut client, handles, bytes))
            .and_then(|()| client.shutdown(Shutdown::Write))
            .expect("it listens");
        let mut link = self.listener.accept(&Unwatched, None).expect("it is right");
        link.accept_it().expect("it is there");
        // Nobody reads the answers.
        link.set_silence(Duration::from_secs(1));
        answer(&mut link, &self.ram).expect_err("everything ends");
        link.receive(&Unwatched).expect_err("and stays so");
    }
}

/// Writes bytes, the first of them with so many descriptors.
fn write_with(client: &mut UnixStream, handles: usize, bytes: &[u8]) -> io::Result<()> {
    let Some((first, rest)) = bytes.split_first() else {
        return Ok(());
    };
    let own = client.as_fd();
    let fds = vec![own; handles];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDLES_MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if handles > 0 {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let first = [IoSlice::new(slice::from_ref(first))];
    sendmsg(own, &first, &mut control, SendFlags::empty())?;
    client.write_all(rest)
}

/// Maps RAM. Pages of its first half are there, so that some frames are received into RAM itself.
fn map(file: &File) -> NonNull<u8> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let (bytes, fd) = (RAM as usize, file.as_raw_fd());
    // SAFETY: the kernel chooses an address where nothing is mapped, and the first half is written to where it was mapped.
    unsafe {
        let start = libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0);
        assert!(start != libc::MAP_FAILED, "it can be mapped");
        start.cast::<u8>().write_bytes(1, bytes / 2);
        NonNull::new(start.cast()).expect("it is mapped")
    }
}

/// How many connections the main one of them says it has.
fn main(purpose: Purpose) -> Option<usize> {
    match purpose {
        Purpose::Migrate { connections } => Some(connections.into()),
        Purpose::HandOver => Some(1),
        Purpose::Join { .. } | Purpose::Ask => None,
    }
}

fn answer(link: &mut Link, ram: &RamTarget<'_>) -> Result<(), Error> {
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
            Message::End { tallies } if main(connection) == Some(tallies.len()) => Message::Ready,
            Message::Commit { .. } => Message::Running {
                since: 0,
                timings: Vec::new().into(),
            },
            Message::Handles { count } => {
                let taken = link.take_handles(count)?;
                assert_eq!(taken.len(), usize::from(count));
                continue;
            }
            message => {
                let own = connection.index() == 1;
                assert!(!own || matches!(message, Message::End { .. }));
                continue;
            }
        };
        link.send(&reply, watch)?;
    }
}
