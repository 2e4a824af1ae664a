//! A split virtqueue from the device's side (Virtual I/O Device 1.2, 2.7).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};

use super::memory::Memory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A piece of guest memory that belongs to a request.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// A chain that the driver made available.
#[derive(Debug)]
pub struct Chain {
    /// The first descriptor.
    pub head: u16,
    /// What it consists of.
    pub pieces: Vec<Piece>,
}

/// Whether notifications are limited by index (VIRTIO_F_EVENT_IDX).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// Each side says from which index on it wants to be told.
    ByIndex,
    /// Each side has a flag.
    ByFlag,
}

/// One queue.
#[derive(Debug, Default)]
pub struct Ring {
    /// Number of descriptors.
    pub size: u16,
    /// The next chain to take.
    pub next_available: u16,
    /// User addresses of descriptors, used ring, available ring, as SET_VRING_ADDR gives them.
    pub user_addresses: Option<[u64; 3]>,
    /// From guest to back-end.
    pub kick: Option<File>,
    /// From back-end to guest.
    pub call: Option<File>,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
}

impl Ring {
    /// Whether requests are taken from it.
    pub fn runs(&self) -> bool {
        self.enabled && self.kick.is_some() && self.user_addresses.is_some() && self.size != 0
    }

    /// Empties the kick's counter. The front-end may have made it blocking, so it is to be polled first.
    pub fn take_kick(&mut self) {
        if let Some(kick) = &mut self.kick {
            let _ = kick.read(&mut [0; 8]);
        }
    }

    /// Uses `fd` as one of the eventfds.
    pub fn event(fd: Option<OwnedFd>) -> Option<File> {
        fd.map(File::from)
    }

    fn guest_addresses(&self, memory: &Memory) -> Option<[u64; 3]> {
        let [descriptors, used, available] = self.user_addresses?;
        Some([
            memory.resolve(descriptors)?,
            memory.resolve(used)?,
            memory.resolve(available)?,
        ])
    }

    /// The used ring's index; none if the ring is nowhere yet.
    pub fn used_index(&self, memory: &Memory) -> Option<u16> {
        let [_, used, _] = self.guest_addresses(memory)?;
        Some(memory.read_u16(used + 2))
    }

    /// Takes the next chain, if there is one.
    pub fn take(&mut self, memory: &Memory, events: Events) -> Option<Chain> {
        let [descriptors, used, available] = self.guest_addresses(memory)?;
        let size = u64::from(self.size);
        if memory.read_u16(available + 2) == self.next_available {
            if events == Events::ByFlag {
                return None;
            }
            // Ask to be told of the next one, then look again: it may have come in between.
            memory.write_u16(used + 4 + 8 * size, self.next_available);
            fence(Ordering::SeqCst);
            if memory.read_u16(available + 2) == self.next_available {
                return None;
            }
        }
        fence(Ordering::Acquire);
        let slot = u64::from(self.next_available % self.size);
        let head = memory.read_u16(available + 4 + 2 * slot);
        self.next_available = self.next_available.wrapping_add(1);
        let mut pieces = Vec::new();
        collect(memory, descriptors, u64::from(head), self.size, &mut pieces);
        Some(Chain { head, pieces })
    }

    /// Gives chains back and interrupts the guest if it wants to be.
    pub fn give_back(&mut self, memory: &Memory, events: Events, finished: &[Finished]) {
        let Some([_, used, available]) = self.guest_addresses(memory) else {
            return;
        };
        let size = u64::from(self.size);
        let before = memory.read_u16(used + 2);
        let mut index = before;
        for Finished { head, written } in finished {
            let element = used + 4 + 8 * u64::from(index % self.size);
            memory.write(element, &u32::from(*head).to_le_bytes());
            memory.write(element + 4, &written.to_le_bytes());
            index = index.wrapping_add(1);
        }
        fence(Ordering::SeqCst);
        memory.write_u16(used + 2, index);
        fence(Ordering::SeqCst);
        let wanted = match events {
            Events::ByFlag => memory.read_u16(available) & 1 == 0,
            Events::ByIndex => {
                let event = memory.read_u16(available + 4 + 2 * size);
                index.wrapping_sub(event).wrapping_sub(1) < index.wrapping_sub(before)
            }
        };
        if wanted {
            self.interrupt();
        }
    }

    /// Signals the call, wanted or not.
    pub fn interrupt(&mut self) {
        if let Some(call) = &mut self.call {
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }
}

/// A chain that is given back.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// The first descriptor.
    pub head: u16,
    /// How many bytes the device wrote into it.
    pub written: u32,
}

/// Follows a chain, at most as many descriptors as the table has.
fn collect(memory: &Memory, table: u64, mut index: u64, size: u16, pieces: &mut Vec<Piece>) {
    for _ in 0..size {
        let at = table + 16 * index;
        let (address, length) = (memory.read_u64(at), memory.read_u32(at + 8));
        let (flags, next) = (memory.read_u16(at + 12), memory.read_u16(at + 14));
        if flags & INDIRECT != 0 {
            return collect(memory, address, 0, (length / 16).min(1024) as u16, pieces);
        }
        pieces.push(Piece {
            address,
            length,
            writable: flags & WRITE != 0,
        });
        if flags & NEXT == 0 {
            return;
        }
        index = u64::from(next);
    }
}
