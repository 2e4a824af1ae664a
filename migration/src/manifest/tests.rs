use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::stream::{Form, StreamId};

fn disk() -> Device {
    Device {
        id: "disk0".into(),
        virtio_type: 2,
        capacity: Some(1 << 30),
        config: Hex(vec![0, 0, 32, 0, 0, 0, 0, 0, 1, 2]),
        queues: 2,
        queue_sizes: vec![256, 256],
        features: Bits(1 << 32 | 1 << 9),
        protocol_features: Bits(1 << 3 | 1 << 9),
        state: DeviceState::Stateless,
    }
}

fn sample() -> Manifest {
    Manifest {
        format: 1,
        id: StreamId([0xab; 16]),
        snapshot: Description {
            ferry: "0.1.0".into(),
            created: "2026-02-03T04:05:06Z".into(),
            after: After::Stop,
            paused_ms: 12,
            cpu: Cpu {
                count: 2,
                tsc_khz: 2_400_000,
                features: vec!["avx2".into(), "x2apic".into()],
                details: BTreeMap::from([("vendor".into(), "AuthenticAMD".into())]),
            },
            devices: vec![disk()],
        },
        memory: vec![Region {
            file: "ram0".into(),
            section: "__ram0".into(),
            guest_address: 0,
            bytes: 1 << 29,
        }],
        state: State {
            file: "state".into(),
            bytes: 1234,
            digest: Bits(77),
            sections: vec![Section {
                name: "__ram0".into(),
                form: Form::Blocks,
                schema: "ram-blocks".into(),
                version: 1,
                offset: 40,
                bytes: 100,
                digest: Bits(5),
            }],
        },
    }
}

fn here() -> Present {
    let saved = disk();
    Present {
        id: saved.id,
        virtio_type: saved.virtio_type,
        capacity: saved.capacity,
        config: saved.config.0,
        queues: saved.queues,
        features: saved.features.0 | 1 << 29,
        protocol_features: saved.protocol_features.0 | 1 << 19,
    }
}

#[test]
fn a_manifest_is_json_and_comes_back() {
    let bytes = sample().to_bytes().unwrap();
    assert_eq!(Manifest::from_bytes(&bytes).unwrap(), sample());
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(json["format"], 1);
    assert_eq!(json["id"], "ab".repeat(16));
    assert_eq!(
        json["snapshot"]["devices"][0]["features"],
        "0x0000000100000200"
    );
    assert_eq!(
        json["snapshot"]["devices"][0]["config"],
        "00002000000000000102"
    );
    assert_eq!(json["snapshot"]["devices"][0]["state"]["kind"], "stateless");
    assert_eq!(json["snapshot"]["after"], "stop");
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let mut bytes = sample().to_bytes().unwrap();
    for at in 0..bytes.len() * 8 {
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(Manifest::from_bytes(&bytes).is_err(), "bit {at}");
        bytes[at / 8] ^= 1 << (at % 8);
    }
    for length in 0..bytes.len() {
        assert!(
            Manifest::from_bytes(&bytes[..length]).is_err(),
            "{length} bytes"
        );
    }
    bytes.push(b'\n');
    assert!(Manifest::from_bytes(&bytes).is_err());
}

#[test]
fn a_manifest_of_another_format_says_so() {
    let error = Manifest::from_bytes(b"{\"format\": 2, \"anything\": {}}").unwrap_err();
    assert!(matches!(error, Error::Format { found: 2 }), "{error}");
    let mut manifest = sample();
    manifest.format = 7;
    assert!(matches!(
        manifest.to_bytes(),
        Err(Error::Format { found: 7 })
    ));
}

#[test]
fn manifests_that_cannot_be_are_neither_written_nor_read() {
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = sample();
        change(&mut manifest);
        match manifest.to_bytes() {
            Err(Error::Impossible(what)) => what,
            other => panic!("{other:?}"),
        }
    };
    for file in ["", "../ram", "a/b", ".", "RAM", "ram\0", "manifest.json"] {
        let what = refused(&|manifest| manifest.memory[0].file = file.into());
        assert!(what.contains(&format!("{file:?}")), "{what}");
    }
    refused(&|manifest| manifest.memory[0].file = "state".into());
    refused(&|manifest| manifest.memory[0].bytes = u64::MAX);
    refused(&|manifest| manifest.memory[0].bytes = 0);
    refused(&|manifest| manifest.memory[0].section = "__ram1".into());
    refused(&|manifest| {
        manifest.memory.push(Region {
            file: "ram1".into(),
            ..manifest.memory[0].clone()
        })
    });
    refused(&|manifest| manifest.snapshot.devices.push(disk()));
    refused(&|manifest| manifest.snapshot.devices = vec![disk(); 2000]);
}

#[test]
fn a_large_manifest_is_refused_before_it_is_read() {
    let bytes = vec![b'['; MANIFEST_MOST + 1];
    assert!(matches!(Manifest::from_bytes(&bytes), Err(Error::TooLong)));
    assert!(Manifest::from_bytes(&bytes[1..]).is_err());
}

#[test]
fn equal_devices_that_offer_more_do_not_differ() {
    assert_eq!(differences(&[disk()], &[here()]), []);
}

#[test]
fn every_difference_is_one_line_with_the_device() {
    let what = |change: &dyn Fn(&mut Present)| {
        let mut present = here();
        change(&mut present);
        let lines: Vec<_> = differences(&[disk()], &[present])
            .iter()
            .map(|d| d.to_string())
            .collect();
        lines.join("; ")
    };
    let expect = [
        (
            what(&|p| p.virtio_type = 26),
            "device disk0: it was of virtio type 2, and is of type 26",
        ),
        (
            what(&|p| p.capacity = Some(1 << 31)),
            "device disk0: it had 1073741824 bytes, and has 2147483648 bytes",
        ),
        (
            what(&|p| p.capacity = None),
            "device disk0: it had 1073741824 bytes, and has no capacity",
        ),
        (
            what(&|p| p.config[8] = 7),
            "device disk0: its configuration from byte 8 on was 01, and is 07",
        ),
        (
            what(&|p| p.config.truncate(4)),
            "device disk0: its configuration had 10 bytes, and has 4",
        ),
        (
            what(&|p| p.queues = 1),
            "device disk0: it had 2 queues, and has 1",
        ),
        (
            what(&|p| p.features = 1 << 32),
            "device disk0: the guest uses feature bit 9 of virtio, not offered now",
        ),
        (
            what(&|p| p.protocol_features = 0),
            "device disk0: it was used with feature bits 3, 9 of the vhost-user protocol, not offered now",
        ),
        (
            what(&|p| p.id = "disk1".into()),
            "device disk0: it is in the snapshot, and not here; device disk1: it is here, and not in the snapshot",
        ),
    ];
    for (found, expected) in expect {
        assert_eq!(found, expected);
    }
}

#[test]
fn times_are_readable() {
    let text = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(text(0), "1970-01-01T00:00:00Z");
    assert_eq!(text(951_782_399), "2000-02-28T23:59:59Z");
    assert_eq!(text(951_868_799), "2000-02-29T23:59:59Z");
    assert_eq!(text(1_709_251_200), "2024-03-01T00:00:00Z");
    assert_eq!(text(1_798_761_599), "2026-12-31T23:59:59Z");
    assert_eq!(text(4_107_542_400), "2100-03-01T00:00:00Z");
}

proptest! {
    #[test]
    fn made_up_bytes_never_panic(text in "[\\{\\}\\[\\]\":, a-f0-9]{0,200}") {
        prop_assert!(Manifest::from_bytes(text.as_bytes()).is_err());
    }
}
