//! What Ferry reads of a split ring in guest RAM: whether the back-end has used all that the guest made available.

use std::io;

use vm_memory::{Address, GuestAddress};

use super::memory::{RamRegion, is_ram, read_u16};
use crate::virtio::ActiveQueue;

/// Where the index lies in the available and in the used ring (Virtual I/O Device 1.2, 2.7.6 and 2.7.8), in bytes.
const INDEX: u64 = 2;

/// Where to look.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Index of the queue within the device.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    available: GuestAddress,
    used: GuestAddress,
}

impl Place {
    /// Where `queue` has its rings.
    pub fn of(queue: &ActiveQueue) -> Self {
        Place {
            index: queue.index,
            size: queue.size,
            available: queue.available,
            used: queue.used,
        }
    }
}

/// Where the parts of a ring are, as a back-end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Index of the queue within the device.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Where the descriptor table begins.
    pub descriptors: GuestAddress,
    /// Where the available ring begins.
    pub available: GuestAddress,
    /// Where the used ring begins.
    pub used: GuestAddress,
}

impl Parts {
    /// Those of `queue`.
    pub fn of(queue: &ActiveQueue) -> Self {
        Parts {
            index: queue.index,
            size: queue.size,
            descriptors: queue.descriptors,
            available: queue.available,
            used: queue.used,
        }
    }

    /// All at the same place, for a ring that stands still.
    pub fn parked_at(self, place: GuestAddress) -> Self {
        Parts {
            descriptors: place,
            available: place,
            used: place,
            ..self
        }
    }

    /// Whether each of them begins in `ram`.
    pub fn begin_in(&self, ram: &[RamRegion]) -> bool {
        [self.descriptors, self.available, self.used]
            .into_iter()
            .all(|address| is_ram(ram, address, 1))
    }
}

/// How far both sides of a queue have come, modulo 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indexes {
    /// Buffers that the guest has made available.
    pub available: u16,
    /// Buffers that the back-end has used.
    pub used: u16,
}

impl Indexes {
    /// How many buffers made available have not been used yet; more than the queue's size
    /// if the guest writes nonsense.
    pub fn outstanding(self) -> u16 {
        self.available.wrapping_sub(self.used)
    }
}

/// Reads the indexes of a queue.
pub fn indexes(ram: &[RamRegion], place: &Place) -> io::Result<Indexes> {
    let at = |ring: GuestAddress| {
        ring.checked_add(INDEX)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    };
    // In this order: what is used was available before.
    let used = read_u16(ram, at(place.used)?)?;
    let available = read_u16(ram, at(place.available)?)?;
    Ok(Indexes { available, used })
}

/// Whether the back-end, which is to go on at `base`, has used all before that and nothing behind it. In a ring that makes no sense
/// (the guest's doing) any place is as good.
pub fn is_settled(ram: &[RamRegion], place: &Place, base: u16) -> bool {
    indexes(ram, place)
        .is_ok_and(|indexes| indexes.outstanding() > place.size || indexes.used == base)
}

/// Whether the size of `queue` is legal, and its parts are aligned (Virtual I/O Device 1.2, 2.7) and lie in `ram`.
pub fn fits(ram: &[RamRegion], queue: &ActiveQueue) -> bool {
    let size = u64::from(queue.size);
    let parts = [
        (queue.descriptors, 16, 16 * size),
        (queue.available, 2, 6 + 2 * size),
        (queue.used, 4, 6 + 8 * size),
    ];
    queue.size.is_power_of_two()
        && queue.size <= 32768
        && parts.into_iter().all(|(address, alignment, length)| {
            address.0.is_multiple_of(alignment) && is_ram(ram, address, length)
        })
}
