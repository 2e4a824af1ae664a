//! How fast RAM goes over a unix socket, against a plain copy from memfd to memfd over a unix socket, on the same data in
//! the same run. The target is cold, with its pages yet to be found, or prefaulted. As in a VMM, all RAM is mapped.
//!
//! ```sh
//! cargo run --release -p vm-migration --example link_speed -- [MIB …]
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};
use std::thread;
use std::time::Instant;

use vm_migration::Unwatched;
use vm_migration::link::{
    Address, Error, Last, Link, Listener, Message, Patience, Purpose, StreamId,
};
use vm_migration::pages::{Progress, RamTarget, Region, end_main, send_all};
use vm_migration::ram::{BLOCK, RamPart};

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes: Result<Vec<u64>, _> = std::env::args().skip(1).map(|text| text.parse()).collect();
    let mut sizes = sizes?;
    if sizes.is_empty() {
        sizes = vec![512, 2048];
    }
    for mib in sizes {
        let ram = memfd(mib)?;
        fill(&ram, mib)?;
        let mapped = Mapped::new(&ram, mib)?;
        mapped.touch()?;
        for target in [Target::Cold, Target::Prefaulted] {
            let mut plain = Vec::new();
            let mut link = Vec::new();
            for _ in 0..ROUNDS {
                plain.push(rate(mib, target, |to| plain_copy(&ram, to.file, mib))?);
                link.push(rate(mib, target, |to| {
                    over_link(&mapped, to).map_err(io::Error::other)
                })?);
            }
            let (plain, link) = (median(plain), median(link));
            let ratio = link / plain;
            println!(
                "{mib} MiB, {target:?}, median of {ROUNDS}: plain copy {plain:.2} GiB/s, link {link:.2} GiB/s, ratio {ratio:.2}"
            );
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Cold,
    Prefaulted,
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn rate(
    mib: u64,
    target: Target,
    work: impl FnOnce(&Mapped<'_>) -> io::Result<()>,
) -> io::Result<f64> {
    let to = memfd(mib)?;
    if let Target::Prefaulted = target {
        let zeros = vec![0; BLOCK as usize];
        (0..mib).try_for_each(|block| to.write_all_at(&zeros, block * BLOCK))?;
    }
    let mapped = Mapped::new(&to, mib)?;
    if let Target::Prefaulted = target {
        mapped.touch()?;
    }
    let start = Instant::now();
    work(&mapped)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut ends = [0; 2];
    to.read_exact_at(&mut ends[..1], 0)?;
    to.read_exact_at(&mut ends[1..], mib * BLOCK - 1)?;
    assert!(ends.iter().all(|byte| *byte != 0), "RAM has not arrived");
    Ok(mib as f64 / 1024.0 / seconds)
}

fn plain_copy(from: &File, to: &File, mib: u64) -> io::Result<()> {
    let (mut output, mut input) = UnixStream::pair()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut buffer = vec![0; BLOCK as usize];
            for block in 0..mib {
                from.read_exact_at(&mut buffer, block * BLOCK)?;
                output.write_all(&buffer)?;
            }
            io::Result::Ok(())
        });
        let mut buffer = vec![0; BLOCK as usize];
        let mut at = 0;
        loop {
            let got = input.read(&mut buffer)?;
            if got == 0 {
                break;
            }
            to.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
        sender.join().map_err(|_| io::Error::other("a panic"))?
    })
}

fn over_link(from: &Mapped<'_>, to: &Mapped<'_>) -> Result<(), Error> {
    let wrong = |source| Error::Ram { gpa: 0, source };
    let name = format!("ferry-link-speed-{}", std::process::id());
    let address = Address::Unix(std::env::temp_dir().join(name));
    let mut listener = Listener::bind(&address, None)?;
    let purpose = Purpose::Migrate { connections: 1 };
    let everything = Message::Describe {
        piece: &[],
        last: Last::Yes,
    };
    thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let mut link = listener.accept(&Unwatched, None)?;
            link.accept_it()?;
            link.receive(&Unwatched)?;
            link.send(&Message::Prepared, &Unwatched)?;
            let ram = RamTarget::new(&[to.region()], 1).map_err(wrong)?;
            link.receive_into(&ram, &Unwatched)?;
            link.receive(&Unwatched)?;
            link.send(&Message::Ready, &Unwatched)
        });
        let mut link = Link::connect(
            &address,
            None,
            StreamId([1; 16]),
            purpose,
            Patience::default(),
            &Unwatched,
        )?;
        link.send(&everything, &Unwatched)?;
        link.receive(&Unwatched)?;
        let links = &mut [link][..];
        send_all(links, &[from.region()], &Progress::default(), &Unwatched)?;
        links[0].send(&Message::StateEnd, &Unwatched)?;
        end_main(links, &Unwatched)?;
        links[0].receive(&Unwatched)?;
        match receiver.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A file that is mapped, for as long as this lives.
struct Mapped<'a> {
    file: &'a File,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread.
unsafe impl Send for Mapped<'_> {}
// SAFETY: as above; it is touched by address only.
unsafe impl Sync for Mapped<'_> {}

impl<'a> Mapped<'a> {
    fn new(file: &'a File, mib: u64) -> io::Result<Self> {
        let bytes = (mib * BLOCK) as usize;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, file.as_raw_fd(), 0) };
        match NonNull::new(start.cast()) {
            Some(start) if start.as_ptr() as isize != -1 => Ok(Mapped { file, start, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Maps all pages to memory.
    fn touch(&self) -> io::Result<()> {
        let (start, advice) = (self.start.as_ptr().cast(), libc::MADV_POPULATE_WRITE);
        // SAFETY: the range is this mapping, whose content stays as it is.
        match unsafe { libc::madvise(start, self.bytes, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn region(&self) -> Region<'_> {
        let part = RamPart {
            file: self.file,
            offset: 0,
            bytes: self.bytes as u64,
        };
        // SAFETY: all of the file is mapped as long as `self` lives.
        unsafe { Region::new(0, part).mapped_at(self.start) }
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `new`, and nobody has references into it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

fn memfd(mib: u64) -> io::Result<File> {
    // SAFETY: the name is a C string, and the call has no other memory arguments.
    let fd = unsafe { libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and belongs to no one else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(mib * BLOCK)?;
    Ok(file)
}

/// Data without zero pages.
fn fill(ram: &File, mib: u64) -> io::Result<()> {
    let mut state = 1u64;
    let mut block = vec![0; BLOCK as usize];
    for at in 0..mib {
        for word in block.chunks_exact_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            word.copy_from_slice(&(state | 1 | 1 << 63).to_le_bytes());
        }
        ram.write_all_at(&block, at * BLOCK)?;
    }
    Ok(())
}
