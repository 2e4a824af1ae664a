//! A guest at work with our own back-ends: what they are told, and when.

use ferry_tests::backend::message::FrontendReq as Req;
use ferry_tests::backend::{Backend, DeviceState, Running};
use ferry_tests::fault_proxy::{Halt, Then};
use ferry_tests::{Guest, Receive, Send, pattern};
use vm_migration::link::Kind;

use crate::common::{
    BUSY, BUSY_SIZE, STATE, WRITTEN, busy, has_bounds, heir, logging, moved, receiver, stateful,
    tiny,
};
use crate::way::{Way, before};

const RECORD: usize = 512;
const COUNT: u32 = 3000;

fn writer(poll: u32) -> String {
    format!("mode=blk-writer count={COUNT} depth=8 report=50 poll={poll} end=halt")
}

/// Three Ferrys further.
fn three_times(mut guest: Guest, mut disk: Running) -> (Guest, Running) {
    for _ in 0..3 {
        guest.goes_on("blk ");
        let next = heir(&disk).start();
        guest = moved(guest, &next);
        assert_eq!(disk.complaints(), Vec::<String>::new());
        guest.wait_until("the end of the old back-end's connection", |_| {
            (disk.connected() == 0).then_some(())
        });
        assert_eq!(next.connections(), 1);
        disk = next;
    }
    guest.goes_on("blk ");
    (guest, disk)
}

fn every_record_once(disk: Backend, cmdline: &str, queues: u16) {
    let disk = disk.start();
    let mut guest = tiny(&format!("{cmdline} queues={queues}"))
        .with_disk_options(&disk, &format!("num_queues={queues}"))
        .start();
    guest.wait_for(WRITTEN);
    let (guest, disk) = three_times(guest, disk);
    let ended = guest.finished();
    ended.line(&format!("blk verified={COUNT}"));
    assert_eq!(disk.complaints(), Vec::<String>::new());
    let records = RECORD * COUNT as usize;
    assert!(disk.disk()[..records] == pattern::blocks(RECORD, 1, COUNT));
}

#[test]
fn records_with_a_stateless_back_end() {
    every_record_once(logging("2M"), &writer(0), 1);
}

#[test]
fn records_without_interrupts() {
    every_record_once(logging("2M"), &writer(1), 1);
}

#[test]
fn records_with_a_back_end_that_has_state() {
    let state = DeviceState::new("5M", 2);
    every_record_once(Backend::blk("2M").with_state(state), &writer(0), 1);
}

#[test]
fn records_on_several_queues() {
    every_record_once(logging("2M"), &writer(0), 3);
}

#[test]
fn states_of_all_sizes() {
    for size in ["0", "1", "1048575", "1M", "1048577", "64M"] {
        let state = DeviceState::new(size, 9);
        let disk = Backend::blk(BUSY_SIZE).with_state(state).start();
        let mut guest = busy(&disk);
        let next = heir(&disk).start();
        let mut there = receiver(&guest);
        let url = guest.unix_url();
        let received = there.listen(&Receive::at(&url).device("disk0", &next));
        guest.send(&Send::to(&url).preserve_source());
        received.answer().expect("a guest");
        guest.wait_for_migration("done");
        // However much there is to pass on.
        has_bounds(&guest);
        has_bounds(&there);
        guest = there;
        guest.goes_on(WRITTEN);
        assert_eq!(next.holds_state(), Some(state), "{size}");
        for disk in [&disk, &next] {
            assert_eq!(disk.complaints(), Vec::<String>::new(), "{size}");
        }
        let shown = &guest.migration()["devices"]["disk0"];
        assert_eq!(shown["bytes"], state.bytes, "{shown}");
        assert_eq!(shown["checked"], true, "{shown}");
    }
}

/// Ferry knows nothing of what such a device is, but what it was told.
#[test]
fn a_generic_device_with_a_state() {
    let mut disk = stateful().start();
    let options = "id=disk0,device_type=2,num_queues=1,state=required,drain=[0]";
    let mut guest = tiny(BUSY).with_device(&disk, options).start();
    for _ in 0..2 {
        guest.goes_on(WRITTEN);
        let next = heir(&disk).start();
        guest = moved(guest, &next);
        assert_eq!(next.holds_state(), Some(STATE));
        assert_eq!(disk.complaints(), Vec::<String>::new());
        disk = next;
    }
    guest.goes_on(WRITTEN);
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

/// The messages that start rings so far.
fn starts(disk: &Running) -> usize {
    disk.count(Req::SET_VRING_KICK) + disk.count(Req::SET_VRING_ENABLE)
}

/// READY waits on its way, and then COMMIT: until that is there, nothing has been started.
#[test]
fn rings_start_on_the_other_side_only_after_the_commit() {
    let disk = stateful().start();
    let guest = busy(&disk);
    let next = heir(&disk).start();
    let mut there = receiver(&guest);
    let (ready, at_ready) = Halt::new();
    let (commit, at_commit) = Halt::new();
    let way = Way::with([
        (before(Kind::Ready), at_ready),
        (before(Kind::Commit), at_commit),
    ]);
    let received = there.listen(&Receive::at(way.receiver()).device("disk0", &next));
    guest.send(&Send::to(way.sender()));
    ready.reached();
    let nothing_runs = |there: &Guest, phase: &str| {
        assert_eq!(starts(&next), 0, "before the commit");
        assert_eq!(next.requests(), 0);
        assert_eq!(next.connected(), 1);
        assert_eq!(disk.connected(), 1, "the source keeps its connection");
        assert_eq!(there.migration()["phase"], phase);
        assert!(received.is_pending());
    };
    nothing_runs(&there, "ready");
    let at_rest = [&disk, &next].map(Running::requests);
    ready.then(Then::PassOn);
    commit.reached();
    nothing_runs(&there, "ready");
    assert_eq!(guest.migration()["phase"], "commit");
    assert_eq!([&disk, &next].map(Running::requests), at_rest);
    commit.then(Then::PassOn);
    received.answer().expect("a guest");
    there.goes_on(WRITTEN);
    assert!(starts(&next) > 0);
    guest.departed();
    for disk in [&disk, &next] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
    assert_eq!(next.holds_state(), Some(STATE));
}

/// With both running the log of the source has to be off again, whether it went well or not: another one can follow.
#[test]
fn logging_ends_when_a_migration_fails() {
    use ferry_tests::backend::feature::LOG_ALL;
    let disk = stateful().start();
    let mut guest = busy(&disk);
    for attempt in 1..=2 {
        let mut there = receiver(&guest);
        let url = guest.unix_url();
        let wrong = logging("1M").start();
        let _received = there.listen(&Receive::at(&url).device("disk0", &wrong));
        guest.send(&Send::to(&url));
        guest.wait_for_failure(&["disk0"]);
        guest.goes_on(WRITTEN);
        guest.wait_until(&format!("the end of logging, attempt {attempt}"), |_| {
            (disk.accepted_features() & LOG_ALL == 0).then_some(())
        });
    }
    let next = heir(&disk).start();
    let mut guest = moved(guest, &next);
    guest.goes_on(WRITTEN);
    assert_eq!(next.accepted_features() & LOG_ALL, 0);
    for disk in [&disk, &next] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}
