//! What clients write of migrations, right and wrong, and what they read.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::SerialConfig;

fn send(value: &Value) -> Result<SendRequest, String> {
    let wire: SendMigration =
        serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())?;
    wire.check().map_err(|fault| fault.to_string())
}

fn receive(value: &Value) -> Result<ReceiveRequest, String> {
    let wire: ReceiveMigration =
        serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())?;
    wire.check().map_err(|fault| fault.to_string())
}

fn tcp(host: &str, port: u16) -> MigrationUrl {
    let host = host.into();
    MigrationUrl::Tcp { host, port }
}

/// What clients of others send.
#[test]
fn a_url_is_enough() {
    let least = SendRequest {
        destination: MigrationUrl::Unix("/s".into()),
        carrier: Carrier::Contents,
        downtime: Duration::from_millis(300),
        timeout: Duration::from_secs(3600),
        timeout_strategy: migration::TimeoutStrategy::Cancel,
        connections: 2,
        tls: None,
        unlogged: migration::Unlogged::Refuse,
        throttle: migration::Throttle::Off,
        state_most: 16 << 30,
        after: AfterSend::Exit,
    };
    assert_eq!(least, SendRequest::to(MigrationUrl::Unix("/s".into())));
    assert_eq!(
        send(&json!({"destination_url": "unix:/s"})),
        Ok(least.clone())
    );
    let nulls = json!({"destination_url": "unix:/s", "downtime_ms": null, "timeout_s": null,
                       "timeout_strategy": null, "connections": null, "tls_dir": null, "local": null, "successor": null,
                       "memory_mode": null, "preserve_source": null, "unlogged": null, "throttle": null,
                       "state_most": null, "unknown": 1});
    assert_eq!(send(&nulls), Ok(least.clone()));
    let falses = json!({"destination_url": "unix:/s", "local": false, "memory_mode": "precopy",
                        "preserve_source": false, "throttle": false});
    assert_eq!(send(&falses), Ok(least));
    let least = ReceiveRequest {
        receiver: tcp("::1", 4000),
        sockets: BTreeMap::new(),
        serial: None,
        tls: None,
        openness: Openness::Loopback,
        state_most: 16 << 30,
    };
    assert_eq!(
        receive(&json!({"receiver_url": "tcp:[::1]:4000"})),
        Ok(least.clone())
    );
    let nulls = json!({"receiver_url": "tcp:[::1]:4000", "devices": {"fs0": null, "d": {"socket": null}},
                       "serial": null, "tls_dir": null, "insecure": null, "state_most": null, "net_fds": null});
    assert_eq!(receive(&nulls), Ok(least));
}

#[test]
fn everything_has_its_field() {
    let all = json!({"destination_url": "tcp:host:4000", "downtime_ms": 20, "timeout_s": 60,
                     "timeout_strategy": "Ignore", "connections": 4, "tls_dir": "/tls",
                     "preserve_source": true, "unlogged": "resend", "throttle": true, "state_most": 4096});
    let request = send(&all).unwrap();
    let expected = SendRequest {
        destination: tcp("host", 4000),
        carrier: Carrier::Contents,
        downtime: Duration::from_millis(20),
        timeout: Duration::from_secs(60),
        timeout_strategy: migration::TimeoutStrategy::Ignore,
        connections: 4,
        tls: Some("/tls".into()),
        unlogged: migration::Unlogged::Resend,
        throttle: migration::Throttle::On,
        state_most: 4096,
        after: AfterSend::Stay,
    };
    assert_eq!(request, expected);
    assert_eq!(
        serde_json::to_value(SendMigration::from(&request)).unwrap(),
        all
    );
    for (word, strategy) in [
        ("cancel", migration::TimeoutStrategy::Cancel),
        ("ignore", migration::TimeoutStrategy::Ignore),
    ] {
        let value = json!({"destination_url": "unix:/s", "timeout_strategy": word});
        assert_eq!(send(&value).unwrap().timeout_strategy, strategy);
    }
    let all = json!({"receiver_url": "tcp:0.0.0.0:4000", "devices": {"fs0": {"socket": "/run/x"}},
                     "serial": {"mode": "File", "file": "/log"}, "insecure": true, "state_most": 1});
    let request = receive(&all).unwrap();
    assert_eq!(request.sockets["fs0"], Path::new("/run/x"));
    assert_eq!(request.serial, Some(SerialConfig::File("/log".into())));
    assert_eq!(request.openness, Openness::Insecure);
    assert_eq!(
        serde_json::to_value(ReceiveMigration::from(&request)).unwrap(),
        all
    );
}

