use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::stream::{StreamId, StreamReader, StreamWriter};

fn memfd(bytes: u64, flags: libc::c_uint) -> File {
    // SAFETY: the name is a C string, and the call has no other memory arguments.
    let fd = unsafe { libc::memfd_create(c"test-ram".as_ptr(), flags) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: `fd` was just opened and belongs to no one else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes).unwrap();
    file
}

fn part(file: &File, bytes: u64) -> RamPart<'_> {
    RamPart {
        file,
        offset: 0,
        bytes,
    }
}

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    data.truncate(bytes);
    data
}

/// Bytes that a file takes.
fn taken(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

fn content(file: &File, bytes: u64) -> Vec<u8> {
    let mut data = vec![0; bytes as usize];
    file.read_exact_at(&mut data, 0).unwrap();
    data
}

/// RAM of 9 MiB and 3 pages: data at the beginning, across a border of blocks, and at the end; zeros that were touched.
const BYTES: u64 = 9 * BLOCK + 3 * 4096;

fn sample() -> File {
    let ram = memfd(BYTES, 0);
    ram.write_all_at(&pattern(1, 100), 0).unwrap();
    ram.write_all_at(&pattern(2, 8192), 3 * BLOCK - 4096)
        .unwrap();
    ram.write_all_at(&vec![0; BLOCK as usize], 5 * BLOCK)
        .unwrap();
    ram.write_all_at(&pattern(3, 10), BYTES - 10).unwrap();
    ram
}

fn saved(ram: &File, bytes: u64) -> (File, BlockSums) {
    let file = tempfile::tempfile().unwrap();
    let sums = save(part(ram, bytes), &file, &Unwatched).unwrap();
    (file, sums)
}

#[test]
fn ram_comes_back_and_takes_only_what_it_holds() {
    let ram = sample();
    let before = taken(&ram);
    let (file, sums) = saved(&ram, BYTES);
    assert_eq!(taken(&ram), before, "holes of the RAM were filled");
    assert_eq!(file.metadata().unwrap().len(), BYTES);
    assert!(taken(&file) <= 4 * 4096, "{} bytes", taken(&file));
    assert_eq!(sums.blocks_with_data(), 4);

    let new = memfd(BYTES, 0);
    load(&file, &sums, part(&new, BYTES), &Unwatched).unwrap();
    assert!(content(&new, BYTES) == content(&ram, BYTES));
    assert_eq!(taken(&new), 4 * 4096);
    assert_eq!(
        verify(&file, &sums, &Unwatched).unwrap(),
        BadBlocks::default()
    );
}

#[test]
fn regions_may_share_a_file() {
    let both = memfd(8 * BLOCK, 0);
    both.write_all_at(b"first", 0).unwrap();
    both.write_all_at(b"second", 5 * BLOCK).unwrap();
    let second = RamPart {
        file: &both,
        offset: 5 * BLOCK,
        bytes: 2 * BLOCK,
    };
    let file = tempfile::tempfile().unwrap();
    let sums = save(second, &file, &Unwatched).unwrap();
    assert_eq!(content(&file, 6), b"second");
    let new = memfd(8 * BLOCK, 0);
    let target = RamPart {
        file: &new,
        ..second
    };
    load(&file, &sums, target, &Unwatched).unwrap();
    assert_eq!(content(&new, 5), [0; 5]);
    assert_eq!(
        content(&new, 5 * BLOCK + 6)[5 * BLOCK as usize..],
        *b"second"
    );
}

#[test]
fn damage_is_found_in_data_and_in_holes() {
    let (file, sums) = saved(&sample(), BYTES);
    for at in [0, 4095, 2 * BLOCK + 17, 3 * BLOCK - 1, 5 * BLOCK, BYTES - 1] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let block = at / BLOCK * BLOCK;
        let bad = verify(&file, &sums, &Unwatched).unwrap();
        assert_eq!(
            bad,
            BadBlocks {
                count: 1,
                first: vec![block]
            },
            "byte {at:#x}"
        );
        let new = memfd(BYTES, 0);
        let error = load(&file, &sums, part(&new, BYTES), &Unwatched).unwrap_err();
        assert!(
            matches!(error, Error::Damaged { offset } if offset == block),
            "{error}"
        );
        file.write_all_at(&byte, at).unwrap();
    }
}

#[test]
fn a_short_file_is_cut_off_even_where_it_ends_in_a_hole() {
    let (file, sums) = saved(&sample(), BYTES);
    for length in [0, 4 * BLOCK, BYTES - 4096, BYTES - 1] {
        file.set_len(length).unwrap();
        let error = verify(&file, &sums, &Unwatched).unwrap_err();
        assert!(
            matches!(error, Error::Truncated { offset } if offset == length),
            "{error}"
        );
        let new = memfd(BYTES, 0);
        let error = load(&file, &sums, part(&new, BYTES), &Unwatched).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{error}");
    }
}

#[test]
fn a_region_of_another_size_is_refused() {
    let (file, sums) = saved(&sample(), BYTES);
    let new = memfd(BYTES + 4096, 0);
    let error = load(&file, &sums, part(&new, BYTES + 4096), &Unwatched).unwrap_err();
    assert!(matches!(error, Error::Size { found: BYTES, .. }), "{error}");
    assert_eq!(taken(&new), 0);
}

