//! The JSON of the API.
//!
//! Names and shapes are those of Cloud Hypervisor's API, so that its clients work with Ferry. Fields that Ferry does not
//! know are ignored, and `null` is the same as absent. What Ferry adds is marked in the OpenAPI description
//! ([`crate::openapi`]).
//!
//! These types hold what clients write, wrong or right. [`VmConfig::check`] and its like turn them into a
//! [`crate::config`], by the rules that hold for the command line as well.

mod check;
mod describe;
mod info;
mod list;
mod migration;
mod progress;
mod snapshot;
#[cfg(test)]
mod tests;

pub use check::Wrong;
pub use info::{DeviceNode, DeviceState, EventReport, Ping, Timestamp, VmInfo, VmState};
pub use migration::{
    Migration, MigrationDevice, MigrationMode, MigrationPhase, MigrationRam, MigrationRole,
    MigrationState, PeerPhase, PhaseReport, ReceiveMigration, SendMigration, TimeoutStrategy,
    Unlogged,
};
pub use progress::{DeviceProgress, Operation, Progress, RamProgress, Status, Step, StepReport};
pub use snapshot::{After, MemoryMode, Restore, RestoreDevice, Snapshot};

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmConfig {
    /// Virtual processors; one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Guest RAM; 512 MiB if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// What to boot.
    #[schema(required = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
    /// Disks.
    #[schema(max_items = 31)]
    #[serde(
        default,
        deserialize_with = "list::bounded",
        skip_serializing_if = "Option::is_none"
    )]
    pub disks: Option<Vec<Disk>>,
    /// Shared directories.
    #[schema(max_items = 31)]
    #[serde(
        default,
        deserialize_with = "list::bounded",
        skip_serializing_if = "Option::is_none"
    )]
    pub fs: Option<Vec<Fs>>,
    /// Devices of any other virtio type.
    #[schema(max_items = 31)]
    #[serde(
        default,
        deserialize_with = "list::bounded",
        skip_serializing_if = "Option::is_none"
    )]
    pub vhost_user: Option<Vec<VhostUser>>,
    /// The serial port, `ttyS0`; Null if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Console>,
    /// A virtio console, which Ferry does not have: Off or Null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<Console>,
}

/// Virtual processors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cpus {
    /// Processors at boot; 1 if absent.
    #[schema(minimum = 1, maximum = 32)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_vcpus: Option<u32>,
    /// Processors the guest may ever have; as many as at boot if absent.
    #[schema(minimum = 1, maximum = 32)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u32>,
}

/// Guest RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// Bytes, at least 64 MiB and a multiple of the page size; 512 MiB if absent.
    #[schema(minimum = 67108864)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether back-ends can map it, as each device needs; true if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// Whether RAM is made of huge pages; false if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<bool>,
    /// Bytes in a huge page: 2 MiB or 1 GiB; the system's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Whether all RAM is touched before the guest starts; false if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefault: Option<bool>,
}

/// What to boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Payload {
    /// The path of an ELF kernel with a PVH note, or of a bzImage.
    #[schema(required = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The path of the initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<String>,
    /// The kernel's command line, at most 2047 bytes; empty if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// A disk served by a vhost-user-blk back-end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// The device's name, unique in the machine; made up if absent.
    #[schema(max_length = 64)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Has to be true: Ferry has no disks of its own.
    #[schema(required = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<bool>,
    /// The unix socket on which the back-end listens.
    #[schema(required = true, max_length = 107)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Request queues; 1 if absent.
    #[schema(minimum = 1, maximum = 256)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u32>,
    /// Descriptors in a queue, a power of two; 128 if absent.
    #[schema(minimum = 2, maximum = 32768)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u32>,
    /// Whether the guest cannot write; false if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readonly: Option<bool>,
}

/// A directory served by a vhost-user-fs back-end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fs {
    /// The device's name, unique in the machine; made up if absent.
    #[schema(max_length = 64)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name the guest mounts it by, 1 to 36 bytes.
    #[schema(required = true, min_length = 1, max_length = 36)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The unix socket on which the back-end listens.
    #[schema(required = true, max_length = 107)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Request queues; 1 if absent.
    #[schema(minimum = 1, maximum = 256)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u32>,
    /// Descriptors in a queue, a power of two; 1024 if absent.
    #[schema(minimum = 2, maximum = 32768)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u32>,
}

/// A device of any virtio type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VhostUser {
    /// The device's name, unique in the machine; made up if absent.
    #[schema(max_length = 64)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The unix socket on which the back-end listens.
    #[schema(required = true, max_length = 107)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// The virtio device type: 1 is net, 4 rng, 19 vsock.
    #[schema(required = true, minimum = 1, maximum = 63)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_type: Option<u32>,
    /// Queues; 1 if absent.
    #[schema(minimum = 1, maximum = 256)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u32>,
    /// Descriptors in a queue, a power of two; 128 if absent.
    #[schema(minimum = 2, maximum = 32768)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u32>,
    /// Whether the back-end holds state that moves with the guest; if absent, Ferry goes by what the back-end offers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Queues that run empty when the guest pauses, counted from 0.
    #[schema(max_items = 256)]
    #[serde(
        default,
        deserialize_with = "list::bounded",
        skip_serializing_if = "Option::is_none"
    )]
    pub drain: Option<Vec<u16>>,
    /// The configuration space, up to 256 bytes in hexadecimal digits; if absent, the back-end is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}

/// What a back-end keeps between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing that has to move with the guest.
    None,
    /// State that has to move.
    Required,
}

/// Where a serial port or console leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Console {
    /// The kind of place; if absent, the same as without all of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ConsoleMode>,
    /// The path, for mode File.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The path, for mode Socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// The kinds of places that a serial port may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ConsoleMode {
    /// There is none.
    Off,
    /// Output is thrown away.
    Null,
    /// Ferry's own terminal.
    Tty,
    /// A new pseudo-terminal.
    Pty,
    /// A file, which is emptied first.
    File,
    /// A unix socket on which Ferry listens for one client at a time.
    Socket,
}

/// The device to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoveDevice {
    /// Its name.
    #[schema(required = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// Whole milliseconds, as the API counts time.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
