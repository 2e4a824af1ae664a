//! All numbers in Prometheus' text format. `docs/counters.md` is the list of names.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::control::{Counters, DeviceState, VmInfo, VmState};

/// A name that there is, and what stands behind it.
#[derive(Clone, Copy, Debug)]
struct Described {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

const fn gauge(name: &'static str, help: &'static str) -> Described {
    let kind = "gauge";
    Described { name, kind, help }
}

const fn counter(name: &'static str, help: &'static str) -> Described {
    let kind = "counter";
    Described { name, kind, help }
}

/// The names that are documented. A counter that is not among them is shown as well, as `untyped`.
const DESCRIBED: [Described; 24] = [
    gauge("ferry_info", "Always 1; its label is Ferry's version"),
    gauge("ferry_vm_defined", "Whether there is a virtual machine"),
    gauge(
        "ferry_vm_state",
        "1 for the state that the machine is in, 0 for the others",
    ),
    gauge("ferry_vm_ram_bytes", "Guest RAM"),
    counter("ferry_vm_boots", "Starts of the guest, reboots included"),
    counter(
        "ferry_vm_serial_lost_bytes",
        "Bytes on the serial port that nobody took in time",
    ),
    counter(
        "ferry_vcpus_pio_exits",
        "Exits for port I/O since the machine was made",
    ),
    counter(
        "ferry_vcpus_mmio_exits",
        "Exits for memory-mapped I/O since the machine was made",
    ),
    counter(
        "ferry_vcpus_other_exits",
        "Other exits since the machine was made",
    ),
    gauge(
        "ferry_device_state",
        "1 for the state that the device is in, 0 for the others",
    ),
    gauge(
        "ferry_device_features",
        "Feature bits agreed on with the back-end, as a number",
    ),
    counter(
        "ferry_device_reconnects",
        "Connections to the back-end after the first one",
    ),
    counter(
        "ferry_device_doorbell_exits",
        "Notifications that reached the back-end by way of Ferry",
    ),
    counter(
        "ferry_device_activations",
        "Activations by the guest's driver that succeeded",
    ),
    counter(
        "ferry_device_resets",
        "Resets by the guest's driver or for a new guest",
    ),
    counter("ferry_device_suspends", "Suspensions that succeeded"),
    counter("ferry_device_resumes", "Resumptions that succeeded"),
    counter(
        "ferry_device_config_changes",
        "Changes of the configuration space that the back-end announced",
    ),
    counter(
        "ferry_device_late_answers",
        "Answers that took the back-end longer than --request-timeout",
    ),
    counter(
        "ferry_device_config_writes_dropped",
        "Writes to the configuration space that were lost",
    ),
    gauge("ferry_device_queue_size", "Descriptors of a running queue"),
    gauge(
        "ferry_device_queue_available",
        "Buffers made available by the guest since the activation, modulo 65536",
    ),
    gauge(
        "ferry_device_queue_used",
        "Buffers used by the back-end since the activation, modulo 65536",
    ),
    gauge(
        "ferry_device_queue_in_flight",
        "Buffers available and not used",
    ),
];

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

/// Samples by their name.
#[derive(Debug, Default)]
struct Families(BTreeMap<String, Vec<String>>);

impl Families {
    /// Adds a number. Labels' values hold nothing that would need to be escaped.
    fn add(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let sample = match labels.is_empty() {
            true => format!("{name} {value}"),
            false => format!("{name}{{{}}} {value}", labels.join(",")),
        };
        self.0.entry(name.into()).or_default().push(sample);
    }
}

/// The text for a machine, or for none.
pub fn text(info: Option<&VmInfo>, counters: &Counters) -> String {
    let mut families = Families::default();
    let version = env!("CARGO_PKG_VERSION");
    families.add("ferry_info", &[("version", version)], 1);
    families.add("ferry_vm_defined", &[], info.is_some().into());
    if let Some(info) = info {
        describe(info, &mut families);
    }
    for (owner, numbers) in counters {
        for (name, value) in numbers {
            count(owner, name, *value, &mut families);
        }
    }
    let mut text = String::new();
    for (name, samples) in families.0 {
        // Writing to a String does not fail.
        let _ = match DESCRIBED.iter().find(|described| described.name == name) {
            Some(Described { name, kind, help }) => {
                writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")
            }
            None => writeln!(text, "# TYPE {name} untyped"),
        };
        for sample in samples {
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
        families.add("ferry_vm_state", &labels, (info.state == state).into());
    }
    families.add("ferry_vm_ram_bytes", &[], info.memory_actual_size);
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
            families.add("ferry_device_state", &labels, holds);
        }
    }
}

/// `queue0_kicks` of a device is `ferry_device_queue_kicks{device="…",queue="0"}`.
fn count(owner: &str, name: &str, value: u64, families: &mut Families) {
    // The same as a number, of which the state by its name is the better form.
    if name == "state" {
        return;
    }
    let (queue, name) = match name
        .strip_prefix("queue")
        .and_then(|rest| rest.split_once('_'))
    {
        Some((number, rest)) if number.parse::<u16>().is_ok() => (Some(number), rest),
        _ => (None, name),
    };
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    match (owner.strip_prefix("__"), queue) {
        (Some(part), _) => families.add(&format!("ferry_{part}_{name}"), &[], value),
        (None, None) => {
            let labels = [("device", owner)];
            families.add(&format!("ferry_device_{name}"), &labels, value);
        }
        (None, Some(queue)) => {
            let labels = [("device", owner), ("queue", queue)];
            families.add(&format!("ferry_device_queue_{name}"), &labels, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/counters.md");

    #[test]
    fn the_document_lists_exactly_the_names_there_are() {
        let listed: Vec<&str> = DOCUMENT
            .lines()
            .filter_map(|line| line.strip_prefix("| `ferry_")?.split('`').next())
            .map(|rest| rest.split('{').next().unwrap_or_default())
            .collect();
        let described: Vec<&str> = DESCRIBED
            .iter()
            .map(|described| described.name.trim_start_matches("ferry_"))
            .collect();
        assert_eq!(listed, described);
    }

    #[test]
    fn a_machine_that_is_not_there_has_a_text_too() {
        let text = text(None, &Counters::new());
        assert!(text.contains("\nferry_vm_defined 0\n"), "{text}");
        assert!(!text.contains("ferry_vm_state"), "{text}");
    }

    #[test]
    fn counters_find_their_names() {
        let numbers = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        let counters = Counters::from([
            ("__vm".to_owned(), numbers("boots", 2)),
            ("__vcpus".to_owned(), numbers("pio_exits", 3)),
            ("d0".to_owned(), numbers("queue12_kicks-seen", 4)),
            ("d1".to_owned(), numbers("state", 5)),
            ("d2".to_owned(), numbers("queue_x", 6)),
        ]);
        let text = text(None, &counters);
        for line in [
            "# HELP ferry_vm_boots Starts of the guest, reboots included",
            "# TYPE ferry_vm_boots counter",
            "ferry_vm_boots 2",
            "ferry_vcpus_pio_exits 3",
            "# TYPE ferry_device_queue_kicks_seen untyped",
            "ferry_device_queue_kicks_seen{device=\"d0\",queue=\"12\"} 4",
            "ferry_device_queue_x{device=\"d2\"} 6",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
        assert!(!text.contains("d1"), "{text}");
    }
}
