//! The configuration of a virtual machine.

pub mod keys;
mod saved;
pub mod text;
pub mod validate;

use std::path::PathBuf;
use std::time::Duration;

pub use saved::SavedError;

/// A whole virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// What to boot.
    pub payload: PayloadConfig,
    /// Virtual processors.
    pub cpus: CpusConfig,
    /// Guest RAM.
    pub memory: MemoryConfig,
    /// Disks: vhost-user-blk back-ends.
    pub disks: Vec<DiskConfig>,
    /// Shared directories: vhost-user-fs back-ends.
    pub fs: Vec<FsConfig>,
    /// Devices of any other virtio type.
    pub vhost_user: Vec<GenericConfig>,
    /// The 16550 serial port, `ttyS0`.
    pub serial: SerialConfig,
}

/// What to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadConfig {
    /// An ELF kernel with a PVH note, or a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line; empty if none was given.
    pub cmdline: String,
}

/// Virtual processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpusConfig {
    /// Processors at boot, 1 to [`CpusConfig::MOST`].
    pub boot_vcpus: u8,
    /// Processors the guest may ever have, at least `boot_vcpus`.
    pub max_vcpus: u8,
}

impl CpusConfig {
    /// The largest number of virtual processors.
    pub const MOST: u8 = 32;
}

/// Guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes, at least [`MemoryConfig::LEAST`] and a multiple of the page size in use.
    pub size: u64,
    /// Whether other processes may map it; every vhost-user back-end has to.
    pub shared: bool,
    /// Whether RAM is made of huge pages.
    pub hugepages: bool,
    /// Bytes in a huge page: 2 MiB or 1 GiB; the system's default size if not given.
    pub hugepage_size: Option<u64>,
    /// Whether all of RAM is touched before the guest starts.
    pub prefault: bool,
}

impl MemoryConfig {
    /// The smallest amount of guest RAM, in bytes.
    pub const LEAST: u64 = 64 << 20;
}

/// What every vhost-user device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// The device's name, unique in the VM, `disk0` if the user gave none.
    pub id: String,
    /// The back-end's listening unix socket.
    pub socket: PathBuf,
    /// Number of queues that carry requests, 1 to 256. (fs: without the hiprio queue.)
    pub num_queues: u16,
    /// Descriptors in each queue, a power of two from 2 to 32768.
    pub queue_size: u16,
}

/// A disk served by a vhost-user-blk back-end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Socket, queues, id.
    pub backend: BackendConfig,
    /// Whether the guest sees a read-only disk, even if the back-end would take writes.
    pub readonly: bool,
}

/// A directory served by a vhost-user-fs back-end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsConfig {
    /// Socket, queues, id.
    pub backend: BackendConfig,
    /// The name the guest mounts it by, 1 to 36 bytes.
    pub tag: String,
}

/// A device of any virtio type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenericConfig {
    /// Socket, queues, id.
    pub backend: BackendConfig,
    /// The virtio device type, 1 to 63 (Virtual I/O Device 1.2, 5).
    pub device_type: u32,
    /// Whether the back-end holds state.
    pub state: StateConfig,
    /// Queues that carry requests and so run empty when the guest is paused.
    pub drain: Vec<u16>,
    /// Bytes of configuration space, if Ferry is to present these instead of asking the back-end.
    pub config: Option<Vec<u8>>,
}

/// What a generic device's back-end keeps between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateConfig {
    /// Nothing that has to move with the guest.
    None,
    /// State that has to move, so that the back-end must offer DEVICE_STATE.
    Required,
    /// Not said: the back-end may be saved only if it offers DEVICE_STATE.
    Unspecified,
}

/// Where the serial port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialConfig {
    /// There is no serial port.
    Off,
    /// Output is thrown away.
    Null,
    /// Ferry's own terminal, standard input and output.
    Tty,
    /// A new pseudo-terminal, whose path Ferry logs.
    Pty,
    /// Output goes to this file, which is emptied first.
    File(PathBuf),
    /// A unix socket on which Ferry listens for one client at a time.
    Socket(PathBuf),
}

/// How long Ferry waits for a back-end. Nothing waits without one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// How long a socket without a listener is tried again when Ferry starts.
    pub connect: Duration,
    /// How long a request may take until the step that needed its answer is given up.
    pub request: Duration,
    /// How long an answer may be owed until the back-end counts as dead; at least `request`.
    pub dead: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(10),
            dead: Duration::from_secs(60),
        }
    }
}
