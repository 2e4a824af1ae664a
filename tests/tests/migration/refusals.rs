//! What is refused: by name, before anything is lost, and so that the next attempt can succeed.

use std::time::Duration;

use ferry_tests::backend::{Backend, Running, feature};
use ferry_tests::keys::Authority;
use ferry_tests::{Guest, Qsd, Receive, Send, Snapshot, Virtiofsd};
use tempfile::TempDir;

use crate::common::{
    BUSY, BUSY_SIZE, SLOW, STATE, TICK, TICKS, WRITTEN, because, busy, full, has_bounds, heir,
    logging, moved, moved_to, receiver, stateful, tiny,
};
use crate::proxy::Proxy;

/// A first attempt with the wrong disk, and a second one with the right one, at the same receiver.
fn wrong_then_right(wrong: Backend, disk: &Running, texts: &[&str]) {
    let mut guest = busy(disk);
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    let wrong = wrong.start();
    let received = there.listen(&Receive::at(&url).device("disk0", &wrong));
    guest.send(&Send::to(&url));
    because(received.answer(), texts);
    guest.wait_for_failure(texts);
    guest.goes_on(WRITTEN);
    there.wait_for_failure(texts);
    assert!(there.api().get("vm.info").is_err(), "there is a machine");
    assert_eq!(wrong.connected(), 1, "connections are kept");

    let next = heir(disk).start();
    let received = there.listen(&Receive::at(&url).device("disk0", &next));
    guest.send(&Send::to(&url));
    received.answer().expect("a guest");
    guest.departed();
    there.goes_on(WRITTEN);
    for disk in [disk, &next, &wrong] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
    there.wait_until("the wrong disk's connection closed", |_| {
        (wrong.connected() == 0).then_some(())
    });
}

#[test]
fn a_disk_of_another_size() {
    wrong_then_right(logging("1M"), &logging(BUSY_SIZE).start(), &["disk0"]);
}

#[test]
fn a_back_end_with_fewer_features() {
    let disk = logging(BUSY_SIZE).start();
    let wrong = heir(&disk).withholds(feature::BLK_FLUSH);
    wrong_then_right(wrong, &disk, &["disk0"]);
}

#[test]
fn a_back_end_without_state_for_one_that_has() {
    let disk = stateful().start();
    wrong_then_right(logging("0").sharing(&disk), &disk, &["disk0"]);
}

