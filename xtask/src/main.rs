//! `cargo xtask`: the demo, the tests, benchmarks, fuzzing, and what they need.

mod assets;
mod bench;
mod cargo;
mod cpio;
mod demo;
mod fuzz;
mod machine;
mod process;
mod progress;
mod terminal;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use assets::{Asset, Cache};

const HELP: &str = "\
cargo xtask COMMAND

  demo [--interactive]   boot a Linux guest with a disk by qemu-storage-daemon and a directory by virtiofsd
  test [FILTER]          run all tests, or those whose names contain FILTER
  bench boot [--cloud-hypervisor PATH] [--firecracker PATH] [--runs N]
                         measure start-up time and memory overhead
  bench api [--cloud-hypervisor PATH] [--runs N]
                         measure how soon the API answers
  bench snapshot [--runs N]
                         measure how soon guests are saved and restored (ondemand: as root, with mkfs.xfs)
  bench migrate [--cloud-hypervisor PATH] [--runs N]
                         measure how soon guests are moved, and how long they stand still
  bench handover [--cloud-hypervisor PATH] [--runs N]
                         how long a guest with a disk at work is silent when another process takes it
  bench migrate --linux [--qemu [PATH]] [--runs N]
                         the same with a Linux guest with a disk and a directory; its times mean little where it is
                         emulated. --qemu lets QEMU move such a guest beside it: the one at PATH (9 or later), or that of
                         Debian's backports
  fuzz [--seconds N] [TARGET]
                         feed made-up input to all fuzz targets, or to one; each for a minute, or N seconds
  assets [NAME...]       provide what the others need from outside the clone, and print where it is
  in-machine -- COMMAND [ARGUMENT...]
                         run a command in the emulated machine
";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ferry: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    let asks_for_help = rest.iter().any(|word| word == "--help" || word == "-h");
    match command.to_str() {
        Some("bench") if asks_for_help => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        Some("demo") => demo::demo(&rest),
        Some("bench") => bench::bench(&rest),
        Some("test") => test::test(&rest),
        Some("fuzz") => fuzz::fuzz(&rest),
        Some("assets") => print_assets(&rest),
        Some("in-machine") => in_machine(&rest),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprint!("{HELP}");
            Ok(ExitCode::from(2))
        }
    }
}

/// `cargo xtask assets`: prints shell assignments.
fn print_assets(names: &[OsString]) -> Result<ExitCode> {
    if names.iter().any(|name| name == "--help" || name == "-h") {
        println!(
            "cargo xtask assets [NAME...], where NAME, and the variable to set to bring your own, is one of:"
        );
        for asset in Asset::ALL {
            println!("  {}", asset.variable());
        }
        println!(
            "Also FERRY_BUSYBOX (static), FERRY_QEMU (qemu-system-x86_64), FERRY_CACHE (where all that is built lies)."
        );
        return Ok(ExitCode::SUCCESS);
    }
    let mut wanted = Vec::new();
    for name in names {
        let asset = Asset::ALL
            .into_iter()
            .find(|asset| name == asset.variable());
        wanted.push(asset.with_context(|| format!("there is no asset {}", name.display()))?);
    }
    if wanted.is_empty() {
        wanted = Asset::ALL.to_vec();
    }
    let cache = Cache::open()?;
    for (name, path) in assets::environment(&cache, &wanted)? {
        println!("{name}={}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// `cargo xtask in-machine -- COMMAND`.
fn in_machine(arguments: &[OsString]) -> Result<ExitCode> {
    let (streams, arguments) = match arguments {
        [first, rest @ ..] if first == "--terminal" => (machine::Streams::Terminal, rest),
        all => (machine::Streams::Plain, all),
    };
    let argv = match arguments {
        [dashes, rest @ ..] if dashes == "--" => rest,
        all => all,
    };
    if argv.is_empty() {
        bail!("in-machine needs a command");
    }
    let mut job = machine::Job::new(argv.to_vec(), Duration::from_secs(1800))?;
    job.streams = streams;
    let outcome = machine::run(&Cache::open()?, &job, std::io::stdout())?;
    Ok(ExitCode::from(outcome.status()?))
}
