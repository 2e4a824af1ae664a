//! The manifest of a snapshot, given without its checksum.
//!
//! Whatever it holds, reading it ends without a panic; what is taken is written and read as the same, and can be described.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_migration::manifest::{Manifest, Present, differences};
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|content: &[u8]| {
    let _ = Manifest::from_bytes(content);
    let mut bytes = content.to_vec();
    bytes.extend(format!(",\n  \"checksum\": \"0x{:016x}\"\n}}\n", xxh3_64(content)).into_bytes());
    let Ok(manifest) = Manifest::from_bytes(&bytes) else {
        return;
    };
    let again = manifest.to_bytes().expect("what was read can be written");
    assert_eq!(
        Manifest::from_bytes(&again).expect("it was written"),
        manifest
    );
    let devices = &manifest.snapshot.devices;
    let present: Vec<_> = devices
        .iter()
        .map(|device| Present {
            id: device.id.clone(),
            virtio_type: device.virtio_type,
            capacity: device.capacity,
            config: device.config.0.clone(),
            queues: device.queues,
            features: device.features.0,
            protocol_features: device.protocol_features.0,
        })
        .collect();
    assert_eq!(differences(devices, &present), []);
    let nothing = differences(devices, &[]);
    assert_eq!(nothing.len(), devices.len());
});
