//! Pages that are received where RAM is mapped.

use super::*;
use crate::link::order::Side;
use crate::link::wire::{Direction, FRAME_HEADER};
use crate::sys::Mapping;

/// RAM that is mapped. Its first half is there already, the rest is a hole.
struct Mapped {
    file: File,
    mapping: Mapping,
}

impl Mapped {
    fn new() -> Self {
        let file = ram();
        let mapping = Mapping::new(&file, BYTES).unwrap();
        mapping.write(0, &vec![0; BYTES as usize / 2]).unwrap();
        Mapped { file, mapping }
    }

    fn region(&self) -> Region<'_> {
        // SAFETY: the mapping is of all of the file, and lives as long as `self`.
        unsafe { region(&self.file).mapped_at(self.mapping.start()) }
    }

    /// Bytes that are allocated.
    fn taken(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().unwrap().blocks() * 512
    }
}

/// A sender that says what it likes, to a receiver that has prepared itself.
struct Liar {
    client: UnixStream,
    direction: Direction,
    link: Link,
}

impl Liar {
    fn new() -> Self {
        let place = Place::new();
        let mut listener = Listener::bind(&place.address(), None).unwrap();
        let mut client = UnixStream::connect(place.path()).unwrap();
        client
            .write_all(&preamble(Purpose::Migrate { connections: 1 }).encode())
            .unwrap();
        let mut link = listener.accept(&Unwatched, None).unwrap();
        link.set_silence(TOO_LONG);
        link.accept_it().unwrap();
        let mut direction = Direction::new(ATTEMPT, 0, Side::Sender);
        let last = [1, 0, 0, 0, 0, 0, 0, 0];
        let frame = [&direction.header(Kind::Describe, &last, b"")[..], &last].concat();
        client.write_all(&frame).unwrap();
        link.receive(&Unwatched).unwrap();
        link.send(&Message::Prepared, &Unwatched).unwrap();
        Liar {
            client,
            direction,
            link,
        }
    }

    /// The bytes of a frame of pages.
    fn pages(&mut self, gpa: u64, data: &[u8]) -> Vec<u8> {
        let head = gpa.to_be_bytes();
        let header = self.direction.header(Kind::Pages, &head, data);
        [&header[..], &head, data].concat()
    }

    /// The bytes of the end of the state, which is what a receiver of RAM returns.
    fn end(&mut self) -> Vec<u8> {
        self.direction.header(Kind::StateEnd, &[], &[]).to_vec()
    }

    fn say(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).unwrap();
    }

    fn hear(&mut self, regions: &[Region<'_>]) -> Result<Kind, Error> {
        let target = RamTarget::new(regions, 1).unwrap();
        let message = self.link.receive_into(&target, &Unwatched)?;
        Ok(message.kind())
    }

    /// Nothing can follow.
    fn expect_broken(mut self) {
        let again = self.link.receive(&Unwatched).unwrap_err();
        assert!(matches!(again, Error::Broken { .. }), "{again}");
    }
}

/// Pages that are written to the file, and pages that are received where they belong.
const FEW: usize = 3;
const MANY: usize = 20;

fn pattern(pages: usize) -> Vec<u8> {
    (0..pages * 4096).map(|at| (at / 7 + 1) as u8 | 1).collect()
}

#[test]
fn pages_that_are_there_and_pages_that_are_not_arrive() {
    for data in [pattern(FEW), pattern(MANY)] {
        let (ram, mut liar) = (Mapped::new(), Liar::new());
        let (there, length) = (BYTES / 2, data.len() as u64);
        let mut expected = vec![0; BYTES as usize];
        let mut bytes = Vec::new();
        // To the end of what is there, and behind it; and again, now that all of it is.
        for gpa in [0, BLOCK, there - length, there, BYTES - length, there] {
            bytes.extend(liar.pages(gpa, &data));
            expected[gpa as usize..][..data.len()].copy_from_slice(&data);
        }
        bytes.extend(liar.end());
        let mut client = liar.client.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || client.write_all(&bytes).unwrap());
            assert_eq!(liar.hear(&[ram.region()]).unwrap(), Kind::StateEnd);
        });
        assert!(content(&ram.file) == expected);
        assert_eq!(ram.taken(), there + 2 * length);
        assert_eq!(liar.link.received().frames, 8);
    }
}

