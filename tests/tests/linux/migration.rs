//! Guests at work on a disk and a share, moved while they run to other Ferries with other back-ends.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ferry_tests::fault_proxy::{Act, FaultProxy, Place as At, Then, When};
use ferry_tests::{
    Ferry, Guest, Listener, Qsd, QsdOptions, Receive, Send, Virtiofsd, VirtiofsdOptions,
    loopback_url,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;
use vm_migration::link::Kind;

use crate::records::{Loop, Setup, Writing};
use crate::snapshot::{Clock, Place, is_the_same_guest, successor};

/// Longer than anything takes on a loaded, emulated machine.
pub const LIMIT: Duration = Duration::from_secs(120);
/// By how much a guest's clock may seem to be fast: what it says is heard a little later.
const TOLERANCE: Duration = Duration::from_secs(2);

/// Has the guest tell what has to stay as it is, how often it has heard of a new generation, and that its power button was
/// pressed.
pub const IDENTITY: &str = "
    identity() {
        echo boot-id=$(cat /proc/sys/kernel/random/boot_id) \
            generations=$(awk '/IO-APIC +17-edge/ { for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i; print n }' /proc/interrupts)
    }
    for event in /sys/class/input/event*; do
        if [ \"$(cat $event/device/name)\" = 'Power Button' ]; then input=${event##*/}; fi
    done
    # An event is a time of 16 bytes, type, code and value.
    (echo event $(dd bs=24 count=1 < /dev/input/$input 2> /dev/null | od -A n -t x2 -j 16)) &
    identity
    until told_to_end; do sleep 0.5; done
    identity";

/// EV_KEY, KEY_POWER, pressed.
const POWER_BUTTON: &str = "event 0001 0074 0001 0000";

/// Takes drivers away from their devices and gives them back, and uses the devices, over and over; reboots when it is told to.
const TURNS: &str = "
    # What a kernel says while it boots is not about what comes here.
    dmesg -c > /dev/null
    share() {
        mkdir -p /share
        mount -t virtiofs share /share
    }
    share
    boot=$(cat /share/boot 2> /dev/null || echo 0)
    echo $((boot + 1)) > /share/boot
    umount /share
    turn=0
    ended=no
    while [ $ended = no ]; do
        for driver in virtio_blk virtiofs; do
            cd /sys/bus/virtio/drivers/$driver
            device=$(ls -d virtio*)
            echo $device > unbind
            echo $device > bind
            cd /
        done
        head -c 1048576 /dev/urandom > /tmp/data
        sum=$(sha256sum < /tmp/data)
        dd if=/tmp/data of=/dev/vda bs=64k conv=fsync 2> /dev/null
        share
        cp /tmp/data /share/data
        umount /share
        echo 3 > /proc/sys/vm/drop_caches
        [ \"$(dd if=/dev/vda bs=64k count=16 2> /dev/null | sha256sum)\" = \"$sum\" ]
        share
        [ \"$(sha256sum < /share/data)\" = \"$sum\" ]
        if [ -e /share/end ]; then ended=yes; fi
        reboots=no
        if [ -e /share/reboot ]; then rm /share/reboot; reboots=yes; fi
        umount /share
        turn=$((turn + 1))
        echo boot=$boot turn=$turn
        if [ $reboots = yes ]; then reboot -f; sleep 1000; fi
    done
    dmesg | grep -iE 'soft lockup|rcu.*stall|blocked for more|I/O error|Call Trace' | sed 's/^/FAIL in the log: /'
    true";

/// To a second Ferry, a third and a fourth, in each way.
#[test]
fn a_guest_goes_on_over_twelve_migrations() {
    let place = Place::new();
    let certificates = certificates();
    let mut writing = Writing::start(Setup {
        script: IDENTITY,
        disk: place.disk(),
        share: place.share(),
        ..Setup::default()
    });
    let begin = Clock::of(&mut writing);
    let unix = writing.guest.unix_url();
    let (plain, many, tls) = (loopback_url(), loopback_url(), loopback_url());
    for (send, receive) in [
        (Send::to(&unix), Receive::at(&unix)),
        (Send::to(&plain), Receive::at(&plain)),
        (Send::to(&many).connections(4), Receive::at(&many)),
        (
            // Encryption is slow in an emulated machine: the guest would dirty its RAM as fast as it travels.
            Send::to(&tls)
                .tls_dir(certificates.path())
                .connections(2)
                .downtime_ms(5000),
            Receive::at(&tls).tls_dir(certificates.path()),
        ),
    ] {
        for _ in 0..3 {
            let (disk, share) = (place.disk().start(), place.share().start());
            let receiver = successor(&writing.guest.beside()).start();
            writing = moved(writing, receiver, disk, share, &send, &receive);
        }
    }
    let end = Clock::of(&mut writing);
    let (passed, here) = (end.time - begin.time, end.heard - begin.heard);
    println!("the guest's clock has gone on by {passed:?} within {here:?}");
    assert!(passed <= here + TOLERANCE);
    writing.guest.put("vm.power-button");
    writing.guest.wait_for(POWER_BUTTON);
    let ended = writing.end_and_check();
    println!("{}", ended.transcript());
    // A guest that is moved is not another generation of it: it is the only one.
    is_the_same_guest(&ended, 0);
}

/// Moves the guest, with back-ends that serve the same disk and the same share; those that it leaves are left alone.
pub fn moved(
    writing: Writing,
    mut receiver: Guest,
    disk: Qsd,
    share: Virtiofsd,
    send: &Send,
    receive: &Receive,
) -> Writing {
    let Writing {
        mut guest,
        share: mut left,
        disk: left_disk,
    } = writing;
    guest.wait_until("a qemu-storage-daemon that listens", |_| {
        disk.socket().exists().then_some(())
    });
    assert_eq!([disk.connected(), left_disk.connected()], [0, 1]);
    let receive = receive.clone();
    let receive = receive.device("disk0", &disk).device("fs0", &share);
    let receiving = receiver.listen(&receive);
    // The Ferry stays, and so it is not its end that closes connections.
    guest.send(&send.clone().preserve_source());
    if let Err(reasons) = receiving.answer() {
        let (there, here) = (receiver.transcript(), guest.transcript());
        panic!(
            "{}\n--- the receiver ---\n{there}\n--- the sender ---\n{here}",
            reasons.join(": ")
        );
    }
    let report = guest.wait_for_migration("done");
    println!("{}", summary(&report));
    guest.wait_until("no machine", |guest| guest.api().get("vm.info").err());
    assert!(
        left.process().wait(LIMIT).is_some(),
        "virtiofsd still has its connection\n{}",
        guest.transcript()
    );
    guest.wait_until("no connection to qemu-storage-daemon", |_| {
        (left_disk.connected() == 0).then_some(())
    });
    let mut writing = Writing {
        guest: receiver,
        disk,
        share,
    };
    writing.goes_on(Loop::Disk);
    writing.goes_on(Loop::Share);
    writing
}

/// What there is to say of a migration, in one line.
pub fn summary(report: &Value) -> String {
    let phases = report["phases"].as_array().expect("phases");
    let phases: Vec<String> = phases
        .iter()
        .map(|it| format!("{} {}", it["phase"].as_str().expect("a name"), it["ms"]))
        .collect();
    format!(
        "{}: {} ms, {} rounds, {} MiB of RAM, {} ms of downtime ({} estimated): {}",
        report["url"],
        report["elapsed_ms"],
        report["round"],
        report["ram"]["sent_bytes"].as_u64().unwrap_or(0) >> 20,
        report["downtime_ms"],
        report["downtime_estimate_ms"],
        phases.join(", ")
    )
}

#[test]
fn drivers_come_and_go_and_a_guest_reboots_during_a_migration() {
    let place = Place::new();
    let options = || (place.disk().queues(1), place.share());
    let (disk, share) = start(options());
    let guest = Ferry::linux(TURNS)
        .with_disk(&disk)
        .with_fs(&share, "share")
        .with_api()
        .request_timeout(60)
        .dead_timeout(120)
        .start();
    let mut owner = (guest, disk, share);
    more_turns(&mut owner.0, 0, 1);
    for boot in [0, 1] {
        let (mut guest, disk, share) = owner;
        let mut receiver = successor(&guest.beside()).start();
        let (new_disk, new_share) = start(options());
        let url = guest.unix_url();
        let way = SlowWay::to(&url, &place, boot);
        let receive = Receive::at(&url)
            .device("disk0", &new_disk)
            .device("fs0", &new_share);
        let receiving = receiver.listen(&receive);
        guest.send(&Send::to(&way.url));
        guest.wait_for_phase("precopy");
        if boot == 1 {
            fs::write(place.at("share").join("reboot"), "").expect("write to the share");
        }
        more_turns(&mut guest, boot, 2);
        let migration = guest.migration();
        let copies = migration["phase"] == "precopy" && migration["state"] == "under-way";
        assert!(copies, "{migration}\n{}", guest.transcript());
        way.hurry();
        if let Err(reasons) = receiving.answer() {
            let (there, here) = (receiver.transcript(), guest.transcript());
            panic!("{}\n--- {there}\n--- {here}", reasons.join(": "));
        }
        guest.departed();
        drop((disk, share));
        more_turns(&mut receiver, boot, 2);
        owner = (receiver, new_disk, new_share);
    }
    let (guest, _disk, _share) = owner;
    fs::write(place.at("share").join("end"), "").expect("write to the share");
    println!("{}", guest.end().succeeded().transcript());
}

/// Waits until this boot of the guest has gone through so many more turns.
fn more_turns(guest: &mut Guest, boot: u32, count: u64) {
    let turns = |guest: &Guest| {
        let text = format!("boot={boot} turn=");
        let serial = guest.serial();
        let last = serial.iter().rev().find(|line| line.0.contains(&text));
        last.map_or(0, |line| line.number("turn"))
    };
    let before = turns(guest);
    guest.wait_until(&format!("{count} more turns of boot {boot}"), |guest| {
        let serial = guest.serial();
        let failure = serial.iter().find(|line| line.0.contains("test: failed"));
        assert!(failure.is_none(), "{}", guest.transcript());
        (turns(guest) >= before + count).then_some(())
    });
}

fn start((disk, share): (QsdOptions, VirtiofsdOptions)) -> (Qsd, Virtiofsd) {
    (disk.start(), share.start())
}

/// A way to a unix socket that is slow while RAM travels, until it is told otherwise.
struct SlowWay {
    /// Where the sender is to send to.
    url: String,
    hurries: Arc<AtomicBool>,
    _proxy: FaultProxy,
}

impl SlowWay {
    /// How many of the first messages with RAM take a second each: more than a guest has RAM for.
    const SLOW: usize = 600;

    fn to(url: &str, place: &Place, number: u32) -> Self {
        let hurries = Arc::new(AtomicBool::new(false));
        let at = At {
            when: When::Before,
            kind: Kind::Pages,
            nth: 1,
        };
        let due = (0..Self::SLOW).map(|_| {
            let hurries = Arc::clone(&hurries);
            let act = Act::ask(move || {
                let begin = Instant::now();
                while !hurries.load(Ordering::Relaxed) && begin.elapsed() < Duration::from_secs(1) {
                    sleep(Duration::from_millis(20));
                }
                Then::PassOn
            });
            (at, act)
        });
        let proxy = place.at(&format!("proxy-{number}"));
        SlowWay {
            url: format!("unix:{}", proxy.display()),
            _proxy: FaultProxy::start(&proxy, path(url), due),
            hurries,
        }
    }

    fn hurry(&self) {
        self.hurries.store(true, Ordering::Relaxed);
    }
}

/// The path in `unix:/path`.
pub fn path(url: &str) -> &Path {
    Path::new(url.strip_prefix("unix:").expect("a unix socket's address"))
}

/// A directory with what both sides need to trust each other at 127.0.0.1.
fn certificates() -> TempDir {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let root = authority.self_signed(&key).expect("a certificate");
    let issuer = Issuer::new(authority, key);
    let own = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
    let key = KeyPair::generate().expect("a key");
    let certificate = own.signed_by(&key, &issuer).expect("a certificate");
    let directory = TempDir::new().expect("a temporary directory");
    for (name, text) in [
        ("ca-cert.pem", root.pem()),
        ("cert.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        fs::write(directory.path().join(name), text).expect("a file");
    }
    directory
}