/// The same disk is right the second time: it is not connected to anew.
#[test]
fn the_next_attempt_uses_the_connections_of_the_one_before() {
    let disk = stateful().start();
    let mut guest = full(&disk);
    let mut there = receiver(&guest);
    let next = heir(&disk).start();
    for _ in 0..3 {
        let url = guest.unix_url();
        // Slow enough not to get to the end.
        let proxy = Proxy::to(&url).slow(SLOW);
        let received = there.listen(&Receive::at(&url).device("disk0", &next));
        guest.send(&Send::to(proxy.url()));
        guest.wait_for_phase("precopy");
        guest.cancel_migration().expect("an end");
        guest.wait_for_failure(&["vm.migration-cancel"]);
        proxy.set_rate(0);
        because(received.answer(), &[]);
        guest.goes_on(WRITTEN);
    }
    let mut there = moved_to(guest, there, &next);
    there.goes_on(WRITTEN);
    assert_eq!(next.connections(), 1);
    for disk in [&disk, &next] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

/// A virtiofsd whose front-end leaves ends.
#[test]
fn a_virtiofsd_outlives_an_attempt_that_fails_for_another_devices_sake() {
    let place = TempDir::new().unwrap();
    let share = Virtiofsd::options().sharing(place.path()).start();
    let disk = stateful().start();
    let mut guest = tiny(BUSY).with_disk(&disk).with_fs(&share, "home").start();
    guest.wait_for(WRITTEN);
    let mut there = receiver(&guest);
    let mut next_share = Virtiofsd::options().sharing(place.path()).start();
    let url = guest.unix_url();
    let wrong = logging("1M").start();
    let receive = Receive::at(&url).device("fs0", &next_share);
    let received = there.listen(&receive.clone().device("disk0", &wrong));
    guest.send(&Send::to(&url));
    guest.wait_for_failure(&["disk0"]);
    because(received.answer(), &["disk0"]);
    let ended = next_share.process().wait(Duration::from_millis(300));
    assert!(ended.is_none(), "virtiofsd has ended");
    let next = heir(&disk).start();
    let received = there.listen(&receive.device("disk0", &next));
    guest.send(&Send::to(&url));
    received.answer().expect("a guest");
    guest.departed();
    there.goes_on(WRITTEN);
    assert!(next_share.process().wait(Duration::ZERO).is_none());
}

/// Either side has a limit.
#[test]
fn a_back_end_with_more_state_than_is_taken() {
    let disk = stateful().start();
    let mut guest = busy(&disk);
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    for there_only in [true, false] {
        let (most, name) = (STATE.bytes - 1, "state_most");
        let limited = heir(&disk).start();
        let (mut send, mut receive) = (Send::to(&url), Receive::at(&url));
        match there_only {
            true => receive = receive.with(name, most.into()),
            false => send = send.with(name, most.into()),
        }
        let received = there.listen(&receive.device("disk0", &limited));
        guest.send(&send);
        let texts = ["disk0", "more than", &most.to_string()];
        because(received.answer(), &texts);
        guest.wait_for_failure(&texts);
        guest.goes_on(WRITTEN);
        has_bounds(&there);
    }
    let next = heir(&disk).start();
    moved_to(guest, there, &next).goes_on(WRITTEN);
}

#[test]
fn a_back_end_that_cannot_log() {
    let disk = Backend::blk(BUSY_SIZE).start();
    let mut guest = busy(&disk);
    let url = guest.unix_url();
    // Nobody is even connected to.
    guest.send(&Send::to(&url));
    guest.wait_for_failure(&["disk0", "cannot log", "resend"]);
    guest.goes_on(WRITTEN);
    let next = Backend::blk("0").sharing(&disk).start();
    let there = receiver(&guest);
    let receive = Receive::at(&url).device("disk0", &next);
    let mut guest = guest.migrated_to(there, &Send::to(&url).unlogged("resend"), &receive);
    guest.goes_on(WRITTEN);
    for disk in [&disk, &next] {
        assert_eq!(disk.complaints(), Vec::<String>::new());
    }
}

#[test]
fn records_with_a_back_end_that_cannot_log() {
    let mut disk = Backend::blk("2M").start();
    let mut guest = tiny("mode=blk-writer count=3000 depth=8 report=50 end=halt")
        .with_disk(&disk)
        .start();
    for _ in 0..3 {
        guest.goes_on("blk ");
        let next = Backend::blk("0").sharing(&disk).start();
        let there = receiver(&guest);
        let url = guest.unix_url();
        let receive = Receive::at(&url).device("disk0", &next);
        guest = guest.migrated_to(there, &Send::to(&url).unlogged("resend"), &receive);
        disk = next;
    }
    guest.finished().line("blk verified=3000");
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn a_share_on_the_old_virtiofsd() {
    let share = Virtiofsd::old().start();
    let mut guest = tiny("mode=fuse file=a blocks=100000 report=20")
        .with_fs(&share, "home")
        .start();
    guest.wait_for("fuse at=");
    let answer = guest.begin_send(&Send::to(&guest.unix_url())).answer();
    because(answer, &["fs0", "DEVICE_STATE"]);
    guest.goes_on("fuse at=");
    guest.put("vm.pause");
    let answer = guest.begin_send(&Send::to(&guest.unix_url())).answer();
    because(answer, &["fs0", "DEVICE_STATE"]);
    guest.stands_still("fuse at=");
    guest.put("vm.resume");
    guest.goes_on("fuse at=");
}

#[test]
fn a_receiver_that_is_open_to_anybody() {
    let guest = tiny(TICKS).start();
    let mut there = receiver(&guest);
    let url = ferry_tests::loopback_url().replace("127.0.0.1", "0.0.0.0");
    let answer = there.begin_receive(&Receive::at(&url)).answer();
    because(answer, &["tls_dir", "insecure"]);
    let received = there.listen(&Receive::at(&url).insecure());
    there.cancel_migration().expect("an end");
    because(received.answer(), &["cancel"]);
}

#[test]
fn one_migration_at_a_time() {
    let mut guest =
        tiny("mode=dirty+ticks rate=0 pages=2048 ms=1500 ticks=1000000 period=10").start();
    guest.wait_for(TICK);
    let mut there = receiver(&guest);
    let url = guest.unix_url();
    // A Ferry that has a guest takes none.
    let answer = guest
        .begin_receive(&Receive::at(&guest.unix_url()))
        .answer();
    because(answer, &["vm.receive-migration", "virtual machine already"]);
    // There is nothing to be sent or given up.
    because(
        there.begin_send(&Send::to(&url)).answer(),
        &["no virtual machine"],
    );
    because(guest.cancel_migration(), &["no migration"]);
    let received = there.listen(&Receive::at(&url));
    let answer = there
        .begin_receive(&Receive::at(&guest.unix_url()))
        .answer();
    because(answer, &["vm.receive-migration"]);
    // Two senders: the second one is told so.
    let proxy = Proxy::to(&url).slow(SLOW);
    guest.send(&Send::to(proxy.url()));
    guest.wait_for_phase("precopy");
    because(
        guest.begin_send(&Send::to(&url)).answer(),
        &["vm.send-migration"],
    );
    let place = TempDir::new().unwrap();
    let snapshot = guest.try_snapshot(&Snapshot::to(&place.path().join("1")));
    because(snapshot, &["vm.snapshot", "sent"]);
    proxy.set_rate(0);
    received.answer().expect("a guest");
    guest.departed();
    there.goes_on(TICK);
}

#[test]
fn a_guest_that_is_being_saved() {
    let place = TempDir::new().unwrap();
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    let held = Snapshot::to(&place.path().join("1")).hold(Duration::from_secs(50));
    let held = guest.begin_snapshot(&held);
    guest.wait_for_step("hold");
    let url = guest.unix_url();
    because(guest.begin_send(&Send::to(&url)).answer(), &["snapshot"]);
    guest.release().unwrap();
    held.answer().unwrap();
    guest.goes_on(TICK);
}

#[test]
fn nobody_listens() {
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    for url in [guest.unix_url(), ferry_tests::loopback_url()] {
        guest.send(&Send::to(&url));
        let address = url.split_once(':').expect("a scheme").1;
        let advice =
            "begin to receive (ferryctl receive, vm.receive-migration) before the guest is sent";
        guest.wait_for_failure(&[address, advice, "nobody listens"]);
        guest.goes_on(TICK);
    }
}

/// It may take a moment until it does.
#[test]
fn a_receiver_that_was_only_just_asked() {
    let mut guest = tiny(TICKS).start();
    for _ in 0..5 {
        guest.goes_on(TICK);
        let there = receiver(&guest);
        let url = guest.unix_url();
        let received = there.begin_receive(&Receive::at(&url));
        guest.send(&Send::to(&url));
        received.answer().expect("a guest");
        guest.departed();
        guest = there;
    }
    guest.goes_on(TICK);
}

/// Each side says which of them has TLS, as far as it can know.
#[test]
fn tls_on_one_side_alone() {
    let authority = Authority::new();
    let keys = authority.keys("127.0.0.1");
    let mut guest = tiny(TICKS).start();
    guest.goes_on(TICK);
    for (receive_tls, failure, warning) in [
        (
            true,
            "the receiver uses TLS and this sender does not: name a tls_dir here",
            "it does not use TLS, and this receiver does",
        ),
        (
            false,
            "this sender uses TLS and the receiver seems not to: it needs a tls_dir, too",
            "it uses TLS, and this receiver does not",
        ),
    ] {
        let mut there = receiver(&guest);
        let url = ferry_tests::loopback_url();
        let (send, receive) = (Send::to(&url), Receive::at(&url));
        let (send, receive) = match receive_tls {
            true => (send, receive.tls_dir(keys.path())),
            false => (send.tls_dir(keys.path()), receive),
        };
        let received = there.listen(&receive);
        guest.send(&send);
        guest.wait_for_failure(&[failure, &url["tcp:".len()..]]);
        there.wait_for_log(warning);
        guest.goes_on(TICK);
        assert!(received.is_pending());
        there.cancel_migration().expect("an end");
        because(received.answer(), &["cancel"]);
    }
}

/// One that does not wait for long.
fn impatient(guest: &Guest) -> Guest {
    let left = guest.beside();
    let limits = ["--connect-timeout", "1", "--request-timeout", "4"];
    let successor = limits
        .iter()
        .fold(left.successor(), |it, word| it.arg(word));
    successor.start()
}

/// No other one was named, and it is on the same host.
#[test]
fn the_senders_own_back_end() {
    let disk = Qsd::serving("256M").start();
    let mut guest = tiny(BUSY).with_disk(&disk).start();
    guest.wait_for(WRITTEN);
    let mut there = impatient(&guest);
    let url = guest.unix_url();
    let received = there.listen(&Receive::at(&url));
    guest.send(&Send::to(&url));
    let texts = ["disk0", "or serves another front-end"];
    because(received.answer(), &texts);
    guest.wait_for_failure(&texts);
    guest.goes_on(WRITTEN);
}

/// A receiver whose back-end does not come says so to its client, and to the sender.
#[test]
fn a_back_end_that_is_not_there() {
    let disk = stateful().start();
    let mut guest = busy(&disk);
    let mut there = impatient(&guest);
    let gone = heir(&disk).start();
    gone.die();
    let url = guest.unix_url();
    let received = there.listen(&Receive::at(&url).device("disk0", &gone));
    guest.send(&Send::to(&url));
    because(received.answer(), &["disk0"]);
    guest.wait_for_failure(&["disk0"]);
    guest.goes_on(WRITTEN);
    drop(gone);
    let next = heir(&disk).start();
    let mut guest = moved(guest, &next);
    guest.goes_on(WRITTEN);
}
