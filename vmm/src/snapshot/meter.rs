//! How far a snapshot or restore is: written by its job, read by whoever asks, and the way to give it up.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_api::snapshot::{Operation, Progress, Status, Step};
use vm_migration::Watch;

use super::Error;
use crate::progress::{Decision, Device, GivenUp, Stretch, lengths};

/// How far an operation is.
pub struct Meter {
    operation: Operation,
    directory: PathBuf,
    begun: Instant,
    decision: Decision,
    ram_done: AtomicU64,
    // Held for a few assignments at a time.
    table: Mutex<Table>,
}

struct Table {
    status: Status,
    /// When each step began.
    steps: Vec<(Step, Instant)>,
    ended: Option<Instant>,
    paused: Stretch,
    ram: Stretch,
    ram_total: u64,
    devices: Vec<Device>,
    error: Vec<String>,
}

impl Meter {
    pub fn new(operation: Operation, directory: &Path) -> Self {
        let now = Instant::now();
        Meter {
            operation,
            directory: directory.to_owned(),
            begun: now,
            decision: Decision::default(),
            ram_done: AtomicU64::new(0),
            table: Mutex::new(Table {
                status: Status::UnderWay,
                steps: vec![(Step::Check, now)],
                ended: None,
                paused: Stretch::default(),
                ram: Stretch::default(),
                ram_total: 0,
                devices: Vec::new(),
                error: Vec::new(),
            }),
        }
    }

    /// The directory that is written or read.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the operation end soon, unless it cannot be given up any more.
    pub fn cancel(&self) {
        self.decision.cancel();
    }

    /// From now on the operation cannot be given up.
    ///
    /// # Errors
    /// [`Error::Cancelled`]: it has been already.
    pub fn commit(&self) -> Result<(), Error> {
        self.decision.commit();
        self.unless_cancelled()
    }

    /// That the operation has not been given up.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn unless_cancelled(&self) -> Result<(), Error> {
        match self.cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// Waits for something to arrive; nothing at the deadline.
    ///
    /// # Errors
    /// [`Error::Cancelled`], soon after the operation was given up, or once nobody is left who could send anything.
    pub fn wait<T>(&self, receiver: &Receiver<T>, deadline: Instant) -> Result<Option<T>, Error> {
        let waited = self.decision.wait(receiver, deadline);
        waited.map_err(|GivenUp| Error::Cancelled)
    }

    /// A step begins, and the one before has ended.
    pub fn enter(&self, step: Step) {
        self.table().steps.push((step, Instant::now()));
    }

    /// The guest stands still from now on.
    pub fn guest_stops(&self) {
        self.table().paused.begin();
    }

    /// The guest runs again.
    pub fn guest_goes_on(&self) {
        self.table().paused.end();
    }

    /// How long the guest has stood still.
    pub fn paused(&self) -> Duration {
        self.table().paused.length()
    }

    /// RAM begins to be moved, so many bytes of it.
    pub fn ram_begins(&self, total: u64) {
        let mut table = self.table();
        table.ram_total = total;
        table.ram.begin();
    }

    /// So many bytes of RAM are there without being moved.
    pub fn ram_is_mapped(&self, total: u64) {
        self.table().ram_total = total;
        self.ram_done.store(total, Ordering::Relaxed);
    }

    /// All RAM is moved.
    pub fn ram_ends(&self) {
        self.table().ram.end();
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

    /// Notes the end. The first word counts.
    pub fn end(&self, error: Option<Vec<String>>) {
        let mut table = self.table();
        if table.ended.is_some() {
            return;
        }
        table.ended = Some(Instant::now());
        if table.paused.has_begun() {
            table.paused.end();
        }
        table.status = match error {
            Some(_) => Status::Failed,
            None => Status::Done,
        };
        table.error = error.unwrap_or_default();
    }

    /// How it stands.
    pub fn progress(&self) -> Progress {
        let table = self.table();
        let now = table.ended.unwrap_or_else(Instant::now);
        let ram_done = self.ram_done.load(Ordering::Relaxed);
        let ram_seconds = table.ram.length().as_secs_f64();
        Progress {
            operation: self.operation,
            directory: self.directory.clone(),
            status: table.status,
            step: table.steps.last().map_or(Step::Check, |(step, _)| *step),
            steps: lengths(&table.steps, now),
            elapsed: now.duration_since(self.begun),
            paused: table.paused.length(),
            ram_done,
            ram_total: table.ram_total,
            ram_rate: match ram_seconds > 0.0 {
                true => (ram_done as f64 / ram_seconds) as u64,
                false => 0,
            },
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
    pub fn checked(self) {
        self.meter.with_device(self.id, |device| {
            device.time.end();
            device.checked = true;
        });
    }
}

impl Watch for DeviceWatch<'_> {
    fn done(&self, bytes: u64) {
        self.meter
            .with_device(self.id, |device| device.bytes += bytes);
    }

    fn cancelled(&self) -> bool {
        self.meter.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn of_going_on_and_giving_up_the_first_counts() {
        let meter = Meter::new(Operation::Restore, Path::new("/snapshot"));
        meter.cancel();
        assert!(matches!(meter.commit(), Err(Error::Cancelled)));
        let meter = Meter::new(Operation::Restore, Path::new("/snapshot"));
        meter.commit().unwrap();
        meter.cancel();
        meter.unless_cancelled().unwrap();
    }

    #[test]
    fn who_waits_gets_what_arrives_or_hears_that_it_is_late_or_over() {
        const LONG: Duration = Duration::from_secs(60);
        let meter = Meter::new(Operation::Restore, Path::new("/snapshot"));
        let (sender, receiver) = channel();
        sender.send(7).unwrap();
        let begun = Instant::now();
        assert_eq!(meter.wait(&receiver, begun + LONG).unwrap(), Some(7));
        assert_eq!(meter.wait(&receiver, begun).unwrap(), None);
        meter.cancel();
        let given_up = meter.wait(&receiver, begun + LONG);
        assert!(matches!(given_up, Err(Error::Cancelled)), "{given_up:?}");
        assert!(matches!(meter.unless_cancelled(), Err(Error::Cancelled)));
        drop(sender);
        let meter = Meter::new(Operation::Restore, Path::new("/snapshot"));
        let alone = meter.wait(&receiver, begun + LONG);
        assert!(matches!(alone, Err(Error::Cancelled)), "{alone:?}");
    }
}
