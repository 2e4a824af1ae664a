//! How far a migration is: written by its job, read by whoever asks, and the way to give it up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ferry_api::migration::{MigrationProgress, MigrationState, MigrationUrl, Phase, Role};
use vm_migration::Watch;
use vm_migration::pages;

use super::Error;
use super::going_on::{GoingOn, wall_clock};
use crate::progress::{Decision, Device, GivenUp, Stretch, lengths};

/// Whoever moves less than so many bytes in a second, while the guest stands still, is too slow.
const LEAST_PACE: u64 = 1 << 20;

/// What bounds the time for which a guest stands still.
struct Stop {
    at: Instant,
    /// What it may take apart from the moving itself.
    limit: Duration,
    /// What was done before.
    done_before: u64,
}

/// How far a migration is.
pub struct Meter {
    role: Role,
    url: MigrationUrl,
    begun: Instant,
    decision: Decision,
    /// Bytes of RAM that were looked at, on their way out or in, zeros included.
    ram_done: AtomicU64,
    /// Bytes of back-ends' state that were moved.
    state_done: AtomicU64,
    /// What the guest's standing still is bounded by.
    stop: OnceLock<Stop>,
    /// How many milliseconds after the beginning the guest is to stand still at last; 0 if that is not bounded.
    copying_most: AtomicU64,
    /// What was sent of them.
    pub pages: pages::Progress,
    // Held for a few assignments at a time.
    table: Mutex<Table>,
}

struct Table {
    attempt: String,
    state: MigrationState,
    /// When each phase began.
    phases: Vec<(Phase, Instant)>,
    peer_phases: Vec<(String, Duration)>,
    ended: Option<Instant>,
    paused: Stretch,
    ram_total: u64,
    copying: Copying,
    devices: Vec<Device>,
    error: Vec<String>,
    /// Why it is to end.
    reason: Option<Vec<String>>,
}

/// How the copying of RAM goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Copying {
    /// From 1.
    pub round: u32,
    /// Bytes that were to be sent when the round began.
    pub remaining: u64,
    /// What was done when the round began.
    pub done_before: u64,
    /// Bytes a second; 0 as long as too few were sent to tell.
    pub rate: u64,
    /// Bytes a second.
    pub dirty_rate: u64,
    pub downtime: Option<Duration>,
    /// Percent.
    pub throttle: u8,
}

impl Table {
    /// Bytes a second so far, in the first round, which may be long.
    fn first_rate(&self, now: Instant, sent: u64) -> u64 {
        let Some((Phase::Precopy, begun)) = self.phases.last() else {
            return 0;
        };
        if self.state != MigrationState::UnderWay || self.copying.round > 1 {
            return 0;
        }
        let seconds = now.duration_since(*begun).as_secs_f64();
        (sent as f64 / seconds.max(1e-3)) as u64
    }
}

impl Meter {
    pub fn new(role: Role, url: MigrationUrl) -> Self {
        let now = Instant::now();
        let first = match role {
            Role::Send => Phase::Connect,
            Role::Receive => Phase::Listen,
        };
        Meter {
            role,
            url,
            begun: now,
            decision: Decision::default(),
            ram_done: AtomicU64::new(0),
            state_done: AtomicU64::new(0),
            stop: OnceLock::new(),
            copying_most: AtomicU64::new(0),
            pages: pages::Progress::default(),
            table: Mutex::new(Table {
                attempt: String::new(),
                state: MigrationState::UnderWay,
                phases: vec![(first, now)],
                peer_phases: Vec::new(),
                ended: None,
                paused: Stretch::default(),
                ram_total: 0,
                copying: Copying::default(),
                devices: Vec::new(),
                error: Vec::new(),
                reason: None,
            }),
        }
    }

    /// Where the other side is, or is waited for.
    pub fn url(&self) -> &MigrationUrl {
        &self.url
    }

    /// Makes the migration end soon, unless it cannot be given up any more.
    pub fn cancel(&self) {
        self.decision.cancel();
    }

    /// As [`Meter::cancel`], for this reason, which the other side is to know. The first one counts.
    pub fn cancel_because(&self, reason: Vec<String>) {
        self.table().reason.get_or_insert(reason);
        self.cancel();
    }

