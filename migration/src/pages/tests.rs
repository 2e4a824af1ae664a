mod failures;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use super::send::WORTH_THREADS;
use super::*;
use crate::link::{
    Address, Error, Kind, Last, Link, Listener, Message, Patience, Purpose, StreamId, Violation,
};
use crate::watch::{Unwatched, Watch};

const MIB: u64 = 1 << 20;
/// Two regions with a gap between them that is no whole number of blocks, and one that ends within a block.
const LOW: u64 = 3 * MIB;
const HIGH_GPA: u64 = 5 * MIB + 8192;
const HIGH: u64 = 2 * MIB + 12288;

/// RAM of two regions in one file, the second one first.
struct Ram(File);

impl Ram {
    fn new() -> Self {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(LOW + HIGH).unwrap();
        Ram(file)
    }

    fn regions(&self) -> [Region<'_>; 2] {
        let region = |gpa, offset, bytes| {
            let part = RamPart {
                file: &self.0,
                offset,
                bytes,
            };
            Region::new(gpa, part)
        };
        [region(0, HIGH, LOW), region(HIGH_GPA, 0, HIGH)]
    }

    fn write(&self, gpa: u64, data: &[u8]) {
        let at = match gpa {
            HIGH_GPA.. => gpa - HIGH_GPA,
            _ => gpa + HIGH,
        };
        self.0.write_all_at(data, at).unwrap();
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; (LOW + HIGH) as usize];
        self.0.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Bytes that are allocated.
    fn taken(&self) -> u64 {
        self.0.metadata().unwrap().blocks() * 512
    }
}

/// Both ends of so many connections, where RAM is due.
fn connected(connections: u16) -> [Vec<Link>; 2] {
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("socket"));
    let mut listener = Listener::bind(&address, None).unwrap();
    let watch = &Unwatched;
    let mut senders = Vec::new();
    let mut receivers: Vec<Link> = Vec::new();
    for index in 0..connections {
        let purpose = match index {
            0 => Purpose::Migrate { connections },
            index => Purpose::Join { index },
        };
        thread::scope(|scope| {
            let connect = scope.spawn(|| {
                let attempt = StreamId([1; 16]);
                Link::connect(&address, None, attempt, purpose, Patience::default(), watch)
            });
            let mut link = listener.accept(watch, None).unwrap();
            link.accept_it().unwrap();
            receivers.push(link);
            senders.push(connect.join().unwrap().unwrap());
        });
    }
    let all = Message::Describe {
        piece: b"",
        last: Last::Yes,
    };
    senders[0].send(&all, watch).unwrap();
    receivers[0].receive(watch).unwrap();
    receivers[0].send(&Message::Prepared, watch).unwrap();
    senders[0].receive(watch).unwrap();
    [senders, receivers]
}

/// Receives until every connection has ended, with a thread for each.
fn receive_all(links: &mut [Link], to: &Ram) -> Result<(), Error> {
    let target = RamTarget::new(&to.regions(), links.len() as u16).unwrap();
    thread::scope(|scope| {
        let threads: Vec<_> = links
            .iter_mut()
            .map(|link| {
                scope.spawn(|| {
                    while link.receive_into(&target, &Unwatched)?.kind() != Kind::End {}
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap())
    })
}

/// What `send` sends goes into `to`.
fn transfer(connections: u16, to: &Ram, send: impl FnOnce(&mut [Link])) {
    let [mut senders, mut receivers] = connected(connections);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_all(&mut receivers, to));
        send(&mut senders);
        end_extra(&mut senders, &Unwatched).unwrap();
        senders[0].send(&Message::StateEnd, &Unwatched).unwrap();
        end_main(&mut senders, &Unwatched).unwrap();
        receiver.join().unwrap().unwrap();
    });
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|n| (n * 31 + seed * 7 + 1) as u8 | 1)
        .collect()
}

