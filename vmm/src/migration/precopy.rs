//! Copying RAM while the guest runs.
//!
//! A first round sends all of it, each further one what was written since. This goes on as long as it helps: until so little is
//! left that it can be sent within the downtime that is allowed, and further rounds would not make it less. Guests write in bursts: a
//! quiet moment is waited for then, which takes a few rounds more, and the guest is not paused behind a burst if it has been seen to
//! leave less.

use std::time::{Duration, Instant};

use ferry_api::migration::{Phase, Throttle, TimeoutStrategy};
use ferry_devices::vhost_user::DirtyLog;
use std::sync::Arc;
use vm_migration::link::{Link, Message};
use vm_migration::pages::{Bitmap, catch_up, send_all, send_dirty};

use super::asking::Asked;
use super::meter::Copying;
use super::send::{Job, Source, Word};
use super::{Error, Meter};
use crate::hypervisor::dirty::{self, Loggable};
use crate::lifecycle::Ready;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// A rest that is sent in so short a time is not worth another round.
const LITTLE: Duration = Duration::from_millis(1);
/// A quiet moment is waited for by so small a part of the time that it took to get there.
const PATIENCE: u32 = 16;
/// The most rounds, if the downtime is kept already.
const ROUNDS_MOST: u32 = 30;
/// A round with fewer bytes says nothing about the connection.
const ENOUGH: u64 = 4 << 20;
/// What is taken for the rate, in bytes a second, as long as none is known.
const ASSUMED: u64 = 128 << 20;
/// How much vCPUs are held back at first, and how much more each time, in percent.
const THROTTLE_FIRST: u8 = 20;
const THROTTLE_MORE: u8 = 10;
const THROTTLE_MOST: u8 = 99;

/// The logs of all who write to RAM: the guest, and its back-ends.
pub struct Logs {
    loggable: Loggable,
    guest: Option<dirty::DirtyLog>,
    back_ends: Arc<DirtyLog>,
    /// Where RAM ends.
    end: u64,
    /// Whether the receiver has the RAM of a guest before.
    anew: bool,
}

impl Logs {
    /// Logs that have not been started.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn new(source: &Source) -> Result<Self, Error> {
        let regions = source.ram.shared_regions();
        let ends = regions.iter().map(|region| region.guest.0 + region.size);
        Ok(Logs {
            loggable: source.loggable.clone(),
            guest: None,
            back_ends: Arc::new(DirtyLog::new(&regions).map_err(Error::Log)?),
            end: ends.max().unwrap_or(0),
            anew: false,
        })
    }

    /// Begins to log, with nothing logged yet. Back-ends that cannot log are left alone.
    ///
    /// # Errors
    /// KVM or a back-end does not do it, or not in time.
    pub fn start(
        &mut self,
        devices: &[Ready],
        meter: &Meter,
        limit: Duration,
        link: &mut Link,
    ) -> Result<(), Error> {
        self.guest = Some(self.loggable.start()?);
        let mut asked = Asked::new("log what it writes to RAM", limit);
        for device in devices.iter().filter(|device| device.can_log()) {
            asked.ask(device, |device, done| {
                device.start_log(self.back_ends.clone(), done);
            });
        }
        asked.wait(meter, || Ok(link.keep_alive_if_due()?))
    }

    /// Logs what a guest writes that has begun anew. It has written something already.
    ///
    /// # Errors
    /// KVM does not do it.
    pub fn follow(&mut self, source: &Source) -> Result<(), Error> {
        self.loggable = source.loggable.clone();
        self.guest = Some(self.loggable.start()?);
        self.anew = true;
        Ok(())
    }

    /// Ends all logging. Nobody waits for it.
    pub fn stop(self, devices: &[Ready]) {
        for device in devices.iter().filter(|device| device.can_log()) {
            // What goes wrong is the device's failure, of which the owner is told anyway.
            device.stop_log(|_| {});
        }
    }

    /// Takes what was written since the last time.
    ///
    /// # Errors
    /// KVM does not tell.
    pub fn take(&self) -> Result<Bitmap, Error> {
        let mut pages = Bitmap::new(self.end);
        if let Some(guest) = &self.guest {
            guest.take(|first, bits| pages.or_word(first / u64::from(u64::BITS), bits))?;
        }
        self.back_ends
            .take(|index, bits| pages.or_word(index as u64, bits));
        Ok(pages)
    }

    /// All of RAM, and what is not.
    pub fn everything(&self) -> Bitmap {
        let mut pages = Bitmap::new(self.end);
        pages.set_range(0, self.end);
        pages
    }
}