#[test]
fn all_of_it_is_reported_as_done_and_it_can_be_cancelled() {
    struct Until {
        done: AtomicU64,
        most: u64,
    }
    impl Watch for Until {
        fn done(&self, bytes: u64) {
            self.done.fetch_add(bytes, Ordering::Relaxed);
        }
        fn cancelled(&self) -> bool {
            self.done.load(Ordering::Relaxed) >= self.most
        }
    }
    let ram = sample();
    let file = tempfile::tempfile().unwrap();
    let watch = |most| Until {
        done: AtomicU64::new(0),
        most,
    };
    let all = watch(u64::MAX);
    save(part(&ram, BYTES), &file, &all).unwrap();
    assert_eq!(all.done.into_inner(), BYTES);
    let some = watch(2 * BLOCK);
    let error = save(part(&ram, BYTES), &file, &some).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    assert!(some.done.into_inner() < BYTES);
}

#[test]
fn a_terabyte_of_untouched_ram_costs_nothing() {
    let bytes = 1 << 40;
    let ram = memfd(bytes, 0);
    ram.write_all_at(b"end", bytes - 3).unwrap();
    let (file, sums) = saved(&ram, bytes);
    assert_eq!(sums.blocks_with_data(), 1);
    assert_eq!(taken(&file), 4096);
    assert_eq!(verify(&file, &sums, &Unwatched).unwrap().count, 0);
}

#[test]
fn checksums_go_through_a_stream() {
    let (_, sums) = saved(&sample(), BYTES);
    let mut stream = StreamWriter::new(Vec::new(), StreamId([7; 16])).unwrap();
    sums.write(&mut stream, "__ram0").unwrap();
    let (bytes, _) = stream.finish().unwrap();
    let read = |size| {
        let mut stream = StreamReader::new(&bytes[..]).unwrap();
        BlockSums::read(stream.section("__ram0").unwrap(), size)
    };
    assert_eq!(read(BYTES).unwrap(), sums);
    for size in [0, BYTES - 4096, BYTES + BLOCK, u64::MAX] {
        let error = read(size).unwrap_err();
        assert!(error.to_string().contains("__ram0"), "{size}: {error}");
    }
}

#[test]
fn a_ram_file_without_holes_is_reserved() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 * 4096).unwrap();
    file.write_all_at(&[1; 4096], 7 * 4096).unwrap();
    reserve(&file, 64 * 4096).unwrap();
    assert!(taken(&file) >= 64 * 4096 || crate::sys::is_tmpfs(&file).unwrap());
    let mut expected = vec![0; 64 * 4096];
    expected[7 * 4096..8 * 4096].fill(1);
    assert!(content(&file, 64 * 4096) == expected);
    reserve(&file, 64 * 4096).unwrap();
    let error = reserve(&file, 65 * 4096).unwrap_err();
    assert!(matches!(error, MappedError::Size { .. }));
}

#[test]
fn in_memory_there_has_to_be_room_for_all_holes_but_they_are_not_filled() {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    let free = crate::sys::free_bytes(&file).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[1; 4096], 7 * 4096).unwrap();
    reserve(&file, 1 << 20).unwrap();
    assert_eq!(taken(&file), 4096);
    let large = free.saturating_mul(2);
    file.set_len(large).unwrap();
    let error = reserve(&file, large).unwrap_err();
    assert!(matches!(error, MappedError::NoSpace { .. }), "{error:?}");
}

#[test]
fn where_nothing_can_be_cloned_the_choices_are_named() {
    // tmpfs has no reflinks.
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = tempfile::tempfile_in(&directory).unwrap();
    file.set_len(4096).unwrap();
    let error = clone_for_guest(&file, directory.path(), 4096).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, MappedError::CannotClone { .. }), "{text}");
    for word in [
        "XFS",
        "`copy`",
        "`adopt`",
        directory.path().to_str().unwrap(),
    ] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

proptest! {
    #[test]
    fn any_ram_comes_back(writes in proptest::collection::vec((0..BYTES - 9000, 1usize..9000, any::<bool>()), 0..20)) {
        let ram = memfd(BYTES, 0);
        for (at, length, zero) in writes {
            let data = if zero { vec![0; length] } else { pattern(at, length) };
            ram.write_all_at(&data, at).unwrap();
        }
        let (file, sums) = saved(&ram, BYTES);
        prop_assert!(content(&file, BYTES) == content(&ram, BYTES));
        prop_assert!(taken(&file) <= taken(&ram));
        let new = memfd(BYTES, 0);
        load(&file, &sums, part(&new, BYTES), &Unwatched).unwrap();
        prop_assert!(content(&new, BYTES) == content(&ram, BYTES));
    }
}

/// `FERRY_REFLINKS` is a directory on XFS or btrfs with a few MiB of room.
#[test]
#[ignore = "needs FERRY_REFLINKS, a directory whose file system can clone"]
fn a_clone_is_guest_ram_and_leaves_the_snapshot_alone() {
    let directory = std::env::var_os("FERRY_REFLINKS").expect("FERRY_REFLINKS is set");
    let directory = tempfile::tempdir_in(directory).unwrap();
    let ram = sample();
    let file = tempfile::tempfile_in(&directory).unwrap();
    let sums = save(part(&ram, BYTES), &file, &Unwatched).unwrap();
    let clone = clone_for_guest(&file, directory.path(), BYTES).unwrap();
    assert!(content(&clone, BYTES) == content(&ram, BYTES));
    assert!(taken(&clone) >= BYTES, "holes are not reserved");
    clone
        .write_all_at(&pattern(9, 3 * BLOCK as usize), 0)
        .unwrap();
    assert_eq!(verify(&file, &sums, &Unwatched).unwrap().count, 0);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);

    // A file whose blocks are not all there, and larger than what is free.
    let free = crate::sys::free_bytes(&file).unwrap();
    let large = tempfile::tempfile_in(&directory).unwrap();
    large.set_len(2 * free).unwrap();
    let error = clone_for_guest(&large, directory.path(), 2 * free).unwrap_err();
    assert!(matches!(error, MappedError::NoSpace { .. }), "{error:?}");
}
