//! Debian's kernel under Ferry, with real back-ends.
//!
//! These need a KVM that can run Linux: `cargo xtask test` brings an emulated machine that has one where this one
//! has not.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod back_ends;
mod devices;
mod handover;
mod migration;
mod migration_faults;
mod migration_network;
mod pause;
mod power;
mod records;
mod silence;
mod snapshot;
mod stopped;

use std::fs;

use ferry_tests::{Ferry, Guest, Kernel, Qsd, Virtiofsd};

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
    let ended = Ferry::linux("[ $(nproc) = 1 ]").run().succeeded();
    assert_eq!(
        ended.log_lines("powered off").len(),
        1,
        "{}",
        ended.transcript()
    );
}

#[test]
fn four_processors_are_cores_of_one_package() {
    Ferry::linux(
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
    .cpus(4)
    .run()
    .succeeded();
}

#[test]
fn ram_goes_on_above_the_hole() {
    let disk = Qsd::serving("64M").start();
    let script = format!(
        "[ $(awk '/MemTotal/ {{ print $2 }}' /proc/meminfo) -gt 4300000 ]
        grep -q '^100000000-' /proc/iomem
        {DISK_WORKS}"
    );
    Ferry::linux(&script)
        .memory("4608M")
        .with_disk(&disk)
        .run()
        .succeeded();
}

#[test]
fn a_bzimage_boots() {
    let disk = Qsd::serving("64M").start();
    Ferry::linux(DISK_WORKS)
        .kernel(Kernel::BzImage)
        .with_disk(&disk)
        .run()
        .succeeded();
}

#[test]
fn a_disk_keeps_what_is_written() {
    let disk = Qsd::serving("64M").start();
    let script = format!(
        "{DISK_WORKS} echo kept by the disk | dd of=/dev/vda bs=512 seek=64 conv=fsync 2> /dev/null"
    );
    Ferry::linux(&script).with_disk(&disk).run().succeeded();
    let image = disk.read(65 * 512);
    assert!(image[64 * 512..].starts_with(b"kept by the disk"));
}

#[test]
fn a_share_is_shared() {
    let share = Virtiofsd::start();
    fs::write(share.shared().join("from-host"), "from the host").expect("write to the share");
    let script = format!(
        "{SHARE_WORKS}
        mount -t virtiofs share /share
        [ \"$(cat /share/from-host)\" = 'from the host' ]
        echo 'from the guest' > /share/from-guest"
    );
    Ferry::linux(&script)
        .with_fs(&share, "share")
        .run()
        .succeeded();
    let from_guest =
        fs::read_to_string(share.shared().join("from-guest")).expect("the guest's file");
    assert_eq!(from_guest, "from the guest\n");
}

#[test]
fn disk_and_share_work_at_the_same_time() {
    let disk = Qsd::serving("64M").start();
    let share = Virtiofsd::start();
    let script = format!(
        "({DISK_WORKS}) & disk=$!
        ({}) & share=$!
        wait $disk
        wait $share",
        SHARE_WORKS.replace("8388608", "4194304")
    );
    Ferry::linux(&script)
        .cpus(4)
        .with_disk(&disk)
        .with_fs(&share, "share")
        .run()
        .succeeded();
}

#[test]
fn a_disk_with_two_queues_uses_both() {
    let disk = Qsd::serving("64M").queues(2).start();
    let script = format!(
        "[ $(ls /sys/block/vda/mq | wc -l) = 2 ]
        for n in 0 1; do
            taskset -c $n dd if=/dev/urandom of=/dev/vda bs=64k seek=$((n * 100)) count=16 oflag=direct 2> /dev/null
        done
        # Both request queues have had interrupts.
        [ $(awk '/virtio.*-req/ {{ if ($2 + $3 > 0) n++ }} END {{ print n }}' /proc/interrupts) = 2 ]
        {DISK_WORKS}"
    );
    Ferry::linux(&script)
        .cpus(2)
        .with_disk_options(&disk, "num_queues=2")
        .run()
        .succeeded();
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let disk = Qsd::serving("64M").readonly().start();
    Ferry::linux(
        "[ $(cat /sys/block/vda/ro) = 1 ]
        dd if=/dev/vda of=/dev/null bs=64k count=16 2> /dev/null
        if dd if=/dev/zero of=/dev/vda bs=512 count=1 oflag=direct 2> /dev/null; then exit 1; fi",
    )
    .with_disk_options(&disk, "num_queues=1,readonly=on")
    .run()
    .succeeded();
}

#[test]
fn devices_work_after_each_of_two_reboots() {
    let disk = Qsd::serving("64M").start();
    let share = Virtiofsd::start();
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
    let ended = Ferry::linux(&script)
        .with_disk(&disk)
        .with_fs(&share, "share")
        .run()
        .succeeded();
    for boot in 0..3 {
        ended.line(&format!("boot {boot} works"));
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
        Ferry::linux(script)
            .cmdline(how)
            .arg("--no-reboot")
            .run()
            .with_status(status);
    }
}

#[test]
fn drivers_can_be_unbound_and_bound_again() {
    let disk = Qsd::serving("64M").start();
    let share = Virtiofsd::start();
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
    Ferry::linux(&script)
        .with_disk(&disk)
        .with_fs(&share, "share")
        .run()
        .succeeded();
}

/// What `vm.info` says.
fn info(guest: &Guest) -> serde_json::Value {
    let reply = guest.api().get("vm.info").expect("a description");
    serde_json::from_slice(&reply.body).expect("JSON")
}
