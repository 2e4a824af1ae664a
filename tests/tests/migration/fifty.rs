//! Back and forth between two Ferrys: nothing is left behind.

use ferry_tests::{Guest, Receive, Send};

use crate::common::{WRITTEN, busy, memory, optional_heir, receiver, stateful};

/// Open descriptors.
fn descriptors(guest: &Guest) -> usize {
    let directory = format!("/proc/{}/fd", guest.pid());
    std::fs::read_dir(directory).unwrap().count()
}

/// Memory of its own and that of RAM and files it shares, in KiB.
fn memories(guest: &Guest) -> [u64; 2] {
    ["RssAnon:", "RssShmem:"].map(|name| memory(guest, name))
}

fn threads(guest: &Guest) -> usize {
    let directory = format!("/proc/{}/task", guest.pid());
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn fifty_migrations_leave_nothing_behind() {
    const WARM_UP: usize = 10;
    /// KiB: the events of the last migrations are kept, up to 1024 of them.
    const MORE: u64 = 512;
    let first = stateful().start();
    let second = optional_heir(&first).start();
    let mut here = busy(&first);
    let mut there = receiver(&here);
    let mut disks = [&second, &first];
    let mut before = None;
    for number in 0..WARM_UP + 50 {
        if number == WARM_UP {
            before = Some(
                [&here, &there].map(|ferry| (descriptors(ferry), threads(ferry), memories(ferry))),
            );
        }
        let url = here.unix_url();
        let received = there.listen(&Receive::at(&url).device("disk0", disks[0]));
        here.send(&Send::to(&url).preserve_source());
        if let Err(reasons) = received.answer() {
            let complaints = disks.map(|disk| disk.complaints());
            let transfers = disks.map(|disk| disk.transfers().pop());
            panic!("number {number}: {reasons:?}: {complaints:?}, {transfers:?}");
        }
        here.wait_for_migration("done");
        here.wait_until("no machine", |here| here.api().get("vm.info").err());
        std::mem::swap(&mut here, &mut there);
        disks.swap(0, 1);
        here.goes_on(WRITTEN);
    }
    let before = before.expect("more than the first ones");
    for (ferry, (fds, tasks, kib)) in [&mut here, &mut there].into_iter().zip(before) {
        ferry.wait_until("the descriptors of before", |ferry| {
            (descriptors(ferry) <= fds).then_some(())
        });
        ferry.wait_until("the threads of before", |ferry| {
            (threads(ferry) <= tasks).then_some(())
        });
        let now = memories(ferry);
        assert!(
            now.iter().zip(kib).all(|(now, kib)| *now <= kib + MORE),
            "{kib:?} KiB, then {now:?} KiB"
        );
    }
    for disk in [&first, &second] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
    here.wait_until("the end of the old back-end's connection", |_| {
        (first.connected() + second.connected() == 1).then_some(())
    });
}
