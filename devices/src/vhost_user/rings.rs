//! What Ferry reads of a split ring in guest RAM: whether the back-end has used all that the guest made available.

use std::io;

use vm_memory::{Address, GuestAddress};

use super::memory::{RamRegion, is_ram, read_u16};
use crate::virtio::ActiveQueue;

/// Where the index lies in the available and in the used ring (Virtual I/O Device 1.2, 2.7.6 and 2.7.8), in bytes.
const INDEX: u64 = 2;

/// How many buffers made available in `queue` have not been used yet; more than the queue's size
/// if the guest writes nonsense.
pub fn outstanding(ram: &[RamRegion], queue: &ActiveQueue) -> io::Result<u16> {
    let at = |ring: GuestAddress| {
        ring.checked_add(INDEX)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    };
    let used = read_u16(ram, at(queue.used)?)?;
    let available = read_u16(ram, at(queue.available)?)?;
    Ok(available.wrapping_sub(used))
}

/// Whether the parts of `queue` lie in `ram` and its size is legal.
pub fn fits(ram: &[RamRegion], queue: &ActiveQueue) -> bool {
    let size = u64::from(queue.size);
    queue.size.is_power_of_two()
        && queue.size <= 32768
        && is_ram(ram, queue.descriptors, 16 * size)
        && is_ram(ram, queue.available, 6 + 2 * size)
        && is_ram(ram, queue.used, 6 + 8 * size)
}
