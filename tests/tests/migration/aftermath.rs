//! What a migration that has failed leaves behind, and what it leaves alone.

use std::fs;
use std::time::Duration;

use ferry_tests::backend::message::FrontendReq as Req;
use ferry_tests::backend::{Misbehaviour, Running, When as Moment};
use ferry_tests::fault_proxy::{Act, Halt, Place, Then, When};
use ferry_tests::{Ferry, Guest, Receive, Send};
use serde_json::{Value, json};
use vm_migration::link::Kind;

use crate::common::{
    BUSY, SLOW, TICK, TICKS, WRITTEN, because, busy, full, heir, moved, moved_to, optional_heir,
    receiver, stateful, tiny,
};
use crate::peer::{waiting, waiting_receiver};
use crate::proxy::Proxy;
use crate::way::{Way, before};

/// Seconds for which the other side is waited for, where it is waited for.
const PATIENCE: u32 = 3;
const AFTER_COMMIT: Place = Place {
    when: When::After,
    kind: Kind::Commit,
    nth: 1,
};

fn is_unconfirmed(guest: &Guest) -> bool {
    let events = guest.events();
    events.iter().any(|event| event == "migration-unconfirmed")
}

/// A guest with a disk reboots while it is copied, and its back-end keeps it from beginning anew. Then something else is
/// asked for. Says how the migration failed.
fn asked_while_it_reboots(route: &'static str, then: impl FnOnce(&mut Guest, &Value)) -> String {
    let disk = stateful().start();
    let mut guest = full(&disk);
    let definition = guest.get("vm.info")["config"].clone();
    let next = optional_heir(&disk).start();
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let proxy = Proxy::to(&url).slow(SLOW);
    let received = there.listen(&Receive::at(&url).device("disk0", &next));
    guest.send(&Send::to(proxy.url()));
    guest.wait_for_phase("precopy");
    disk.hang();
    let reboot = guest.ask("vm.reboot", vec![]);
    guest.wait_until("a guest that reboots", |guest| {
        (guest.get("vm.info")["transition"] == "being rebooted").then_some(())
    });
    let asked = guest.ask(route, vec![]);
    let reasons = guest.wait_for_failure(&[]);
    disk.wake();
    // Whether it was done depends on what else was asked for.
    let _ = reboot.answer();
    asked.answer().expect(route);
    proxy.set_rate(0);
    because(received.answer(), &[]);
    assert!(there.api().get("vm.info").is_err(), "there is a machine");
    then(&mut guest, &definition);
    guest.wait_for_count("tiny: hello", 2);
    guest.goes_on(WRITTEN);
    // It was not the guest of that migration.
    assert_eq!(guest.state(), "Running");
    assert_eq!(guest.migration()["state"], "failed");
    assert!(there.api().get("vm.info").is_err(), "there is a machine");
    let url = guest.unix_url();
    let receive = Receive::at(&url).device("disk0", &next);
    let mut guest = guest.migrated_to(there, &Send::to(&url), &receive);
    guest.goes_on(WRITTEN);
    for disk in [&disk, &next] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
    reasons
}

#[test]
fn a_cancel_while_the_guest_reboots() {
    let reasons = asked_while_it_reboots("vm.migration-cancel", |_, _| {});
    assert!(reasons.contains("cancel"), "{reasons}");
}

#[test]
fn a_shutdown_while_the_guest_reboots() {
    let reasons = asked_while_it_reboots("vm.shutdown", |guest, _| guest.put("vm.boot"));
    assert!(reasons.contains("ended meanwhile"), "{reasons}");
}

#[test]
fn a_delete_while_the_guest_reboots() {
    let reasons = asked_while_it_reboots("vm.delete", |guest, definition| {
        create(guest, definition);
        // It begins the file anew.
        guest.wait_for("tiny: hello");
        guest.put("vm.reboot");
    });
    assert!(reasons.contains("ended meanwhile"), "{reasons}");
}

fn create(guest: &Guest, definition: &Value) {
    let definition = definition.to_string().into_bytes();
    guest
        .ask("vm.create", definition)
        .answer()
        .expect("a guest");
    guest.put("vm.boot");
}

