//! What clients write, right and wrong.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::{self, SerialConfig, StateConfig};

fn read(value: &Value) -> Result<config::VmConfig, String> {
    let wire: VmConfig =
        serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())?;
    wire.check().map_err(|wrong| wrong.to_string())
}

#[test]
fn a_kernel_is_enough() {
    let config = read(&json!({"payload": {"kernel": "/k"}})).unwrap();
    assert_eq!(config.cpus.boot_vcpus, 1);
    assert_eq!(config.memory.size, 512 << 20);
    assert!(config.memory.shared);
    assert_eq!(config.serial, SerialConfig::Null);
    assert_eq!(config.payload.cmdline, "");
}

/// The fields of Cloud Hypervisor's `VmConfig` of version 54, as its clients send them.
#[test]
fn nulls_and_fields_of_others_are_passed_over() {
    let config = read(&json!({
        "cpus": {"boot_vcpus": 2, "max_vcpus": 4, "topology": null, "kvm_hyperv": false,
                 "max_phys_bits": 46, "affinity": null, "features": {"amx": false}, "nested": true},
        "memory": {"size": 1_u64 << 30, "mergeable": false, "hotplug_method": "Acpi", "hotplug_size": null,
                   "hotplugged_size": null, "shared": true, "hugepages": false, "hugepage_size": null,
                   "prefault": false, "zones": null, "thp": true},
        "payload": {"firmware": null, "kernel": "/k", "cmdline": null, "initramfs": null},
        "rate_limit_groups": null,
        "disks": [{"path": null, "readonly": false, "direct": false, "iommu": false, "num_queues": 1,
                   "queue_size": 128, "vhost_user": true, "vhost_socket": "/d", "rate_limiter_config": null,
                   "id": null, "disable_io_uring": false, "pci_segment": 0, "serial": null}],
        "net": null,
        "rng": {"src": "/dev/urandom", "iommu": false},
        "balloon": null,
        "fs": [{"tag": "t", "socket": "/f", "num_queues": 1, "queue_size": 1024, "id": "share", "pci_segment": 0}],
        "pmem": null,
        "serial": {"file": null, "mode": "File", "iommu": false, "socket": null, "file": "/log"},
        "console": {"file": null, "mode": "Off", "iommu": false},
        "vsock": null, "pvpanic": false, "iommu": false, "numa": null, "watchdog": false,
        "platform": null, "landlock_enable": false,
    }))
    .unwrap();
    assert_eq!((config.cpus.boot_vcpus, config.cpus.max_vcpus), (2, 4));
    assert_eq!(config.disks[0].backend.id, "disk0");
    assert_eq!(config.fs[0].backend.id, "share");
    assert_eq!(config.serial, SerialConfig::File("/log".into()));
}

/// A machine of a kernel and something else.
fn with(name: &str, value: Value) -> Value {
    json!({"payload": {"kernel": "/k"}, name: value})
}

/// A machine that says everything.
fn everything() -> Value {
    json!({
        "cpus": {"boot_vcpus": 3, "max_vcpus": 5},
        "memory": {"size": 1_u64 << 30, "shared": true, "hugepages": true, "hugepage_size": 2 << 20, "prefault": true},
        "payload": {"kernel": "/k", "initramfs": "/i", "cmdline": "quiet"},
        "disks": [{"id": "root", "vhost_user": true, "vhost_socket": "/d", "num_queues": 2, "queue_size": 256,
                   "readonly": true}],
        "fs": [{"id": "share", "tag": "t", "socket": "/f", "num_queues": 3, "queue_size": 512}],
        "vhost_user": [{"id": "vsock", "socket": "/v", "device_type": 19, "num_queues": 3, "queue_size": 64,
                        "state": "required", "drain": [0, 2], "config": "00ff"}],
        "serial": {"mode": "Socket", "socket": "/s"},
        "console": {"mode": "Off"},
    })
}

/// The places of all values within objects, as pointers.
fn places(value: &Value, place: &str, found: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        Value::Array(list) => {
            let items = list.iter().enumerate();
            items
                .map(|(index, value)| (index.to_string(), value))
                .collect()
        }
        _ => return,
    };
    for (key, inner) in inner {
        let place = format!("{place}/{key}");
        if value.is_object() {
            found.push(place.clone());
        }
        places(inner, &place, found);
    }
}