/// What is to be done with what was written during a round.
enum Next {
    /// It is sent while the guest runs.
    Again,
    /// It is the rest, to be sent while the guest stands still.
    Stop,
}

impl<S: Fn(Word)> Job<S> {
    /// Sends RAM while the guest runs; returns the rest.
    pub(super) fn copy_while_it_runs(
        &mut self,
        links: &mut [Link],
        logs: &mut Logs,
    ) -> Result<Bitmap, Error> {
        let meter = &*self.meter.clone();
        meter.enter(Phase::Precopy);
        let total = self.source.ram_bytes();
        let begun = Instant::now();
        let mut pace = Pace::new(total);
        // In a new RAM, zeros are there already.
        let mut rest = logs.anew.then(|| logs.everything());
        loop {
            let remaining = rest.as_ref().map_or(total, |pages| pages.count() * PAGE);
            pace.begin_round(remaining, meter);
            (self.say)(Word::Round {
                number: pace.copying.round,
                remaining,
            });
            let number = pace.copying.round - 1;
            links[0].send(&Message::Round { number }, meter)?;
            let regions = self.source.regions();
            let sent = match &rest {
                None => send_all(links, &regions, &meter.pages, meter)?,
                Some(pages) => send_dirty(links, &regions, pages, &meter.pages, meter)?,
            };
            // What is still on its way is not sent while the guest stands still.
            catch_up(links, sent, meter)?;
            let pages = logs.take()?;
            // One that the guest has started meanwhile may have refused to log.
            if let Some(error) = self.devices.iter().find_map(|device| device.log_error()) {
                return Err(error.into());
            }
            pace.end_round(sent.data, pages.count() * PAGE, meter);
            if self.has_rebooted() {
                logs.follow(&self.source)?;
                rest = Some(logs.everything());
                pace.begin_anew(total);
                continue;
            }
            match self.next(&mut pace, begun.elapsed())? {
                Next::Again => rest = Some(pages),
                Next::Stop => return Ok(pages),
            }
        }
    }

    fn next(&self, pace: &mut Pace, elapsed: Duration) -> Result<Next, Error> {
        let request = &self.request;
        let estimate = pace.estimate();
        let is_kept = estimate <= request.downtime;
        let is_over = elapsed >= request.timeout;
        // Another round could end too late.
        let round = request.downtime + elapsed / PATIENCE;
        let is_late = self.meter.copying_left().is_some_and(|left| left < round);
        if is_kept && (is_over || is_late || !pace.gets_better(estimate, elapsed)) {
            return Ok(Next::Stop);
        }
        if is_over {
            return match request.timeout_strategy {
                TimeoutStrategy::Ignore => Ok(Next::Stop),
                TimeoutStrategy::Cancel => Err(Error::Timeout(request.timeout)),
            };
        }
        let stagnates = !is_kept && !pace.waits(elapsed) && pace.stagnates();
        if request.throttle == Throttle::On && stagnates {
            let throttle = match pace.copying.throttle {
                0 => THROTTLE_FIRST,
                before => (before + THROTTLE_MORE).min(THROTTLE_MOST),
            };
            pace.copying.throttle = throttle;
            (self.say)(Word::Throttle(throttle));
        }
        Ok(Next::Again)
    }
}

/// How fast RAM is sent and written.
struct Pace {
    copying: Copying,
    begun: Instant,
    /// Bytes that were left after the last rounds.
    before: u64,
    left: u64,
    /// The fewest that were left so far.
    least: u64,
    /// When rounds no longer made the rest less although the downtime was kept, after the beginning.
    settled: Option<Duration>,
}

impl Pace {
    fn new(total: u64) -> Self {
        Pace {
            copying: Copying::default(),
            begun: Instant::now(),
            before: total,
            left: total,
            least: total,
            settled: None,
        }
    }

