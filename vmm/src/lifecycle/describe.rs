//! What clients are told of the virtual machine.

use std::collections::BTreeMap;

use ferry_api::control::{Answer, Counters, DeviceInfo, DeviceState, Response, VmInfo};
use ferry_devices::vhost_user;
use ferry_devices::virtio::VirtioDevice;

use super::Vmm;
use super::devices::{Device, Link};
use super::table::Situation;
use super::vm::{Phase, VirtualMachine};
use crate::io_space::ExitCounters;

impl Vmm {
    pub(super) fn describe(&self) -> Answer {
        let Some(vm) = &self.vm else {
            return Ok(Response::Done);
        };
        let devices = vm.devices.iter().enumerate();
        Ok(Response::Info(Box::new(VmInfo {
            config: vm.config.clone(),
            state: vm.state(),
            transition: transition(vm.situation()),
            memory_actual_size: vm.config.memory.size,
            devices: devices
                .map(|(index, device)| describe(device, address(vm, index)))
                .collect(),
        })))
    }

    pub(super) fn count(&self) -> Answer {
        let mut counters = Counters::new();
        let Some(vm) = &self.vm else {
            return Ok(Response::Counters(counters));
        };
        let boots = BTreeMap::from([("boots".to_owned(), self.boots)]);
        counters.insert("__vm".into(), boots);
        let mut doorbells = Vec::new();
        if let Phase::Live(live) = &vm.phase {
            let exits = live.machine.exits();
            let numbers = [
                ("pio_exits", &exits.pio),
                ("mmio_exits", &exits.mmio),
                ("other_exits", &exits.other),
            ];
            let numbers = numbers.map(|(name, counter)| (name.into(), ExitCounters::read(counter)));
            counters.insert("__vcpus".into(), BTreeMap::from(numbers));
            let functions = live.machine.functions().iter();
            doorbells.extend(functions.map(|function| function.doorbell_exits()));
        }
        for (index, device) in vm.devices.iter().enumerate() {
            let mut numbers = count(device);
            if let Some(&exits) = doorbells.get(index) {
                numbers.insert("doorbell_exits".into(), exits);
            }
            counters.insert(device.spec.id.clone(), numbers);
        }
        Ok(Response::Counters(counters))
    }
}

/// A situation that is no state, as a clause.
fn transition(situation: Situation) -> Option<&'static str> {
    match situation {
        Situation::Booting => Some("being booted"),
        Situation::Pausing => Some("being paused"),
        Situation::Resuming => Some("being resumed"),
        Situation::Rebooting => Some("being rebooted"),
        Situation::ShuttingDown => Some("being shut down"),
        Situation::Deleting => Some("being deleted"),
        Situation::Absent
        | Situation::Created
        | Situation::Running
        | Situation::Paused
        | Situation::Shutdown => None,
    }
}

/// Where a device is on the bus, while there is a machine. Device 0 is the host bridge.
fn address(vm: &VirtualMachine, index: usize) -> Option<String> {
    match vm.phase {
        Phase::Live(_) => Some(format!("0000:00:{:02x}.0", index + 1)),
        _ => None,
    }
}

fn describe(device: &Device, pci_bdf: Option<String>) -> DeviceInfo {
    let ready = device.ready();
    let error = ready.and_then(|ready| ready.error());
    DeviceInfo {
        id: device.spec.id.clone(),
        device_type: device.spec.profile.device_type(),
        pci_bdf,
        state: state(device),
        error: error.as_ref().map_or_else(Vec::new, causes),
        features: ready.map(|ready| ready.features()),
    }
}

fn causes(error: &vhost_user::Error) -> Vec<String> {
    let first: &dyn std::error::Error = error;
    std::iter::successors(Some(first), |error| error.source())
        .map(ToString::to_string)
        .collect()
}

fn state(device: &Device) -> DeviceState {
    match &device.link {
        Link::Down | Link::Starting(_) => DeviceState::Disconnected,
        Link::Up(ready) => match ready.state() {
            vhost_user::DeviceState::Starting => DeviceState::Disconnected,
            vhost_user::DeviceState::Idle => DeviceState::Idle,
            vhost_user::DeviceState::Changing => DeviceState::Changing,
            vhost_user::DeviceState::Active => DeviceState::Active,
            vhost_user::DeviceState::Suspended => DeviceState::Suspended,
            vhost_user::DeviceState::Failed => DeviceState::Failed,
        },
    }
}

fn count(device: &Device) -> BTreeMap<String, u64> {
    let mut numbers = BTreeMap::new();
    numbers.insert("reconnects".to_owned(), device.reconnects);
    numbers.insert("state".to_owned(), state(device) as u64);
    if let Some(ready) = device.ready() {
        numbers.insert("features".to_owned(), ready.features());
    }
    numbers
}
