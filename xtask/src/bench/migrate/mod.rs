//! `cargo xtask bench migrate`: how soon a guest is moved to another Ferry on this machine, and how long it stands still.
//!
//! All of its RAM holds data. Whoever measures the whole lets the guest sleep between its ticks, because a guest that works
//! takes one of two processors away from those who move it; whoever measures the silence lets it speak without a break. In turns
//! with each migration, as many bytes are [copied](plain) through a socket; both find memory that the host has given already.
//! State inside back-ends is moved in [`state`], a Linux guest in [`linux`].

mod linux;
pub mod moving;
pub mod phases;
mod plain;
mod state;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;

use super::vmm::{FREE_RAM, Vmm};
use super::{Kind, MIB, Options, median, millis, print_command, tiny_guest};
use crate::cargo;
use moving::{Moved, migrate};
use phases::Phases;
use plain::{Destination, Source, ask_host_for};

/// MiB of RAM.
const SIZES: [u64; 2] = [512, 2048];
/// It sleeps until the next tick, which takes it about a millisecond where KVM interprets it.
const SLEEPY: &str = "console=ttyS0 mode=ticks ticks=1000000000 period=100 timer=lapic";
/// Each tick is said as soon as the one before.
const TALKATIVE: &str = "console=ttyS0 mode=ticks ticks=1000000000 period=0";
/// The parts of the silence on the sender's side.
const STILL: [&str; 6] = ["pause", "ram", "machine", "devices", "ready", "commit"];
/// What the receiver does meanwhile.
const THERE: [&str; 5] = ["machine", "devices", "ready", "commit", "resume"];

/// Runs the benchmark.
///
/// # Errors
/// A guest does not arrive.
pub fn bench(arguments: &[OsString]) -> Result<ExitCode> {
    if let [first, rest @ ..] = arguments
        && first == "--linux"
    {
        return linux::bench(rest);
    }
    let Options { others, runs } = Options::read("migrate", arguments, 11)?;
    let ferry = cargo::build_one("ferry", "ferry", "release")?;
    let kernel = tiny_guest()?;
    let mut programs = vec![(Kind::Ferry, ferry.clone())];
    programs.extend(others);
    println!(
        "Medians of {runs} runs; a guest with 1 vCPU whose RAM is full moves over a unix socket. A rate is that of the data \
         that travels, in MiB a second; in brackets: of the plain copy's.\n"
    );
    let mut figures = Vec::new();
    for mib in SIZES {
        for (kind, program) in &programs {
            let measured = Figures::measure(*kind, program, &kernel, mib, runs)
                .with_context(|| format!("{} with {mib} MiB", kind.name()))?;
            figures.push(measured);
        }
    }
    print_totals(&mut figures);
    print_silence(&mut figures);
    print_phases(&mut figures);
    state::bench(&ferry, &kernel, runs)?;
    print_command();
    Ok(ExitCode::SUCCESS)
}

/// What migrations into RAM of a kind have shown.
#[derive(Default)]
struct Copying {
    /// MiB a second.
    plain: Vec<f64>,
    /// Milliseconds.
    total: Vec<f64>,
    /// MiB a second, over the whole time, without that in which RAM is prefaulted.
    whole: Vec<f64>,
    /// MiB a second, while RAM travels.
    travel: Vec<f64>,
    peaks: [Vec<f64>; 2],
}

/// What has become of one VMM's guest of one size. Times in milliseconds.
struct Figures {
    kind: Kind,
    mib: u64,
    cold: Copying,
    prefaulted: Copying,
    silence: Vec<f64>,
    /// As the sender measures it.
    downtime: Vec<f64>,
    phases: Phases,
}

impl Figures {
    fn measure(kind: Kind, program: &Path, kernel: &Path, mib: u64, runs: usize) -> Result<Self> {
        let course = Course {
            kind,
            program,
            kernel,
            mib,
            runs,
        };
        let mut figures = Self {
            kind,
            mib,
            cold: course.copying(Destination::Cold)?,
            prefaulted: course.copying(Destination::Prefaulted)?,
            silence: Vec::new(),
            downtime: Vec::new(),
            phases: Phases::new(&STILL, &THERE),
        };
        let mut vmm = course.guest("", TALKATIVE)?;
        for _ in 0..runs {
            ask_host_for(mib)?;
            let moved = course.step(vmm)?;
            figures.add(&moved);
            vmm = moved.vmm;
        }
        Ok(figures)
    }

    fn add(&mut self, moved: &Moved) {
        self.silence.push(moved.silence);
        self.downtime.push(moved.number("/downtime_ms"));
        self.phases.add(moved);
    }
}

/// A guest that moves on and on.
struct Course<'a> {
    kind: Kind,
    program: &'a Path,
    kernel: &'a Path,
    mib: u64,
    runs: usize,
}

