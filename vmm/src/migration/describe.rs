//! What the receiver is told of a guest before it is paused, so that nothing that can be found out beforehand is found out
//! while it stands still.

use std::fmt;
use std::marker::PhantomData;

use ferry_api::config::{CpusConfig, VmConfig};
use ferry_devices::virtio::VirtioDevice;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use vm_migration::manifest::{self, Bits, Hex};
use vm_migration::stream::Saved;

use crate::cpu::state::Abi;
use crate::lifecycle::Ready;
use crate::snapshot::capacity;

const PROCESSORS: usize = CpusConfig::MOST as usize;
const DEVICES: usize = VmConfig::DEVICES_MOST;

/// A guest, described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestV1 {
    /// The definition, as the API shows it.
    pub config: String,
    /// What each processor says of itself.
    #[serde(deserialize_with = "few::<PROCESSORS, _, _>")]
    pub cpuids: Vec<Vec<Abi<kvm_cpuid_entry2>>>,
    /// The frequency of their time stamp counters, if KVM tells it.
    pub tsc_khz: Option<u32>,
    /// In the order of the bus.
    #[serde(deserialize_with = "few::<DEVICES, _, _>")]
    pub devices: Vec<DeviceV1>,
    /// What the guest does when it has arrived.
    pub arrival: ArrivalV1,
}

/// What a guest does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArrivalV1 {
    /// It runs, as before.
    Running,
    /// It stays paused, as before.
    Paused,
}

/// A device, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceV1 {
    pub id: String,
    pub virtio_type: u32,
    pub config: Vec<u8>,
    pub queues: u16,
    /// Those that the driver has accepted, so far.
    pub features: u64,
    pub protocol_features: u64,
}

impl Saved for GuestV1 {
    const SCHEMA: &'static str = "guest";
    const VERSION: u16 = 1;
}

impl GuestV1 {
    pub fn new(
        config: &VmConfig,
        cpuids: &[CpuId],
        tsc_khz: Option<u32>,
        devices: &[Ready],
        arrival: ArrivalV1,
    ) -> Self {
        let entries = |cpuid: &CpuId| cpuid.as_slice().iter().copied().map(Abi).collect();
        GuestV1 {
            config: config.clone().with_absolute_paths().to_json(),
            cpuids: cpuids.iter().map(entries).collect(),
            tsc_khz,
            devices: devices.iter().map(describe).collect(),
            arrival,
        }
    }

    /// The devices, as they are compared with those of the receiver.
    pub fn devices(&self) -> Vec<manifest::Device> {
        let devices = self.devices.iter().map(|device| {
            let DeviceV1 {
                id,
                virtio_type,
                config,
                queues,
                features,
                protocol_features,
            } = device.clone();
            manifest::Device {
                id,
                virtio_type,
                capacity: capacity(virtio_type, &config),
                config: Hex(config),
                queues,
                queue_sizes: Vec::new(),
                features: Bits(features),
                protocol_features: Bits(protocol_features),
                state: manifest::DeviceState::Stateless,
            }
        });
        devices.collect()
    }
}

/// A list of no more than `MOST` elements. Otherwise a megabyte could stand for a million of them. Of a longer one, one too many is
/// kept: who compares it with the definition can say what is wrong.
fn few<'de, const MOST: usize, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(Few::<MOST, T>(PhantomData))
}

struct Few<const MOST: usize, T>(PhantomData<T>);

impl<'de, const MOST: usize, T: Deserialize<'de>> Visitor<'de> for Few<MOST, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of no more than {MOST}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            if list.len() <= MOST {
                list.push(element);
            }
        }
        Ok(list)
    }
}

fn describe(device: &Ready) -> DeviceV1 {
    let mut config = vec![0; device.negotiated().config.len()];
    device.read_config(0, &mut config);
    DeviceV1 {
        id: device.id().to_owned(),
        virtio_type: device.device_type(),
        config,
        queues: device.queue_sizes().len() as u16,
        features: device.accepted_features().unwrap_or(0),
        protocol_features: device.negotiated().protocol.bits(),
    }
}
