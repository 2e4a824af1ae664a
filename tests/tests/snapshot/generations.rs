//! Guests at work with their devices, saved and brought back three times: nothing is lost, nothing is done twice.

use ferry_tests::backend::{Backend, DeviceState, Running};
use ferry_tests::{Guest, Listener, Qsd, Restore, Virtiofsd, pattern};

use crate::common::{Place, heir, saved, tiny};

const RECORD: usize = 512;
const COUNT: u32 = 3000;

fn writer(poll: u32) -> String {
    format!("mode=blk-writer count={COUNT} depth=8 report=50 poll={poll} end=halt")
}

/// Saves the guest three times, each time a little later. `next` makes the next back-end out of the one before.
fn three_times<D: Listener>(
    mut guest: Guest,
    mut device: D,
    (name, text): (&str, &str),
    next: impl Fn(D) -> D,
) -> (Guest, D) {
    let place = Place::new();
    for generation in ["1", "2", "3"] {
        guest.goes_on(text);
        let directory = place.at(generation);
        let left = saved(guest, &directory);
        device = next(device);
        guest = left.restored(&Restore::from(&directory).device(name, &device));
    }
    guest.goes_on(text);
    (guest, device)
}

fn with_our_back_end(disk: Backend, cmdline: &str) {
    let disk = disk.start();
    let guest = tiny(cmdline).with_disk(&disk).start();
    let (guest, disk) = three_times(guest, disk, ("disk0", "blk "), |old: Running| {
        assert_eq!(old.complaints(), Vec::<String>::new());
        heir(&old)
    });
    let ended = guest.finished();
    ended.line(&format!("blk verified={COUNT}"));
    assert_eq!(disk.complaints(), Vec::<String>::new());
    let records = RECORD * COUNT as usize;
    assert!(disk.disk()[..records] == pattern::blocks(RECORD, 1, COUNT));
}

#[test]
fn records_with_a_stateless_back_end() {
    with_our_back_end(Backend::blk("2M"), &writer(0));
}

#[test]
fn records_without_interrupts() {
    with_our_back_end(Backend::blk("2M"), &writer(1));
}

#[test]
fn records_with_a_back_end_that_has_state() {
    let state = DeviceState::new("5M", 2);
    with_our_back_end(Backend::blk("2M").with_state(state), &writer(0));
}

#[test]
fn records_on_several_queues() {
    let disk = Backend::blk("2M").start();
    let cmdline = format!("{} queues=3", writer(0));
    let guest = tiny(&cmdline)
        .with_disk_options(&disk, "num_queues=3")
        .start();
    let (guest, disk) = three_times(guest, disk, ("disk0", "blk "), |old| heir(&old));
    guest.finished().line(&format!("blk verified={COUNT}"));
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn states_of_all_sizes() {
    for size in ["0", "1", "1048575", "1M", "1048577"] {
        let state = DeviceState::new(size, 9);
        let disk = Backend::blk("32M").with_state(state).start();
        let guest = crate::common::busy(&disk);
        let (_guest, disk) = three_times(guest, disk, ("disk0", "blk "), |old| heir(&old));
        assert_eq!(disk.holds_state(), Some(state));
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

#[test]
fn a_state_of_512_mib_goes_through_without_staying_in_memory() {
    let place = Place::new();
    let disk = Backend::blk("32M")
        .with_state(DeviceState::new("512M", 4))
        .start();
    let guest = crate::common::busy(&disk);
    let before = memory(guest.pid());
    guest.snapshot(&ferry_tests::Snapshot::to(&place.at("1")).after("pause"));
    let saved = memory(guest.pid());
    assert!(saved < before + 16 * 1024, "{before} KiB, then {saved} KiB");
    let left = guest.kill();
    let disk = heir(&disk);
    let mut guest = crate::common::back(&left, &place.at("1"), &disk);
    guest.goes_on("blk written=");
    let restored = memory(guest.pid());
    assert!(
        restored < before + 16 * 1024,
        "{before} KiB, then {restored} KiB"
    );
}

/// The most that has been in memory without guest RAM, in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.expect("a number")
    };
    // Guest RAM is shared memory; 64 MiB at most are resident.
    value("VmHWM:").saturating_sub(64 << 10) + value("RssAnon:")
}

#[test]
fn records_with_qemu_storage_daemon() {
    for poll in [0, 1] {
        let images = Place::new();
        let image = images.at("disk.img");
        let disk = Qsd::serving("2M").on(&image).start();
        let guest = tiny(&writer(poll)).with_disk(&disk).start();
        let (guest, disk) = three_times(guest, disk, ("disk0", "blk "), |mut old| {
            old.process().kill();
            Qsd::serving("2M").on(&image).start()
        });
        guest.finished().line(&format!("blk verified={COUNT}"));
        let records = disk.read(RECORD * COUNT as usize);
        assert!(records == pattern::blocks(RECORD, 1, COUNT));
    }
}

#[test]
fn an_open_file_on_a_real_virtiofsd_goes_on() {
    const BLOCK: usize = 4096;
    let shares = Place::new();
    let shared = shares.at("shared");
    std::fs::create_dir(&shared).unwrap();
    let share = Virtiofsd::options().sharing(&shared).start();
    let guest = tiny("mode=fuse file=open blocks=600 seed=4 report=10")
        .with_fs(&share, "home")
        .start();
    let (guest, _share) = three_times(guest, share, ("fs0", "fuse at="), |mut old| {
        old.process().kill();
        Virtiofsd::options().sharing(&shared).start()
    });
    guest.end().succeeded().line("fuse verified=600");
    let written = std::fs::read(shared.join("open")).unwrap();
    assert!(written == pattern::blocks(BLOCK, 4, 600));
}
