//! The driver's side of a split virtqueue in test RAM.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::harness::{HANG, TestRam};
use crate::sys::poll::{self, Interest};
use crate::virtio::ActiveQueue;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Descriptors in the ring.
pub const SIZE: u16 = 16;

/// A buffer of a request.
pub struct Buffer {
    pub address: u64,
    pub length: u32,
    pub access: BufferAccess,
}

#[derive(PartialEq, Eq)]
pub enum BufferAccess {
    DeviceReads,
    DeviceWrites,
}

/// A virtqueue whose parts begin at `base`.
pub struct Ring<'a> {
    ram: &'a TestRam,
    pub queue: ActiveQueue,
    available: u16,
    used: u16,
}

impl<'a> Ring<'a> {
    pub fn new(ram: &'a TestRam, index: u16, base: u64) -> Self {
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queue = ActiveQueue {
            index,
            size: SIZE,
            descriptors: GuestAddress(base),
            available: GuestAddress(base + 0x1000),
            used: GuestAddress(base + 0x2000),
            kick: event(),
            call: event(),
        };
        let mut ring = Ring {
            ram,
            queue,
            available: 0,
            used: 0,
        };
        ring.clear();
        ring
    }

    /// As a driver does before it activates the device anew.
    pub fn clear(&mut self) {
        self.ram.write(self.queue.descriptors.0, &[0; 0x3000]);
        self.available = 0;
        self.used = 0;
    }

    /// Makes a request available, beginning at descriptor `head`; nobody is told.
    pub fn publish(&mut self, head: u16, buffers: &[Buffer]) {
        for (position, buffer) in buffers.iter().enumerate() {
            let index = head + position as u16;
            let mut flags = 0;
            if position + 1 < buffers.len() {
                flags |= NEXT;
            }
            if buffer.access == BufferAccess::DeviceWrites {
                flags |= WRITE;
            }
            let mut descriptor = Vec::new();
            descriptor.extend_from_slice(&buffer.address.to_le_bytes());
            descriptor.extend_from_slice(&buffer.length.to_le_bytes());
            descriptor.extend_from_slice(&flags.to_le_bytes());
            descriptor.extend_from_slice(&(index + 1).to_le_bytes());
            let at = self.queue.descriptors.0 + 16 * u64::from(index);
            self.ram.write(at, &descriptor);
        }
        let slot = u64::from(self.available % SIZE);
        let ring = self.queue.available.0;
        self.ram.write(ring + 4 + 2 * slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.ram.write(ring + 2, &self.available.to_le_bytes());
    }

    pub fn kick(&self) {
        self.queue.kick.write(1).unwrap();
    }

    /// Makes `count` more buffers available, and no requests in them: for back-ends that do not look.
    pub fn offer(&mut self, count: u16) {
        self.available = self.available.wrapping_add(count);
        let at = self.queue.available.0 + 2;
        self.ram.write(at, &self.available.to_le_bytes());
    }

    /// Uses buffers up to `index`, as a back-end does.
    pub fn pretend_used(&self, index: u16) {
        self.ram.write(self.queue.used.0 + 2, &index.to_le_bytes());
    }

    /// The index of the used ring.
    pub fn used_index(&self) -> u16 {
        self.ram.read_u16(self.queue.used.0 + 2)
    }

    /// Waits until everything published has been used, woken by the call eventfd alone.
    pub fn wait(&mut self) {
        let deadline = Instant::now() + HANG;
        while self.used_index() != self.available {
            let mut entries = [poll::entry(Some(&*self.queue.call), Interest::Read)];
            poll::wait(&mut entries, Some(deadline)).unwrap();
            assert!(poll::ready(&entries[0]), "the back-end raised no interrupt");
            self.queue.call.read().unwrap();
        }
        self.used = self.available;
    }
}