#[test]
fn all_of_ram_goes_over_and_what_is_zero_costs_nothing() {
    for connections in [1, 3] {
        let (from, to) = (Ram::new(), Ram::new());
        // Over the border of a block, to the end of a region, at the beginning of the other one.
        from.write(MIB - 5000, &pattern(1, 10_000));
        from.write(LOW - 4096, &pattern(2, 4096));
        from.write(HIGH_GPA, &pattern(3, 1));
        from.write(HIGH_GPA + HIGH - 1, &pattern(4, 1));
        // There, and zero.
        from.write(2 * MIB, &[0; 300_000]);
        let progress = Progress::default();
        transfer(connections, &to, |links| {
            let regions = from.regions();
            let sent = send_all(links, &regions, &progress, &Unwatched).unwrap();
            assert_eq!(sent.data + sent.zeros, LOW + HIGH);
            assert_eq!(sent.data, 4 * 4096 + 4096 + 2 * 4096);
            assert_eq!([progress.data(), progress.zeros()], [sent.data, sent.zeros]);
        });
        assert!(from.content() == to.content());
        assert_eq!(to.taken(), 7 * 4096);
    }
}

/// RAM as a process has it that moves a guest.
struct Mapped {
    ram: Ram,
    mapping: crate::sys::Mapping,
}

impl Mapped {
    fn new() -> Self {
        let ram = Ram::new();
        let mapping = crate::sys::Mapping::new(&ram.0, LOW + HIGH).unwrap();
        Mapped { ram, mapping }
    }

    /// Touches so much of the file.
    fn touch(&self, bytes: u64) {
        self.mapping.write(0, &vec![0; bytes as usize]).unwrap();
    }

    fn regions(&self) -> [Region<'_>; 2] {
        self.ram.regions().map(|region| {
            let at = region.part.offset as usize;
            // SAFETY: all of the file is mapped as long as `self` lives.
            unsafe { region.mapped_at(self.mapping.start().add(at)) }
        })
    }
}

#[test]
fn ram_that_is_mapped_goes_over_as_any_other() {
    let (from, to) = (Mapped::new(), Mapped::new());
    // A part of it is there, and what is not does not come by being looked at.
    from.touch(HIGH + MIB);
    to.touch(HIGH + MIB + (128 << 10));
    let filled = [
        (4096, 2 * MIB as usize),
        (LOW - 8192, 4096),
        (HIGH_GPA + 12_288, 9000),
    ];
    for (gpa, bytes) in filled {
        from.ram.write(gpa, &pattern(gpa, bytes));
    }
    let taken = from.ram.taken();
    let [mut senders, mut receivers] = connected(1);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let target = RamTarget::new(&to.regions(), 1).unwrap();
            let end = receivers[0].receive_into(&target, &Unwatched);
            assert_eq!(end.unwrap().kind(), Kind::StateEnd);
        });
        let progress = Progress::default();
        let regions = from.regions();
        send_all(&mut senders, &regions, &progress, &Unwatched).unwrap();
        let mut dirty = Bitmap::new(HIGH_GPA + HIGH);
        for (gpa, data) in [(8192, &[0; 8192][..]), (MIB, &pattern(77, 300_000))] {
            from.ram.write(gpa, data);
            dirty.set_range(gpa, data.len() as u64);
        }
        send_dirty(&mut senders, &regions, &dirty, &progress, &Unwatched).unwrap();
        senders[0].send(&Message::StateEnd, &Unwatched).unwrap();
        receiver.join().unwrap();
    });
    assert!(from.ram.content() == to.ram.content());
    assert_eq!(from.ram.taken(), taken);
}