#[test]
fn null_is_the_same_as_absent() {
    let all = everything();
    let mut all_places = Vec::new();
    places(&all, "", &mut all_places);
    assert!(all_places.len() > 30, "{all_places:?}");
    for place in all_places {
        let mut null = all.clone();
        *null.pointer_mut(&place).unwrap() = Value::Null;
        let mut absent = all.clone();
        let (holder, key) = place.rsplit_once('/').unwrap();
        let holder = absent.pointer_mut(holder).unwrap();
        holder.as_object_mut().unwrap().remove(key).unwrap();
        assert_eq!(read(&null), read(&absent), "{place}");
    }
}

#[test]
fn a_serial_port_without_a_mode_is_as_none_at_all() {
    for serial in [json!(null), json!({}), json!({"mode": null})] {
        let config = read(&with("serial", serial)).unwrap();
        assert_eq!(config.serial, SerialConfig::Null);
    }
}

#[test]
fn every_field_has_its_place() {
    let value = everything();
    let config = read(&value).unwrap();
    assert_eq!(config.vhost_user[0].state, StateConfig::Required);
    assert_eq!(config.vhost_user[0].config, Some(vec![0, 255]));
    // And back.
    assert_eq!(
        serde_json::to_value(VmConfig::from(&config)).unwrap(),
        value
    );
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let long = "x".repeat(108);
    let tag = "t".repeat(37);
    let disk = |name: &str, value: Value| {
        let mut disk = json!({"vhost_user": true, "vhost_socket": "/d"});
        disk[name] = value;
        with("disks", json!([disk]))
    };
    let generic = |name: &str, value: Value| {
        let mut device = json!({"socket": "/v", "device_type": 4});
        device[name] = value;
        with("vhost_user", json!([device]))
    };
    let fs = |tag: &str, socket: &str| json!({"tag": tag, "socket": socket});
    let cases = [
        (json!({}), "payload: kernel= is missing"),
        (
            json!({"payload": {"kernel": ""}}),
            "payload: kernel= has no value",
        ),
        (
            json!({"payload": {"kernel": "/k\u{0}"}}),
            "payload: kernel=/k\u{0} holds a zero byte",
        ),
        (
            json!({"payload": {"kernel": "/k", "cmdline": "a\u{0}"}}),
            "payload: cmdline= holds a zero byte",
        ),
        (
            with("cpus", json!({"boot_vcpus": 0})),
            "cpus: boot_vcpus=0 is not within 1 and 32",
        ),
        (
            with("cpus", json!({"boot_vcpus": 1000})),
            "cpus: boot_vcpus=1000 is not within 1 and 32",
        ),
        (
            with("cpus", json!({"boot_vcpus": 2, "max_vcpus": 1})),
            "cpus: boot_vcpus=2 is more than max_vcpus=1",
        ),
        (
            with("memory", json!({"size": 1 << 20})),
            "memory: size=1048576 is less than 64M",
        ),
        (
            with("memory", json!({"size": (64 << 20) + 1})),
            "memory: size=67108865 is not a multiple of the page size, 4096 bytes",
        ),
        (
            with("memory", json!({"hugepages": true, "hugepage_size": 4096})),
            "memory: hugepage_size=4096 is neither 2M nor 1G",
        ),
        (
            with("disks", json!([{"path": "/image"}])),
            "disks[0]: vhost_user has to be true: Ferry has no built-in disks, a vhost-user back-end has to serve the disk",
        ),
        (
            disk("vhost_socket", json!(null)),
            "disks[0]: vhost_socket= is missing",
        ),
        (
            disk("vhost_socket", json!(long)),
            &format!(
                "disks[0]: vhost_socket={long} is 108 bytes long; a socket's path has at most 107"
            ),
        ),
        (
            disk("num_queues", json!(257)),
            "disks[0]: num_queues=257 is not within 1 and 256",
        ),
        (
            disk("queue_size", json!(100)),
            "disks[0]: queue_size=100 is not a power of two",
        ),
        (
            disk("queue_size", json!(65536)),
            "disks[0]: queue_size=65536 is not within 2 and 32768",
        ),
        (disk("id", json!("")), "disks[0]: id= has no value"),
        (
            disk("id", json!("a b")),
            "disks[0]: id=a b may hold letters, digits, `-`, `_`, `.` and `:`",
        ),
        (
            disk("id", json!("__vm")),
            "disks[0]: id=__vm begins with `__`, as only Ferry's own names do",
        ),
        (
            with("fs", json!([{"socket": "/f"}])),
            "fs[0]: tag= is missing",
        ),
        (
            with("fs", json!([fs("", "/f")])),
            "fs[0]: tag= has no value",
        ),
        (
            with("fs", json!([fs(&tag, "/f")])),
            &format!("fs[0]: tag={tag} is longer than 36 bytes"),
        ),
        (
            with("fs", json!([fs("t", "/f"), fs("t", "/g")])),
            "fs[1]: tag=t is used twice",
        ),
        (
            with("fs", json!([fs("t", "/f"), fs("u", "/f")])),
            "fs[1]: socket=/f is used twice: each device has its own back-end",
        ),
        (
            generic("device_type", json!(null)),
            "vhost_user[0]: device_type= is missing",
        ),
        (
            generic("device_type", json!(64)),
            "vhost_user[0]: device_type=64 is not within 1 and 63",
        ),
        (
            generic("drain", json!([1])),
            "vhost_user[0]: drain=1 names a queue that is not there: num_queues=1, counted from 0",
        ),
        (
            generic("config", json!("0")),
            "vhost_user[0]: config=0 is not made of pairs of hexadecimal digits",
        ),
        (
            generic("config", json!("")),
            "vhost_user[0]: config= holds no bytes",
        ),
        (
            with("serial", json!({"mode": "File"})),
            "serial: file= is missing",
        ),
        (
            with("serial", json!({"file": "/log"})),
            "serial: mode= is missing",
        ),
        (
            with("serial", json!({"mode": "Socket", "socket": ""})),
            "serial: socket= has no value",
        ),
    ];
    for (value, reason) in cases {
        assert_eq!(read(&value).unwrap_err(), reason);
    }
    for mode in ["Tty", "Pty", "File", "Socket"] {
        let error = read(&with("console", json!({"mode": mode}))).unwrap_err();
        assert!(
            error.starts_with(&format!("console: mode={mode} is not possible")),
            "{error}"
        );
    }
    let mut unshared = disk("id", json!("d"));
    unshared["memory"] = json!({"shared": false});
    assert_eq!(
        read(&unshared).unwrap_err(),
        "memory: shared=off leaves back-ends without guest RAM"
    );
}

