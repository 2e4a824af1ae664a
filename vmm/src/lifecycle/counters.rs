//! What clients can count. `docs/counters.md` is the list of names.

use std::collections::BTreeMap;

use ferry_api::control::{Answer, Counters, Response};
use ferry_devices::vhost_user::{DeviceCounters, RingCounters};
use ferry_devices::virtio::VirtioDevice;

use super::Vmm;
use super::describe;
use super::devices::{Device, Ready};
use super::vm::Phase;
use crate::io_space::ExitCounters;

type Numbers = BTreeMap<String, u64>;

impl Vmm {
    pub(super) fn count(&self) -> Answer {
        let mut counters = Counters::new();
        let Some(vm) = &self.vm else {
            return Ok(Response::Counters(counters));
        };
        let console = vm.outside.as_ref().and_then(|it| it.console.as_ref());
        let lost = console.map_or(0, |console| console.port().lost());
        let numbers = [
            ("boots".into(), self.boots),
            ("serial_lost_bytes".into(), lost),
        ];
        counters.insert("__vm".into(), Numbers::from(numbers));
        let mut doorbell_exits = Vec::new();
        if let Phase::Live(live) = &vm.phase {
            counters.insert("__vcpus".into(), exits(live.machine.exits()));
            let functions = live.machine.functions().iter();
            doorbell_exits.extend(functions.map(|function| function.doorbell_exits()));
        }
        for (index, device) in vm.devices.iter().enumerate() {
            let mut numbers = count(device);
            if let Some(&exits) = doorbell_exits.get(index) {
                numbers.insert("doorbell_exits".into(), exits);
            }
            counters.insert(device.spec.id.clone(), numbers);
        }
        Ok(Response::Counters(counters))
    }
}

fn exits(exits: &ExitCounters) -> Numbers {
    let numbers = [
        ("pio_exits", &exits.pio),
        ("mmio_exits", &exits.mmio),
        ("other_exits", &exits.other),
    ];
    let numbers = numbers.map(|(name, counter)| (name.into(), ExitCounters::read(counter)));
    Numbers::from(numbers)
}

fn count(device: &Device) -> Numbers {
    let mut numbers = Numbers::from([
        ("reconnects".into(), device.reconnects),
        ("state".into(), describe::state(device) as u64),
    ]);
    if let Some(ready) = device.ready() {
        numbers.extend(count_ready(ready));
        for ring in ready.rings() {
            numbers.extend(count_ring(ring));
        }
    }
    numbers
}

fn count_ready(ready: &Ready) -> impl Iterator<Item = (String, u64)> {
    let DeviceCounters {
        activations,
        resets,
        suspends,
        resumes,
        config_changes,
        late_answers,
        config_writes_dropped,
    } = ready.counters();
    [
        ("features", ready.features()),
        ("activations", activations),
        ("resets", resets),
        ("suspends", suspends),
        ("resumes", resumes),
        ("config_changes", config_changes),
        ("late_answers", late_answers),
        ("config_writes_dropped", config_writes_dropped),
    ]
    .into_iter()
    .map(|(name, number)| (name.to_owned(), number))
}

fn count_ring(ring: RingCounters) -> impl Iterator<Item = (String, u64)> {
    let RingCounters {
        index,
        size,
        available,
        used,
    } = ring;
    [
        ("size", size),
        ("available", available),
        ("used", used),
        ("in_flight", available.wrapping_sub(used)),
    ]
    .into_iter()
    .map(move |(name, number)| (format!("queue{index}_{name}"), number.into()))
}
