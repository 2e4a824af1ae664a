use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::MemfdFlags;

use super::*;
use crate::ram::RamPart;
use crate::sys::{self, Mapping};

const PAGES: u64 = 64;
const BYTES: u64 = PAGES * PAGE;

/// RAM of which the third page is there, and the last one.
struct Ram {
    file: File,
    mapping: Mapping,
}

impl Ram {
    fn new() -> Self {
        let file = rustix::fs::memfd_create("filler-test", MemfdFlags::CLOEXEC).unwrap();
        Ram::of(File::from(file))
    }

    fn of(file: File) -> Self {
        file.set_len(BYTES).unwrap();
        for page in [2, PAGES - 1] {
            file.write_all_at(&[7; PAGE as usize], page * PAGE).unwrap();
        }
        let mapping = Mapping::new(&file, BYTES).unwrap();
        Ram { file, mapping }
    }

    fn region(&self) -> Region<'_> {
        let part = RamPart {
            file: &self.file,
            offset: 0,
            bytes: BYTES,
        };
        // SAFETY: the mapping is of all of the file, and lives as long as `self`.
        unsafe { Region::new(0, part).mapped_at(self.mapping.start()) }
    }

    /// None where this process may not have one for any file, or is better off without.
    fn filler(&self) -> Option<Filler<'_>> {
        let filler = Filler::new(&self.region());
        let flags = UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        // SAFETY: nothing is done with it.
        let is_allowed = unsafe { rustix::mm::userfaultfd(flags) }.is_ok();
        assert_eq!(filler.is_some(), is_allowed && !makes_huge_pages());
        if filler.is_none() {
            eprintln!("skipped: userfaultfd(2) is not allowed, or huge pages are made");
        }
        filler
    }

    fn content(&self) -> Vec<u8> {
        let mut content = vec![0; BYTES as usize];
        self.file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    fn pages_there(&self) -> u64 {
        self.file.metadata().unwrap().blocks() * 512 / PAGE
    }

    fn is_mapped(&self, page: u64) -> bool {
        let address = self.mapping.start().as_ptr() as usize + (page * PAGE) as usize;
        sys::is_present(address, PAGE as usize)
    }
}

