//! Taking a guest into a snapshot and back: the jobs, which run beside the vmm thread and may wait for disks and
//! back-ends. What they are told and when the guest stands still is the business of
//! [`lifecycle`](crate::lifecycle).
//!
//! Sections of the state, in their order:
//!
//! | name | form | holds |
//! |---|---|---|
//! | `config` | value | the definition, as JSON |
//! | `vcpu/N`, `chips`, `clock`, `pci`, `serial`, `pci/ID`, … | values | the machine, see [`MachineState`](crate::machine::saving::MachineState) |
//! | `device/ID` | value | where the rings of a device stopped, and what was negotiated |
//! | `back-end/ID` | chunks | what its back-end holds, if it holds anything |
//! | `__ramN` | blocks | checksums of RAM |

mod describe;
mod error;
mod meter;
mod renaming;
pub mod restore;
pub mod save;

use serde::{Deserialize, Serialize};
use vm_migration::stream::Saved;

pub use describe::{capacity, differing};
pub use error::Error;
pub use meter::Meter;
pub use renaming::Renaming;

const CONFIG: &str = "config";

/// The section of a device.
pub fn device_section(id: &str) -> String {
    format!("device/{id}")
}

/// The section of what a back-end holds.
fn back_end_section(id: &str) -> String {
    format!("back-end/{id}")
}

/// The kind of state that back-ends hold; what it means is theirs.
const BACK_END_SCHEMA: &str = "back-end";
const BACK_END_VERSION: u16 = 1;

/// A saved definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStateV1 {
    /// As the API shows it.
    pub json: String,
}

impl Saved for ConfigStateV1 {
    const SCHEMA: &'static str = "vm-config";
    const VERSION: u16 = 1;
}
