//! Interrupts: each request raises one; a masked vector keeps its event in the PBA and delivers it once when
//! unmasked, by the vector's own mask and by the function's; none is lost while masks change under load.

use ferry_tests::backend::Backend;
use ferry_tests::{Ended, Ferry, MSIX_WAITS, Qsd};

const CMDLINE: &str = "mode=msix rounds=20 depth=8";

fn check(ended: &Ended) {
    for what in ["unmasked=20", "masked=20", "retargeted=1", "polled=20"] {
        ended.line(&format!("msix {what}"));
    }
    assert_eq!(ended.line("msix load").number("finished"), 800);
}

#[test]
fn vectors_with_our_back_end() {
    let disk = Backend::blk("1M").start();
    check(&Ferry::tiny(CMDLINE).with_disk(&disk).run().succeeded());
    assert_eq!(disk.complaints(), Vec::<String>::new());
}

#[test]
fn vectors_with_qemu_storage_daemon() {
    let disk = Qsd::serving("1M").start();
    check(&Ferry::tiny(CMDLINE).with_disk(&disk).run().succeeded());
}

#[test]
fn a_writer_without_vectors_polls() {
    let disk = Qsd::serving("1M").start();
    let ended = Ferry::tiny("mode=blk-writer poll=1")
        .with_disk(&disk)
        .run()
        .succeeded();
    assert_eq!(ended.line("blk interrupts=").number("interrupts"), 0);
}

#[test]
fn an_interrupt_that_waits_outlives_a_pause() {
    let disk = Backend::blk("1M").start();
    let mut guest = Ferry::tiny("mode=msix-wait")
        .with_disk(&disk)
        .with_api()
        .start();
    for (how, size) in MSIX_WAITS {
        guest.wait_for(&format!("msix-wait how={how}"));
        guest.put("vm.pause");
        guest.put("vm.resume");
        disk.resize(size);
        guest.wait_for(&format!("msix-waited how={how}"));
    }
    guest.end().succeeded().line("msix-wait requests=20");
    assert_eq!(disk.complaints(), Vec::<String>::new());
}
