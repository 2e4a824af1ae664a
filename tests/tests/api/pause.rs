//! Pauses of a guest whose disk is busy.

use std::time::Duration;

use ferry_tests::Qsd;
use ferry_tests::backend::Backend;

use crate::controlled::Controlled;

/// Writes as fast as it can, then verifies everything.
const WRITER: &str = "mode=blk-writer count=8000 report=200";

/// Pauses and resumes until the guest has written everything, then waits for its verdict and Ferry's end.
fn pause_until_it_ends(ferry: Controlled) -> u32 {
    let mut pauses = 0;
    while ferry.lines("blk verified") == 0 && ferry.lines("FAIL") == 0 {
        let paused = ferry.put("vm.pause");
        if paused.status != 204 {
            break;
        }
        pauses += 1;
        ferry.put("vm.resume").done();
        std::thread::sleep(Duration::from_millis(u64::from(pauses % 7)));
    }
    ferry.wait_until("the guest's verdict", || {
        (ferry.lines("blk verified") + ferry.lines("FAIL") > 0).then_some(())
    });
    assert_eq!(ferry.lines("FAIL"), 0, "{}", ferry.log());
    pauses
}

#[test]
fn no_request_is_lost_with_qemu_storage_daemon() {
    let disk = Qsd::serving("32M").start();
    let ferry = Controlled::start();
    let halt = format!("{WRITER} end=halt");
    ferry.boot(&halt, &[ferry_tests::Listener::socket(&disk)]);
    let pauses = pause_until_it_ends(ferry);
    assert!(pauses >= 100, "{pauses} pauses");
}

#[test]
fn no_request_is_lost_with_a_strict_back_end() {
    let disk = Backend::blk("32M").start();
    let ferry = Controlled::start();
    let halt = format!("{WRITER} end=halt");
    ferry.boot(&halt, &[disk.socket()]);
    let pauses = pause_until_it_ends(ferry);
    assert!(pauses >= 100, "{pauses} pauses");
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn a_pause_that_succeeds_lasts_also_when_the_guest_resets_itself() {
    let ferry = Controlled::start();
    ferry.boot("mode=reboot", &[]);
    let mut pauses = 0;
    while pauses < 300 {
        if ferry.put("vm.pause").status != 204 {
            continue;
        }
        pauses += 1;
        for _ in 0..3 {
            let info = ferry.info();
            assert_eq!(
                (&info["state"], &info["transition"]),
                (&"Paused".into(), &serde_json::Value::Null)
            );
        }
        ferry.put("vm.resume").done();
    }
}

#[test]
fn a_hundred_pauses_leave_nothing_behind() {
    let disk = Backend::blk("32M").start();
    let ferry = Controlled::start();
    ferry.boot(
        "mode=blk-writer+ticks op=write count=60000 report=50 ticks=1000000",
        &[disk.socket()],
    );
    ferry.wait_for_more("blk written", 1);
    let pause = || {
        ferry.put("vm.pause").done();
        ferry.put("vm.resume").done();
    };
    // The first few make the heap what it needs to be.
    (0..10).for_each(|_| pause());
    let (files, memory) = (descriptors(ferry.pid()), resident_kib(ferry.pid()));
    (0..100).for_each(|_| pause());
    // The connections of clients that have just left are among them for a moment.
    ferry.wait_until("as few open files as before", || {
        (descriptors(ferry.pid()) <= files).then_some(())
    });
    let after = resident_kib(ferry.pid());
    assert!(after <= memory + 256, "{memory} KiB, then {after} KiB");
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Resident memory beyond guest RAM, which is shared memory.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("RssAnon")
}