/// Runs of pages that are lent and ones that are copied, and zeros between them, again and again.
#[test]
fn pages_of_several_rounds_do_not_get_into_each_others_way() {
    let (from, to) = (Ram::new(), Ram::new());
    transfer(2, &to, |links| {
        let mut seed = 0;
        for round in 0..6 {
            let mut dirty = Bitmap::new(HIGH_GPA + HIGH);
            let mut gpa = round * 4096;
            for pages in [1, 7, 8, 9, 20, 63, 64, 100, 3].into_iter().cycle() {
                let bytes: u64 = pages * 4096;
                if gpa + bytes > LOW {
                    break;
                }
                seed += 1;
                let data = match seed % 5 {
                    0 => vec![0; bytes as usize],
                    _ => pattern(seed, bytes as usize),
                };
                from.write(gpa, &data);
                dirty.set_range(gpa, bytes);
                gpa += bytes + 4096 * (seed % 3);
            }
            let (regions, progress) = (from.regions(), Progress::default());
            send_dirty(links, &regions, &dirty, &progress, &Unwatched).unwrap();
        }
    });
    assert!(from.content() == to.content());
}

/// Rounds of these stretches of RAM, addresses and sizes by the number of the round, each of which is there once it was caught up with.
fn rounds_are_there<const N: usize>(stretches: impl Fn(u64) -> [(u64, u64); N]) {
    for connections in [1, 3] {
        let (from, to) = (Ram::new(), Ram::new());
        transfer(connections, &to, |links| {
            let progress = Progress::default();
            for round in 0..20 {
                let mut dirty = Bitmap::new(HIGH_GPA + HIGH);
                for (gpa, bytes) in stretches(round) {
                    from.write(gpa, &pattern(round + gpa, bytes as usize));
                    dirty.set_range(gpa, bytes);
                }
                let regions = from.regions();
                let sent = send_dirty(links, &regions, &dirty, &progress, &Unwatched).unwrap();
                assert_eq!(sent.data, dirty.count() * 4096);
                catch_up(links, sent, &Unwatched).unwrap();
                assert!(from.content() == to.content());
            }
        });
    }
}

#[test]
fn a_receiver_that_has_caught_up_has_all_that_was_sent() {
    rounds_are_there(|round| [(8192, 4096), (MIB + round * 4096, MIB), (HIGH_GPA, 4096)]);
}

/// In blocks of each connection, and over a border between two.
#[test]
fn small_rounds_go_over_the_connections_that_their_pages_belong_on() {
    rounds_are_there(|round| {
        [4096, MIB - 4096, 2 * MIB + round * 4096, HIGH_GPA].map(|gpa| (gpa, 8192))
    });
}

/// It takes everything, and answers nothing; returns how many bytes of pages it has taken.
fn take_all(link: &mut Link) -> u64 {
    let mut taken = 0;
    while let Ok(message) = link.receive(&Unwatched) {
        if let Message::Pages { data, .. } = message {
            taken += data.len() as u64;
        }
    }
    taken
}

#[test]
fn a_receiver_that_does_not_say_that_it_has_caught_up_is_silent() {
    for data in [0, WORTH_THREADS] {
        is_silent_after(Sent { data, zeros: 0 });
    }
}

fn is_silent_after(sent: Sent) {
    let [mut senders, mut receivers] = connected(2);
    senders[1].set_silence(Duration::from_millis(300));
    thread::scope(|scope| {
        let (main, extra) = receivers.split_at_mut(1);
        let target = Ram::new();
        scope.spawn(move || receive_all(main, &target));
        scope.spawn(|| take_all(&mut extra[0]));
        let error = catch_up(&mut senders, sent, &Unwatched).unwrap_err();
        assert!(matches!(error, Error::Silent { .. }), "{error}");
        drop(senders);
    });
}

/// After a large round one of them may take its time.
#[test]
fn connections_that_have_caught_up_are_not_silent_while_another_has_not() {
    let [mut senders, mut receivers] = connected(2);
    for link in [&mut senders[1], &mut receivers[1]] {
        link.set_silence(Duration::from_secs(1));
    }
    let answer = |link: &mut Link| {
        let kind = link.receive(&Unwatched).unwrap().kind();
        assert_eq!(kind, Kind::Sync);
        link.send(&Message::Synced, &Unwatched).unwrap();
    };
    thread::scope(|scope| {
        let (slow, other) = receivers.split_at_mut(1);
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(2500));
            (0..2).for_each(|_| answer(&mut slow[0]));
        });
        scope.spawn(move || (0..2).for_each(|_| answer(&mut other[0])));
        for _ in 0..2 {
            let sent = Sent {
                data: WORTH_THREADS,
                zeros: 0,
            };
            catch_up(&mut senders, sent, &Unwatched).unwrap();
        }
    });
}

