//! Pausing a guest at work, and resuming it.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use ferry_tests::{Guest, Qsd};

use crate::records::{Loop, Setup, Writing};

/// How much more memory Ferry may have afterwards, in KiB: the last thousand events, and what its threads' allocators
/// keep.
const TOLERANCE: u64 = 512;

/// Has the guest tell its monotonic clock, in hundredths of a second.
const TELL_UPTIME: &str = "
    (while sleep 1; do
        read -r up rest < /proc/uptime
        echo uptime=${up%.*}${up#*.}
    done) & uptime=$!
    until told_to_end; do sleep 0.5; done
    kill $uptime";

#[test]
fn pause_and_resume_a_hundred_times() {
    // With so few requests a second the disk has one in flight nearly all the time.
    let mut writing = Writing::start(Setup {
        disk: Qsd::serving("64M").throttle(8),
        ..Setup::default()
    });
    let mut random = Random::new();
    writing.guest.put("vm.pause");
    writing.guest.put("vm.resume");
    let before = Usage::of(&writing.guest);
    for _ in 0..100 {
        sleep(random.up_to(Duration::from_millis(300)));
        writing.guest.put("vm.pause");
        sleep(random.up_to(Duration::from_millis(50)));
        writing.guest.put("vm.resume");
    }
    writing.goes_on(Loop::Disk);
    writing.goes_on(Loop::Share);
    // The last connection's end may still have to be noticed.
    let after = writing
        .guest
        .wait_until("as few file descriptors as before", |guest| {
            let now = Usage::of(guest);
            (now.descriptors <= before.descriptors).then_some(now)
        });
    println!("before: {before:?}, after: {after:?}");
    assert!(after.kibibytes <= before.kibibytes + TOLERANCE);
    let ended = writing.end_and_check();
    println!("{}", ended.transcript());
}

#[test]
fn a_pause_of_a_minute() {
    let mut writing = Writing::start(Setup {
        script: TELL_UPTIME,
        ..Setup::default()
    });
    writing.guest.wait_for("uptime=");
    writing.guest.put("vm.pause");
    // For what was on its way out of the serial port.
    sleep(Duration::from_secs(5));
    let said = writing.guest.serial().len();
    let before = uptimes(&writing.guest);
    sleep(Duration::from_secs(55));
    assert_eq!(writing.guest.serial().len(), said, "it runs");
    let resumed = Instant::now();
    writing.guest.put("vm.resume");
    let after = writing.guest.wait_until("the guest's uptime", |guest| {
        let now = uptimes(guest);
        (now.len() > before.len()).then(|| now[before.len()])
    });
    let passed = after - before[before.len() - 1];
    println!(
        "{passed:?} have passed for the guest, which was resumed {:?} ago",
        resumed.elapsed()
    );
    assert!(
        passed < Duration::from_secs(20),
        "{}",
        writing.guest.transcript()
    );
    // A kernel complains of a lock-up after 20 s, and looks every 4 s.
    sleep(Duration::from_secs(30));
    writing.goes_on(Loop::Disk);
    writing.goes_on(Loop::Share);
    println!("{}", writing.end_and_check().transcript());
}

/// The guest's monotonic clock, as often as it has told.
fn uptimes(guest: &Guest) -> Vec<Duration> {
    let serial = guest.serial();
    let lines = serial.iter().filter(|line| line.0.starts_with("uptime="));
    lines
        .map(|line| Duration::from_millis(10 * line.number("uptime")))
        .collect()
}

/// What Ferry uses.
#[derive(Clone, Copy, Debug)]
struct Usage {
    descriptors: usize,
    /// Resident memory of its own: guest RAM is shared memory, and what is resident of the program's file is up to
    /// the page cache.
    kibibytes: u64,
}

impl Usage {
    fn of(guest: &Guest) -> Self {
        let process = format!("/proc/{}", guest.pid());
        let descriptors = fs::read_dir(format!("{process}/fd"))
            .expect("Ferry's file descriptors")
            .count();
        let status = fs::read_to_string(format!("{process}/status")).expect("Ferry's status");
        let sizes: BTreeMap<&str, u64> = status
            .lines()
            .filter_map(|line| {
                let (key, value) = line.split_once(':')?;
                Some((key, value.trim().strip_suffix(" kB")?.parse().ok()?))
            })
            .collect();
        Usage {
            descriptors,
            kibibytes: sizes["RssAnon"],
        }
    }
}

/// Random numbers (xorshift64).
struct Random(u64);

impl Random {
    /// From a seed that is printed.
    fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is past 1970");
        let seed = now.as_nanos() as u64 | 1;
        println!("seed: {seed}");
        Random(seed)
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        most.mul_f64((self.0 >> 11) as f64 / (1u64 << 53) as f64)
    }
}
