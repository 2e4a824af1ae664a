//! How fast RAM is saved, loaded, and made into guest RAM itself, against `cp --sparse=always` and a plain loop of reads and writes, on the same data
//! in the same run.
//!
//! ```sh
//! cargo run --release -p vm-migration --example ram_speed -- [MIB] [DIRECTORY]
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use vm_migration::ram::{BLOCK, RamPart, Unwatched, clone_for_guest, load, reserve, save, verify};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mib: u64 = arguments
        .next()
        .map_or(Ok(1024), |text| text.parse())
        .map_err(io::Error::other)?;
    let directory = arguments.next().unwrap_or_else(|| "/dev/shm".into());
    let directory = tempfile::tempdir_in(directory)?;
    let bytes = mib * BLOCK;
    let ram = memfd(bytes)?;
    fill(&ram, bytes)?;
    for _ in 0..3 {
        let plain = timed(bytes, || plain_copy(&ram, &directory.path().join("plain")))?;
        let cp = timed(bytes, || cp(&ram, &directory.path().join("cp")))?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(directory.path().join("ram"))?;
        let mut sums = None;
        let saved = timed(bytes, || {
            sums = Some(save(part(&ram, bytes), &file, &Unwatched).map_err(io::Error::other)?);
            Ok(())
        })?;
        let sums = sums.ok_or(io::ErrorKind::NotFound)?;
        let verified = timed(bytes, || {
            verify(&file, &sums, &Unwatched)
                .map(drop)
                .map_err(io::Error::other)
        })?;
        let new = memfd(bytes)?;
        let loaded = timed(bytes, || {
            load(&file, &sums, part(&new, bytes), &Unwatched).map_err(io::Error::other)
        })?;
        // What is not on disk yet would be written first.
        file.sync_all()?;
        let cloned = milliseconds(|| clone_for_guest(&file, directory.path(), bytes));
        let reserved = milliseconds(|| reserve(&file, bytes));
        let part_of_holes = file.metadata()?.len();
        file.set_len(part_of_holes + bytes / 4)?;
        let holes = milliseconds(|| reserve(&file, part_of_holes + bytes / 4));
        println!(
            "{mib} MiB, GiB/s: plain copy {plain:.2}, cp {cp:.2}, save {saved:.2}, verify {verified:.2}, load {loaded:.2}"
        );
        println!("  clone {cloned}, reserve {reserved}, and with a quarter more in holes {holes}");
    }
    Ok(())
}

fn part(file: &File, bytes: u64) -> RamPart<'_> {
    RamPart {
        file,
        offset: 0,
        bytes,
    }
}

fn timed(bytes: u64, work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(bytes as f64 / f64::from(1 << 30) / start.elapsed().as_secs_f64())
}

fn milliseconds<T, E: std::error::Error>(work: impl FnOnce() -> Result<T, E>) -> String {
    let start = Instant::now();
    match work() {
        Ok(_) => format!("{:.2} ms", start.elapsed().as_secs_f64() * 1000.0),
        Err(error) => format!("impossible ({error})"),
    }
}

fn plain_copy(ram: &File, path: &Path) -> io::Result<()> {
    let mut source = File::open(format!("/proc/self/fd/{}", ram.as_raw_fd()))?;
    let mut target = File::create(path)?;
    let mut buffer = vec![0; BLOCK as usize];
    loop {
        let got = source.read(&mut buffer)?;
        if got == 0 {
            drop(target);
            return std::fs::remove_file(path);
        }
        target.write_all(&buffer[..got])?;
    }
}

fn cp(ram: &File, path: &Path) -> io::Result<()> {
    let source = format!("/proc/{}/fd/{}", std::process::id(), ram.as_raw_fd());
    let status = Command::new("cp")
        .args(["--sparse=always", &source])
        .arg(path)
        .stdin(Stdio::null())
        .status()?;
    std::fs::remove_file(path)?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other("cp failed")),
    }
}

fn memfd(bytes: u64) -> io::Result<File> {
    // SAFETY: the name is a C string, and the call has no other memory arguments.
    let fd = unsafe { libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and belongs to no one else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    Ok(file)
}

/// Data without zero pages.
fn fill(ram: &File, bytes: u64) -> io::Result<()> {
    let mut state = 1u64;
    let mut block = vec![0; BLOCK as usize];
    for at in (0..bytes).step_by(BLOCK as usize) {
        for word in block.chunks_exact_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            word.copy_from_slice(&state.to_le_bytes());
        }
        ram.write_all_at(&block, at)?;
    }
    Ok(())
}
