//! Guests at work, handed from process to process of the same host with the connections to their back-ends, which hear nothing of it.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ferry_tests::fault_proxy::{FaultProxy, Place as At};
use ferry_tests::{Guest, Receive, Restore, Send};
use serde_json::Value;
use vm_migration::link::Kind;

use crate::migration::{LIMIT, path, summary};
use crate::migration_faults::{before, signalling};
use crate::records::{Loop, Setup, Writing};
use crate::silence::Silence;
use crate::snapshot::{Place, is_the_same_guest, restored, saved, successor};

/// Requests a second that a disk serves: fewer than it is asked for, and so few that even a guest that has only a part of an emulated
/// processor asks for more.
const SLOW: u32 = 5;
/// The same where others do not take the processor.
const FASTER: u32 = 40;
/// A guest that runs says something within this time.
const QUIET: Duration = Duration::from_secs(3);

/// Besides the records, keeps several requests in flight, and a file open that has no name any more. Reboots when it is told to.
const WORK: &str = "
    identity() {
        echo boot-id=$(cat /proc/sys/kernel/random/boot_id) \
            generations=$(awk '/IO-APIC +17-edge/ { for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i; print n }' /proc/interrupts)
    }
    # Its errors are seen, too, if it comes to nothing.
    echo 4 > /proc/sys/kernel/printk
    readers=
    for reader in 1 2 3; do
        (
            while [ ! -e /tmp/enough ]; do
                dd if=/dev/vda of=/dev/null bs=4k skip=8192 count=8 iflag=direct 2> /tmp/dd$reader ||
                    [ -e /tmp/enough ] || echo FAIL $(cat /tmp/dd$reader)
            done
        ) &
        readers=\"$readers $!\"
    done
    exec 9<> /share/nameless
    echo first >&9
    rm /share/nameless
    identity
    until [ -e /share/enough ] || told_to_end; do
        if [ -e /share/reboot ]; then
            rm /share/reboot
            # A kernel that reboots takes its devices away from those that use them.
            touch /tmp/enough
            kill -KILL $disk $share
            wait $disk $share || true
            reboot -f
            sleep 1000
        fi
        sleep 0.5
    done
    if echo second >&9; then echo nameless=works; else echo nameless=broken; fi
    exec 9>&-
    touch /tmp/enough
    wait $readers
    until told_to_end; do sleep 0.5; done
    identity";

fn working(place: &Place, cpus: u32, queues: u16, iops: u32) -> Writing {
    Writing::start(Setup {
        script: WORK,
        disk: place.disk().throttle(iops),
        share: place.share(),
        cpus,
        queues,
        ..Setup::default()
    })
}

#[test]
fn a_guest_at_work_is_handed_over_a_hundred_times_and_saved() {
    const TIMES: u32 = 100;
    let place = Place::new();
    let mut writing = working(&place, 2, 2, SLOW);
    let silence = of_back_ends(&mut writing);
    let mut there = heir(&writing.guest);
    let (begun, mut in_flight) = (Instant::now(), Vec::new());
    for _ in 0..TIMES {
        let here = &mut writing.guest;
        here.wait_until("requests in flight", |here| {
            (requests(here) > 1).then_some(())
        });
        hand(here, &mut there);
        std::mem::swap(here, &mut there);
        in_flight.push(requests(here));
    }
    println!(
        "{TIMES} hand-overs took {:?}; requests in flight right after them: {in_flight:?}; the last: {}",
        begun.elapsed(),
        summary(&there.migration())
    );
    writing.goes_on(Loop::Share);
    silence.is_unbroken();
    drop(there);

    fs::write(place.at("share").join("enough"), "").expect("write to the share");
    writing.guest.wait_for("nameless=works");
    goes_on(&mut writing);
    let directory = place.at("snapshot");
    let (left, _) = saved(writing, &directory);
    assert!(!silence.heard().is_empty(), "a snapshot is silent, too");
    let (disk, share) = (place.disk().start(), place.share().start());
    let restore = Restore::from(&directory)
        .device("disk0", &disk)
        .device("fs0", &share);
    let guest = restored(&left, &restore);
    let mut writing = Writing { guest, disk, share };
    goes_on(&mut writing);
    is_the_same_guest(&writing.end_and_check(), 1);
}

