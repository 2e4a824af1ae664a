//! `cargo xtask bench migrate`: how soon a guest is moved to another Ferry on this machine, and how long it stands still.
//!
//! All of its RAM holds data. Whoever measures the whole lets the guest sleep between its ticks, because a guest that works
//! takes one of two processors away from those who move it; whoever measures the silence lets it speak without a break. In turns
//! with each migration, as many bytes are [copied](plain) through a socket; both find [memory that is there](Reserve).
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

use super::memory::Reserve;
use super::vmm::{FREE_RAM, Vmm};
use super::{Kind, MIB, Options, median, millis, print_command, tiny_guest};
use crate::cargo;
use moving::{Moved, migrate};
use phases::Phases;
use plain::{Destination, Source};

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
        let mut courses: Vec<Course> = programs
            .iter()
            .map(|(kind, program)| Course::new(*kind, program, &kernel, mib))
            .collect();
        // Each guest, the copy's source, and what is copied or moved into; and some more.
        let _reserve = Reserve::new(mib * (courses.len() as u64 + 3))?;
        for destination in [Destination::Cold, Destination::Prefaulted] {
            copy_in_turns(&mut courses, mib, destination, runs)?;
        }
        for course in &mut courses {
            course.speak(runs).with_context(|| course.name())?;
        }
        figures.extend(courses.into_iter().map(|course| course.figures));
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

/// A guest that moves on and on.
struct Course<'a> {
    program: &'a Path,
    kernel: &'a Path,
    figures: Figures,
}

impl<'a> Course<'a> {
    fn new(kind: Kind, program: &'a Path, kernel: &'a Path, mib: u64) -> Self {
        let figures = Figures {
            kind,
            mib,
            cold: Copying::default(),
            prefaulted: Copying::default(),
            silence: Vec::new(),
            downtime: Vec::new(),
            phases: Phases::new(&STILL, &THERE),
        };
        Self {
            program,
            kernel,
            figures,
        }
    }

    fn name(&self) -> String {
        let Figures { kind, mib, .. } = self.figures;
        format!("{} with {mib} MiB", kind.name())
    }

    /// A guest whose RAM is full, with these further keys of its memory.
    fn guest(&self, keys: &str, command_line: &str) -> Result<Vmm> {
        let Figures { kind, mib, .. } = self.figures;
        // Only a file can be filled from outside.
        let shared = match kind {
            Kind::Ferry => "",
            _ => ",shared=on",
        };
        let memory = format!("size={mib}M{shared}{keys}");
        let vmm = Vmm::with_guest(self.program, self.kernel, &memory, command_line, &[])?;
        vmm.fill_ram(mib)?;
        Ok(vmm)
    }

    /// Moves one once.
    fn step(&self, vmm: Vmm) -> Result<Moved> {
        migrate(self.figures.kind, self.program, vmm, &json!({}), &json!({}))
    }

    /// One more turn: a plain copy, and a migration.
    fn copy(&mut self, vmm: Vmm, source: &Source, destination: Destination) -> Result<Vmm> {
        #[expect(clippy::cast_precision_loss, reason = "it is a few thousand")]
        let rate = |ms: f64| source.mib() as f64 * 1e3 / ms;
        let plain = rate(millis(source.copy(destination)?));
        let moved = self.step(vmm)?;
        let (copying, preparation) = match destination {
            Destination::Cold => (&mut self.figures.cold, 0.0),
            Destination::Prefaulted => {
                let preparation = moved.phase("phases", "prepare");
                (&mut self.figures.prefaulted, preparation)
            }
        };
        copying.plain.push(plain);
        copying.total.push(moved.total);
        copying.whole.push(rate(moved.total - preparation));
        if self.figures.kind == Kind::Ferry {
            copying.travel.push(rate(moved.phase("phases", "precopy")));
        }
        for (peaks, peak) in copying.peaks.iter_mut().zip(moved.peaks) {
            peaks.push(peak);
        }
        Ok(moved.vmm)
    }