    /// Why it was given up, if that was said.
    pub fn reason(&self) -> Option<Vec<String>> {
        self.table().reason.clone()
    }

    /// From now on the migration cannot be given up.
    ///
    /// # Errors
    /// [`Error::Cancelled`]: it has been already.
    pub fn commit(&self) -> Result<(), Error> {
        match self.decision.commit() {
            true => Ok(()),
            false => Err(Error::Cancelled),
        }
    }

    /// That the migration has not been given up.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn unless_cancelled(&self) -> Result<(), Error> {
        match self.decision.is_cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    pub fn set_attempt(&self, attempt: String) {
        self.table().attempt = attempt;
    }

    /// A phase begins, and the one before has ended.
    pub fn enter(&self, phase: Phase) {
        let mut table = self.table();
        if phase == Phase::Unconfirmed {
            table.state = MigrationState::Unconfirmed;
        }
        table.phases.push((phase, Instant::now()));
    }

    /// From now on a guest stands still for this, which may take as long as `limit`, and longer only as bytes are moved: else it
    /// is given up. A side that moves a few bytes now and then is never silent, but holds the guest all the same.
    pub fn bound(&self, limit: Duration) {
        // The first one counts.
        let _ = self.stop.set(Stop {
            at: Instant::now(),
            limit,
            done_before: self.ram_done(),
        });
    }

    /// Bounds the time until the guest stands still: however slow the other side is, it is given up then.
    pub fn bound_copying(&self, limit: Option<Duration>) {
        let most = limit.map_or(0, |limit| {
            self.begun.elapsed().saturating_add(limit).as_millis()
        });
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        self.copying_most.store(most, Ordering::Relaxed);
    }

    /// Whether the guest should stand still by now.
    pub fn copies_too_long(&self) -> bool {
        self.copying_left().is_some_and(|left| left.is_zero())
    }

    /// How much time is left until the guest should stand still, if that is bounded.
    pub fn copying_left(&self) -> Option<Duration> {
        let most = self.copying_most.load(Ordering::Relaxed);
        let left = Duration::from_millis(most).saturating_sub(self.begun.elapsed());
        (most != 0).then_some(left)
    }

    /// Whether the guest has stood still for longer than it should.
    pub fn is_too_slow(&self) -> bool {
        let Some(stop) = self.stop.get() else {
            return false;
        };
        let ram = self.ram_done().saturating_sub(stop.done_before);
        let moved = ram + self.state_done.load(Ordering::Relaxed);
        stop.at.elapsed() > stop.limit + Duration::from_secs(moved / LEAST_PACE)
    }

    /// The guest stands still from now on.
    pub fn guest_stops(&self) {
        self.table().paused.begin();
    }

    /// The guest stood still before it came here.
    pub fn guest_has_stopped(&self, at: Instant) {
        self.table().paused.begin_at(at);
    }

    /// Since when it stands still, if it does not stand still anyway.
    pub fn stopped_at(&self) -> Option<Instant> {
        self.table().paused.begun()
    }

    /// The guest runs again, here or there.
    pub fn guest_goes_on(&self) {
        self.table().paused.end();
    }

    /// It has gone on there some time ago; since then what it had here is released.
    pub fn guest_went_on(&self, going_on: &GoingOn) {
        let (now, wall) = (Instant::now(), wall_clock());
        let mut table = self.table();
        let committed = table.phases.last().map_or(now, |(_, begun)| *begun);
        let at = going_on.at(committed, now, wall);
        table.paused.end_at(at);
        table.phases.push((Phase::Release, at));
        table.peer_phases = going_on.phases();
    }

    pub fn set_ram_total(&self, bytes: u64) {
        self.table().ram_total = bytes;
    }

    /// Bytes of RAM that were looked at so far, zeros included.
    pub fn ram_done(&self) -> u64 {
        self.ram_done.load(Ordering::Relaxed)
    }

    /// Waits for something to arrive; nothing at the deadline.
    ///
    /// # Errors
    /// [`Error::Cancelled`], soon after the migration was given up, or once nobody is left who could send anything.
    pub fn wait<T>(&self, receiver: &Receiver<T>, deadline: Instant) -> Result<Option<T>, Error> {
        let waited = self.decision.wait(receiver, deadline);
        waited.map_err(|GivenUp| Error::Cancelled)
    }