/// Nobody knows whether the guest runs there, and somebody has no need of it any more. What the receiver would say is not
/// about the next guest.
#[test]
fn a_guest_after_one_that_was_handed_over_and_deleted() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    let mut definition = guest.get("vm.info")["config"].clone();
    let mut there = receiver(&guest);
    let cut = Then::Cut(Duration::from_secs(600));
    let way = Way::with([(AFTER_COMMIT, Act::Just(cut))]);
    let received = there.listen(&Receive::at(way.receiver()));
    guest.send(&Send::to(way.sender()));
    received.answer().expect("a guest");
    guest.wait_for_migration("unconfirmed");
    guest.put("vm.delete");
    guest.wait_for_failure(&["given up here"]);

    let place = tempfile::tempdir().unwrap();
    let serial = place.path().join("serial");
    definition["serial"] = json!({"mode": "File", "file": serial});
    create(&guest, &definition);
    let ticks = || {
        let said = fs::read_to_string(&serial).unwrap_or_default();
        said.matches(TICK).count()
    };
    guest.wait_until("ticks of the new guest", |_| (ticks() > 2).then_some(()));
    way.open();
    // One that still asked would have done so by then.
    std::thread::sleep(Duration::from_millis(2500));
    let before = ticks();
    guest.wait_until("more ticks", |_| (ticks() > before + 1).then_some(()));
    assert_eq!(guest.state(), "Running");
    assert_eq!(guest.migration()["state"], "failed");
    assert_eq!(there.state(), "Running");
    there.goes_on(TICK);
}

/// The sender has lost patience, and asks. The receiver throws away what it has, so that the guest can go on at the sender.
#[test]
fn a_commit_that_comes_after_the_sender_has_asked() {
    let mut guest = waiting(PATIENCE);
    let mut there = waiting_receiver(&guest, PATIENCE);
    let (commit, at_commit) = Halt::new();
    let way = Way::with([(before(Kind::Commit), at_commit)]);
    let received = there.listen(&Receive::at(way.receiver()));
    guest.send(&Send::to(way.sender()));
    commit.reached();
    guest.wait_for_failure(&["the receiver has not started the guest"]);
    assert!(is_unconfirmed(&guest));
    because(received.answer(), &["has asked"]);
    commit.then(Then::PassOn);
    guest.goes_on(TICK);
    assert!(there.api().get("vm.info").is_err(), "there is a machine");
    let url = guest.unix_url();
    guest
        .migrated_to(there, &Send::to(&url), &Receive::at(&url))
        .goes_on(TICK);
}

/// The commit is there when it wakes up. So is the question of a sender that no longer waited, where that has got through.
#[test]
fn a_receiver_that_was_stopped_until_its_guest_was_taken_back() {
    // Whichever it finds first.
    was_stopped(PATIENCE, None, "the sender ");
    let dark = || Act::Just(Then::Cut(Duration::from_secs(600)));
    was_stopped(PATIENCE, Some((AFTER_COMMIT, dark())), "in time");
    // The sender's patience is what counts.
    was_stopped(20 * PATIENCE, Some((AFTER_COMMIT, dark())), "in time");
}

fn was_stopped(receivers_patience: u32, then: Option<(Place, Act)>, reason: &str) {
    let mut guest = waiting(PATIENCE);
    let mut there = waiting_receiver(&guest, receivers_patience);
    let (ready, at_ready) = Halt::new();
    let way = Way::with([(before(Kind::Ready), at_ready)].into_iter().chain(then));
    let received = there.listen(&Receive::at(way.receiver()));
    guest.send(&Send::to(way.sender()));
    ready.reached();
    there.signal(libc::SIGSTOP);
    ready.then(Then::PassOn);
    guest.wait_for_migration("unconfirmed");
    guest.put("vm.migration-reclaim");
    guest.goes_on(TICK);
    there.signal(libc::SIGCONT);
    because(received.answer(), &[reason]);
    assert!(there.api().get("vm.info").is_err(), "there is a machine");
    guest.goes_on(TICK);
    assert_eq!(guest.state(), "Running");
    let url = guest.unix_url();
    guest
        .migrated_to(there, &Send::to(&url), &Receive::at(&url))
        .goes_on(TICK);
}

