//! `cargo xtask bench handover`: how long a guest is silent when another process of the host takes it over with the connection of its
//! disk. The disk is slow on purpose, so that as many requests as the guest can make are in flight all the time. What counts is that
//! neither RAM nor requests make a difference.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use serde_json::json;

use super::migrate::moving::{Moved, migrate};
use super::migrate::phases::Phases;
use super::vmm::Vmm;
use super::{Kind, Options, median, print_command, tiny_guest};
use crate::assets::{Asset, Cache};
use crate::cargo;
use crate::process::Process;

/// MiB of RAM, all of it with data in it.
const SIZES: [u64; 2] = [512, 2048];
/// Requests in flight.
const DEPTHS: [u32; 2] = [1, 32];
/// Requests a second that the disk completes.
const PACE: u32 = 200;
/// Bytes of the disk: as many sectors as the guest could write in hours.
const DISK: u64 = 2 << 30;
/// A guest without a disk.
const TALKATIVE: &str = "console=ttyS0 mode=ticks ticks=1000000000 period=0";
/// The parts of the silence on the side that the guest leaves.
const HERE: [&str; 5] = ["pause", "machine", "devices", "ready", "commit"];
/// What the other side does meanwhile.
const THERE: [&str; 5] = ["machine", "devices", "ready", "commit", "resume"];

/// Runs the benchmark.
///
/// # Errors
/// A guest does not arrive.
pub fn bench(arguments: &[OsString]) -> Result<ExitCode> {
    let Options { others, runs } = Options::read("handover", arguments, 200)?;
    let ferry = cargo::build_one("ferry", "ferry", "release")?;
    let kernel = tiny_guest()?;
    let cache = Cache::open()?;
    println!(
        "{runs} hand-overs each, of a guest with 1 vCPU that speaks without a break; in milliseconds. To aim at: at most 3 of \
         silence in the middle, and 10 in 99 of 100.\n"
    );
    let mut figures = Vec::new();
    for mib in SIZES {
        for depth in DEPTHS {
            let disk = Disk::start(&cache)?;
            let guest = disk.guest(&ferry, &kernel, mib, depth)?;
            let what = format!("Ferry, {depth} requests in flight");
            figures.push(Figures::measure(
                &what,
                Kind::Ferry,
                &ferry,
                guest,
                mib,
                runs,
            )?);
        }
        for (kind, program) in &others {
            let memory = format!("size={mib}M,shared=on");
            let guest = Vmm::with_guest(program, &kernel, &memory, TALKATIVE, &[])?;
            guest.fill_ram(mib)?;
            let what = format!("{}, no disk", kind.name());
            figures.push(Figures::measure(&what, *kind, program, guest, mib, runs)?);
        }
    }
    print_times(&mut figures);
    print_phases(&mut figures);
    print_command();
    Ok(ExitCode::SUCCESS)
}

/// A slow disk.
struct Disk {
    _process: Process,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Disk {
    fn start(cache: &Cache) -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let image = directory.path().join("disk.img");
        File::create(&image)?.set_len(DISK)?;
        let socket = directory.path().join("disk.sock");
        let mut command = Command::new(Asset::StorageDaemon.provide(cache)?);
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=file,filename={}", image.display()))
            .arg("--object")
            .arg(format!("throttle-group,id=limits,x-iops-total={PACE}"))
            .arg("--blockdev")
            .arg("driver=throttle,node-name=slow,throttle-group=limits,file=file")
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=slow,addr.type=unix,addr.path={},writable=on",
                socket.display()
            ));
        let name = "qemu-storage-daemon";
        let process = Process::serve(name, &mut command, &socket, directory.path())?;
        Ok(Self {
            _process: process,
            socket,
            _directory: directory,
        })
    }

    fn guest(&self, program: &Path, kernel: &Path, mib: u64, depth: u32) -> Result<Vmm> {
        let command_line = format!("console=ttyS0 mode=blk-ticks count=4000000 depth={depth}");
        let disk = format!("vhost_user=on,socket={}", self.socket.display());
        let memory = format!("size={mib}M");
        let guest = Vmm::with_guest(program, kernel, &memory, &command_line, &["--disk", &disk])?;
        guest.fill_ram(mib)?;
        Ok(guest)
    }
}

/// What has become of one guest. Times in milliseconds.
struct Figures {
    what: String,
    kind: Kind,
    mib: u64,
    silence: Vec<f64>,
    downtime: Vec<f64>,
    total: Vec<f64>,
    phases: Phases,
}

impl Figures {
    fn measure(
        what: &str,
        kind: Kind,
        program: &Path,
        guest: Vmm,
        mib: u64,
        runs: usize,
    ) -> Result<Self> {
        let mut figures = Self {
            what: what.to_owned(),
            kind,
            mib,
            silence: Vec::new(),
            downtime: Vec::new(),
            total: Vec::new(),
            phases: Phases::new(&HERE, &THERE),
        };
        let (receive, send) = match kind {
            // Each process has a pipe of its own for what the guest says.
            Kind::Ferry => (
                json!({ "serial": { "mode": "Tty" } }),
                json!({ "local": true }),
            ),
            _ => (json!({}), json!({ "local": true })),
        };
        let mut vmm = guest;
        for _ in 0..runs {
            let moved = migrate(kind, program, vmm, &receive, &send)
                .with_context(|| format!("{what}, {mib} MiB"))?;
            figures.add(&moved);
            vmm = moved.vmm;
        }
        Ok(figures)
    }

    fn add(&mut self, moved: &Moved) {
        self.silence.push(moved.silence);
        self.downtime.push(moved.number("/downtime_ms"));
        self.total.push(moved.total);
        self.phases.add(moved);
    }
}

/// The value below which 99 of 100 are. The values are in order.
fn high(values: &[f64]) -> f64 {
    let index = (values.len() * 99).div_ceil(100).saturating_sub(1);
    values[index]
}

fn print_times(figures: &mut [Figures]) {
    println!(
        "| VMM | RAM | silence: fastest | median | 99 of 100 | slowest | downtime, as vm.migration says | total |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for one in figures {
        let middle = median(&mut one.silence);
        println!(
            "| {} | {} MiB | {:.2} | {middle:.2} | {:.2} | {:.2} | {:.2} | {:.1} |",
            one.what,
            one.mib,
            one.silence[0],
            high(&one.silence),
            one.silence[one.silence.len() - 1],
            median(&mut one.downtime),
            median(&mut one.total),
        );
    }
}

fn print_phases(figures: &mut [Figures]) {
    println!(
        "\nWhere it goes, in milliseconds; the new process's phases lie within the old one's.\n"
    );
    Phases::new(&HERE, &THERE).print_head(Some("RAM"), "new");
    for one in figures.iter_mut().filter(|one| one.kind == Kind::Ferry) {
        one.phases.print_medians(Some(format!("{} MiB", one.mib)));
    }
}