    pub fn set_copying(&self, copying: Copying) {
        self.table().copying = copying;
    }

    /// The devices whose back-ends have state to be moved.
    pub fn expect_devices(&self, ids: impl IntoIterator<Item = String>) {
        self.table().devices = ids.into_iter().map(Device::new).collect();
    }

    /// Watches the state of one of these devices.
    pub fn device<'a>(&'a self, id: &'a str) -> DeviceWatch<'a> {
        self.with_device(id, |device| device.time.begin());
        DeviceWatch { meter: self, id }
    }

    /// The phases so far.
    pub fn phases(&self) -> Vec<(Phase, Duration)> {
        lengths(&self.table().phases, Instant::now())
    }

    /// When the last phase began: microseconds since the Unix epoch.
    pub fn in_last_phase_since(&self) -> u64 {
        let table = self.table();
        let (now, wall) = (Instant::now(), wall_clock());
        let begun = table.phases.last().map_or(now, |(_, begun)| *begun);
        let micros = now.saturating_duration_since(begun).as_micros();
        wall.saturating_sub(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// The guest runs on the other side: what takes time from now on is not part of its way there.
    pub fn arrived(&self) {
        self.table().ended.get_or_insert_with(Instant::now);
    }

    /// Notes the end. The first word counts.
    pub fn end(&self, error: Option<Vec<String>>) {
        let mut table = self.table();
        if matches!(table.state, MigrationState::Done | MigrationState::Failed) {
            return;
        }
        table.ended.get_or_insert_with(Instant::now);
        if table.paused.has_begun() {
            table.paused.end();
        }
        // Nobody is held back any more.
        table.copying.throttle = 0;
        table.state = match error {
            Some(_) => MigrationState::Failed,
            None => MigrationState::Done,
        };
        table.error = error.unwrap_or_default();
    }

    /// How it stands.
    pub fn progress(&self) -> MigrationProgress {
        let table = self.table();
        let now = table.ended.unwrap_or_else(Instant::now);
        let copying = table.copying;
        let done_now = self.ram_done().saturating_sub(copying.done_before);
        MigrationProgress {
            role: self.role,
            url: self.url.clone(),
            attempt: table.attempt.clone(),
            state: table.state,
            phase: table.phases.last().map_or(Phase::Connect, |last| last.0),
            phases: lengths(&table.phases, now),
            peer_phases: table.peer_phases.clone(),
            elapsed: now.duration_since(self.begun),
            round: copying.round,
            ram_total: table.ram_total,
            ram_sent: match self.role {
                Role::Send => self.pages.data(),
                Role::Receive => self.ram_done(),
            },
            ram_remaining: copying.remaining.saturating_sub(done_now),
            ram_rate: match copying.rate {
                0 => table.first_rate(now, self.pages.data()),
                rate => rate,
            },
            dirty_rate: copying.dirty_rate,
            throttle: copying.throttle,
            downtime_estimate: copying.downtime,
            downtime: table.paused.has_begun().then(|| table.paused.length()),
            devices: table.devices.iter().map(Device::progress).collect(),
            error: table.error.clone(),
        }
    }

    fn with_device(&self, id: &str, work: impl FnOnce(&mut Device)) {
        let mut table = self.table();
        if let Some(device) = table.devices.iter_mut().find(|device| device.id == id) {
            work(device);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For RAM.
impl Watch for Meter {
    fn done(&self, bytes: u64) {
        self.ram_done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        if self.is_too_slow() || self.copies_too_long() {
            // Not any more once the guest is handed over.
            self.decision.cancel();
        }
        self.decision.is_cancelled()
    }
}

/// For the state of one back-end.
pub struct DeviceWatch<'a> {
    meter: &'a Meter,
    id: &'a str,
}

impl DeviceWatch<'_> {
    /// The back-end has said that all of its state was moved.
    pub fn checked(&self) {
        self.meter.with_device(self.id, |device| {
            device.time.end();
            device.checked = true;
        });
    }
}

impl Watch for DeviceWatch<'_> {
    fn done(&self, bytes: u64) {
        self.meter.state_done.fetch_add(bytes, Ordering::Relaxed);
        self.meter
            .with_device(self.id, |device| device.bytes += bytes);
    }

    fn cancelled(&self) -> bool {
        self.meter.cancelled()
    }
}
