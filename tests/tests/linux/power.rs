//! The power button, and boots that the API asks for.

use ferry_tests::{Ferry, Guest, Qsd, Virtiofsd};

use crate::{DISK_WORKS, SHARE_WORKS, info};

#[test]
fn the_power_button_is_a_key_that_the_guest_sees() {
    let mut guest = Ferry::linux(
        "for event in /sys/class/input/event*; do
            if [ \"$(cat $event/device/name)\" = 'Power Button' ]; then button=${event##*/}; fi
        done
        exec 3< /dev/input/$button
        echo listening
        # An event is a time of 16 bytes, type, code and value: EV_KEY, KEY_POWER, pressed.
        dd bs=24 count=1 <&3 2> /dev/null | od -A n -t x2 -j 16 > /tmp/event
        echo event $(cat /tmp/event)
        [ \"$(echo $(cat /tmp/event))\" = '0001 0074 0001 0000' ]",
    )
    .with_api()
    .start();
    guest.wait_for("listening");
    guest.put("vm.power-button");
    let ended = guest.end().succeeded();
    ended.line("event 0001 0074 0001 0000");
    assert_eq!(
        ended.log_lines("powered off").len(),
        1,
        "{}",
        ended.transcript()
    );
}

#[test]
fn devices_work_after_each_boot_that_is_asked_for() {
    let (disk, share) = (Qsd::serving("64M").start(), Virtiofsd::start());
    // The number of the boot is kept on the share.
    let script = format!(
        "{DISK_WORKS} {SHARE_WORKS}
        mount -t virtiofs share /share
        boot=$(cat /share/boot 2> /dev/null || echo 0)
        echo $((boot + 1)) > /share/boot
        umount /share
        echo boot $boot works
        if [ $boot -lt 4 ]; then sleep 1000; fi"
    );
    let mut guest = Ferry::linux(&script)
        .with_disk(&disk)
        .with_fs(&share, "share")
        .with_api()
        .start();
    guest.wait_for("boot 0 works");
    guest.put("vm.reboot");
    guest.wait_for("boot 1 works");
    guest.put("vm.pause");
    guest.put("vm.reboot");
    guest.wait_for("boot 2 works");
    shutdown(&guest);
    guest.put("vm.boot");
    guest.wait_for("boot 3 works");
    guest.put("vm.pause");
    shutdown(&guest);
    guest.put("vm.boot");
    let ended = guest.end().succeeded();
    ended.line("boot 4 works");
}

fn shutdown(guest: &Guest) {
    guest.put("vm.shutdown");
    let info = info(guest);
    assert_eq!(info["state"], "Shutdown");
    // The connections stay.
    assert_eq!(info["device_tree"]["fs0"]["state"], "Idle");
}
