//! Devices that Ferry knows nothing of, by back-ends of the vhost-device family.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use ferry_tests::{Ferry, programs};

use crate::back_ends::VhostDevice;

/// Longer than a guest takes to boot on a loaded, emulated machine.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn vhost_device_rng_gives_random_numbers() {
    let rng = VhostDevice::rng();
    let guest = Ferry::linux(
        "cat /sys/class/misc/hw_random/rng_available | grep -q virtio_rng
        [ $(head -c 1000 /dev/hwrng | wc -c) = 1000 ]",
    );
    rng.add_to(guest).run().succeeded();
}

#[test]
fn vhost_device_console_carries_both_directions() {
    // A port that was free a moment ago.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let console = VhostDevice::console(port);
    let guest = std::thread::spawn(move || {
        let guest = Ferry::linux(
            "for n in $(seq 100); do [ -c /dev/hvc0 ] && break; sleep 0.1; done
            exec 3<> /dev/hvc0
            echo 'from the guest' >&3
            read -r line <&3",
        );
        console.add_to(guest).run().succeeded()
    });
    let host = connect(port);
    let mut lines = BufReader::new(&host);
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line from the guest");
    assert_eq!(line.trim_end(), "from the guest");
    // One byte is all: this back-end takes every receive buffer at the first, and returns only those that it fills.
    (&host).write_all(b"\n").expect("send to the guest");
    guest.join().expect("the guest's script");
}

/// Connects once the back-end listens.
fn connect(port: u16) -> TcpStream {
    let deadline = Instant::now() + LIMIT;
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => {
                stream
                    .set_read_timeout(Some(LIMIT))
                    .expect("set a time limit");
                return stream;
            }
            Err(error) if Instant::now() > deadline => panic!("no one listens: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

#[test]
fn vhost_device_vsock_connects_guest_and_host() {
    let vsock = VhostDevice::vsock();
    let client = fs::read(programs::VSOCK).expect("the client");
    let listener = UnixListener::bind(vsock.directory().join("host_1234")).expect("listen");
    let host = std::thread::spawn(move || {
        let mut stream = accept(&listener);
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).expect("the guest's word");
        stream.write_all(b"welcome").expect("answer");
        hello
    });
    let guest = Ferry::linux("[ \"$(/client)\" = welcome ]").file("client", client);
    vsock.add_to(guest).run().succeeded();
    assert_eq!(&host.join().expect("the host's side"), b"hello");
}

/// Accepts a connection; panics when none comes.
fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).expect("set a mode");
    let deadline = Instant::now() + LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("set a mode");
                stream
                    .set_read_timeout(Some(LIMIT))
                    .expect("set a time limit");
                return stream;
            }
            Err(error) if Instant::now() > deadline => panic!("no one connects: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