/// Over TCP, COMMIT could still be sent to a receiver that is gone: it would leave a guest that nobody confirms. The source
/// does not get to hear of READY before the end of who said so.
#[test]
fn a_receiver_that_ends_right_after_it_was_ready() {
    let disk = stateful().start();
    let mut guest = busy(&disk);
    let late = Misbehaviour::Late(Duration::from_secs(2));
    let next = heir(&disk).on(Moment::Each(Req::CHECK_DEVICE_STATE), late);
    let next = next.start();
    let mut there = receiver(&guest);
    let url = ferry_tests::loopback_url();
    let _received = there.listen(&Receive::at(&url).device("disk0", &next));
    guest.send(&Send::to(&url));
    guest.wait_for_phase("ready");
    guest.signal(libc::SIGSTOP);
    there.wait_for_phase("ready");
    there.signal(libc::SIGKILL);
    // It is gone when its parent could know.
    while there.is_running() {
        std::thread::sleep(Duration::from_millis(5));
    }
    guest.signal(libc::SIGCONT);
    let address = url.strip_prefix("tcp:").expect("a TCP address");
    guest.wait_for_failure(&[address]);
    assert!(!is_unconfirmed(&guest));
    guest.goes_on(WRITTEN);
    let next = heir(&disk).start();
    let mut guest = moved(guest, &next);
    guest.goes_on(WRITTEN);
    for disk in [&disk, &next] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

/// A back-end that hangs does not keep its Ferry from the next migration, on either side, however long it may be waited for.
#[test]
fn back_ends_that_hang_are_left() {
    const REQUEST: u32 = 3;
    const DEAD: u32 = 3600;
    let disk = stateful().start();
    let guest = Ferry::tiny(BUSY)
        .request_timeout(REQUEST)
        .dead_timeout(DEAD);
    let mut guest = guest.with_api().with_disk(&disk).start();
    guest.wait_for(WRITTEN);
    let left = guest.beside();
    let limits = [REQUEST, DEAD].map(|seconds| seconds.to_string());
    let successor = left.successor().arg("--request-timeout").arg(&limits[0]);
    let mut there = successor.arg("--dead-timeout").arg(&limits[1]).start();
    let no_machine = |ferry: &mut Guest| {
        ferry.wait_until("no machine", |ferry| ferry.api().get("vm.info").err());
    };

    let hung = heir(&disk).start();
    let (state, at_state) = Halt::new();
    let way = Way::with([(before(Kind::State), at_state)]);
    let received = there.listen(&Receive::at(way.receiver()).device("disk0", &hung));
    guest.send(&Send::to(way.sender()));
    state.reached();
    hung.hang();
    state.then(Then::PassOn);
    because(received.answer(), &["disk0"]);
    guest.wait_for_failure(&["disk0"]);
    guest.goes_on(WRITTEN);
    no_machine(&mut there);

    let next = heir(&disk).start();
    let (running, at_running) = Halt::new();
    let way = Way::with([(before(Kind::Running), at_running)]);
    let received = there.listen(&Receive::at(way.receiver()).device("disk0", &next));
    guest.send(&Send::to(way.sender()).preserve_source());
    running.reached();
    disk.hang();
    running.then(Then::PassOn);
    received.answer().expect("a guest");
    guest.wait_for_migration("done");
    no_machine(&mut guest);
    there.goes_on(WRITTEN);
    for disk in [&hung, &disk] {
        disk.wake();
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

/// Bytes of anonymous files that a process has open, mapped or not.
fn in_memory_files(guest: &Guest) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let open = fs::read_dir(format!("/proc/{}/fd", guest.pid())).expect("a process");
    let mut files = std::collections::BTreeMap::new();
    for entry in open.flatten() {
        let name = fs::read_link(entry.path()).unwrap_or_default();
        if let (true, Ok(file)) = (
            name.to_string_lossy().starts_with("/memfd:"),
            fs::metadata(entry.path()),
        ) {
            files.insert(file.ino(), file.blocks() * 512);
        }
    }
    files.values().sum()
}

fn received_nothing(there: &mut Guest, next: &Running, guest: &mut Guest) {
    let (ready, at_ready) = Halt::new();
    let way = Way::with([(before(Kind::Ready), at_ready)]);
    let received = there.listen(&Receive::at(way.receiver()).device("disk0", next));
    guest.send(&Send::to(way.sender()));
    ready.reached();
    let here = in_memory_files(there);
    assert!(here > 16 << 20, "{here} bytes have come");
    there.cancel_migration().expect("an end");
    because(received.answer(), &["cancel"]);
    there.wait_until("an end of the guest's RAM", |there| {
        (in_memory_files(there) < 4 << 20).then_some(())
    });
    ready.then(Then::PassOn);
    guest.wait_for_failure(&[]);
    guest.goes_on(WRITTEN);
}

/// The connections to back-ends stay, but not what they had mapped.
#[test]
fn no_ram_is_left_where_a_guest_has_not_come() {
    let disk = stateful().start();
    let cmdline = "mode=dirty+blk-writer rate=0 pages=32768 ms=3000 op=write count=60000 report=50";
    let mut guest = tiny(cmdline).memory("256M").with_disk(&disk).start();
    guest.wait_for(WRITTEN);
    let next = heir(&disk).start();
    let mut there = receiver(&guest);
    for _ in 0..2 {
        received_nothing(&mut there, &next, &mut guest);
    }
    assert_eq!(next.connections(), 1);
    let mut there = moved_to(guest, there, &next);
    there.goes_on(WRITTEN);
}
