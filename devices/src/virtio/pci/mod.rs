//! virtio over PCI, modern devices only (Virtual I/O Device 1.2, 4.1).
//!
//! One memory BAR holds everything that a driver touches. The doorbells in it are ioeventfds and the
//! interrupts irqfds, so that once a queue runs, no code of Ferry does.
//!
//! | offset | what |
//! |---|---|
//! | `0x0000` | common configuration: features, status, queues |
//! | `0x1000` | ISR status |
//! | `0x2000` | device configuration |
//! | `0x4000` | doorbells, 4 bytes a queue |
//! | `0x8000` | MSI-X table |
//! | `0xc000` | MSI-X pending bits |
//!
//! * [`VirtioPci`] is the function on the bus: it decodes accesses and serialises them
//! * `layout` holds that table, and tells the driver of it
//! * `registers` holds what the common configuration shows and the device's life cycle
//! * [`VirtioPciStateV1`] is what is saved of both

mod layout;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod transport;

pub use layout::BAR_SIZE;
pub use state::{PhaseStateV1, QueueStateV1, RegistersStateV1, SaveError, VirtioPciStateV1};
pub use transport::{Events, VirtioPci};
