//! The guest in Ferry.

use ferry_tests::{Guest, Receive, Send};
use serde_json::Value;

use super::{BackEnds, DOWNTIME_MS, Moving, SCRIPT, turns};

/// A guest in Ferry.
pub struct Ferry {
    guest: Guest,
    _back_ends: BackEnds,
}

impl Ferry {
    /// Boots it.
    pub fn boot(back_ends: BackEnds) -> Self {
        let guest = ferry_tests::Ferry::linux(SCRIPT)
            .memory("512M")
            .with_disk(&back_ends.disk)
            .with_fs(&back_ends.share, "share")
            .with_api()
            .request_timeout(60)
            .dead_timeout(120)
            .start();
        Self {
            guest,
            _back_ends: back_ends,
        }
    }
}

impl Moving for Ferry {
    fn name(&self) -> &'static str {
        "Ferry"
    }

    fn turns(&self) -> u64 {
        turns(&self.guest.serial())
    }

    fn wait_for_turns(&mut self, count: u64) {
        self.guest.wait_until("devices that are used", |guest| {
            (turns(&guest.serial()) >= count).then_some(())
        });
    }

    fn pause(&mut self) {
        self.guest.put("vm.pause");
    }

    fn resume(&mut self) {
        self.guest.put("vm.resume");
    }

    fn move_to(&mut self, next: BackEnds) -> Value {
        let mut receiver = self.guest.receiver();
        let url = self.guest.unix_url();
        let receive = Receive::at(&url)
            .device("disk0", &next.disk)
            .device("fs0", &next.share);
        let receiving = receiver.listen(&receive);
        let send = Send::to(&url).downtime_ms(DOWNTIME_MS).preserve_source();
        self.guest.send(&send);
        if let Err(reasons) = receiving.answer() {
            panic!("{}\n{}", reasons.join(": "), self.guest.transcript());
        }
        let report = self.guest.wait_for_migration("done");
        *self = Self {
            guest: receiver,
            _back_ends: next,
        };
        report
    }

    fn end(self: Box<Self>) {
        self.guest.end().succeeded();
    }
}
