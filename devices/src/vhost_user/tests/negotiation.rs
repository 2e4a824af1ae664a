//! What is agreed on with back-ends that offer this and that.

use std::sync::Arc;

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::message::FrontendReq;
use vm_migration::Saveability;

use super::harness::{Event, HANG, LOW, Observer, TestRam, Transport, next, started};
use super::peer::{LEAST_FEATURES, Offer, Peer, Reaction, answer, count, once};
use super::ring::Ring;
use crate::chain;
use crate::vhost_user::{
    Access, BackendSpec, BackendState, Blk, Fs, Generic, Limits, Profile, VhostUserDevice,
};
use crate::virtio::{Activation, VirtioDevice};

fn try_start(spec: BackendSpec) -> Result<Arc<VhostUserDevice>, String> {
    let (observer, reports) = Observer::new();
    let ram = TestRam::new();
    VhostUserDevice::start(spec, Limits::default(), Arc::clone(&ram.regions), observer).unwrap();
    started(&reports).map_err(|error| chain(&error))
}

fn honest(offer: Offer) -> Peer {
    Peer::start(offer, Box::new(|_| Reaction::Honest))
}

fn offering(change: impl FnOnce(&mut Offer)) -> Peer {
    let mut offer = Offer::default();
    change(&mut offer);
    honest(offer)
}

fn refusal(spec: BackendSpec) -> String {
    match try_start(spec) {
        Ok(_) => panic!("accepted"),
        Err(line) => line,
    }
}

#[test]
fn what_is_missing_is_named() {
    let without = |bit: u32| offering(move |offer| offer.features &= !(1 << bit));
    let line = refusal(without(32).disk());
    assert!(line.contains("VIRTIO_F_VERSION_1"), "{line}");
    let line = refusal(without(30).disk());
    assert!(line.contains("PROTOCOL_FEATURES"), "{line}");
    let line = refusal(offering(|offer| offer.protocol.remove(Protocol::CONFIG)).disk());
    assert!(line.contains("CONFIG"), "{line}");
}

#[test]
fn what_the_guest_may_not_have_is_masked() {
    let peer = offering(|offer| offer.features = !(1 << 5));
    let device = try_start(peer.disk()).unwrap();
    let features = device.features();
    for masked in [
        0, 7, 17, 24, 26, 27, 30, 33, 34, 35, 36, 37, 38, 39, 40, 41, 50, 63,
    ] {
        assert_eq!(features & (1 << masked), 0, "bit {masked}");
    }
    for offered in [2, 6, 9, 10, 13, 14, 28, 29, 32] {
        assert_ne!(features & (1 << offered), 0, "bit {offered}");
    }
    let seen: Vec<_> = peer.seen.try_iter().collect();
    let protocol = seen
        .iter()
        .find(|seen| seen.is(FrontendReq::SET_PROTOCOL_FEATURES))
        .unwrap();
    let used = u64::from_ne_bytes(protocol.payload[..].try_into().unwrap());
    assert_eq!(used & !Offer::default().protocol.bits(), 0);
}

#[test]
fn queue_counts_at_the_edges() {
    for queues in [1, 65535, 1 << 40, u64::MAX] {
        try_start(offering(|offer| offer.queues = queues).disk()).unwrap();
    }
    let line = refusal(offering(|offer| offer.queues = 0).disk());
    assert!(line.contains("0 queues"), "{line}");

    let single = offering(|offer| offer.protocol.remove(Protocol::MQ));
    let mut spec = single.disk();
    spec.num_queues = 2;
    let line = refusal(spec);
    assert!(line.contains("num_queues="), "{line}");

    for asked in [0, 65535] {
        let peer = offering(|offer| offer.queues = 65535);
        let mut spec = peer.disk();
        spec.num_queues = asked;
        let line = refusal(spec);
        assert!(line.contains("queues"), "{line}");
    }
}

