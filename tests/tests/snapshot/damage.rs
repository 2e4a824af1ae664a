//! Damaged snapshots are refused with the name of what is damaged, never crash Ferry, and never start a guest.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ferry_tests::{Guest, Left, Restore};
use serde_json::Value;

use crate::common::{Place, WRITTEN, because, busy, heir, saved, stateful};
use ferry_tests::backend::Running;

/// A snapshot to be damaged, and a Ferry to be shown it.
struct Victim {
    _place: Place,
    directory: PathBuf,
    manifest: Value,
    disk: Running,
    left: Left,
    ferry: Guest,
}

impl Victim {
    fn new() -> Self {
        let place = Place::new();
        let directory = place.at("1");
        let disk = stateful().start();
        let left = saved(busy(&disk), &directory);
        let manifest = fs::read(directory.join("manifest.json")).unwrap();
        Victim {
            manifest: serde_json::from_slice(&manifest).unwrap(),
            disk: heir(&disk),
            ferry: left.successor().arg("--request-timeout").arg("5").start(),
            _place: place,
            directory,
            left,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn restore(&self) -> Restore {
        Restore::from(&self.directory).device("disk0", &self.disk)
    }

    /// It is refused, for a reason with one of these texts in it.
    fn is_refused(&mut self, texts: &[&str]) {
        let reasons = because(self.ferry.restore(&self.restore()), &[]);
        assert!(
            texts.iter().any(|text| reasons.contains(text)),
            "none of {texts:?} in: {reasons}"
        );
        assert!(self.ferry.is_running());
        self.ferry.wait_until("a Ferry without a machine", |ferry| {
            ferry.api().get("vm.info").is_err().then_some(())
        });
        use ferry_tests::backend::message::FrontendReq;
        assert_eq!(self.disk.count(FrontendReq::SET_VRING_KICK), 0);
    }

    /// Nothing has been harmed.
    fn comes_back(mut self) {
        if let Err(reasons) = self.ferry.restore(&self.restore()) {
            panic!("{}\n{}", reasons.join(": "), self.ferry.transcript());
        }
        self.ferry.goes_on(WRITTEN);
        assert_eq!(self.disk.complaints(), Vec::<String>::new());
        drop(self.left);
    }
}

fn flip(path: &Path, at: u64, mask: u8) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ mask], at).unwrap();
}

#[test]
fn every_section_truncated() {
    let mut victim = Victim::new();
    let sections = victim.manifest["state"]["sections"]
        .as_array()
        .unwrap()
        .clone();
    assert!(sections.len() > 5, "{sections:?}");
    let whole = fs::read(victim.path("state")).unwrap();
    for section in &sections {
        let offset = section["offset"].as_u64().unwrap() as usize;
        for cut in [offset, offset + 8] {
            fs::write(victim.path("state"), &whole[..cut.min(whole.len() - 1)]).unwrap();
            victim.is_refused(&["state"]);
            // The same, with the length that it should have.
            let mut zeros = whole.clone();
            zeros[cut..].fill(0);
            fs::write(victim.path("state"), &zeros).unwrap();
            victim.is_refused(&[section["name"].as_str().unwrap()]);
        }
    }
    fs::write(victim.path("state"), &whole).unwrap();
    victim.comes_back();
}

#[test]
fn bits_flipped_anywhere() {
    let mut victim = Victim::new();
    let sections = victim.manifest["state"]["sections"]
        .as_array()
        .unwrap()
        .clone();
    let mut chance = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        (chance >> 8) % below
    };
    for round in 0..100 {
        let name = ["state", "manifest.json", "state", "ram0"][round % 4];
        let length = victim.path(name).metadata().unwrap().len();
        let at = random(length);
        let section = sections
            .iter()
            .rev()
            .find(|section| section["offset"].as_u64().unwrap() <= at);
        let part = match (name, section) {
            // Header and end matter only to those who read it in order.
            ("state", None) => continue,
            ("state", Some(_)) if at + 64 > length => continue,
            ("state", Some(section)) => section["name"].as_str().unwrap().to_owned(),
            _ => name.to_owned(),
        };
        let mask = 1 << random(8);
        flip(&victim.path(name), at, mask);
        victim.is_refused(&[&part]);
        flip(&victim.path(name), at, mask);
    }
    victim.comes_back();
}

#[test]
fn files_that_are_missing_or_something_else() {
    let mut victim = Victim::new();
    for name in ["state", "manifest.json", "ram0"] {
        let (path, aside) = (victim.path(name), victim.directory.with_extension("aside"));
        fs::rename(&path, &aside).unwrap();
        victim.is_refused(&[name, victim.directory.clone().to_str().unwrap()]);
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        victim.is_refused(&[name]);
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    victim.comes_back();
}

/// What is damaged is found before any back-end is connected to.
#[test]
fn back_ends_are_left_alone() {
    let mut victim = Victim::new();
    let first = victim.manifest["state"]["sections"][0]["offset"].as_u64();
    flip(&victim.path("state"), first.unwrap() + 70, 1);
    victim.is_refused(&[""]);
    assert_eq!(victim.disk.connections(), 0);
}
