//! A Linux guest with a disk and a share, both in use, moved in the emulated machine where there is no hardware
//! virtualization. Times mean little there: what counts is how they compare with those of others in the same machine.

use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::STILL;
use crate::assets::{Asset, Cache};
use crate::bench::{median, print_command};
use crate::machine::{self, Job, Place};
use crate::progress::output;
use crate::{cargo, test};

const MACHINE_LIMIT: Duration = Duration::from_secs(1800);

/// Runs the benchmark.
///
/// # Errors
/// The guest does not arrive.
pub fn bench(runs: usize) -> Result<ExitCode> {
    let cache = Cache::open()?;
    let ferry = cargo::build_one("ferry", "ferry", "release")?;
    let helper = cargo::build_one("ferry-tests", "linux-migration", "dev")?;
    let variables = test::variables(&cache, &Asset::ALL, ferry)?;
    let place = Place::detect()?;
    let said = match &place {
        Place::Native => output(Command::new(&helper).arg(runs.to_string()).envs(variables))?,
        Place::Emulated(_) => {
            let argv = [helper.into_os_string(), OsString::from(runs.to_string())];
            let mut job = Job::new(argv.to_vec(), MACHINE_LIMIT)?;
            for (name, value) in variables {
                job.set(&name, value);
            }
            let outcome = machine::run(&cache, &job, Vec::new())?;
            let said = String::from_utf8_lossy(&outcome.output).into_owned();
            if outcome.status != 0 {
                bail!("the guest was not moved:\n{said}");
            }
            said
        }
    };
    let reports = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect::<Vec<Value>>();
    print(&reports, &place)?;
    print_command();
    Ok(ExitCode::SUCCESS)
}

fn print(reports: &[Value], place: &Place) -> Result<()> {
    if reports.is_empty() {
        bail!("nothing was measured");
    }
    let middle = |number: &dyn Fn(&Value) -> Option<f64>| {
        let numbers: Option<Vec<f64>> = reports.iter().map(number).collect();
        let mut numbers = numbers.context("vm.migration says too little")?;
        anyhow::Ok(median(&mut numbers))
    };
    if let Place::Emulated(reason) = place {
        println!("In an emulated machine, because {reason}: only ratios mean anything.\n");
    }
    println!(
        "Medians of {} runs in milliseconds; a Linux guest with 512 MiB, a disk and a share.\n",
        reports.len()
    );
    println!(
        "| total | rounds | RAM sent | downtime | {} |",
        STILL.join(" | ")
    );
    println!("|---|---|---|---|{}", "---|".repeat(STILL.len()));
    let phases = STILL.map(|phase| middle(&|report| phase_time(report, phase)));
    let phases = phases.into_iter().collect::<Result<Vec<f64>>>()?;
    let phases: Vec<String> = phases.iter().map(|ms| format!("{ms:.1}")).collect();
    println!(
        "| {:.0} | {:.0} | {:.0} MiB | {:.1} | {} |",
        middle(&|report| report["elapsed_ms"].as_f64())?,
        middle(&|report| report["round"].as_f64())?,
        middle(&|report| Some(report["ram"]["sent_bytes"].as_f64()? / 1048576.0))?,
        middle(&|report| report["downtime_ms"].as_f64())?,
        phases.join(" | ")
    );
    Ok(())
}

fn phase_time(report: &Value, phase: &str) -> Option<f64> {
    let phases = report["phases"].as_array()?.iter();
    let times = phases.filter(|it| it["phase"] == phase);
    Some(times.filter_map(|it| it["ms"].as_f64()).sum())
}
