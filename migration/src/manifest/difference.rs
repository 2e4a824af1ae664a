//! How devices differ from what a snapshot says of them.

use std::fmt;

use super::types::{Device, DeviceState};

/// A device as it is found at a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Its name.
    pub id: String,
    /// Its virtio device type.
    pub virtio_type: u32,
    /// What a disk holds, in bytes.
    pub capacity: Option<u64>,
    /// Its configuration space. Bytes that the driver may write do not tell devices apart: let them be as they were saved.
    pub config: Vec<u8>,
    /// How many queues it has.
    pub queues: u16,
    /// The virtio features that are offered.
    pub features: u64,
    /// The vhost-user protocol features that are offered.
    pub protocol_features: u64,
}

/// Something that differs, readable as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The device's name.
    pub device: String,
    /// What differs, and how.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}: {}", self.device, self.what)
    }
}

/// Everything that keeps the devices `saved` from going on as those that are `present`; nothing, if they can.
pub fn differences(saved: &[Device], present: &[Present]) -> Vec<Difference> {
    let mut all = Vec::new();
    for device in saved {
        match present.iter().find(|present| present.id == device.id) {
            Some(present) => compare(device, present, &mut all),
            None => all.push(Difference {
                device: device.id.clone(),
                what: "it is in the snapshot, and not here".into(),
            }),
        }
    }
    for present in present {
        if saved.iter().all(|device| device.id != present.id) {
            all.push(Difference {
                device: present.id.clone(),
                what: "it is here, and not in the snapshot".into(),
            });
        }
    }
    all
}

fn compare(saved: &Device, present: &Present, all: &mut Vec<Difference>) {
    let Device {
        id,
        virtio_type,
        capacity,
        config,
        queues,
        // The driver's choice, and so not the back-end's.
        queue_sizes: _,
        features,
        protocol_features,
        state,
    } = saved;
    let mut differs = |what: String| {
        all.push(Difference {
            device: id.clone(),
            what,
        });
    };
    if *virtio_type != present.virtio_type {
        let here = present.virtio_type;
        // The rest of another kind of device would only differ as well.
        return differs(format!(
            "it was of virtio type {virtio_type}, and is of type {here}"
        ));
    }
    if *capacity != present.capacity {
        let bytes = |capacity: Option<u64>| match capacity {
            Some(bytes) => format!("{bytes} bytes"),
            None => "no capacity".into(),
        };
        let (before, now) = (bytes(*capacity), bytes(present.capacity));
        differs(format!("it had {before}, and has {now}"));
    }
    if let Some(what) = config_difference(&config.0, &present.config) {
        differs(what);
    }
    if *queues != present.queues {
        differs(format!(
            "it had {queues} queues, and has {}",
            present.queues
        ));
    }
    if let Some(bits) = missing(features.0, present.features) {
        differs(format!("the guest uses {bits} of virtio, not offered now"));
    }
    if let Some(bits) = missing(protocol_features.0, present.protocol_features) {
        let state = match state {
            DeviceState::Saved { .. } => "its state was saved with",
            DeviceState::Stateless => "it was used with",
        };
        differs(format!(
            "{state} {bits} of the vhost-user protocol, not offered now"
        ));
    }
}

/// The first stretch of bytes that differ.
fn config_difference(saved: &[u8], present: &[u8]) -> Option<String> {
    if saved == present {
        return None;
    }
    let (before, now) = (saved.len(), present.len());
    if before != now {
        return Some(format!(
            "its configuration had {before} bytes, and has {now}"
        ));
    }
    let differ = |at: &usize| saved[*at] != present[*at];
    let start = (0..before).find(differ)?;
    let end = (0..before).rfind(differ)? + 1;
    let hex = |bytes: &[u8]| {
        let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(" ")
    };
    let (before, now) = (hex(&saved[start..end]), hex(&present[start..end]));
    Some(format!(
        "its configuration from byte {start} on was {before}, and is {now}"
    ))
}

fn missing(needed: u64, offered: u64) -> Option<String> {
    let missing = needed & !offered;
    let bits: Vec<_> = (0..64u32)
        .filter(|bit| missing >> bit & 1 == 1)
        .map(|bit| bit.to_string())
        .collect();
    match bits.len() {
        0 => None,
        1 => Some(format!("feature bit {}", bits[0])),
        _ => Some(format!("feature bits {}", bits.join(", "))),
    }
}
