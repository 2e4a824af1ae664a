//! Descriptions and states that nobody meant, given to what reads those of a sender.

use ferry_api::snapshot::SnapshotRequest;
use kvm_bindings::kvm_cpuid_entry2;
use proptest::prelude::*;
use vm_migration::stream::encode;

use super::super::describe::DeviceV1;
use super::*;
use crate::cpu::clock::ClockStateV1;
use crate::cpu::state::{Abi, VcpuStateV1};
use crate::generation::GenerationStateV1;
use crate::hypervisor::chips::ChipsStateV1;

fn request() -> ReceiveRequest {
    ReceiveRequest {
        receiver: MigrationUrl::Unix("/nowhere".into()),
        sockets: Default::default(),
        serial: None,
        tls: None,
        openness: Openness::Loopback,
        state_most: SnapshotRequest::STATE_MOST,
    }
}

fn guest() -> GuestV1 {
    let config = r#"{
        "payload": {"kernel": "/kernel"},
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 67108864, "shared": true},
        "serial": {"mode": "File", "file": "/log"}
    }"#;
    GuestV1 {
        config: config.into(),
        cpuids: vec![vec![Abi(kvm_cpuid_entry2::default()); 3]],
        tsc_khz: Some(3_000_000),
        devices: Vec::new(),
        arrival: ArrivalV1::Running,
    }
}

/// Does what the receiver does with a description before it looks at this host.
fn hear(bytes: &[u8]) {
    if let Ok(description) = HandOverV1::read(HandOverV1::VERSION, bytes) {
        let parts = Parts::new(&description, Vec::new(), Lead::Same);
        assert!(parts.is_err(), "there are no descriptors");
    }
    if let Ok(guest) = GuestV1::read(GuestV1::VERSION, bytes) {
        let _ = definition(&guest, &request());
        assert!(guest.cpuids.len() <= 33 && guest.devices.len() <= 32);
    }
}

/// Of a list that is too long one element too many is kept, and the rest is read over.
#[test]
fn lists_are_short() {
    let device = DeviceV1 {
        id: String::new(),
        virtio_type: 0,
        config: Vec::new(),
        queues: 0,
        features: 0,
        protocol_features: 0,
    };
    let long = GuestV1 {
        cpuids: vec![Vec::new(); 100_000],
        devices: vec![device; 100_000],
        ..guest()
    };
    let read = GuestV1::read(GuestV1::VERSION, &encode(&long).unwrap()).unwrap();
    assert_eq!((read.cpuids.len(), read.devices.len()), (33, 32));
    assert_eq!(read.arrival, long.arrival);
    definition(&read, &request()).unwrap_err();
    definition(&guest(), &request()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn made_up_descriptions_do_no_harm(bytes: Vec<u8>) {
        hear(&bytes);
    }

    #[test]
    fn changed_descriptions_do_no_harm(at: prop::sample::Index, bytes in prop::collection::vec(any::<u8>(), 0..9), gone in 0..9usize, tail: [u8; 4]) {
        let mut words = encode(&guest()).unwrap();
        // In a hand-over more follows.
        words.extend(tail);
        let at = at.index(words.len());
        let end = words.len().min(at + gone);
        words.splice(at..end, bytes);
        hear(&words);
    }

    #[test]
    fn made_up_states_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = VcpuStateV1::read(VcpuStateV1::VERSION, &bytes);
        let _ = ChipsStateV1::read(ChipsStateV1::VERSION, &bytes);
        let _ = ClockStateV1::read(ClockStateV1::VERSION, &bytes);
        let _ = GenerationStateV1::read(GenerationStateV1::VERSION, &bytes);
    }
}
