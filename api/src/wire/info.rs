//! What the API answers with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::VmConfig;
use crate::control;
use crate::events::{Event, Properties};

/// This Ferry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ping {
    /// Name and version.
    pub build_version: String,
    /// The version.
    pub version: String,
    /// Ferry's process.
    pub pid: u32,
    /// What this build has beyond what every build has.
    pub features: Vec<String>,
}

impl Ping {
    /// The process we are in.
    pub fn here() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Ping {
            build_version: format!("ferry-{version}"),
            version: version.into(),
            pid: std::process::id(),
            features: Vec::new(),
        }
    }
}

/// A virtual machine, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// Its definition.
    pub config: VmConfig,
    /// Where it stands.
    pub state: VmState,
    /// Bytes of guest RAM.
    pub memory_actual_size: u64,
    /// Its devices by name.
    #[serde(default)]
    pub device_tree: BTreeMap<String, DeviceNode>,
    /// What is under way, as a clause: `being paused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transition: Option<String>,
}

/// Where a virtual machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VmState {
    /// Defined, and never booted since.
    Created,
    /// The guest runs.
    Running,
    /// The guest and its devices stand still.
    Paused,
    /// The guest has ended; the definition is there.
    Shutdown,
}

/// A device and its back-end, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceNode {
    /// Its name.
    pub id: String,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    #[serde(default)]
    pub resources: Vec<()>,
    /// Always empty.
    #[serde(default)]
    pub children: Vec<String>,
    /// Where it is on the PCI bus, `0000:00:01.0`, while there is a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_bdf: Option<String>,
    /// Its virtio device type.
    pub device_type: u32,
    /// Where it and its back-end stand.
    pub state: DeviceState,
    /// Why it has failed, outermost first; absent if it has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub error: Vec<String>,
    /// The feature bits agreed on with the back-end, once there is a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<u64>,
}

/// Where a device and its back-end stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum DeviceState {
    /// No connection has been made yet.
    Disconnected,
    /// The back-end is there; the guest does not drive the device.
    Idle,
    /// The device is being activated, reset, suspended or resumed.
    Changing,
    /// The guest drives the device.
    Active,
    /// Suspended with the guest.
    Suspended,
    /// The back-end is of no use any more.
    Failed,
}

impl From<control::VmState> for VmState {
    fn from(state: control::VmState) -> Self {
        match state {
            control::VmState::Created => VmState::Created,
            control::VmState::Running => VmState::Running,
            control::VmState::Paused => VmState::Paused,
            control::VmState::Shutdown => VmState::Shutdown,
        }
    }
}

impl From<control::DeviceState> for DeviceState {
    fn from(state: control::DeviceState) -> Self {
        match state {
            control::DeviceState::Disconnected => DeviceState::Disconnected,
            control::DeviceState::Idle => DeviceState::Idle,
            control::DeviceState::Changing => DeviceState::Changing,
            control::DeviceState::Active => DeviceState::Active,
            control::DeviceState::Suspended => DeviceState::Suspended,
            control::DeviceState::Failed => DeviceState::Failed,
        }
    }
}

impl From<&control::DeviceInfo> for DeviceNode {
    fn from(device: &control::DeviceInfo) -> Self {
        let control::DeviceInfo {
            id,
            device_type,
            pci_bdf,
            state,
            error,
            features,
        } = device.clone();
        DeviceNode {
            id,
            resources: Vec::new(),
            children: Vec::new(),
            pci_bdf,
            device_type,
            state: state.into(),
            error,
            features,
        }
    }
}

impl From<&control::VmInfo> for VmInfo {
    fn from(info: &control::VmInfo) -> Self {
        let control::VmInfo {
            config,
            state,
            transition,
            memory_actual_size,
            devices,
        } = info;
        VmInfo {
            config: config.into(),
            state: (*state).into(),
            memory_actual_size: *memory_actual_size,
            device_tree: devices
                .iter()
                .map(|device| (device.id.clone(), device.into()))
                .collect(),
            transition: transition.map(str::to_owned),
        }
    }
}

/// A moment, as time since Ferry started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timestamp {
    /// Whole seconds.
    pub secs: u64,
    /// Nanoseconds beyond these.
    pub nanos: u32,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventReport {
    /// Its place among all events of this Ferry, from 1; absent in the event monitor's lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// When it happened.
    pub timestamp: Timestamp,
    /// The part of Ferry that it concerns: `vm`, `vmm`, `device`.
    pub source: String,
    /// What has happened.
    pub event: String,
    /// What more there is to tell.
    #[schema(inline)]
    pub properties: Properties,
}

impl From<&Event> for EventReport {
    fn from(event: &Event) -> Self {
        EventReport {
            seq: Some(event.seq),
            timestamp: Timestamp {
                secs: event.since_start.as_secs(),
                nanos: event.since_start.subsec_nanos(),
            },
            source: event.source.into(),
            event: event.event.into(),
            properties: event.properties.clone(),
        }
    }
}
