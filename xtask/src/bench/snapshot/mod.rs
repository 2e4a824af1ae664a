//! `cargo xtask bench snapshot`: how soon a guest is saved, and how soon it goes on from there.
//!
//! All of the guest's RAM holds data, and it ticks each millisecond. Snapshots are on a tmpfs, but for `ondemand`, which
//! needs a file system with clones: an XFS on a loop device. Beside each copy of RAM stands a plain one of as many bytes.
//! And how fast the state inside a back-end is saved, see [`state`].

mod state;
mod xfs;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::vmm::Vmm;
use super::{MIB, Options, above, median, millis, print_command, tiny_guest};
use crate::cargo;
use xfs::Xfs;

/// MiB of RAM.
const SIZES: [u64; 2] = [512, 2048];
const TMPFS: &str = "/dev/shm";

/// Runs the benchmark.
///
/// # Errors
/// A guest is not saved or not restored.
pub fn bench(arguments: &[OsString]) -> Result<ExitCode> {
    let Options { runs, .. } = Options::read("snapshot", arguments, 11)?;
    let ferry = cargo::build_one("ferry", "ferry", "release")?;
    let kernel = tiny_guest()?;
    println!(
        "Medians of {runs} runs in milliseconds; a guest with 1 vCPU whose RAM is full; in brackets: multiple of the \
         plain copy.\n"
    );
    println!(
        "| RAM | plain copy of RAM | save | restore to first tick: copy | adopt | ondemand (XFS) | peak memory above \
         idle: save | restore by copy |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut missing = None;
    for mib in SIZES {
        let mut times = Times::default();
        missing = measure(&ferry, &kernel, mib, runs, &mut times)
            .with_context(|| format!("with {mib} MiB"))?;
        times.print(mib);
    }
    if let Some(reason) = missing {
        println!(
            "\nNothing is said of ondemand, because this machine has no XFS to try it on: {reason}"
        );
    }
    state::bench(&ferry, &kernel, runs)?;
    print_command();
    Ok(ExitCode::SUCCESS)
}

/// Milliseconds of each run, and bytes.
#[derive(Default)]
struct Times {
    plain: Vec<f64>,
    save: Vec<f64>,
    copy: Vec<f64>,
    adopt: Vec<f64>,
    ondemand: Vec<f64>,
    save_peak: Vec<f64>,
    copy_peak: Vec<f64>,
}

impl Times {
    fn print(&mut self, mib: u64) {
        let plain = median(&mut self.plain);
        let ratio = |times: &mut [f64]| {
            let time = median(times);
            format!("{time:.1} ({:.2}x)", time / plain)
        };
        // These take so little that whatever else the machine does shows; the fastest was left alone.
        let fastest = |times: &mut [f64]| match times.is_empty() {
            true => "-".to_owned(),
            false => format!("{:.1} (fastest {:.1})", median(times), times[0]),
        };
        println!(
            "| {mib} MiB | {plain:.1} | {} | {} | {} | {} | {:.1} MiB | {:.1} MiB |",
            ratio(&mut self.save),
            ratio(&mut self.copy),
            fastest(&mut self.adopt),
            fastest(&mut self.ondemand),
            median(&mut self.save_peak),
            median(&mut self.copy_peak),
        );
    }
}

/// Returns why there is nothing about `ondemand`, if there is not.
fn measure(
    program: &Path,
    kernel: &Path,
    mib: u64,
    runs: usize,
    times: &mut Times,
) -> Result<Option<String>> {
    let original = Vmm::with_full_guest(program, kernel, mib)?;
    let place = tempfile::tempdir_in(TMPFS).context("cannot make a directory on a tmpfs")?;
    let directory = place.path().join("snapshot");
    for _ in 0..runs {
        let idle = original.reset_peak()?;
        times.save.push(millis(original.save(&directory)?));
        times.save_peak.push(above(original.peak()?, idle));
        times.plain.push(millis(plain_copy(place.path(), mib)?));
        let copied = Vmm::start(program, &[])?;
        let idle = copied.reset_peak()?;
        times.copy.push(millis(copied.restore(&directory, "Copy")?));
        times.copy_peak.push(above(copied.peak()?, idle));
        drop(copied);
        let adopted = Vmm::start(program, &[])?;
        times
            .adopt
            .push(millis(adopted.restore(&directory, "Adopt")?));
        drop(adopted);
        fs::remove_dir_all(&directory)?;
    }
    original.save(&directory)?;
    drop(original);
    // For the copy, for what the guest that is cloned writes, and for the file system itself.
    let xfs = match Xfs::new((2 * mib + 512) * MIB) {
        Ok(xfs) => xfs,
        Err(error) => return Ok(Some(format!("{error:#}"))),
    };
    let directory = xfs.copy(&directory)?;
    for _ in 0..runs {
        let cloned = Vmm::start(program, &[])?;
        times
            .ondemand
            .push(millis(cloned.restore(&directory, "OnDemand")?));
    }
    Ok(None)
}

/// Copies as much data as RAM holds from one file to another.
fn plain_copy(place: &Path, mib: u64) -> Result<Duration> {
    let (from, to) = (place.join("from"), place.join("to"));
    let mut buffer = vec![0x5a; MIB as usize];
    let mut source = File::create(&from)?;
    for _ in 0..mib {
        source.write_all(&buffer)?;
    }
    let begun = Instant::now();
    let (mut source, mut target) = (File::open(&from)?, File::create(&to)?);
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            count => target.write_all(&buffer[..count])?,
        }
    }
    let time = begun.elapsed();
    fs::remove_file(from)?;
    fs::remove_file(to)?;
    Ok(time)
}