#[test]
fn what_is_missing_is_made_and_what_is_there_is_left_to_be_written() {
    let ram = Ram::new();
    let data: Vec<u8> = (0..BYTES).map(|at| (at / 1000) as u8 | 1).collect();
    let Some(filler) = ram.filler() else {
        return;
    };
    let mut written = None;
    let copied = filler.copy(0, &data, |at, pages| {
        written = Some((at, pages.len() as u64));
        ram.file.write_all_at(pages, at)
    });
    copied.unwrap();
    assert_eq!(written, Some((2 * PAGE, BYTES - 2 * PAGE)));
    assert!(ram.content() == data);
    assert!(ram.is_mapped(0) && ram.is_mapped(1) && !ram.is_mapped(3));
    // An error of the caller's ends it.
    let failed = filler.copy(0, &data, |_, _| Err(io::ErrorKind::StorageFull.into()));
    assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn all_that_is_missing_is_made() {
    let ram = Ram::new();
    let data: Vec<u8> = (0..60 * PAGE).map(|at| (at / 1000) as u8 | 1).collect();
    let Some(filler) = ram.filler() else {
        return;
    };
    let copied = filler.copy(3 * PAGE, &data, |_, _| panic!("nothing was there"));
    copied.unwrap();
    assert!(ram.content()[3 * PAGE as usize..][..data.len()] == data);
    assert!((3..63).all(|page| ram.is_mapped(page)));
}

#[test]
fn zeros_do_not_change_what_is_there() {
    let ram = Ram::new();
    let before = ram.content();
    let Some(filler) = ram.filler() else {
        return;
    };
    assert_eq!(ram.pages_there(), 2);
    filler.clear(PAGE, BYTES - 2 * PAGE).unwrap();
    assert_eq!(ram.pages_there(), PAGES - 1);
    filler.clear(0, BYTES).unwrap();
    filler.clear(0, BYTES).unwrap();
    assert_eq!(ram.pages_there(), PAGES);
    assert!(ram.content() == before);
}

#[test]
fn nothing_is_made_outside_of_the_region() {
    let ram = Ram::new();
    let Some(filler) = ram.filler() else {
        return;
    };
    let page = [1; PAGE as usize];
    for at in [BYTES, u64::MAX - PAGE + 1] {
        let copied = filler.copy(at, &page, |_, _| panic!("it is outside"));
        assert!(copied.is_err());
        assert!(filler.clear(at, PAGE).is_err());
    }
    assert!(filler.clear(BYTES - PAGE, 2 * PAGE).is_err());
    assert_eq!(ram.pages_there(), 2);
}

#[test]
fn pages_are_made_by_being_touched_again_once_it_is_gone() {
    let ram = Ram::new();
    drop(ram.filler());
    ram.mapping.write(0, &[1]).unwrap();
    assert_eq!(ram.pages_there(), 3);
}

#[test]
fn a_handler_can_let_pages_be_made_by_being_touched() {
    let ram = Ram::new();
    let Some(filler) = ram.filler() else {
        return;
    };
    let address = ram.mapping.start().as_ptr() as usize;
    assert!(make_missing(address + 5000));
    ram.mapping.write(4096, &[1]).unwrap();
    // Another thread may have had one at the same time. But it is not taken for that again and again.
    assert!(make_missing(address));
    assert!((0..1000).any(|_| !make_missing(address)));
    // What it can no longer do is left to the caller.
    let mut written = None;
    let copied = filler.copy(0, &[1; PAGE as usize], |at, pages| {
        written = Some((at, pages.len() as u64));
        Ok(())
    });
    copied.unwrap();
    assert_eq!(written, Some((0, PAGE)));
    drop(filler);
    assert!(!make_missing(address));
}

/// Where the RAM is of the one test that makes missing pages by touching them, and how often it did. Others do not.
static TOUCHED: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// What a Ferry does about SIGBUS.
extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives handlers with SA_SIGINFO a valid pointer, and a SIGBUS has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let [start, count] = &TOUCHED;
    let start = start.load(Ordering::SeqCst);
    if (start..start + BYTES as usize).contains(&address) && make_missing(address) {
        count.fetch_add(1, Ordering::SeqCst);
        return;
    }
    // SAFETY: the call may be made here, and has no memory arguments. The instruction is tried again, and is the last.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[test]
fn a_hole_that_is_made_when_pages_are_about_to_be_received_is_no_error() {
    // SAFETY: zeros are a valid value, and the handler does only what one may do.
    let registered = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    assert_eq!(registered, 0);
    let ram = Ram::new();
    ram.mapping.write(0, &[255; 6 * PAGE as usize]).unwrap();
    let Some(_filler) = ram.filler() else {
        return;
    };
    TOUCHED[0].store(ram.mapping.start().as_ptr() as usize, Ordering::SeqCst);
    let piece = ram.region().memory.unwrap().piece(0, 6 * PAGE).unwrap();
    sys::punch_hole(&ram.file, 2 * PAGE, 2 * PAGE).unwrap();
    assert!(!ram.is_mapped(2));
    let (mut sender, receiver) = UnixStream::pair().unwrap();
    let data: Vec<u8> = (0..6 * PAGE).map(|at| (at / 1000) as u8 | 1).collect();
    sender.write_all(&data).unwrap();
    // Were anything lost, its end would come too early.
    drop(sender);
    let mut there = 0;
    while there < data.len() {
        let read = piece.receive(&receiver, there).unwrap();
        assert_ne!(read, 0);
        there += read;
    }
    assert!(ram.content()[..data.len()] == data);
    assert!(TOUCHED[1].load(Ordering::SeqCst) > 0);
}

#[test]
fn files_that_are_not_in_memory_have_none() {
    // Where the program itself is, which is on a disk.
    let place = std::env::current_exe().unwrap();
    let file = tempfile::tempfile_in(place.parent().unwrap()).unwrap();
    let ram = Ram::of(file);
    let kind = rustix::fs::fstatfs(&ram.file).unwrap().f_type;
    // An overlay maps the file below it, which may be in memory.
    let may_be_in_memory = [libc::TMPFS_MAGIC, libc::OVERLAYFS_SUPER_MAGIC].contains(&kind);
    assert!(may_be_in_memory || Filler::new(&ram.region()).is_none());
}
