//! What clients are told of the virtual machine.

use ferry_api::control::{
    Answer, DeviceInfo, DeviceState, Refusal, RefusalKind, Response, VmInfo, VmState,
};
use ferry_devices::vhost_user;
use ferry_devices::virtio::VirtioDevice;

use super::Vmm;
use super::devices::{Device, Link};
use super::table::Situation;
use super::vm::{Phase, VirtualMachine};

impl Vmm {
    pub(super) fn describe(&self) -> Answer {
        let Some(vm) = &self.vm else {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                match self.receiving {
                    Some(_) => "there is no virtual machine yet: a sender is waited for",
                    None => "there is no virtual machine yet: the snapshot is still being read",
                },
            ));
        };
        let devices = vm.devices.iter().enumerate();
        Ok(Response::Info(Box::new(VmInfo {
            config: vm.config.clone(),
            state: match self.is_handing_over_what_runs() {
                // Whoever asks is not to see the few milliseconds of standstill.
                true => VmState::Running,
                false => vm.state(),
            },
            transition: transition(self.situation()),
            memory_actual_size: vm.config.memory.size,
            devices: devices
                .map(|(index, device)| describe(device, address(vm, index)))
                .collect(),
        })))
    }
}

/// A situation that is no state, as a clause.
fn transition(situation: Situation) -> Option<&'static str> {
    match situation {
        Situation::Booting => Some("being booted"),
        Situation::Restoring => Some("being restored"),
        Situation::Saving => Some("being saved"),
        Situation::Sending => Some("being sent to another Ferry"),
        Situation::HandedOver => Some("handed over to another Ferry, unconfirmed"),
        Situation::Receiving => Some("being received"),
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
        error: error
            .as_ref()
            .map_or_else(Vec::new, |error| ferry_api::chain(error)),
        features: ready.map(|ready| ready.features()),
    }
}

pub(super) fn state(device: &Device) -> DeviceState {
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
