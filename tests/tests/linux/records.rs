//! A guest in which two loops write numbered records, one to a disk and one to a share, each ten a second, while
//! something happens to it.

use std::fs;
use std::path::PathBuf;

use ferry_tests::{
    Ended, Ferry, Guest, Line, Qsd, QsdOptions, Virtiofsd, VirtiofsdOptions, pattern, programs,
};

/// Bytes in a record.
const RECORD: usize = 4096;
const DISK_SEED: u32 = 1;
const SHARE_SEED: u32 = 2;

/// Shell functions for a guest with the disk /dev/vda and the share `share`.
///
/// `complaints` finds what a kernel says when requests or its own time have gone wrong.
const FUNCTIONS: &str = r#"
    complaints() {
        dmesg | grep -iE 'soft lockup|hard lockup|rcu.*stall|hung task|blocked for more|I/O error|blk_update_request|unstable|skew|Call Trace' || true
    }
    begin() {
        complaints > /tmp/complaints
        mkdir -p /share
        mount -t virtiofs share /share
        rm -f /share/records
        /records write disk /dev/vda 4096 1 & disk=$!
        /records write share /share/records 4096 2 & share=$!
    }
    told_to_end() {
        [ -e /share/end ]
    }
    end() {
        kill -TERM $disk $share
        wait $disk
        wait $share
        umount /share
        mount -t virtiofs share /share
        /records verify disk /dev/vda 4096 1
        /records verify share /share/records 4096 2
        umount /share
        old=$(wc -l < /tmp/complaints)
        complaints | tail -n +$((old + 1)) | sed 's/^/FAIL in the log: /'
    }
"#;

/// The two loops.
#[derive(Clone, Copy, Debug)]
pub enum Loop {
    Disk,
    Share,
}

impl Loop {
    pub fn label(self) -> &'static str {
        match self {
            Loop::Disk => "disk",
            Loop::Share => "share",
        }
    }
}

/// What is special about a scenario.
pub struct Setup {
    /// A part of the guest's script between the beginning of the writing and its end.
    pub script: &'static str,
    pub disk: QsdOptions,
    /// Queues that the disk gets.
    pub queues: u16,
    pub share: VirtiofsdOptions,
    pub cpus: u32,
    /// Ferry's limit for an attempt, in seconds.
    pub request_timeout: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            script: "",
            disk: Qsd::serving("64M"),
            queues: 2,
            share: Virtiofsd::options(),
            cpus: 2,
            request_timeout: 60,
        }
    }
}

/// The guest, and what serves its devices.
pub struct Writing {
    pub guest: Guest,
    pub disk: Qsd,
    pub share: Virtiofsd,
}

impl Writing {
    /// Starts the guest, and waits until both loops are at work.
    pub fn start(setup: Setup) -> Self {
        let disk = setup.disk.queues(setup.queues).start();
        let share = setup.share.start();
        let script = setup.script;
        let script =
            format!("{FUNCTIONS} begin\n{script}\nuntil told_to_end; do sleep 0.5; done\nend");
        let program = fs::read(programs::RECORDS).expect("the program");
        let guest = Ferry::linux(&script)
            .file("records", program)
            .cpus(setup.cpus)
            .with_disk_options(&disk, &format!("num_queues={}", setup.queues))
            .with_fs(&share, "share")
            .with_api()
            .request_timeout(setup.request_timeout)
            .dead_timeout(120)
            .start();
        let mut writing = Writing { guest, disk, share };
        writing.goes_on(Loop::Disk);
        writing.goes_on(Loop::Share);
        writing
    }

    /// Waits until a new boot has its loops at work. They begin with record 0 again.
    pub fn begins_anew(&mut self) {
        for which in [Loop::Disk, Loop::Share] {
            let first = format!("{} at=10 ", which.label());
            self.guest.wait_for_count(&first, 2);
            self.goes_on(which);
        }
    }

    /// How many records the loop has written, in tens.
    pub fn written(&self, which: Loop) -> u64 {
        let text = format!("{} at=", which.label());
        let serial = self.guest.serial();
        let last = serial.iter().rev().find(|line| line.0.contains(&text));
        last.map_or(0, |line| line.number("at"))
    }

    /// Waits until the loop has written records that it had not begun when this was called.
    pub fn goes_on(&mut self, which: Loop) {
        // The next ten may have been written, all but their report.
        let target = self.written(which) + 20;
        let text = format!("{} at={target}", which.label());
        let before = self.guest.serial().len();
        let what = format!("'{text}', or a failure, on the serial port");
        let line = self.guest.wait_until(&what, |guest| {
            let serial = guest.serial();
            let wanted = |line: &&Line| line.0.contains(&text) || line.0.contains("FAIL");
            serial[before..].iter().find(wanted).cloned()
        });
        assert!(
            line.0.contains(&text),
            "{line}\n{}",
            self.guest.transcript()
        );
    }

    /// Where the guest's records are on the share.
    fn records(&self) -> PathBuf {
        self.share.shared().join("records")
    }

    /// Panics unless all records are there that the guest has told of, which is dead.
    pub fn has_written_what_it_said(self) {
        for which in [Loop::Disk, Loop::Share] {
            let count = self.written(which) as u32;
            let (written, seed) = match which {
                Loop::Disk => (self.disk.read(RECORD * count as usize), DISK_SEED),
                Loop::Share => (
                    fs::read(self.records()).expect("the guest's records"),
                    SHARE_SEED,
                ),
            };
            let is_there = written.starts_with(&pattern::blocks(RECORD, seed, count));
            assert!(is_there, "{which:?}: {count} records are not there");
        }
    }

    /// Has the loops end, and checks in the guest and outside of it that all records are there, once, and whole.
    pub fn end_and_check(self) -> Ended {
        fs::write(self.share.shared().join("end"), "").expect("write to the share");
        let (records, disk) = (self.records(), self.disk);
        let ended = self.guest.end().succeeded();
        for which in [Loop::Disk, Loop::Share] {
            let label = which.label();
            let written = ended.line(&format!("{label} written=")).number("written");
            let verified = ended.line(&format!("{label} verified=")).number("verified");
            assert_eq!(written, verified, "{label}\n{}", ended.transcript());
            let count = u32::try_from(written).expect("a few thousand");
            let bytes = RECORD * count as usize;
            match which {
                Loop::Disk => {
                    let image = disk.read(64 << 20);
                    assert!(image[..bytes] == pattern::blocks(RECORD, DISK_SEED, count));
                    assert!(image[bytes..].iter().all(|&byte| byte == 0));
                }
                Loop::Share => {
                    let file = fs::read(&records).expect("the guest's records");
                    assert!(file == pattern::blocks(RECORD, SHARE_SEED, count));
                }
            }
        }
        ended
    }
}
