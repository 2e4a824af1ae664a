//! State inside a back-end: how fast it comes into a snapshot, beside a plain copy of the same bytes from a pipe into a
//! file, and what Ferry has in memory meanwhile.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::TMPFS;
use crate::bench::back_end::BackEnd;
use crate::bench::vmm::Vmm;
use crate::bench::{MIB, above, median, millis};
use crate::cargo;

/// MiB of state.
const STATE: u64 = 256;
/// The guest writes a little to the disk, which stays in use, and ticks.
const GUEST: &str = "console=ttyS0 mode=blk-writer+ticks count=8 ticks=1000000000 period=1";

/// Measures and prints it.
///
/// # Errors
/// A guest is not saved.
pub fn bench(program: &Path, kernel: &Path, runs: usize) -> Result<()> {
    let helper = cargo::build_one("ferry-tests", "state-back-end", "release")?;
    let back_end = BackEnd::start(&helper, STATE)?;
    let disk = format!(
        "vhost_user=on,socket={},id=disk0",
        back_end.socket().display()
    );
    let original = Vmm::with_guest(program, kernel, "size=64M", GUEST, &["--disk", &disk])?;
    let place = tempfile::tempdir_in(TMPFS).context("cannot make a directory on a tmpfs")?;
    let directory = place.path().join("snapshot");
    let (mut plain, mut saved, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        plain.push(rate(plain_copy(&helper, place.path())?));
        let idle = original.reset_peak()?;
        saved.push(rate(original.save(&directory)?));
        peaks.push(above(original.peak()?, idle));
        fs::remove_dir_all(&directory)?;
    }
    let (plain, saved) = (median(&mut plain), median(&mut saved));
    println!(
        "\nA back-end with {STATE} MiB of state, in MiB a second; the whole of the save counts, with the machine and 64 MiB \
         of almost empty RAM.\n"
    );
    println!("| plain copy from a pipe into a file | save | peak memory above idle |");
    println!("|---|---|---|");
    println!(
        "| {plain:.0} | {saved:.0} ({:.2}x) | {:.1} MiB |",
        saved / plain,
        median(&mut peaks)
    );
    Ok(())
}

/// MiB a second.
fn rate(time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "it is 256")]
    let state = STATE as f64;
    state * 1e3 / millis(time)
}

/// Copies the state from a process that makes it as the back-end does, through a pipe as wide as Ferry's.
fn plain_copy(helper: &Path, place: &Path) -> Result<Duration> {
    let path = place.join("plain");
    let mut target = File::create(&path)?;
    let mut buffer = vec![0; MIB as usize];
    let begun = Instant::now();
    let mut process = Command::new(helper)
        .args(["pipe", &format!("{STATE}M")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut source = process.stdout.take().context("standard output is a pipe")?;
    // SAFETY: the call works on an open pipe, and has no memory arguments. A narrower pipe will do, too.
    unsafe { libc::fcntl(source.as_raw_fd(), libc::F_SETPIPE_SZ, MIB as libc::c_int) };
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            count => target.write_all(&buffer[..count])?,
        }
    }
    let time = begun.elapsed();
    process.wait()?;
    fs::remove_file(path)?;
    Ok(time)
}
