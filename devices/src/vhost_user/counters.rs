//! What can be counted of a device while it runs. Reading it disturbs nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::RamRegion;
use super::moving::RingStateV1;
use super::rings;
use crate::virtio::ActiveQueue;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the worker counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub activations: Counter,
    pub resets: Counter,
    pub suspends: Counter,
    pub resumes: Counter,
    pub config_changes: Counter,
    pub late_answers: Counter,
    pub config_writes_dropped: Counter,
}

impl Counters {
    pub fn sample(&self) -> DeviceCounters {
        DeviceCounters {
            activations: self.activations.get(),
            resets: self.resets.get(),
            suspends: self.suspends.get(),
            resumes: self.resumes.get(),
            config_changes: self.config_changes.get(),
            late_answers: self.late_answers.get(),
            config_writes_dropped: self.config_writes_dropped.get(),
        }
    }
}

/// What has happened to a device since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Activations by the guest's driver that succeeded.
    pub activations: u64,
    /// Resets by the guest's driver, or for a new guest, that have ended.
    pub resets: u64,
    /// Suspensions that succeeded.
    pub suspends: u64,
    /// Resumptions that succeeded, those with nothing to do included.
    pub resumes: u64,
    /// Announcements by the back-end that its configuration space has changed. Several that come at once may count as one.
    pub config_changes: u64,
    /// Answers that took the back-end longer than [`Limits::request`](super::Limits::request), or so long that what
    /// needed them was given up.
    pub late_answers: u64,
    /// Writes of the guest to the configuration space that were lost because the back-end took none for too long.
    pub config_writes_dropped: u64,
}

/// A ring of a device that runs, as it was for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingCounters {
    /// Index within the device.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// How many buffers the guest has made available since the activation, modulo 65536.
    pub available: u16,
    /// How many buffers the back-end has used since the activation, modulo 65536.
    pub used: u16,
}

/// Where the rings of the running session are.
#[derive(Clone, Debug, Default)]
pub(super) struct RunningRings {
    pub features: u64,
    pub ram: Arc<[RamRegion]>,
    pub places: Arc<[rings::Place]>,
}

impl RunningRings {
    pub fn new(features: u64, ram: &Arc<[RamRegion]>, queues: &[ActiveQueue]) -> Self {
        RunningRings {
            features,
            ram: Arc::clone(ram),
            places: queues.iter().map(rings::Place::of).collect(),
        }
    }

    /// Whether the back-end has used all that it took of a ring that has been stopped. In a ring that makes no sense it has.
    pub fn is_settled(&self, ring: &RingStateV1) -> bool {
        let mut places = self.places.iter();
        let place = places.find(|place| place.index == ring.index);
        place.is_none_or(|place| rings::is_settled(&self.ram, place, ring.base))
    }

    /// Looks at each ring in guest RAM. Available and used are read one after the other while both may move.
    pub fn sample(&self) -> Vec<RingCounters> {
        let places = self.places.iter();
        places
            .filter_map(|place| {
                let indexes = rings::indexes(&self.ram, place).ok()?;
                Some(RingCounters {
                    index: place.index,
                    size: place.size,
                    available: indexes.available,
                    used: indexes.used,
                })
            })
            .collect()
    }
}
