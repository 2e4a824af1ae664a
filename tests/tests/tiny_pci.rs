//! The PCI bus, seen by the tiny guest, which compares what it reads by port with what it reads by ECAM.

use ferry_tests::backend::Backend;
use ferry_tests::{Ended, Ferry, Line};

/// The part of the address space that is for devices.
const WINDOW: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;

fn ended_with_devices() -> Ended {
    let (one, two) = (Backend::blk("1M").start(), Backend::blk("1M").start());
    Ferry::tiny("mode=pci")
        .with_disk(&one)
        .with_disk_options(&two, "num_queues=4")
        .run()
        .succeeded()
}

#[test]
fn an_empty_bus_has_a_host_bridge_only() {
    let ended = Ferry::tiny("mode=pci").run().succeeded();
    assert_eq!(ended.line("pci functions=").number("functions"), 1);
    // Class 06, subclass 00.
    assert_eq!(
        ended.line("pci function fn=0.0").number("class") >> 8,
        0x600
    );
}

#[test]
fn devices_are_modern_virtio_functions() {
    let ended = ended_with_devices();
    let disks: Vec<Line> = ended
        .lines("pci function fn=")
        .into_iter()
        .filter(|line| line.number("vendor") == 0x1af4)
        .collect();
    assert_eq!(disks.len(), 2);
    for disk in disks {
        assert_eq!(disk.number("device"), 0x1042);
        assert!(
            disk.number("revision") >= 1,
            "modern devices have revision 1: {disk}"
        );
        let function = format!("fn={} ", disk.get("fn").unwrap());
        // Common configuration, notification, ISR, device configuration, access by configuration space.
        let mut kinds: Vec<u64> = ended
            .lines(&format!("pci virtio {function}"))
            .iter()
            .map(|line| line.number("type"))
            .collect();
        kinds.sort_unstable();
        assert_eq!(kinds, [1, 2, 3, 4, 5]);
    }
}

#[test]
fn there_is_a_vector_for_each_queue_and_one_for_changes() {
    let ended = ended_with_devices();
    let vectors: Vec<u64> = ended
        .lines("pci msix")
        .iter()
        .map(|line| line.number("vectors"))
        .collect();
    assert_eq!(vectors, [2, 5]);
}

#[test]
fn base_addresses_are_in_the_window_and_do_not_overlap() {
    let ended = ended_with_devices();
    let mut ranges: Vec<(u64, u64)> = ended
        .lines("pci bar")
        .iter()
        .map(|line| {
            (
                line.number("base"),
                line.number("base") + line.number("size"),
            )
        })
        .collect();
    ranges.sort_unstable();
    assert!(ranges.len() >= 2);
    for (base, end) in &ranges {
        assert!(
            WINDOW.contains(base) && *end <= WINDOW.end,
            "{base:#x}-{end:#x}"
        );
    }
    for pair in ranges.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{pair:x?}");
    }
}