#[test]
fn pages_may_come_in_pieces_of_any_size() {
    let (ram, mut liar) = (Mapped::new(), Liar::new());
    let data = pattern(2 * MANY);
    let bytes = [
        liar.pages(4096, &data),
        liar.pages(BYTES / 2 + BLOCK, &data),
        liar.end(),
    ]
    .concat();
    let (mut client, mut rest) = (liar.client.try_clone().unwrap(), &bytes[..]);
    thread::scope(|scope| {
        scope.spawn(move || {
            // The header, where the pages belong, and the first pages come bit by bit.
            for size in (1..).map(|n: usize| n * n * n) {
                let (piece, more) = rest.split_at(size.min(rest.len()));
                client.write_all(piece).unwrap();
                rest = more;
                if rest.is_empty() {
                    return;
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        assert_eq!(liar.hear(&[ram.region()]).unwrap(), Kind::StateEnd);
    });
    for at in [4096, BYTES / 2 + BLOCK] {
        assert!(content(&ram.file)[at as usize..][..data.len()] == data);
    }
}

#[test]
fn a_frame_whose_first_half_was_waited_for_in_vain_is_received_all_the_same() {
    let data = pattern(MANY);
    let frame = FRAME_HEADER + 8 + data.len();
    for there in [
        3,
        FRAME_HEADER,
        FRAME_HEADER + 3,
        FRAME_HEADER + 8,
        frame - 4096,
    ] {
        let (ram, mut liar) = (Mapped::new(), Liar::new());
        let bytes = [liar.pages(4096, &data), liar.end()].concat();
        liar.say(&bytes[..there]);
        let soon = Instant::now() + Duration::from_millis(5);
        assert_eq!(liar.link.receive_for(&Unwatched, soon).unwrap(), None);
        liar.say(&bytes[there..]);
        assert_eq!(liar.hear(&[ram.region()]).unwrap(), Kind::StateEnd);
        assert!(content(&ram.file)[4096..][..data.len()] == data, "{there}");
    }
}

#[test]
fn pages_that_are_damaged_end_the_attempt() {
    let (first, last) = (FRAME_HEADER + 8, FRAME_HEADER + 8 + MANY * 4096 - 1);
    // Where pages are there, and where they are not.
    for (gpa, at) in [(BLOCK, first), (BLOCK, last), (BYTES / 2, last)] {
        let (ram, mut liar) = (Mapped::new(), Liar::new());
        let mut bytes = liar.pages(gpa, &pattern(MANY));
        bytes[at] ^= 4;
        liar.say(&bytes);
        let error = liar.hear(&[ram.region()]).unwrap_err();
        let wrong = |violation: &Violation| *violation == Violation::Checksum(Kind::Pages);
        assert!(
            matches!(&error, Error::Protocol { violation, .. } if wrong(violation)),
            "{error}"
        );
        // Where pages are there they were received where they belong; nobody gets this RAM.
        let expected = match gpa < BYTES / 2 {
            true => &bytes[FRAME_HEADER + 8..],
            false => &[0; MANY * 4096],
        };
        assert!(content(&ram.file)[gpa as usize..][..MANY * 4096] == *expected);
        liar.expect_broken();
    }
}

#[test]
fn pages_that_belong_nowhere_change_nothing() {
    let refused = |gpa: u64, data: &[u8]| {
        let (ram, mut liar) = (Mapped::new(), Liar::new());
        let bytes = liar.pages(gpa, data);
        // As much as the socket takes in any case.
        liar.say(&bytes[..bytes.len().min(32 << 10)]);
        // Two regions that touch each other, within a block; behind them there is more of the mapping.
        let border = BLOCK + 8192;
        let part = |offset, bytes| RamPart {
            file: &ram.file,
            offset,
            bytes,
        };
        let start = ram.mapping.start();
        // SAFETY: the mapping is of all of the file, and lives as long as the regions.
        let regions = unsafe {
            [
                Region::new(0, part(0, border)).mapped_at(start),
                Region::new(border, part(border, BLOCK)).mapped_at(start.add(border as usize)),
            ]
        };
        let error = liar.hear(&regions).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{gpa:#x}: {error}");
        assert!(content(&ram.file).iter().all(|byte| *byte == 0), "{gpa:#x}");
        liar.expect_broken();
    };
    let end = 2 * BLOCK + 8192;
    let (few, many) = (pattern(FEW), pattern(MANY));
    for gpa in [
        // From one region to the other, or behind the last one.
        BLOCK + 4096,
        end - 4096,
        end,
        1 << 40,
        u64::MAX - 4095,
        u64::MAX - FEW as u64 * 4096 + 1,
        // Not whole pages, or not of one block.
        1,
        4095,
        BLOCK - 4096,
    ] {
        refused(gpa, &few);
        refused(gpa, &many);
    }
    refused(0, &few[..4095]);
    refused(0, &few[..4097]);
    refused(0, &[]);
    refused(0, &vec![1; FRAME_DATA_MOST + 4096]);
}

#[test]
fn pages_that_are_cut_off_end_the_attempt() {
    let missing = [1, 4096, FEW * 4096, FEW * 4096 + 4];
    let all = [(FEW, 0), (MANY, 0), (MANY, BYTES / 2)];
    for (missing, (pages, gpa)) in missing.into_iter().flat_map(|it| all.map(|at| (it, at))) {
        let (ram, mut liar) = (Mapped::new(), Liar::new());
        let bytes = liar.pages(gpa, &pattern(pages));
        liar.say(&bytes[..bytes.len() - missing]);
        liar.client.shutdown(std::net::Shutdown::Write).unwrap();
        let error = liar.hear(&[ram.region()]).unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{missing}: {error}");
        assert!(liar.link.receive(&Unwatched).is_err());
    }
}

#[test]
fn a_wait_for_the_rest_of_pages_ends() {
    let silent = |error: &Error| matches!(error, Error::Silent { .. });
    let cancelled = |error: &Error| error.is_cancelled();
    let ends: [&dyn Fn(&Error) -> bool; 2] = [&silent, &cancelled];
    let ends = ends.into_iter().zip([false, true]);
    for ((ends, pressed), gpa) in ends.flat_map(|it| [(it, 0), (it, BYTES / 2)]) {
        let (ram, mut liar) = (Mapped::new(), Liar::new());
        let bytes = liar.pages(gpa, &pattern(MANY));
        liar.say(&bytes[..bytes.len() - 1]);
        let target = RamTarget::new(&[ram.region()], 1).unwrap();
        let button = Button::default();
        let error = thread::scope(|scope| {
            match pressed {
                true => {
                    scope.spawn(|| {
                        thread::sleep(Duration::from_millis(30));
                        button.press();
                    });
                }
                false => liar.link.set_silence(Duration::from_millis(50)),
            }
            liar.link.receive_into(&target, &button).unwrap_err()
        });
        assert!(ends(&error), "{error}");
        // What is left of the frame is not taken for something else.
        liar.say(&bytes[bytes.len() - 1..]);
        match gpa < BYTES / 2 {
            true => liar.expect_broken(),
            false => assert_eq!(liar.link.receive(&Unwatched).unwrap().kind(), Kind::Pages),
        }
    }
}