/// What is not known to have arrived is not overwritten, whoever holds it.
#[test]
fn no_more_pages_are_lent_than_there_is_room_for() {
    let from = Ram::new();
    from.write(0, &pattern(1, LOW as usize));
    let [mut senders, mut receivers] = connected(1);
    senders[0].set_silence(Duration::from_millis(300));
    thread::scope(|scope| {
        let receiver = scope.spawn(move || take_all(&mut receivers[0]));
        let regions = from.regions();
        let error = send_all(&mut senders, &regions, &Progress::default(), &Unwatched);
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Silent { .. }), "{error}");
        drop(senders);
        assert_eq!(receiver.join().unwrap(), MIB);
    });
}

/// What is sent of a page is what was summed up, whatever becomes of the page.
#[test]
fn a_guest_may_write_to_its_ram_while_it_is_sent() {
    let (from, to) = (Mapped::new(), Mapped::new());
    from.touch(LOW + HIGH);
    to.touch(LOW + HIGH);
    /// A test that fails must not wait for its guest for ever.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = &AtomicBool::new(false);
    let [mut senders, mut receivers] = connected(1);
    thread::scope(|scope| {
        let end = Over(over);
        let guest = scope.spawn(|| {
            let mut turn = 0;
            while !over.load(Ordering::Relaxed) {
                turn += 1;
                for at in (0..LOW + HIGH).step_by(512) {
                    from.mapping.write(at, &[turn as u8; 64]).unwrap();
                }
            }
        });
        let receiver = scope.spawn(|| {
            let target = RamTarget::new(&to.regions(), 1).unwrap();
            let end = receivers[0].receive_into(&target, &Unwatched);
            assert_eq!(end.unwrap().kind(), Kind::StateEnd);
        });
        let mut dirty = Bitmap::new(HIGH_GPA + HIGH);
        dirty.set_range(0, HIGH_GPA + HIGH);
        let send = |links: &mut [Link]| {
            let (regions, progress) = (from.regions(), Progress::default());
            send_dirty(links, &regions, &dirty, &progress, &Unwatched).unwrap();
        };
        (0..20).for_each(|_| send(&mut senders));
        drop(end);
        guest.join().unwrap();
        send(&mut senders);
        senders[0].send(&Message::StateEnd, &Unwatched).unwrap();
        receiver.join().unwrap();
    });
    assert!(from.ram.content() == to.ram.content());
}

#[test]
fn what_has_changed_goes_over_and_zeros_make_holes() {
    for connections in [1, 3] {
        let (from, to) = (Ram::new(), Ram::new());
        for ram in [&from, &to] {
            ram.write(0, &pattern(1, LOW as usize));
            ram.write(HIGH_GPA, &pattern(2, HIGH as usize));
        }
        let mut dirty = Bitmap::new(HIGH_GPA + HIGH);
        let mut change = |gpa, data: &[u8]| {
            from.write(gpa, data);
            dirty.set_range(gpa, data.len() as u64);
        };
        change(4096, &pattern(9, 4096));
        change(MIB - 8192, &pattern(5, 20_000));
        change(2 * MIB, &[0; 500_000]);
        change(HIGH_GPA + HIGH - 4096, &[0; 4096]);
        let pages = dirty.count();
        // No RAM there.
        dirty.set_range(LOW, HIGH_GPA - LOW);
        let progress = Progress::default();
        transfer(connections, &to, |links| {
            let regions = from.regions();
            let sent = send_dirty(links, &regions, &dirty, &progress, &Unwatched).unwrap();
            assert_eq!(sent.data + sent.zeros, pages * 4096);
            assert_eq!(sent.zeros, 122 * 4096 + 4096);
        });
        assert!(from.content() == to.content());
        assert_eq!(to.taken(), LOW + HIGH - 123 * 4096);
    }
}
