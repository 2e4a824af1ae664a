//! One PCI Express bus without a bridge, as a guest without firmware finds it.
//!
//! * [`ConfigSpace`]: the 256 bytes of registers of a function, with its one memory BAR
//! * [`MsiX`]: its interrupt vectors
//! * [`PciBus`]: routes 0xCF8/0xCFC, ECAM and memory accesses to the functions
//!
//! Following PCI Local Bus Specification 3.0 and PCI Express Base Specification 4.0 (7.2.2, ECAM).

mod bus;
mod config;
mod msix;
mod state;

use std::ops::Range;

pub use bus::{PciBus, PciBusFull, PciBusStateV1};
pub use config::{CapabilityId, ConfigSpace, ConfigSpaceStateV1, Identity};
pub use msix::{MsiX, MsiXStateV1, Source, SourceStateV1, VectorStateV1, Wiring};
pub use state::{NotThisFunction, RestoreError};

/// A PCI function: a device on the bus.
///
/// Called from vCPU threads, so that every method returns at once. Accesses are 1, 2 or 4 bytes
/// long and naturally aligned, those to a BAR also 8 bytes.
pub trait PciFunction: Send + Sync {
    /// Reads configuration registers at `offset` bytes, below 256.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration registers at `offset` bytes, below 256.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// The guest-physical addresses that the function's memory BAR decodes at present; none while
    /// the guest has memory decoding off.
    fn decoded(&self) -> Option<Range<u64>>;

    /// Reads the BAR at `offset` bytes from its base; the access lies inside the BAR.
    fn read_bar(&self, offset: u64, data: &mut [u8]);

    /// Writes the BAR at `offset` bytes from its base; the access lies inside the BAR.
    fn write_bar(&self, offset: u64, data: &[u8]);
}