    fn begin_round(&mut self, remaining: u64, meter: &Meter) {
        self.begun = Instant::now();
        self.copying.round += 1;
        self.copying.remaining = remaining;
        self.copying.done_before = meter.ram_done();
        meter.set_copying(self.copying);
    }

    /// `sent` bytes were sent while `written` were written.
    fn end_round(&mut self, sent: u64, written: u64, meter: &Meter) {
        let seconds = self.begun.elapsed().as_secs_f64().max(1e-6);
        let per_second = |bytes: u64| (bytes as f64 / seconds) as u64;
        if sent >= ENOUGH {
            self.copying.rate = per_second(sent);
        }
        self.copying.dirty_rate = per_second(written);
        self.note_left(written);
        self.copying.remaining = written;
        self.copying.done_before = meter.ram_done();
        self.copying.downtime = Some(self.estimate());
        meter.set_copying(self.copying);
    }

    /// What the guest before has left says nothing.
    fn begin_anew(&mut self, total: u64) {
        (self.before, self.left, self.least) = (total, total, total);
        self.settled = None;
        // Its vCPUs are not held back yet.
        self.copying.throttle = 0;
    }

    fn note_left(&mut self, bytes: u64) {
        self.before = self.left;
        self.left = bytes;
        self.least = self.least.min(bytes);
    }

    /// How long it takes to send what is left.
    fn estimate(&self) -> Duration {
        let rate = match self.copying.rate {
            0 => ASSUMED,
            known => known,
        };
        let seconds = self.left as f64 / rate as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// Whether another round is worth it although the downtime is kept, which it is after `elapsed`.
    fn gets_better(&mut self, estimate: Duration, elapsed: Duration) -> bool {
        if estimate <= LITTLE || self.copying.round >= ROUNDS_MOST {
            return false;
        }
        let shrinks = self.left < self.before / 4 * 3;
        let was_less = self.left / 2 > self.least;
        if shrinks || was_less {
            return true;
        }
        self.settled.get_or_insert(elapsed);
        self.waits(elapsed)
    }

    /// Whether a quiet moment is waited for.
    fn waits(&self, elapsed: Duration) -> bool {
        let settled = self.settled;
        settled.is_some_and(|settled| elapsed < settled + settled / PATIENCE)
    }

    /// Whether rounds do not make the rest less.
    fn stagnates(&self) -> bool {
        self.copying.round > 1 && self.left >= self.before / 10 * 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// How many more rounds are taken, each of a tenth of a second, after a first one of 16 seconds, if they leave so many bytes.
    fn rounds_after(left: impl IntoIterator<Item = u64>) -> usize {
        let mut pace = Pace::new(512 * MIB);
        pace.copying.rate = ASSUMED;
        let mut elapsed = Duration::from_secs(16);
        let worth_it = left.into_iter().map(|left| {
            pace.copying.round += 1;
            pace.note_left(left);
            elapsed += Duration::from_millis(100);
            pace.gets_better(pace.estimate(), elapsed)
        });
        worth_it.take_while(|is_worth_it| *is_worth_it).count()
    }

    #[test]
    fn rounds_go_on_as_long_as_they_help() {
        let shrinking = [200, 100, 50, 20, 10, 5, 3].map(|left| left * MIB);
        assert_eq!(rounds_after(shrinking), shrinking.len());
        // Next to nothing is left.
        assert_eq!(rounds_after([20 * MIB, 1024, 1024]), 1);
    }

    #[test]
    fn a_quiet_moment_is_waited_for_but_not_for_long() {
        let busy = [20 * MIB; 100];
        // It shrinks once; and then for a sixteenth of 16 seconds.
        assert_eq!(rounds_after(busy), 1 + 11);
        let quiet = busy[..5].iter().copied().chain([1024; 10]);
        assert_eq!(rounds_after(quiet), 5);
    }

    #[test]
    fn the_end_of_a_burst_is_waited_for_but_not_for_ever() {
        let burst = |rounds| [4 * MIB, 3 * MIB].into_iter().chain(vec![30 * MIB; rounds]);
        assert_eq!(rounds_after(burst(100)), ROUNDS_MOST as usize - 1);
        // It shrinks when it is over, and a quiet moment has been waited for long enough.
        let over = burst(15).chain([5 * MIB; 5]);
        assert_eq!(rounds_after(over), 2 + 15 + 1);
    }
}