    /// Moves a guest that speaks without a break.
    fn speak(&mut self, runs: usize) -> Result<()> {
        let mut vmm = self.guest("", TALKATIVE)?;
        for _ in 0..runs {
            let moved = self.step(vmm)?;
            self.figures.silence.push(moved.silence);
            self.figures.downtime.push(moved.number("/downtime_ms"));
            self.figures.phases.add(&moved);
            vmm = moved.vmm;
        }
        Ok(())
    }
}

/// Moves a guest of each VMM, in turns, because it depends on the moment how fast memory is.
fn copy_in_turns(
    courses: &mut [Course],
    mib: u64,
    destination: Destination,
    runs: usize,
) -> Result<()> {
    let keys = match destination {
        Destination::Cold => "",
        Destination::Prefaulted => ",prefault=on",
    };
    let source = Source::new(mib - FREE_RAM / MIB)?;
    let guests = courses.iter().map(|course| course.guest(keys, SLEEPY));
    let mut guests = guests.collect::<Result<Vec<Vmm>>>()?;
    for _ in 0..runs {
        let turns = courses.iter_mut().zip(guests);
        let moved = turns.map(|(course, vmm)| {
            let moved = course.copy(vmm, &source, destination);
            moved.with_context(|| course.name())
        });
        guests = moved.collect::<Result<_>>()?;
    }
    Ok(())
}

fn print_totals(figures: &mut [Figures]) {
    println!(
        "| VMM | RAM | receiver's RAM | plain copy, MiB/s | total, ms | whole, MiB/s | while RAM travels, MiB/s | the \
         fastest of each | peak memory apart from guest RAM: sender | receiver |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for one in figures.iter_mut() {
        let name = one.kind.name();
        for (copying, what) in [(&mut one.cold, "cold"), (&mut one.prefaulted, "prefaulted")] {
            let plain = median(&mut copying.plain);
            let fastest = most(&copying.plain);
            let ratio = |rate: f64, plain: f64| format!("{rate:.0} ({:.2}x)", rate / plain);
            let travel = match copying.travel.is_empty() {
                true => ["-".to_owned(), "-".to_owned()],
                false => [
                    ratio(median(&mut copying.travel), plain),
                    ratio(most(&copying.travel), fastest),
                ],
            };
            let [sender, receiver] = copying.peaks.each_mut().map(|peaks| median(peaks));
            println!(
                "| {name} | {} MiB | {what} | {plain:.0} | {:.0} | {} | {} | {} | {sender:.1} MiB | {receiver:.1} MiB |",
                one.mib,
                median(&mut copying.total),
                ratio(median(&mut copying.whole), plain),
                travel[0],
                travel[1],
            );
        }
    }
    println!(
        "\nTo aim at: while RAM travels, 0.9 of the plain copy; in all, half of Cloud Hypervisor's time."
    );
    print_shares(figures);
}

/// How Ferry's totals compare with those of the others, in the same turns.
fn print_shares(figures: &mut [Figures]) {
    let totals: Vec<(Kind, u64, [f64; 2])> = figures
        .iter_mut()
        .map(|one| {
            let Figures {
                cold, prefaulted, ..
            } = one;
            let totals = [cold, prefaulted].map(|copying| median(&mut copying.total));
            (one.kind, one.mib, totals)
        })
        .collect();
    for (_, mib, own) in totals.iter().filter(|(kind, ..)| *kind == Kind::Ferry) {
        for (kind, _, theirs) in totals.iter().filter(|(_, other, _)| other == mib) {
            if *kind != Kind::Ferry {
                println!(
                    "Ferry moves {mib} MiB in {:.2} of {}'s time, {:.2} if RAM is prefaulted.",
                    own[0] / theirs[0],
                    kind.name(),
                    own[1] / theirs[1],
                );
            }
        }
    }
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
