//! When a guest went on in another process, by this one's clock.

use std::time::{Duration, Instant, SystemTime};

use ferry_api::migration::Phase;
use vm_migration::link::Timing;

/// What the receiver of a guest says of its going on there.
pub struct GoingOn {
    /// Since when it runs, by the receiver's clock: microseconds since the Unix epoch.
    pub since: u64,
    /// The receiver's phases up to then; and as one more, how long it had run when that was said.
    pub timings: Vec<Timing>,
}

/// Microseconds since the Unix epoch.
pub fn wall_clock() -> u64 {
    let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl GoingOn {
    /// When that was, if the commit was sent at `committed`, and this was heard at `heard`, which the wall clock here calls `wall`.
    ///
    /// It was not before the time that the receiver took after the commit, and not later than the time for which the guest had run
    /// before this was heard. In between there is how long both messages were on their way, which nobody knows: there the clocks
    /// are believed. On one host they are the same; others may be apart by as much as they like.
    pub fn at(&self, committed: Instant, heard: Instant, wall: u64) -> Instant {
        let back = |time: Duration| heard.checked_sub(time).unwrap_or(committed);
        let latest = back(self.time_in(&[Phase::Release])).max(committed);
        let there = self.time_in(&[Phase::Commit, Phase::Resume]);
        let earliest = committed.checked_add(there).unwrap_or(latest).min(latest);
        let clocks = Duration::from_micros(wall.saturating_sub(self.since));
        back(clocks).clamp(earliest, latest)
    }

    /// What the receiver did before, while the guest stood still.
    pub fn phases(&self) -> Vec<(String, Duration)> {
        let named = |timing: &Timing| (timing.name.clone(), Duration::from_micros(timing.micros));
        let before = self.timings.iter();
        before
            .filter(|timing| timing.name != Phase::Release.name())
            .map(named)
            .collect()
    }

    fn time_in(&self, phases: &[Phase]) -> Duration {
        let is_one = |timing: &&Timing| phases.iter().any(|phase| phase.name() == timing.name);
        let times = self.timings.iter().filter(is_one);
        Duration::from_micros(times.fold(0, |sum: u64, timing| sum.saturating_add(timing.micros)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wall clock.
    const HEARD: u64 = 1_800_000_000_000_000;

    fn timings() -> Vec<Timing> {
        [("machine", 1), ("commit", 2), ("resume", 3), ("release", 5)]
            .map(|(name, ms)| Timing {
                name: name.into(),
                micros: ms * 1000,
            })
            .to_vec()
    }

    /// After how many milliseconds since the commit it was, if that was heard after 20.
    fn after(since: u64, timings: Vec<Timing>) -> u128 {
        let committed = Instant::now();
        let heard = committed + Duration::from_millis(20);
        let at = GoingOn { since, timings }.at(committed, heard, HEARD);
        (at - committed).as_millis()
    }

    #[test]
    fn clocks_are_believed_as_far_as_they_can_be_right() {
        assert_eq!(after(HEARD - 9_000, timings()), 11);
        // It had run for 5 when that was said.
        assert_eq!(after(HEARD - 4_000, timings()), 15);
        assert_eq!(after(HEARD + 7_000_000, timings()), 15);
        // And stood still for 5 after the commit.
        assert_eq!(after(HEARD - 16_000, timings()), 5);
        assert_eq!(after(0, timings()), 5);
    }

    #[test]
    fn nonsense_stays_between_the_commit_and_now() {
        let nonsense = |name: &str| {
            vec![Timing {
                name: name.into(),
                micros: u64::MAX,
            }]
        };
        assert_eq!(after(HEARD - 9_000, nonsense("release")), 0);
        assert_eq!(after(HEARD - 9_000, nonsense("commit")), 20);
        assert_eq!(after(u64::MAX, Vec::new()), 20);
        let twice = [nonsense("commit"), nonsense("resume")].concat();
        assert_eq!(after(0, twice), 20);
    }

    #[test]
    fn the_time_that_it_has_run_is_not_one_of_its_phases_before() {
        let of = GoingOn {
            since: 0,
            timings: timings(),
        };
        let names: Vec<_> = of.phases().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["machine", "commit", "resume"]);
    }
}
