//! What clients write of snapshots, right and wrong.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn save(value: &Value) -> Result<SnapshotRequest, String> {
    let wire: Snapshot =
        serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())?;
    wire.check().map_err(|fault| fault.to_string())
}

fn restore(value: &Value) -> Result<RestoreRequest, String> {
    let wire: Restore =
        serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())?;
    wire.check().map_err(|fault| fault.to_string())
}

/// What clients of others send.
#[test]
fn a_directory_is_enough() {
    let least = SnapshotRequest {
        destination: "/snap".into(),
        pause: PauseBy::Client,
        after: snapshot::After::AsBefore,
        hold: None,
        prepare: Duration::from_millis(500),
        state_most: 16 << 30,
    };
    assert_eq!(
        save(&json!({"destination_url": "file:///snap"})),
        Ok(least.clone())
    );
    let nulls = json!({"destination_url": "file:///snap", "pause": null, "after": null, "hold_s": null,
                       "prepare_ms": null, "state_most": null, "unknown": 1});
    assert_eq!(save(&nulls), Ok(least));
    let least = RestoreRequest {
        source: "/snap".into(),
        memory: snapshot::MemoryMode::Copy,
        start: Start::Paused,
        sockets: BTreeMap::new(),
        serial: None,
    };
    assert_eq!(
        restore(&json!({"source_url": "file:///snap"})),
        Ok(least.clone())
    );
    let nulls = json!({"source_url": "file:///snap", "memory_restore_mode": null, "resume": null,
                       "prefault": true, "net_fds": null,
                       "devices": {"fs0": null, "disk0": {"socket": null}}});
    assert_eq!(restore(&nulls), Ok(least));
}

#[test]
fn everything_has_its_field() {
    let all = json!({"destination_url": "file:///a%20b", "pause": true, "after": "stop", "hold_s": 0.25,
                     "prepare_ms": 0, "state_most": 4096});
    let request = save(&all).unwrap();
    let expected = SnapshotRequest {
        destination: "/a b".into(),
        pause: PauseBy::Ferry,
        after: snapshot::After::Stop,
        hold: Some(Duration::from_millis(250)),
        prepare: Duration::ZERO,
        state_most: 4096,
    };
    assert_eq!(request, expected);
    assert_eq!(serde_json::to_value(Snapshot::from(&request)).unwrap(), all);
    let all = json!({"source_url": "file:///snap", "memory_restore_mode": "OnDemand", "resume": true,
                     "devices": {"fs0": {"socket": "/run/x"}}});
    let request = restore(&all).unwrap();
    assert_eq!(request.sockets["fs0"], Path::new("/run/x"));
    assert_eq!(serde_json::to_value(Restore::from(&request)).unwrap(), all);
    for (word, mode) in [
        ("adopt", snapshot::MemoryMode::Adopt),
        ("ondemand", snapshot::MemoryMode::OnDemand),
        ("copy", snapshot::MemoryMode::Copy),
    ] {
        let value = json!({"source_url": "file:///s", "memory_restore_mode": word});
        assert_eq!(restore(&value).unwrap().memory, mode);
    }
}

#[test]
fn mistakes_are_named() {
    let snapshot = |name: &str, value: Value| {
        let mut all = json!({"destination_url": "file:///s"});
        all[name] = value;
        save(&all).unwrap_err()
    };
    assert_eq!(save(&json!({})).unwrap_err(), "destination_url= is missing");
    assert_eq!(
        snapshot("destination_url", json!("/s")),
        "destination_url=/s is no URL; write file:///directory"
    );
    assert_eq!(
        snapshot("destination_url", json!("https://x/s")),
        "destination_url=https://x/s is not a file: URL, and snapshots are kept in directories; write file:///directory"
    );
    for seconds in [json!(0), json!(-1), json!(86401), json!(1e300)] {
        let reason = snapshot("hold_s", seconds);
        assert!(
            reason.ends_with(" is not above 0 and up to 86400"),
            "{reason}"
        );
    }
    assert_eq!(
        snapshot("prepare_ms", json!(1000)),
        "prepare_ms= needs pause=true: back-ends prepare only while the guest still runs"
    );
    assert_eq!(
        snapshot("prepare_ms", json!(600_001)),
        "prepare_ms=600001 is more than 600000"
    );
    let reason = snapshot("after", json!("sleep"));
    assert!(
        reason.contains("expected one of `resume`, `stop`, `pause`"),
        "{reason}"
    );
    let restored = |name: &str, value: Value| {
        let mut all = json!({"source_url": "file:///s"});
        all[name] = value;
        restore(&all).unwrap_err()
    };
    assert_eq!(restore(&json!({})).unwrap_err(), "source_url= is missing");
    let long = "x".repeat(108);
    assert_eq!(
        restored("devices", json!({"d": {"socket": long}})),
        format!("socket={long} is 108 bytes long; a socket's path has at most 107")
    );
    assert_eq!(
        restored(
            "devices",
            json!({"a": {"socket": "/x"}, "b": {"socket": "/x"}})
        ),
        "socket=/x is used twice: each device has its own back-end"
    );
    let many: BTreeMap<_, _> = (0..300).map(|n| (n.to_string(), json!(null))).collect();
    let reason = restored("devices", json!(many));
    assert!(reason.contains("has more than 256 entries"), "{reason}");
    let many = (0..32).map(|n| (n.to_string(), json!({"socket": format!("/{n}")})));
    let reason = restored("devices", json!(many.collect::<BTreeMap<_, _>>()));
    assert!(reason.contains("more than 31 devices"), "{reason}");
}

proptest! {
    #[test]
    fn what_is_taken_comes_back(
        seconds in prop::option::of(-1.0..90000.0_f64),
        pause in any::<Option<bool>>(),
        prepare_ms in prop::option::of(prop_oneof![Just(500), 0..700_000_u64]),
        state_most in any::<Option<u64>>(),
    ) {
        let wire = Snapshot {
            destination_url: Some("file:///s".into()),
            pause,
            after: None,
            hold_s: seconds,
            prepare_ms,
            state_most,
        };
        if let Ok(request) = wire.check() {
            let again = save(&serde_json::to_value(Snapshot::from(&request)).unwrap());
            prop_assert_eq!(again, Ok(request));
        }
    }
}
