//! A Linux guest with a disk and a share, both in use, moved in the emulated machine where there is no hardware
//! virtualization. Times mean little there: what counts is how they compare with those of others in the same machine, of
//! which QEMU is one that can move such a guest.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{STILL, THERE};
use crate::assets::{self, Asset, Cache};
use crate::bench::{Options, median, print_command};
use crate::machine::{self, Job, Place};
use crate::progress::output;
use crate::{cargo, test};

const MACHINE_LIMIT: Duration = Duration::from_secs(3600);
/// Where the time goes while the guest runs.
const RUNNING: [&str; 2] = ["prepare", "precopy"];

/// A QEMU that is measured beside Ferry.
enum Qemu {
    /// That of Debian's backports.
    Backports,
    /// The user's own.
    At(PathBuf),
}

impl Qemu {
    /// Takes `--qemu [PATH]` out of the command line.
    fn take(arguments: &mut Vec<OsString>) -> Option<Self> {
        let at = arguments.iter().position(|word| word == "--qemu")?;
        arguments.remove(at);
        let is_path = |word: &OsString| !word.to_string_lossy().starts_with("--");
        match arguments.get(at).is_some_and(is_path) {
            true => Some(Self::At(arguments.remove(at).into())),
            false => Some(Self::Backports),
        }
    }

    fn program(self, cache: &Cache) -> Result<PathBuf> {
        match self {
            Self::Backports => {
                assets::new_qemu(cache).context("cannot provide QEMU (or name yours: --qemu PATH)")
            }
            Self::At(path) => {
                let path = path.canonicalize();
                path.context("the program that --qemu names cannot be found")
            }
        }
    }
}

/// Runs the benchmark.
///
/// # Errors
/// The guest does not arrive.
pub fn bench(arguments: &[OsString]) -> Result<ExitCode> {
    let mut arguments = arguments.to_vec();
    let qemu = Qemu::take(&mut arguments);
    let Options { runs, .. } = Options::read("migrate --linux", &arguments, 5)?;
    let cache = Cache::open()?;
    let qemu = qemu.map(|qemu| qemu.program(&cache)).transpose()?;
    let ferry = cargo::build_one("ferry", "ferry", "release")?;
    let helper = cargo::build_one("ferry-tests", "linux-migration", "dev")?;
    let variables = test::variables(&cache, &Asset::ALL, ferry)?;
    let place = Place::detect()?;
    let mut argv = vec![helper.into_os_string(), OsString::from(runs.to_string())];
    argv.extend(qemu.map(OsString::from));
    let said = match &place {
        Place::Native => output(Command::new(&argv[0]).args(&argv[1..]).envs(variables))?,
        Place::Emulated(_) => {
            let mut job = Job::new(argv, MACHINE_LIMIT)?;
            for (name, value) in variables {
                job.set(&name, value);
            }
            let outcome = machine::run(&cache, &job, Vec::new())?;
            let said = String::from_utf8_lossy(&outcome.output).into_owned();
            if outcome.status()? != 0 {
                bail!("the guest was not moved:\n{said}");
            }
            said
        }
    };
    let lines = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect::<Vec<Value>>();
    if let Place::Emulated(reason) = &place {
        println!("In an emulated machine, because {reason}: only ratios mean anything.\n");
    }
    println!(
        "Medians of {runs} runs in milliseconds; a Linux guest with 512 MiB, a disk and a share.\n"
    );
    print(&Reports::of("Ferry", &lines), &Reports::of("QEMU", &lines))?;
    print_command();
    Ok(ExitCode::SUCCESS)
}

/// What a monitor has said of its migrations.
struct Reports<'a>(Vec<&'a Value>);

impl<'a> Reports<'a> {
    fn of(vmm: &str, lines: &'a [Value]) -> Self {
        let lines = lines.iter().filter(|line| line["vmm"] == vmm);
        Self(lines.map(|line| &line["report"]).collect())
    }

    fn middle(&self, number: impl Fn(&Value) -> Option<f64>) -> Result<f64> {
        let numbers: Option<Vec<f64>> = self.0.iter().map(|report| number(report)).collect();
        let mut numbers = numbers.filter(|numbers| !numbers.is_empty());
        let numbers = numbers.as_mut().context("a report says too little")?;
        Ok(median(numbers))
    }

    fn number(&self, path: &str) -> Result<f64> {
        self.middle(|report| report.pointer(path)?.as_f64())
    }
}

fn print(ferry: &Reports, qemu: &Reports) -> Result<()> {
    let phases = [&RUNNING[..], &STILL].concat();
    println!(
        "| VMM | total | downtime | rounds | RAM sent | {} |",
        phases.join(" | ")
    );
    let columns = phases.len();
    println!("|---|---|---|---|---|{}", "---|".repeat(columns));
    let phases = phases.iter();
    let phases = phases.map(|phase| ferry.middle(|report| phase_time(report, "phases", phase)));
    let phases = phases.collect::<Result<Vec<f64>>>()?;
    let phases: Vec<String> = phases.iter().map(|ms| format!("{ms:.1}")).collect();
    let (total, downtime) = (ferry.number("/elapsed_ms")?, ferry.number("/downtime_ms")?);
    println!(
        "| Ferry | {total:.0} | {downtime:.1} | {:.0} | {:.0} MiB | {} |",
        ferry.number("/round")?,
        ferry.number("/ram/sent_bytes")? / 1048576.0,
        phases.join(" | ")
    );
    let Some(first) = qemu.0.first() else {
        return print_there(ferry);
    };
    let (theirs, standing) = (qemu.number("/total-time")?, qemu.number("/downtime")?);
    println!(
        "| QEMU {} | {theirs:.0} | {standing:.1} | {:.0} | {:.0} MiB |{}",
        first["version"].as_str().unwrap_or_default(),
        qemu.number("/ram/dirty-sync-count")?,
        qemu.number("/ram/transferred")? / 1048576.0,
        " |".repeat(columns)
    );
    print_there(ferry)?;
    println!(
        "\nFerry takes {:.2} of QEMU's time, and {:.2} of its downtime; at most 0.50 of both is what it aims at.",
        total / theirs,
        downtime / standing
    );
    // QEMU's number ends when all was sent; Ferry's when the guest runs again.
    let silence = qemu.number("/silence")?;
    println!(
        "QEMU's guest stands still for {silence:.1} ms from its STOP here to its RESUME there, of which Ferry's downtime is {:.2}.",
        downtime / silence
    );
    Ok(())
}

/// What the receiver did while the guest stood still.
fn print_there(ferry: &Reports) -> Result<()> {
    let phases = THERE.map(|phase| format!("receiver: {phase}"));
    println!("\n| {} |", phases.join(" | "));
    println!("|{}", "---|".repeat(THERE.len()));
    let times = THERE.map(|phase| ferry.middle(|report| phase_time(report, "peer_phases", phase)));
    let times = times.into_iter().collect::<Result<Vec<f64>>>()?;
    let times: Vec<String> = times.iter().map(|ms| format!("{ms:.1}")).collect();
    println!("| {} |", times.join(" | "));
    Ok(())
}

fn phase_time(report: &Value, side: &str, phase: &str) -> Option<f64> {
    let phases = report[side].as_array()?.iter();
    let times = phases.filter(|it| it["phase"] == phase);
    Some(times.filter_map(|it| it["ms"].as_f64()).sum())
}
