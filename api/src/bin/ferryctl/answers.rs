//! Ferry's answers, as far as they are shown to people.
//!
//! Whatever may be missing is optional, and what is not known is passed over: ferryctl and Ferry need not be of the same
//! version.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `vmm.ping`.
#[derive(Debug, Deserialize)]
pub struct Ping {
    pub version: String,
    pub pid: Option<i64>,
}

/// `vm.info`.
#[derive(Debug, Deserialize)]
pub struct Info {
    pub config: Config,
    pub state: String,
    pub transition: Option<String>,
    pub memory_actual_size: Option<u64>,
    #[serde(default)]
    pub device_tree: BTreeMap<String, Node>,
}

#[derive(Debug, Deserialize)]
pub struct Config {
    pub payload: Option<Payload>,
    pub cpus: Option<Cpus>,
    pub memory: Option<Memory>,
    pub disks: Option<Vec<Device>>,
    pub fs: Option<Vec<Device>>,
    pub vhost_user: Option<Vec<Device>>,
    pub serial: Option<Serial>,
}

#[derive(Debug, Deserialize)]
pub struct Payload {
    pub kernel: Option<String>,
    pub initramfs: Option<String>,
    pub cmdline: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Cpus {
    pub boot_vcpus: u32,
    pub max_vcpus: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub struct Memory {
    pub size: u64,
    #[serde(default)]
    pub shared: bool,
    #[serde(default)]
    pub hugepages: bool,
    pub hugepage_size: Option<u64>,
    #[serde(default)]
    pub prefault: bool,
}

#[derive(Debug, Deserialize)]
pub struct Serial {
    pub mode: String,
    pub file: Option<String>,
    pub socket: Option<String>,
}

/// A disk, a share or another device: the fields of all three.
#[derive(Debug, Deserialize)]
pub struct Device {
    pub id: Option<String>,
    #[serde(alias = "vhost_socket")]
    pub socket: Option<String>,
    pub num_queues: Option<u32>,
    pub queue_size: Option<u32>,
    #[serde(default)]
    pub readonly: bool,
    pub tag: Option<String>,
    pub device_type: Option<u32>,
}

/// Where a device is and how it is.
#[derive(Debug, Default, Deserialize)]
pub struct Node {
    pub pci_bdf: Option<String>,
    pub state: Option<String>,
    pub error: Option<Vec<String>>,
}

/// `vm.add-disk` and `vm.add-fs`.
#[derive(Debug, Deserialize)]
pub struct Added {
    pub id: String,
    pub bdf: Option<String>,
}

/// `vm.counters`.
pub type Counters = BTreeMap<String, BTreeMap<String, u64>>;

/// One of `vm.events`.
#[derive(Debug, Deserialize)]
pub struct Event {
    pub timestamp: Timestamp,
    pub source: String,
    pub event: String,
    pub properties: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Deserialize)]
pub struct Timestamp {
    pub secs: u64,
    pub nanos: u32,
}
