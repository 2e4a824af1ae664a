//! The data path does not lead through Ferry: what a guest's notifications cost is counted, and is nothing.

use ferry_tests::{Ferry, Qsd};

#[test]
fn ten_thousand_requests_cause_no_exit_for_notification() {
    let disk = Qsd::serving("1M").start();
    let few = Ferry::tiny("mode=blk-requests count=10")
        .with_disk(&disk)
        .run()
        .succeeded();
    let many = Ferry::tiny("mode=blk-requests count=10000")
        .with_disk(&disk)
        .run()
        .succeeded();
    many.line("blk requests=10000");
    assert_eq!(many.exits().number("notify"), 0, "{}", many.exits());
    // Nor any other exit for each request: the machine's set-up and the few words more that it prints
    // are all.
    for kind in ["mmio", "other"] {
        let more = many
            .exits()
            .number(kind)
            .saturating_sub(few.exits().number(kind));
        assert!(more < 100, "{kind}: {} and {}", few.exits(), many.exits());
    }
}