#[test]
fn a_hand_over_is_within_a_host() {
    let local = json!({"destination_url": "unix:/s", "local": true});
    let request = send(&local).unwrap();
    assert_eq!(request.carrier, Carrier::Descriptors);
    let wire = serde_json::to_value(SendMigration::from(&request)).unwrap();
    assert_eq!(wire["local"], true);
    let process = json!({"destination_url": "unix:/s", "local": true, "successor": true});
    let request = send(&process).unwrap();
    assert_eq!(request.carrier, Carrier::Process);
    let wire = serde_json::to_value(SendMigration::from(&request)).unwrap();
    assert_eq!(
        (&wire["local"], &wire["successor"]),
        (&json!(true), &json!(true))
    );
    let alone = json!({"destination_url": "unix:/s", "successor": true});
    assert_eq!(
        send(&alone).unwrap_err(),
        "successor=true goes only with local=true: the socket is handed to a process of this host"
    );
    let stays = json!({"destination_url": "unix:/s", "local": true, "successor": true, "preserve_source": true});
    assert_eq!(
        send(&stays).unwrap_err(),
        "preserve_source=true does not go with successor=true: one process takes the other one's place"
    );
    let far = json!({"destination_url": "tcp:localhost:4000", "local": true});
    assert_eq!(
        send(&far).unwrap_err(),
        "destination_url=tcp:localhost:4000 does not go with local=true: RAM and connections to back-ends can only be handed to a \
         process of this host, over unix:"
    );
    let many = json!({"destination_url": "unix:/s", "local": true, "connections": 2});
    assert_eq!(
        send(&many).unwrap_err(),
        "connections=2 does not go with local=true: no RAM is copied"
    );
}

