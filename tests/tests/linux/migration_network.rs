//! A migration between two network namespaces, over a network that delays and loses packets. Needs root, `ip` and `tc`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use ferry_tests::{Receive, Send};

use crate::migration::{IDENTITY, moved};
use crate::records::{Setup, Writing};
use crate::snapshot::{Place, is_the_same_guest, successor};

#[test]
fn a_guest_with_four_processors_moves_over_a_bad_network() {
    let network = Network::new();
    let place = Place::new();
    let writing = network.sender.inside(|| {
        Writing::start(Setup {
            script: IDENTITY,
            disk: place.disk(),
            share: place.share(),
            cpus: 4,
            ..Setup::default()
        })
    });
    let receiver = network
        .receiver
        .inside(|| successor(&writing.guest.beside()).start());
    let (disk, share) = (place.disk().start(), place.share().start());
    let url = format!("tcp:{RECEIVER}:4000");
    let serial = writing.guest.serial_file().to_owned();
    let writing = moved(
        writing,
        receiver,
        disk,
        share,
        &Send::to(&url).connections(8).downtime_ms(2000),
        &Receive::at(&url).insecure().serial(&serial),
    );
    writing.guest.put("vm.power-button");
    let ended = writing.end_and_check();
    println!("{}", ended.transcript());
    is_the_same_guest(&ended, 0);
}

const SENDER: &str = "10.23.0.1";
const RECEIVER: &str = "10.23.0.2";
/// The name of both ends of the cable.
const CABLE: &str = "cable0";
/// What becomes of what is sent, on either side.
const NETEM: &str = "delay 20ms loss 1% limit 10000";

/// Two hosts, as far as networks go, with a cable in between.
struct Network {
    sender: Namespace,
    receiver: Namespace,
}

impl Network {
    fn new() -> Self {
        let network = Network {
            sender: Namespace::new("sender"),
            receiver: Namespace::new("receiver"),
        };
        let (sender, receiver) = (&network.sender.0, &network.receiver.0);
        run(&format!(
            "ip link add {CABLE} netns {sender} type veth peer name {CABLE} netns {receiver}"
        ));
        for (name, address) in [(sender, SENDER), (receiver, RECEIVER)] {
            run(&format!(
                "ip -n {name} address add {address}/24 dev {CABLE}"
            ));
            run(&format!("ip -n {name} link set {CABLE} up"));
            run(&format!(
                "tc -n {name} qdisc add dev {CABLE} root netem {NETEM}"
            ));
        }
        network
    }
}

/// A network namespace with a name, which is removed in the end.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("ferry-{}-{name}", std::process::id());
        run(&format!("ip netns add {name}"));
        Namespace(name)
    }

    /// Does something in it. What it starts stays there.
    fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = File::open("/proc/thread-self/ns/net").expect("this thread's namespace");
        let namespace = File::open(format!("/run/netns/{}", self.0)).expect("the namespace");
        enter(&namespace);
        let outcome = work();
        enter(&before);
        outcome
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Moves this thread to a network namespace.
fn enter(namespace: &File) {
    // SAFETY: setns() takes a descriptor, which is open, and concerns this thread alone.
    let status = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}

/// Runs a command of words without spaces, which has to succeed.
fn run(command: &str) {
    let mut words = command.split(' ');
    let program = words.next().expect("a program");
    let status = Command::new(program).args(words).status();
    let status = status.unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(status.success(), "{command}: {status}");
}
