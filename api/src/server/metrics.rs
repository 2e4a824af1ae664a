//! All numbers in Prometheus' text format. `docs/counters.md` is the list of names.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::control::{Counters, DeviceState, VmInfo, VmState};

/// Numbers that may fall, of those in [`Counters`].
const GAUGES: [&str; 5] = ["features", "size", "available", "used", "in_flight"];

const VM_STATES: [VmState; 4] = [
    VmState::Created,
    VmState::Running,
    VmState::Paused,
    VmState::Shutdown,
];

const DEVICE_STATES: [DeviceState; 6] = [
    DeviceState::Disconnected,
    DeviceState::Idle,
    DeviceState::Changing,
    DeviceState::Active,
    DeviceState::Suspended,
    DeviceState::Failed,
];

/// All numbers of one name.
#[derive(Debug)]
struct Family {
    kind: &'static str,
    samples: Vec<String>,
}

#[derive(Debug, Default)]
struct Families(BTreeMap<String, Family>);

impl Families {
    /// Adds a number. Labels' values hold nothing that would need to be escaped.
    fn add(&mut self, name: &str, kind: &'static str, labels: &[(&str, &str)], value: u64) {
        let family = self.0.entry(name.into()).or_insert_with(|| Family {
            kind,
            samples: Vec::new(),
        });
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        family.samples.push(match labels.is_empty() {
            true => format!("{name} {value}"),
            false => format!("{name}{{{}}} {value}", labels.join(",")),
        });
    }
}

/// The text for a machine, or for none.
pub fn text(info: Option<&VmInfo>, counters: &Counters) -> String {
    let mut families = Families::default();
    let version = env!("CARGO_PKG_VERSION");
    families.add("ferry_info", "gauge", &[("version", version)], 1);
    families.add("ferry_vm_defined", "gauge", &[], info.is_some().into());
    if let Some(info) = info {
        describe(info, &mut families);
    }
    for (owner, numbers) in counters {
        for (name, value) in numbers {
            count(owner, name, *value, &mut families);
        }
    }
    let mut text = String::new();
    for (name, family) in families.0 {
        // Writing to a String does not fail.
        let _ = writeln!(text, "# TYPE {name} {}", family.kind);
        for sample in family.samples {
            text.push_str(&sample);
            text.push('\n');
        }
    }
    text
}

fn describe(info: &VmInfo, families: &mut Families) {
    for state in VM_STATES {
        let labels = [("state", format!("{state:?}"))];
        let labels = labels
            .each_ref()
            .map(|(label, value)| (*label, value.as_str()));
        families.add(
            "ferry_vm_state",
            "gauge",
            &labels,
            (info.state == state).into(),
        );
    }
    families.add("ferry_vm_ram_bytes", "gauge", &[], info.memory_actual_size);
    for device in &info.devices {
        let kind = device.device_type.to_string();
        for state in DEVICE_STATES {
            let name = format!("{state:?}");
            let labels = [
                ("device", device.id.as_str()),
                ("type", &kind),
                ("state", &name),
            ];
            let holds = (device.state == state).into();
            families.add("ferry_device_state", "gauge", &labels, holds);
        }
    }
}

/// `queue0_kicks` of a device is `ferry_device_queue_kicks{device="…",queue="0"}`.
fn count(owner: &str, name: &str, value: u64, families: &mut Families) {
    let (queue, name) = match name
        .strip_prefix("queue")
        .and_then(|rest| rest.split_once('_'))
    {
        Some((number, rest)) if number.parse::<u16>().is_ok() => (Some(number), rest),
        _ => (None, name),
    };
    let kind = match GAUGES.contains(&name) {
        true => "gauge",
        false => "counter",
    };
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    match (owner.strip_prefix("__"), queue) {
        (Some(part), _) => families.add(&format!("ferry_{part}_{name}"), kind, &[], value),
        (None, None) => {
            let labels = [("device", owner)];
            families.add(&format!("ferry_device_{name}"), kind, &labels, value);
        }
        (None, Some(queue)) => {
            let labels = [("device", owner), ("queue", queue)];
            families.add(&format!("ferry_device_queue_{name}"), kind, &labels, value);
        }
    }
}
