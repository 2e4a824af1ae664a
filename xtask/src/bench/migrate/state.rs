//! State inside back-ends: how long it holds the guest up, beside what saving and loading it takes one after the other.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::moving::{Moved, migrate};
use super::phases::Phases;
use super::{STILL, THERE};
use crate::bench::back_end::BackEnd;
use crate::bench::vmm::Vmm;
use crate::bench::{Kind, median};
use crate::cargo;

/// MiB of state.
const STATE: u64 = 64;
/// The guest writes a little to the disk, which stays in use, and speaks without a break.
const GUEST: &str = "console=ttyS0 mode=blk-writer+ticks count=8 ticks=1000000000 period=0";
const TMPFS: &str = "/dev/shm";
const DEVICE: &str = "disk0";

/// Milliseconds of each run.
struct Times {
    save: Vec<f64>,
    load: Vec<f64>,
    both: Vec<f64>,
    moved: Vec<f64>,
    silence: Vec<f64>,
    downtime: Vec<f64>,
    phases: Phases,
}

/// Measures and prints it.
///
/// # Errors
/// A guest does not arrive.
pub fn bench(program: &Path, kernel: &Path, runs: usize) -> Result<()> {
    let helper = cargo::build_one("ferry-tests", "state-back-end", "release")?;
    let place = tempfile::tempdir_in(TMPFS).context("cannot make a directory on a tmpfs")?;
    let mut back_end = BackEnd::start(&helper, STATE)?;
    let disk = format!(
        "vhost_user=on,socket={},id={DEVICE}",
        back_end.socket().display()
    );
    let mut vmm = Vmm::with_guest(program, kernel, "size=64M", GUEST, &["--disk", &disk])?;
    let mut times = Times::new();
    for _ in 0..runs {
        let directory = place.path().join("snapshot");
        vmm.save(&directory)?;
        let save = device_time(&vmm, "vm.progress")?;
        let load = restore(program, &helper, &directory)?;
        fs::remove_dir_all(&directory)?;
        let next = BackEnd::start(&helper, STATE)?;
        let moved = migrate(Kind::Ferry, program, vmm, &devices(&next), &json!({}))?;
        times.add(save, load, &moved);
        vmm = moved.vmm;
        back_end = next;
    }
    drop((vmm, back_end));
    times.print();
    Ok(())
}

/// Brings the guest back into another Ferry; returns how long the back-end has taken to load its state.
fn restore(program: &Path, helper: &Path, directory: &Path) -> Result<f64> {
    let back_end = BackEnd::start(helper, STATE)?;
    let restored = Vmm::start(program, &[])?;
    let mut request = devices(&back_end);
    request["source_url"] = json!(format!("file://{}", directory.display()));
    request["resume"] = json!(false);
    restored.put("vm.restore", &request)?;
    device_time(&restored, "vm.progress")
}

/// What a request says about where the disk is now.
fn devices(back_end: &BackEnd) -> Value {
    json!({ "devices": { DEVICE: { "socket": back_end.socket() } } })
}

/// How long the state of the disk has taken, by its last operation.
fn device_time(vmm: &Vmm, route: &str) -> Result<f64> {
    let report = vmm.get(route)?;
    let time = report["devices"][DEVICE]["ms"].as_f64();
    time.with_context(|| format!("{route} says nothing about the disk: {report}"))
}

impl Times {
    fn new() -> Self {
        Times {
            save: Vec::new(),
            load: Vec::new(),
            both: Vec::new(),
            moved: Vec::new(),
            silence: Vec::new(),
            downtime: Vec::new(),
            phases: Phases::new(&STILL, &THERE),
        }
    }

    fn add(&mut self, save: f64, load: f64, moved: &Moved) {
        self.save.push(save);
        self.load.push(load);
        self.both.push(save + load);
        // From when the back-ends begin until the receiver has all of it.
        let phases = ["ram", "machine", "devices", "ready"];
        let time = phases
            .map(|phase| moved.phase("phases", phase))
            .iter()
            .sum();
        self.moved.push(time);
        self.silence.push(moved.silence);
        self.downtime.push(moved.number("/downtime_ms"));
        self.phases.add(moved);
    }

    fn print(mut self) {
        println!("\nA back-end with {STATE} MiB of state, in milliseconds.\n");
        println!(
            "| save into a file | load from it | one after the other | both in the migration | silence | downtime, as \
             vm.migration says |"
        );
        println!("|---|---|---|---|---|---|");
        let both = median(&mut self.both);
        let moved = median(&mut self.moved);
        println!(
            "| {:.0} | {:.0} | {both:.0} | {moved:.1} ({:.2}x) | {:.1} | {:.1} |\n",
            median(&mut self.save),
            median(&mut self.load),
            moved / both,
            median(&mut self.silence),
            median(&mut self.downtime),
        );
        self.phases.print_head(None, "receiver");
        self.phases.print_medians(None);
    }
}