#[test]
fn a_configuration_space_is_strictly_measured() {
    // A back-end that knows the old structure only.
    let old = offering(|offer| offer.config.truncate(36));
    let device = try_start(old.disk()).unwrap();
    assert_eq!(device.negotiated().config.len(), 36);

    let line = refusal(offering(|offer| offer.config.truncate(35)).disk());
    assert!(line.contains("configuration space"), "{line}");

    let head = |size: u32| {
        let mut bytes = [0u32, size, 0].map(u32::to_ne_bytes).concat();
        bytes.resize(12 + 60, 0);
        bytes
    };
    let code = FrontendReq::GET_CONFIG.into();
    let cases = [
        (answer(code, &[0; 12 + 61]), "73 bytes of payload"),
        (answer(code, &head(61)), "61 bytes"),
        (answer(code, &head(59)), "59 bytes"),
        (answer(code, &[1; 12 + 60]), "when asked for"),
    ];
    for (bytes, words) in cases {
        let peer = Peer::start(
            Offer::default(),
            once(FrontendReq::GET_CONFIG, Reaction::Send(bytes, 0)),
        );
        let line = refusal(peer.disk());
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn a_read_only_disk_never_acknowledges_what_was_not_offered() {
    let peer = Peer::honest();
    let mut spec = peer.disk();
    spec.profile = Profile::Blk(Blk {
        access: Access::ReadOnly,
    });
    let device = try_start(spec).unwrap();
    assert_ne!(device.features() & (1 << 5), 0);
    let (transport, events) = Transport::new();
    device.attach(transport);
    device.activate(Activation {
        features: u64::MAX,
        queues: Vec::new(),
    });
    assert_eq!(next(&events), Event::Activated(Ok(())));
    let seen: Vec<_> = peer.seen.try_iter().collect();
    let set = seen
        .iter()
        .find(|seen| seen.is(FrontendReq::SET_FEATURES))
        .unwrap();
    let acknowledged = u64::from_ne_bytes(set.payload[..].try_into().unwrap());
    assert_eq!(acknowledged, Offer::default().features);
}

#[test]
fn without_acknowledgements_an_activation_ends_with_a_fence() {
    let peer = offering(|offer| offer.protocol.remove(Protocol::REPLY_ACK));
    let ram = TestRam::new();
    let (observer, reports) = Observer::new();
    VhostUserDevice::start(
        peer.disk(),
        Limits::default(),
        Arc::clone(&ram.regions),
        observer,
    )
    .unwrap();
    let device = started(&reports).unwrap();
    let (transport, events) = Transport::new();
    device.attach(transport);
    count(&peer.seen);
    device.activate(Activation {
        features: device.features(),
        queues: vec![Ring::new(&ram, 0, LOW).queue.clone()],
    });
    assert_eq!(next(&events), Event::Activated(Ok(())));
    let order: Vec<String> = peer
        .seen
        .try_iter()
        .map(|seen| {
            assert!(!seen.needs_reply);
            seen.code.to_string()
        })
        .collect();
    assert_eq!(
        order,
        [
            "SET_FEATURES",
            "SET_MEM_TABLE",
            "SET_VRING_NUM",
            "SET_VRING_BASE",
            "SET_VRING_ADDR",
            "SET_VRING_CALL",
            "SET_VRING_KICK",
            "SET_VRING_ENABLE",
            "GET_FEATURES"
        ]
    );
    device.reset();
    assert_eq!(next(&events), Event::ResetDone);
}

fn fs(peer: &Peer) -> BackendSpec {
    BackendSpec {
        id: "fs0".into(),
        profile: Profile::Fs(Fs { tag: "data".into() }),
        ..peer.disk()
    }
}

#[test]
fn a_shared_directory_is_made_up_by_ferry() {
    let peer = Peer::honest();
    let device = try_start(fs(&peer)).unwrap();
    assert_eq!(device.device_type(), 26);
    assert_eq!(device.queue_sizes().len(), 2);
    let mut config = [0xff; 44];
    device.read_config(0, &mut config);
    assert_eq!(&config[..5], b"data\0");
    assert_eq!(&config[36..], &[1, 0, 0, 0, 0, 0, 0, 0]);
    let mut beyond = [0xff; 4];
    device.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
    assert_eq!(count(&peer.seen).get("GET_CONFIG"), None);
    assert!(matches!(device.saveability(), Saveability::Unsupported(_)));

    let stateful = offering(|offer| offer.protocol.insert(Protocol::DEVICE_STATE));
    let device = try_start(fs(&stateful)).unwrap();
    assert_eq!(device.saveability(), Saveability::Saved);
}

fn generic(peer: &Peer, device_type: u32) -> BackendSpec {
    BackendSpec {
        id: "any0".into(),
        profile: Profile::Generic(Generic {
            device_type,
            state: BackendState::None,
            drain: Vec::new(),
            config: None,
        }),
        ..peer.disk()
    }
}

#[test]
fn a_device_of_unknown_type_gets_the_largest_configuration_space_there_is() {
    let peer = offering(|offer| offer.config = (0..20).collect());
    let device = try_start(generic(&peer, 60)).unwrap();
    assert_eq!(device.negotiated().config, (0..16).collect::<Vec<u8>>());
    assert_eq!(count(&peer.seen)["GET_CONFIG"], 5);
    assert_eq!(device.saveability(), Saveability::Stateless);
}

#[test]
fn a_device_may_do_without_a_configuration_space() {
    let refusing = offering(|offer| offer.config = Vec::new());
    let device = try_start(generic(&refusing, 19)).unwrap();
    assert!(device.negotiated().config.is_empty());
    let rng = Peer::honest();
    let device = try_start(generic(&rng, 4)).unwrap();
    assert!(device.negotiated().config.is_empty());
    assert_eq!(count(&rng.seen).get("GET_CONFIG"), None);
}

#[test]
fn a_guests_write_reaches_the_back_end_only_where_it_may() {
    let peer = offering(|offer| offer.features = LEAST_FEATURES | 1 << 11);
    let device = try_start(peer.disk()).unwrap();
    count(&peer.seen);
    device.write_config(0, &[1; 8]);
    device.write_config(33, &[1]);
    device.write_config(u64::MAX, &[1]);
    device.write_config(32, &[1]);
    let set = peer.seen.recv_timeout(HANG).unwrap();
    assert!(set.is(FrontendReq::SET_CONFIG), "{}", set.code);
    assert_eq!(set.payload[0..4], 32u32.to_ne_bytes());
    assert_eq!(set.payload[12..], [1]);
    let mut byte = [0];
    device.read_config(32, &mut byte);
    assert_eq!(byte, [1]);
}