impl Course<'_> {
    /// A guest whose RAM is full, with these further keys of its memory.
    fn guest(&self, keys: &str, command_line: &str) -> Result<Vmm> {
        // Only a file can be filled from outside.
        let shared = match self.kind {
            Kind::Ferry => "",
            _ => ",shared=on",
        };
        let memory = format!("size={}M{shared}{keys}", self.mib);
        let vmm = Vmm::with_guest(self.program, self.kernel, &memory, command_line, &[])?;
        vmm.fill_ram(self.mib)?;
        Ok(vmm)
    }

    fn step(&self, vmm: Vmm) -> Result<Moved> {
        migrate(self.kind, self.program, vmm, &json!({}), &json!({}))
    }

    fn copying(&self, destination: Destination) -> Result<Copying> {
        let keys = match destination {
            Destination::Cold => "",
            Destination::Prefaulted => ",prefault=on",
        };
        let mib = self.mib - FREE_RAM / MIB;
        let source = Source::new(mib)?;
        let mut copying = Copying::default();
        let mut vmm = self.guest(keys, SLEEPY)?;
        #[expect(clippy::cast_precision_loss, reason = "it is a few thousand")]
        let rate = |ms: f64| mib as f64 * 1e3 / ms;
        for _ in 0..self.runs {
            ask_host_for(self.mib)?;
            copying.plain.push(rate(millis(source.copy(destination)?)));
            ask_host_for(self.mib)?;
            let moved = self.step(vmm)?;
            let preparation = match destination {
                Destination::Cold => 0.0,
                Destination::Prefaulted => moved.phase("phases", "prepare"),
            };
            copying.total.push(moved.total);
            copying.whole.push(rate(moved.total - preparation));
            copying.travel.push(rate(moved.phase("phases", "precopy")));
            for (peaks, peak) in copying.peaks.iter_mut().zip(moved.peaks) {
                peaks.push(peak);
            }
            vmm = moved.vmm;
        }
        Ok(copying)
    }
}

fn print_totals(figures: &mut [Figures]) {
    println!(
        "| VMM | RAM | receiver's RAM | plain copy, MiB/s | total, ms | whole, MiB/s | while RAM travels, MiB/s | the \
         fastest of each | peak memory apart from guest RAM: sender | receiver |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for one in figures {
        let name = one.kind.name();
        for (copying, what) in [(&mut one.cold, "cold"), (&mut one.prefaulted, "prefaulted")] {
            let plain = median(&mut copying.plain);
            let ratio = |rates: &mut [f64]| {
                let rate = median(rates);
                match rate.is_finite() {
                    true => format!("{rate:.0} ({:.2}x)", rate / plain),
                    false => "-".to_owned(),
                }
            };
            let fastest = [&copying.plain, &copying.travel].map(|rates| most(rates));
            let [sender, receiver] = copying.peaks.each_mut().map(|peaks| median(peaks));
            println!(
                "| {name} | {} MiB | {what} | {plain:.0} | {:.0} | {} | {} | {:.0} ({:.2}x) | {sender:.1} MiB | {receiver:.1} MiB |",
                one.mib,
                median(&mut copying.total),
                ratio(&mut copying.whole),
                ratio(&mut copying.travel),
                fastest[1],
                fastest[1] / fastest[0],
            );
        }
    }
    println!(
        "\nTo aim at: while RAM travels, 0.9 of the plain copy; in all, half of Cloud Hypervisor's time."
    );
}

/// The best of some runs: where memory is slow to come, the other ones had more of that in their way.
fn most(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(f64::NAN, f64::max)
}

fn print_silence(figures: &mut [Figures]) {
    println!("\nHow long the guest is silent, in milliseconds; to aim at: 5.\n");
    println!("| VMM | RAM | on its serial port | fastest | slowest | as vm.migration says |");
    println!("|---|---|---|---|---|---|");
    for one in figures {
        let silence = median(&mut one.silence);
        let said = match one.kind {
            Kind::Ferry => format!("{:.2}", median(&mut one.downtime)),
            _ => "-".to_owned(),
        };
        println!(
            "| {} | {} MiB | {silence:.2} | {:.2} | {:.2} | {said} |",
            one.kind.name(),
            one.mib,
            one.silence[0],
            one.silence[one.silence.len() - 1],
        );
    }
}

fn print_phases(figures: &mut [Figures]) {
    println!("\nWhere it goes, in milliseconds; the receiver's phases lie within the sender's.\n");
    Phases::new(&STILL, &THERE).print_head(Some("RAM"), "receiver");
    for one in figures.iter_mut().filter(|one| one.kind == Kind::Ferry) {
        one.phases.print_medians(Some(format!("{} MiB", one.mib)));
    }
}
