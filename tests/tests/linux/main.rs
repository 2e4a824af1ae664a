//! Debian's kernel under Ferry, with real back-ends.
//!
//! These need a KVM that can run Linux: `cargo xtask test` brings an emulated machine that has one where this one
//! has not.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod back_ends;
#[path = "../../../xtask/src/cpio.rs"]
#[allow(dead_code)]
mod cpio;
mod guest;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant};

use back_ends::Serving;
use guest::{Guest, Kernel};

/// Writes 8 MiB to the disk and reads them back from the device.
const DISK_WORKS: &str = "
    head -c 8388608 /dev/urandom > /tmp/data
    sum=$(sha256sum < /tmp/data)
    dd if=/tmp/data of=/dev/vda bs=64k conv=fsync 2> /dev/null
    echo 3 > /proc/sys/vm/drop_caches
    [ \"$(dd if=/dev/vda bs=64k count=128 2> /dev/null | sha256sum)\" = \"$sum\" ]
    echo disk works
";

/// Writes 8 MiB to the share and reads them back through a new mount.
const SHARE_WORKS: &str = "
    mkdir -p /share
    mount -t virtiofs share /share
    head -c 8388608 /dev/urandom > /share/data
    sum=$(sha256sum < /share/data)
    umount /share
    mount -t virtiofs share /share
    [ \"$(sha256sum < /share/data)\" = \"$sum\" ]
    umount /share
    echo share works
";

#[test]
fn a_guest_boots_with_one_processor_and_powers_off() {
    let ended = Guest::runs("[ $(nproc) = 1 ]").passes();
    assert!(ended.log.contains("powered off"), "{ended:#?}");
}

#[test]
fn four_processors_are_cores_of_one_package() {
    Guest::runs(
        "[ $(nproc) = 4 ]
        for n in 0 1 2 3; do
            cd /sys/devices/system/cpu/cpu$n/topology
            [ $(cat core_id) = $n ]
            [ $(cat physical_package_id) = 0 ]
            [ $(cat thread_siblings_list) = $n ]
        done
        # Each of them runs something.
        for n in 0 1 2 3; do taskset -c $n true; done",
    )
    .with(["--cpus", "boot=4"])
    .passes();
}

#[test]
fn ram_goes_on_above_the_hole() {
    let disk = Serving::disk(1);
    let script = format!(
        "[ $(awk '/MemTotal/ {{ print $2 }}' /proc/meminfo) -gt 4300000 ]
        grep -q '^100000000-' /proc/iomem
        {DISK_WORKS}"
    );
    Guest::runs(&script)
        .with(["--memory", "size=4608M"])
        .device(&disk)
        .passes();
}

#[test]
fn a_bzimage_boots() {
    let disk = Serving::disk(1);
    Guest::runs(DISK_WORKS)
        .kernel(Kernel::BzImage)
        .device(&disk)
        .passes();
}

#[test]
fn a_disk_keeps_what_is_written() {
    let disk = Serving::disk(1);
    let script = format!(
        "{DISK_WORKS} echo kept by the disk | dd of=/dev/vda bs=512 seek=64 conv=fsync 2> /dev/null"
    );
    Guest::runs(&script).device(&disk).passes();
    let image = fs::read(disk.path("disk.img")).expect("the image");
    assert!(image[64 * 512..].starts_with(b"kept by the disk"));
}

#[test]
fn a_share_is_shared() {
    let share = Serving::share();
    fs::write(share.path("share/from-host"), "from the host").expect("write to the share");
    let script = format!(
        "{SHARE_WORKS}
        mount -t virtiofs share /share
        [ \"$(cat /share/from-host)\" = 'from the host' ]
        echo 'from the guest' > /share/from-guest"
    );
    Guest::runs(&script).device(&share).passes();
    let from_guest = fs::read_to_string(share.path("share/from-guest")).expect("the guest's file");
    assert_eq!(from_guest, "from the guest\n");
}

#[test]
fn disk_and_share_work_at_the_same_time() {
    let disk = Serving::disk(1);
    let share = Serving::share();
    let script = format!(
        "({DISK_WORKS}) & disk=$!
        ({}) & share=$!
        wait $disk
        wait $share",
        SHARE_WORKS.replace("8388608", "4194304")
    );
    Guest::runs(&script)
        .with(["--cpus", "boot=4"])
        .device(&disk)
        .device(&share)
        .passes();
}

#[test]
fn a_disk_with_two_queues_uses_both() {
    let disk = Serving::disk(2);
    let script = format!(
        "[ $(ls /sys/block/vda/mq | wc -l) = 2 ]
        for n in 0 1; do
            taskset -c $n dd if=/dev/urandom of=/dev/vda bs=64k seek=$((n * 100)) count=16 oflag=direct 2> /dev/null
        done
        # Both request queues have had interrupts.
        [ $(awk '/virtio.*-req/ {{ if ($2 + $3 > 0) n++ }} END {{ print n }}' /proc/interrupts) = 2 ]
        {DISK_WORKS}"
    );
    Guest::runs(&script)
        .with(["--cpus", "boot=2"])
        .device(&disk)
        .passes();
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let disk = Serving::read_only_disk();
    Guest::runs(
        "[ $(cat /sys/block/vda/ro) = 1 ]
        dd if=/dev/vda of=/dev/null bs=64k count=16 2> /dev/null
        if dd if=/dev/zero of=/dev/vda bs=512 count=1 oflag=direct 2> /dev/null; then exit 1; fi",
    )
    .device(&disk)
    .passes();
}

#[test]
fn devices_work_after_each_of_two_reboots() {
    let disk = Serving::disk(1);
    let share = Serving::share();
    // The number of the boot is kept on the share.
    let script = format!(
        "{DISK_WORKS} {SHARE_WORKS}
        mount -t virtiofs share /share
        boot=$(cat /share/boot 2> /dev/null || echo 0)
        echo $((boot + 1)) > /share/boot
        echo \"boot $boot works\"
        umount /share
        if [ $boot -lt 2 ]; then reboot -f; sleep 60; fi"
    );
    let ended = Guest::runs(&script).device(&disk).device(&share).passes();
    for boot in 0..3 {
        let line = format!("boot {boot} works");
        assert!(ended.serial.contains(&line), "{ended:#?}");
    }
}

#[test]
fn each_kind_of_reset_has_its_exit_status() {
    let reboot = "reboot -f; sleep 60";
    let panic = "echo c > /proc/sysrq-trigger; sleep 60";
    for (script, how, status) in [
        (reboot, "reboot=acpi", 10),
        (reboot, "reboot=kbd", 11),
        (reboot, "reboot=triple", 12),
        // Left to itself, Linux jumps to the BIOS.
        (reboot, "", 10),
        (panic, "", 10),
    ] {
        let ended = Guest::runs(script)
            .cmdline(how)
            .with(["--no-reboot"])
            .ends();
        assert_eq!(ended.status, Some(status), "{script} {how}: {ended:#?}");
    }
}

#[test]
fn drivers_can_be_unbound_and_bound_again() {
    let disk = Serving::disk(1);
    let share = Serving::share();
    let script = format!(
        "for turn in 1 2 3; do
            for driver in virtio_blk virtiofs; do
                cd /sys/bus/virtio/drivers/$driver
                device=$(ls -d virtio*)
                echo $device > unbind
                echo $device > bind
                cd /
            done
            {DISK_WORKS} {SHARE_WORKS}
        done"
    );
    Guest::runs(&script).device(&disk).device(&share).passes();
}

#[test]
fn vhost_device_rng_gives_random_numbers() {
    let rng = Serving::rng();
    Guest::runs(
        "cat /sys/class/misc/hw_random/rng_available | grep -q virtio_rng
        [ $(head -c 1000 /dev/hwrng | wc -c) = 1000 ]",
    )
    .device(&rng)
    .passes();
}

#[test]
fn vhost_device_console_carries_both_directions() {
    // A port that was free a moment ago.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let console = Serving::console(port);
    let guest = std::thread::spawn(move || {
        Guest::runs(
            "for n in $(seq 100); do [ -c /dev/hvc0 ] && break; sleep 0.1; done
            exec 3<> /dev/hvc0
            echo 'from the guest' >&3
            read -r line <&3",
        )
        .device(&console)
        .passes()
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
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => {
                let limit = Some(Duration::from_secs(120));
                stream.set_read_timeout(limit).expect("set a time limit");
                return stream;
            }
            Err(error) if Instant::now() > deadline => panic!("no one listens: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Connects to port 1234 of the host, says "hello" and prints the answer.
const VSOCK_CLIENT: &str = r#"
#include <stdio.h>
#include <unistd.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
int main(void) {
    struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = 1234 };
    char answer[32] = { 0 };
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&host, sizeof host) < 0) { perror("connect"); return 1; }
    if (write(fd, "hello", 5) != 5 || read(fd, answer, sizeof answer - 1) <= 0) { perror("talk"); return 1; }
    return puts(answer) < 0;
}
"#;

#[test]
fn vhost_device_vsock_connects_guest_and_host() {
    let vsock = Serving::vsock();
    let source = vsock.path("client.c");
    fs::write(&source, VSOCK_CLIENT).expect("write the client");
    let client = vsock.path("client");
    let compiled = Command::new("cc")
        .args(["-static", "-o"])
        .args([&client, &source])
        .status()
        .expect("run the C compiler");
    assert!(compiled.success());
    let client = fs::read(client).expect("the client");

    let listener = UnixListener::bind(vsock.dir().join("host_1234")).expect("listen");
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the guest's connection");
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).expect("the guest's word");
        stream.write_all(b"welcome").expect("answer");
        hello
    });
    Guest::runs("[ \"$(/client)\" = welcome ]")
        .file("client", client)
        .device(&vsock)
        .passes();
    assert_eq!(&host.join().expect("the host's side"), b"hello");
}