#[test]
fn devices_come_and_go_by_the_same_rules() {
    let mut config = read(&json!({"payload": {"kernel": "/k"}})).unwrap();
    let disk = |id: Option<&str>, socket: &str| {
        let disk = Disk {
            id: id.map(str::to_owned),
            vhost_user: Some(true),
            vhost_socket: Some(socket.into()),
            ..Disk::default()
        };
        disk.check().unwrap()
    };
    config.add_disk(disk(None, "/a")).unwrap();
    config.add_disk(disk(Some("disk1"), "/b")).unwrap();
    let error = config.add_disk(disk(Some("disk0"), "/c")).unwrap_err();
    assert_eq!(error.to_string(), "id=disk0 is used twice");
    assert_eq!(config.disks.len(), 2);
    assert_eq!(
        config.remove_device("disk0"),
        config::validate::Removal::Removed
    );
    assert_eq!(
        config.remove_device("disk0"),
        config::validate::Removal::NoSuchDevice
    );
    for number in 0..30 {
        config.add_disk(disk(None, &format!("/{number}"))).unwrap();
    }
    let error = config.add_disk(disk(None, "/last")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the machine has no room for more than 31 devices"
    );
}

/// JSON of all shapes, with the fields that there are.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        (0..300_u64).prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
        "(/[a-z]|Tty|Off|none|[0-9a-f]{2})".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        let key = prop::sample::select(vec![
            "cpus",
            "boot_vcpus",
            "memory",
            "size",
            "hugepages",
            "hugepage_size",
            "payload",
            "kernel",
            "disks",
            "vhost_user",
            "vhost_socket",
            "fs",
            "tag",
            "socket",
            "num_queues",
            "queue_size",
            "id",
            "drain",
            "device_type",
            "config",
            "serial",
            "mode",
            "file",
            "console",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map(key.prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_makes_it_panic_and_what_is_taken_comes_back(value in value()) {
        if let Ok(config) = read(&value) {
            let again = read(&serde_json::to_value(VmConfig::from(&config)).unwrap());
            prop_assert_eq!(again.unwrap(), config);
        }
    }
}
