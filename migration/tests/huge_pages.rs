//! RAM of huge pages.
//!
//! In a file of its own: the reservation is the whole system's, and cargo runs one file's tests at a time.

#![expect(clippy::unwrap_used, reason = "it is a test")]

use std::fs::{self, File};
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;

use vm_migration::link::{Address, Last, Link, Listener, Message, Patience, Purpose, StreamId};
use vm_migration::pages::{Bitmap, Progress, RamTarget, Region, send_all, send_dirty};
use vm_migration::ram::{RamPart, Unwatched, load, save};

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";
const HUGE: u64 = 2 << 20;

/// Huge pages set aside, and given back at the end.
struct Reservation {
    before: String,
}

impl Reservation {
    /// Only root can: `None`.
    fn attempt(more: u64) -> Option<Self> {
        let before = fs::read_to_string(RESERVED).ok()?;
        let number: u64 = before.trim().parse().ok()?;
        fs::write(RESERVED, (number + more).to_string()).ok()?;
        Some(Reservation { before })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let _ = fs::write(RESERVED, &self.before);
    }
}

fn huge_memfd(bytes: u64) -> File {
    let flags = libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    // SAFETY: the name is a C string, and the call has no other memory arguments.
    let fd = unsafe { libc::memfd_create(c"test-ram".as_ptr(), flags) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: `fd` was just opened and belongs to no one else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 2 * HUGE as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Huge pages can be mapped and read, but not written to as a file.
#[test]
fn ram_of_huge_pages_is_loaded_and_saved() {
    let Some(_reservation) = Reservation::attempt(4) else {
        // Not root. The same copy into ordinary pages is tested elsewhere.
        return;
    };
    let part = |file| RamPart {
        file,
        offset: 0,
        bytes: 2 * HUGE,
    };
    let ordinary = tempfile::tempfile().unwrap();
    ordinary.set_len(2 * HUGE).unwrap();
    let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    ordinary.write_all_at(&data, HUGE + 12_345).unwrap();
    let file = tempfile::tempfile().unwrap();
    let sums = save(part(&ordinary), &file, &Unwatched).unwrap();

    let huge = huge_memfd(2 * HUGE);
    load(&file, &sums, part(&huge), &Unwatched).unwrap();
    assert!(content(&huge) == content(&ordinary));

    let again = tempfile::tempfile().unwrap();
    assert_eq!(save(part(&huge), &again, &Unwatched).unwrap(), sums);
    assert!(content(&again) == content(&ordinary));
    let taken = again.metadata().unwrap().blocks() * 512;
    assert!(taken <= 26 * 4096, "{taken}");
    drop(huge);

    let target = huge_memfd(2 * HUGE);
    migrate(&ordinary, &target);
    assert!(content(&target) == content(&ordinary));
}

/// Sends all RAM, and then zeros for what is less than a huge page.
fn migrate(from: &File, to: &File) {
    let region = |file| {
        let part = RamPart {
            file,
            offset: 0,
            bytes: 2 * HUGE,
        };
        Region::new(0, part)
    };
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("socket"));
    let mut listener = Listener::bind(&address, None).unwrap();
    let (watch, patience, attempt) = (&Unwatched, Patience::default(), StreamId([1; 16]));
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let purpose = Purpose::Migrate { connections: 1 };
            let link = Link::connect(&address, None, attempt, purpose, patience, watch);
            let mut links = [link.unwrap()];
            let (piece, last) = (&b""[..], Last::Yes);
            links[0]
                .send(&Message::Describe { piece, last }, watch)
                .unwrap();
            links[0].receive(watch).unwrap();
            let (regions, progress) = ([region(from)], Progress::default());
            send_all(&mut links, &regions, &progress, watch).unwrap();
            from.write_all_at(&[0; 8192], HUGE + 16_384).unwrap();
            let mut dirty = Bitmap::new(2 * HUGE);
            dirty.set_range(HUGE + 16_384, 8192);
            let sent = send_dirty(&mut links, &regions, &dirty, &progress, watch).unwrap();
            assert_eq!(sent.zeros, 8192);
            links[0].send(&Message::StateEnd, watch).unwrap();
            // It stays until the receiver has all: that has answers to give.
            links
        });
        let mut link = listener.accept(watch, None).unwrap();
        link.accept_it().unwrap();
        link.receive(watch).unwrap();
        link.send(&Message::Prepared, watch).unwrap();
        let ram = RamTarget::new(&[region(to)], 1).unwrap();
        let end = link.receive_into(&ram, watch).unwrap();
        assert_eq!(end, Message::StateEnd);
        drop(sender.join().unwrap());
    });
}