#[test]
fn mistakes_of_senders_are_named() {
    let wrong = |name: &str, value: Value| {
        let mut all = json!({"destination_url": "unix:/s"});
        all[name] = value;
        send(&all).unwrap_err()
    };
    assert_eq!(send(&json!({})).unwrap_err(), "destination_url= is missing");
    let long = format!("unix:/{}", "x".repeat(107));
    let cases = [
        (
            "destination_url",
            json!("/s"),
            "destination_url=/s is neither unix:/path nor tcp:host:port".to_owned(),
        ),
        (
            "destination_url",
            json!("tcp:host"),
            "destination_url=tcp:host names no port; write tcp:host:port".to_owned(),
        ),
        (
            "destination_url",
            json!(long),
            format!(
                "destination_url={} is 108 bytes long; a socket's path has at most 107",
                &long["unix:".len()..]
            ),
        ),
        (
            "memory_mode",
            json!("Postcopy"),
            "memory_mode=Postcopy is not supported: a guest whose RAM is on two hosts is lost with either; write Precopy".into(),
        ),
        ("downtime_ms", json!(0), "downtime_ms=0 is not within 1 and 3600000".into()),
        ("timeout_s", json!(0), "timeout_s=0 is not within 1 and 2678400".into()),
        (
            "timeout_s",
            json!(u64::MAX),
            format!("timeout_s={} is not within 1 and 2678400", u64::MAX),
        ),
        ("connections", json!(0), "connections=0 is not within 1 and 16".into()),
        ("connections", json!(17), "connections=17 is not within 1 and 16".into()),
        (
            "tls_dir",
            json!("/tls"),
            "tls_dir= is for tcp: alone: who may use a unix socket is said by its directory's mode".into(),
        ),
        ("tls_dir", json!(""), "tls_dir= has no value".into()),
    ];
    for (name, value, reason) in cases {
        assert_eq!(wrong(name, value), reason);
    }
    for (name, value, reason) in [
        ("timeout_strategy", json!("wait"), "`Cancel`"),
        ("memory_mode", json!("lazy"), "`Precopy`"),
        ("unlogged", json!("ignore"), "`refuse`"),
        ("throttle", json!("on"), "expected a boolean"),
    ] {
        let found = wrong(name, value);
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn mistakes_of_receivers_are_named() {
    let wrong = |name: &str, value: Value| {
        let mut all = json!({"receiver_url": "unix:/s"});
        all[name] = value;
        receive(&all).unwrap_err()
    };
    assert_eq!(receive(&json!({})).unwrap_err(), "receiver_url= is missing");
    assert_eq!(
        wrong("receiver_url", json!("tcp://host:1")),
        "receiver_url=tcp://host:1 holds neither a host's name nor its address; write tcp:host:port, without slashes"
    );
    assert_eq!(
        wrong(
            "devices",
            json!({"a": {"socket": "/x"}, "b": {"socket": "/x"}})
        ),
        "socket=/x is used twice: each device has its own back-end"
    );
    assert_eq!(wrong("serial", json!({"mode": "File"})), "file= is missing");
    let reason = wrong("tls_dir", json!("/tls"));
    assert!(reason.starts_with("tls_dir= is for tcp: alone"), "{reason}");
    let many: BTreeMap<_, _> = (0..300).map(|n| (n.to_string(), json!(null))).collect();
    let reason = wrong("devices", json!(many));
    assert!(reason.contains("has more than 256 entries"), "{reason}");
}

/// A guest's RAM goes past everybody who can connect, unless its owner has said so.
#[test]
fn a_receiver_for_other_hosts_needs_certificates_or_a_word() {
    for host in [
        "0.0.0.0",
        "[::]",
        "10.1.2.3",
        "host",
        "localhost.example",
        "[fe80::1%eth0]",
    ] {
        let mut request = json!({"receiver_url": format!("tcp:{host}:4000")});
        let reason = receive(&request).unwrap_err();
        assert!(
            reason.contains("may be reached from other hosts"),
            "{reason}"
        );
        assert!(
            reason.contains("tls_dir=") && reason.contains("insecure=true"),
            "{reason}"
        );
        request["insecure"] = json!(false);
        assert!(receive(&request).is_err(), "{host}");
        request["insecure"] = json!(true);
        assert!(receive(&request).is_ok(), "{host}");
        request["tls_dir"] = json!("/tls");
        assert!(
            receive(&request)
                .unwrap_err()
                .contains("does not go with tls_dir=")
        );
        request["insecure"] = json!(null);
        assert!(receive(&request).is_ok(), "{host}");
    }
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let request = json!({"receiver_url": format!("tcp:{host}:4000")});
        assert!(receive(&request).is_ok(), "{host}");
    }
}

/// A short downtime is made of parts of milliseconds.
#[test]
fn times_keep_their_microseconds() {
    let us = Duration::from_micros;
    let progress = migration::MigrationProgress {
        role: migration::Role::Send,
        url: tcp("::1", 4000),
        attempt: String::new(),
        state: migration::MigrationState::UnderWay,
        phase: migration::Phase::Ram,
        phases: vec![
            (migration::Phase::Precopy, us(1_234_567)),
            (migration::Phase::Pause, us(7)),
        ],
        peer_phases: vec![("load".into(), Duration::from_nanos(1_999))],
        elapsed: us(2_000_000),
        round: 3,
        ram_total: 1 << 30,
        ram_sent: 2 << 30,
        ram_remaining: 4096,
        ram_rate: 5,
        dirty_rate: 6,
        throttle: 20,
        downtime_estimate: Some(us(100)),
        downtime: None,
        devices: vec![migration::DeviceProgress {
            id: "fs0".into(),
            bytes: 5000,
            elapsed: us(1_500),
            checked: true,
        }],
        error: Vec::new(),
    };
    let mut expected = json!({
        "role": "send", "url": "tcp:[::1]:4000", "state": "under-way", "phase": "ram",
        "phases": [{"phase": "precopy", "ms": 1234.567}, {"phase": "pause", "ms": 0.007}],
        "peer_phases": [{"phase": "load", "ms": 0.001}],
        "elapsed_ms": 2000.0, "round": 3,
        "ram": {"total_bytes": 1 << 30, "sent_bytes": 2_u64 << 30, "remaining_bytes": 4096,
                "bytes_per_second": 5, "dirty_bytes_per_second": 6},
        "throttle_percent": 20, "downtime_estimate_ms": 0.1,
        "devices": {"fs0": {"bytes": 5000, "ms": 1.5, "checked": true}},
    });
    assert_eq!(
        serde_json::to_value(Migration::from(&progress)).unwrap(),
        expected
    );
    let ended = migration::MigrationProgress {
        role: migration::Role::Receive,
        attempt: "ab".repeat(16),
        state: migration::MigrationState::Unconfirmed,
        downtime: Some(us(4_812)),
        error: vec!["the link is gone".into()],
        ..progress
    };
    expected["role"] = json!("receive");
    expected["attempt"] = json!("ab".repeat(16));
    expected["state"] = json!("unconfirmed");
    expected["downtime_ms"] = json!(4.812);
    expected["error"] = json!(["the link is gone"]);
    let wire = Migration::from(&ended);
    assert_eq!(serde_json::to_value(&wire).unwrap(), expected);
    assert_eq!(serde_json::from_value::<Migration>(expected).unwrap(), wire);
}

/// Every phase has the name that events have for it.
#[test]
fn phases_have_one_name() {
    use migration::Phase;
    for phase in [
        Phase::Listen,
        Phase::Connect,
        Phase::Prepare,
        Phase::Precopy,
        Phase::Pause,
        Phase::Ram,
        Phase::Machine,
        Phase::Devices,
        Phase::Ready,
        Phase::Commit,
        Phase::Unconfirmed,
        Phase::Resume,
        Phase::Release,
    ] {
        assert_eq!(
            serde_json::to_value(MigrationPhase::from(phase)).unwrap(),
            json!(phase.name())
        );
    }
}

/// JSON of requests, right and wrong.
fn request() -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        (0..4000_u64).prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        "(unix:/[a-z]|tcp:(host|127\\.0\\.0\\.1|\\[::1\\]):[0-9]{1,5}|Cancel|ignore|refuse|resend|Precopy|/[a-z])"
            .prop_map(Into::into),
        any::<String>().prop_map(Into::into),
        Just(json!({"fs0": {"socket": "/x"}})),
        Just(json!({"mode": "Pty"})),
    ];
    let key = prop::sample::select(vec![
        "destination_url",
        "receiver_url",
        "downtime_ms",
        "timeout_s",
        "timeout_strategy",
        "connections",
        "tls_dir",
        "local",
        "successor",
        "memory_mode",
        "preserve_source",
        "unlogged",
        "throttle",
        "state_most",
        "devices",
        "serial",
        "insecure",
    ]);
    let urls = prop::sample::select(vec!["unix:/s", "tcp:localhost:4000", "tcp:host:1"]);
    (
        prop::collection::hash_map(key.prop_map(str::to_owned), value, 0..5),
        urls,
    )
        .prop_map(|(map, url)| {
            let mut all = json!({"destination_url": url, "receiver_url": url});
            for (key, value) in map {
                all[key] = value;
            }
            all
        })
}

proptest! {
    #[test]
    fn what_is_taken_comes_back(value in request()) {
        if let Ok(request) = send(&value) {
            let again = send(&serde_json::to_value(SendMigration::from(&request)).unwrap());
            prop_assert_eq!(again, Ok(request));
        }
        if let Ok(request) = receive(&value) {
            let again = receive(&serde_json::to_value(ReceiveMigration::from(&request)).unwrap());
            prop_assert_eq!(again, Ok(request));
        }
    }
}
