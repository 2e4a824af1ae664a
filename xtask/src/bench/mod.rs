//! `cargo xtask bench`: what can be promised in figures. Each benchmark measures several VMMs, or Ferry and the plain
//! work beneath, in turns, so that a change of the machine's mood meets all of them, and prints ratios.

mod api;
mod back_end;
mod boot;
mod handover;
mod http;
mod memory;
mod migrate;
mod serial;
mod snapshot;
mod vmm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::progress::output;

const MIB: u64 = 1 << 20;
/// What has not happened by then never will.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a benchmark.
///
/// # Errors
/// There is no such benchmark, or a VMM cannot be measured.
pub fn bench(arguments: &[OsString]) -> Result<ExitCode> {
    match arguments.split_first() {
        Some((what, rest)) if what == "boot" => boot::bench(rest),
        Some((what, rest)) if what == "api" => api::bench(rest),
        Some((what, rest)) if what == "snapshot" => snapshot::bench(rest),
        Some((what, rest)) if what == "migrate" => migrate::bench(rest),
        Some((what, rest)) if what == "handover" => handover::bench(rest),
        _ => bail!(
            "there are five benchmarks: bench boot, bench api, bench snapshot, bench migrate, bench handover"
        ),
    }
}

/// A VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ferry,
    CloudHypervisor,
    Firecracker,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Ferry => "Ferry",
            Self::CloudHypervisor => "Cloud Hypervisor",
            Self::Firecracker => "Firecracker",
        }
    }
}

/// What the command line says.
struct Options {
    /// Other VMMs than Ferry.
    others: Vec<(Kind, PathBuf)>,
    runs: usize,
}

impl Options {
    fn read(benchmark: &str, arguments: &[OsString], runs: usize) -> Result<Self> {
        let others = Vec::new();
        let mut options = Self { others, runs };
        let mut rest = arguments.iter();
        while let Some(name) = rest.next() {
            let value = rest
                .next()
                .with_context(|| format!("{} needs a value", name.display()))?;
            let kind = match name.to_str() {
                Some("--runs") => {
                    let runs = value.to_str().and_then(|value| value.parse().ok());
                    options.runs = runs
                        .filter(|runs| *runs > 0)
                        .context("--runs needs a number")?;
                    continue;
                }
                Some("--cloud-hypervisor")
                    if !matches!(benchmark, "snapshot" | "migrate --linux") =>
                {
                    Kind::CloudHypervisor
                }
                Some("--firecracker") if benchmark == "boot" => Kind::Firecracker,
                _ => bail!("bench {benchmark} does not know '{}'", name.display()),
            };
            options.others.push((kind, value.into()));
        }
        Ok(options)
    }
}

/// The kernel that all of them boot: the tests' tiny guest.
fn tiny_guest() -> Result<PathBuf> {
    let helper = cargo::build_one("ferry-tests", "tiny-guest-path", "dev")?;
    Ok(PathBuf::from(output(&mut Command::new(helper))?.trim()))
}

/// The value in the middle. There is at least one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Says how to make the figures again.
fn print_command() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    println!("\nMade by: cargo xtask {}", arguments.join(" "));
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// By how many MiB a peak is above what was there before.
#[expect(
    clippy::cast_precision_loss,
    reason = "the memory of a process is far below 2^52 bytes"
)]
fn above(peak: u64, idle: u64) -> f64 {
    peak.saturating_sub(idle) as f64 / MIB as f64
}
