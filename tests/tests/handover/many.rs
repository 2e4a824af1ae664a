//! Back and forth between two processes: nothing is left behind.

use ferry_tests::{Guest, Qsd, Receive, Virtiofsd};

use crate::common::{heir, local, tiny};

/// What a process has: descriptors, KiB of memory of its own, threads.
#[derive(Clone, Copy, Debug)]
struct Holdings {
    descriptors: usize,
    memory: u64,
    threads: usize,
}

impl Holdings {
    fn of(guest: &Guest) -> Self {
        let process = format!("/proc/{}", guest.pid());
        let count = |what| {
            std::fs::read_dir(format!("{process}/{what}"))
                .unwrap()
                .count()
        };
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Holdings {
            descriptors: count("fd"),
            memory: number.expect("a number"),
            threads: count("task"),
        }
    }
}

#[test]
fn a_hundred_hand_overs_leave_nothing_behind() {
    const RECORDS: u32 = 8_000;
    let disk = Qsd::serving("16M").throttle(1000).start();
    let share = Virtiofsd::options().start();
    let cmdline =
        format!("mode=fuse+blk-writer count={RECORDS} depth=16 report=20 file=open blocks=50");
    let mut here = tiny(&cmdline)
        .with_disk(&disk)
        .with_fs(&share, "home")
        .start();
    here.wait_for("blk written=");
    let mut there = heir(&here);
    let mut before = None;
    for number in 0..100 {
        if number == 10 {
            before = Some([&here, &there].map(Holdings::of));
        }
        let url = here.unix_url();
        let received = there.listen(&Receive::at(&url));
        here.send(&local(&url).preserve_source());
        received.answer().expect("a guest");
        here.wait_for_migration("done");
        std::mem::swap(&mut here, &mut there);
    }
    let before = before.expect("more than the first ones");
    for (ferry, before) in [&mut here, &mut there].into_iter().zip(before) {
        let now = ferry.wait_until("the descriptors and threads of before", |ferry| {
            let now = Holdings::of(ferry);
            let are_few = now.descriptors <= before.descriptors && now.threads <= before.threads;
            are_few.then_some(now)
        });
        assert!(now.memory <= before.memory + 2048, "{before:?}, {now:?}");
    }
    assert_eq!(disk.connected(), 1);
    here.end()
        .succeeded()
        .line(&format!("blk verified={RECORDS}"));
}