#[test]
fn a_guest_with_four_processors_is_rebooted_paused_and_handed_to_processes_that_die() {
    let place = Place::new();
    let mut writing = working(&place, 4, 4, FASTER);
    let silence = of_back_ends(&mut writing);
    for _ in 0..3 {
        writing = handed_over(writing);
    }
    goes_on(&mut writing);
    silence.is_unbroken();
    // The next boot is to write all of this boot's records again.
    let written = writing.written(Loop::Disk);
    fs::write(place.at("share").join("reboot"), "").expect("write to the share");
    writing.begins_anew();
    assert!(!silence.heard().is_empty(), "a reboot is silent, too");
    drop(silence);

    writing.guest.put("vm.pause");
    let silence = of_back_ends(&mut writing);
    let paused = [Loop::Disk, Loop::Share].map(|which| writing.written(which));
    for _ in 0..2 {
        writing = handed_over(writing);
        assert_eq!(writing.guest.state(), "Paused");
    }
    sleep(QUIET);
    let now = [Loop::Disk, Loop::Share].map(|which| writing.written(which));
    assert_eq!(paused, now, "the guest runs");
    silence.is_unbroken();
    drop(silence);
    writing.guest.put("vm.resume");
    goes_on(&mut writing);

    let silence = of_back_ends(&mut writing);
    // Before it has the connections; when it has everything; when it is being told that the guest is its own.
    for (kind, nth) in [(Kind::Handles, 3), (Kind::Ready, 1), (Kind::Commit, 1)] {
        handed_to_one_that_dies(&mut writing, &place, before(kind, nth));
        goes_on(&mut writing);
    }
    writing = handed_over(writing);
    goes_on(&mut writing);
    silence.is_unbroken();
    while writing.written(Loop::Disk) <= written {
        writing.goes_on(Loop::Disk);
    }
    writing.end_and_check().line("nameless=works");
}

/// Listens to the guest's back-ends.
fn of_back_ends(writing: &mut Writing) -> Silence {
    Silence::of([writing.disk.process().id(), writing.share.process().id()])
}

/// A process for the guest to be handed to.
fn heir(guest: &Guest) -> Guest {
    successor(&guest.beside()).start()
}

fn local(url: &str) -> Send {
    Send::to(url).with("local", true.into())
}

/// Hands the guest to a process, beside which the old one stays.
fn hand(here: &mut Guest, there: &mut Guest) {
    let url = here.unix_url();
    let received = there.listen(&Receive::at(&url));
    here.send(&local(&url).preserve_source());
    if let Err(reasons) = received.answer() {
        let (here, there) = (here.transcript(), there.transcript());
        panic!("{}\n--- {here}\n--- {there}", reasons.join(": "));
    }
    here.wait_for_migration("done");
}

/// Hands the guest to a new process; the old one has ended well.
fn handed_over(writing: Writing) -> Writing {
    let Writing { guest, disk, share } = writing;
    let (there, url) = (heir(&guest), guest.unix_url());
    let guest = guest.migrated_to(there, &local(&url), &Receive::at(&url));
    Writing { guest, disk, share }
}

/// Hands the guest to a process that is killed at this point; it goes on where it was.
fn handed_to_one_that_dies(writing: &mut Writing, place: &Place, at: At) {
    let mut there = heir(&writing.guest);
    let url = writing.guest.unix_url();
    let between = place.at(&format!("proxy-{}", there.pid()));
    let proxy = FaultProxy::start(
        &between,
        path(&url),
        [(at, signalling(there.pid(), libc::SIGKILL))],
    );
    let received = there.listen(&Receive::at(&url));
    writing
        .guest
        .send(&local(&format!("unix:{}", between.display())));
    assert!(proxy.wait(LIMIT), "{at:?}\n{}", writing.guest.transcript());
    println!("{at:?}: {}", writing.guest.wait_for_failure(&[]));
    assert!(received.answer().is_err());
    assert_eq!(writing.guest.state(), "Running");
}

fn goes_on(writing: &mut Writing) {
    writing.goes_on(Loop::Disk);
    writing.goes_on(Loop::Share);
}

/// How many of the guest's requests its disk has not completed yet.
fn requests(guest: &Guest) -> u64 {
    let counters = guest.get("vm.counters");
    let disk = counters["disk0"].as_object().expect("a disk");
    let queues = disk.iter().filter(|(name, _)| name.ends_with("_in_flight"));
    queues.filter_map(|(_, count)| Value::as_u64(count)).sum()
}
