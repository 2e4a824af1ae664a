//! A migration between two network namespaces, over a network that delays and loses packets. Needs root, `ip` and `tc`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use ferry_tests::{Receive, Send};

use crate::migration::{IDENTITY, moved};
use crate::records::{Setup, Writing};
use crate::snapshot::{Place, is_the_same_guest, successor};

#[test]
fn a_guest_with_four_processors_moves_over_a_bad_network_and_back() {
    let network = Network::new();
    let place = Place::new();
    let [first, second] = &network.hosts;
    let mut writing = first.inside(|| {
        Writing::start(Setup {
            script: IDENTITY,
            disk: place.disk(),
            share: place.share(),
            cpus: 4,
            ..Setup::default()
        })
    });
    let serial = writing.guest.serial_file().to_owned();
    for host in [second, first, second] {
        let receiver = host.inside(|| successor(&writing.guest.beside()).start());
        let (disk, share) = (place.disk().start(), place.share().start());
        let url = format!("tcp:{}:4000", host.address);
        let send = Send::to(&url).connections(8).downtime_ms(2000);
        let receive = Receive::at(&url).insecure().serial(&serial);
        writing = moved(writing, receiver, disk, share, &send, &receive);
    }
    writing.guest.put("vm.power-button");
    let ended = writing.end_and_check();
    println!("{}", ended.transcript());
    is_the_same_guest(&ended, 0);
}

/// The name of both ends of the cable.
const CABLE: &str = "cable0";
/// What becomes of what is sent, on either side.
const NETEM: &str = "delay 20ms loss 1% limit 10000";

/// Two hosts, as far as networks go, with a cable in between.
struct Network {
    hosts: [Host; 2],
}

impl Network {
    fn new() -> Self {
        let hosts = [("first", "10.23.0.1"), ("second", "10.23.0.2")];
        let hosts = hosts.map(|(name, address)| Host::new(name, address));
        let [first, second] = hosts.each_ref().map(|host| &host.name);
        run(&format!(
            "ip link add {CABLE} netns {first} type veth peer name {CABLE} netns {second}"
        ));
        for Host { name, address } in &hosts {
            run(&format!(
                "ip -n {name} address add {address}/24 dev {CABLE}"
            ));
            run(&format!("ip -n {name} link set {CABLE} up"));
            run(&format!(
                "tc -n {name} qdisc add dev {CABLE} root netem {NETEM}"
            ));
        }
        Network { hosts }
    }
}

/// A network namespace, which is removed in the end.
struct Host {
    /// The namespace's.
    name: String,
    address: &'static str,
}

impl Host {
    fn new(name: &str, address: &'static str) -> Self {
        let name = format!("ferry-{}-{name}", std::process::id());
        run(&format!("ip netns add {name}"));
        Host { name, address }
    }

    /// Does something in it. What it starts stays there.
    fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = File::open("/proc/thread-self/ns/net").expect("this thread's namespace");
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        enter(&namespace);
        let outcome = work();
        enter(&before);
        outcome
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
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
