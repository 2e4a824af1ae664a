//! The machine itself, seen by the tiny guest: boot, memory map, ACPI, processors, time, and the ways in
//! which it ends or begins again.

use std::process::{Command, Stdio};

use ferry_tests::{Ferry, Qsd, TINY_GUEST, ferry_binary};

#[test]
fn a_guest_boots_and_powers_off() {
    let ended = Ferry::tiny("mode=hello").run().succeeded();
    assert_eq!(ended.serial[0].0, "tiny: hello");
}

#[test]
fn a_halted_guest_ends_with_sigterm() {
    let mut guest = Ferry::tiny("mode=hello end=halt").start();
    guest.wait_for("tiny: done");
    assert!(guest.is_running());
    guest.terminate().with_status(0);
}

#[test]
fn memory_map_and_acpi_tables_are_sound() {
    let ended = Ferry::tiny("mode=memory")
        .memory("96M")
        .cpus(3)
        .run()
        .succeeded();
    // All of 96 MiB save the legacy hole between 640 KiB and 1 MiB.
    assert_eq!(
        ended.line("memory ram=").number("ram"),
        (96 << 20) - (384 << 10)
    );
    assert_eq!(ended.line("acpi cpus=").number("cpus"), 3);
    let modes = ended.line("acpi hw-reduced=");
    assert_eq!((modes.number("hw-reduced"), modes.number("reset")), (1, 1));
    for table in ["XSDT", "FACP", "APIC", "MCFG", "DSDT"] {
        ended.line(&format!("acpi table={table}"));
    }
    let ecam = ended.line("acpi ecam=").number("ecam");
    let reserved = ended
        .lines("memmap base=")
        .into_iter()
        .find(|entry| entry.number("base") == ecam)
        .expect("ECAM is in the memory map");
    assert_eq!(reserved.number("type"), 2);
}

#[test]
fn memory_lies_on_both_sides_of_the_hole() {
    let ended = Ferry::tiny("mode=memory").memory("4608M").run().succeeded();
    assert_eq!(
        ended.line("memory ram=").number("ram"),
        (4608 << 20) - (384 << 10)
    );
    assert_eq!(ended.line("memory edges=").number("above-4g"), 1);
    let entries = ended.lines("memmap base=");
    let high = entries
        .iter()
        .find(|entry| entry.number("base") == 4 << 30)
        .expect("RAM at 4 GiB");
    assert_eq!(high.number("size"), (4608 << 20) - (3 << 30));
    let ram = |entry: &&ferry_tests::Line| entry.number("type") == 1;
    for entry in entries.iter().filter(ram) {
        let (base, end) = (
            entry.number("base"),
            entry.number("base") + entry.number("size"),
        );
        assert!(
            end <= 3 << 30 || base >= 4 << 30,
            "RAM in the hole: {entry}"
        );
    }
}

#[test]
fn all_processors_start() {
    for cpus in [1, 2, 4, 32] {
        let ended = Ferry::tiny(&format!("mode=smp cpus={cpus}"))
            .cpus(cpus)
            .run()
            .succeeded();
        assert_eq!(ended.line("smp online=").number("online"), u64::from(cpus));
    }
}

#[test]
fn time_passes_by_the_tsc_and_by_the_apic_timer() {
    for timer in ["tsc", "lapic"] {
        let cmdline = format!("mode=ticks ticks=5 period=20 timer={timer}");
        let ended = Ferry::tiny(&cmdline).run().succeeded();
        assert_eq!(ended.lines("tiny: tick").len(), 5);
        assert!(ended.line("tick n=4").number("ms") >= 90, "{timer}");
    }
}

#[test]
fn a_dirtier_finds_its_pages_again() {
    let ended = Ferry::tiny("mode=dirty rate=2000 pages=500 ms=600")
        .run()
        .succeeded();
    let line = ended.line("checked=");
    assert_eq!(line.number("checked"), 500);
    assert!(line.number("written") >= 500);
}

#[test]
fn each_reset_has_its_exit_status() {
    for (how, status) in [("acpi", 10), ("i8042", 11), ("cf9", 11)] {
        let ended = Ferry::tiny(&format!("mode=reboot how={how}"))
            .arg("--no-reboot")
            .run();
        ended.with_status(status).line(&format!("reboot how={how}"));
    }
}

#[test]
fn a_triple_fault_always_ends() {
    Ferry::tiny("mode=reboot how=triple").run().with_status(12);
    Ferry::tiny("mode=reboot how=triple")
        .arg("--no-reboot")
        .run()
        .with_status(12);
}

#[test]
fn a_reset_starts_the_guest_again_with_its_disk() {
    for how in ["acpi", "i8042", "cf9"] {
        let disk = Qsd::serving("1M").start();
        let cmdline = format!("mode=blk-writer+reboot how={how} times=2 counter=1000 count=40");
        let ended = Ferry::tiny(&cmdline).with_disk(&disk).run();
        let ended = ended.succeeded();
        assert_eq!(ended.lines("tiny: hello").len(), 3, "{how}");
        assert_eq!(ended.lines("blk verified=40").len(), 3, "{how}");
        assert_eq!(ended.lines("reboot count=2").len(), 1, "{how}");
    }
}

#[test]
fn ram_that_may_not_be_so_large_is_an_error_and_not_a_signal() {
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 100; exec \"$0\" \"$@\""])
        .arg(ferry_binary())
        .arg("--kernel")
        .arg(TINY_GUEST)
        .args(["--memory", "size=64M", "--serial", "null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report.contains("guest RAM"), "{report}");
    assert!(report.contains("File too large"), "{report}");
}
