//! Moving the state of a spare virtual machine that never runs, while the guest that is to be moved does: code that runs for the first
//! time takes many times as long as later, and no guest should stand still for that.

use std::sync::Arc;
use std::thread;

use ferry_devices::vhost_user::{BackEndStateV1, RingStateV1, VhostUserStateV1};
use ferry_devices::virtio::{Activation, TransportEvents, VirtioDevice};
use vm_migration::stream::{StreamId, StreamWriter};

use super::Error;
use super::describe::GuestV1;
use super::fill::read_state;
use crate::hypervisor::{Hypervisor, Vm};
use crate::lifecycle::Ready;
use crate::machine::Machine;
use crate::machine::saving::{RestoreParts, Shell};
use crate::memory::GuestRam;
use crate::snapshot::device_section;

const NOWHERE: StreamId = StreamId([0; 16]);

/// What the sender of `guest` will do.
pub fn saving(hypervisor: &Hypervisor, ram: &GuestRam, guest: &GuestV1) {
    let spare = Shell::new(hypervisor, ram, &guest.cpuids).map_err(Error::from);
    rehearsed(spare.and_then(|spare| {
        let vm = spare.vm();
        let saved = save(&spare, &[Arc::new(Nothing)]);
        drop(spare);
        end_elsewhere(vm);
        saved
    }));
}

/// What the receiver of `guest` will do. The devices, which no guest has, are given a function for a moment.
pub fn loading(hypervisor: &Hypervisor, ram: &GuestRam, guest: &GuestV1, devices: &[Ready]) {
    let spare = Shell::new(hypervisor, ram, &guest.cpuids).map_err(Error::from);
    rehearsed(spare.and_then(|spare| {
        let bytes = save(&spare, devices)?;
        let (state, _) = read_state(&bytes, NOWHERE, devices)?;
        let parts = RestoreParts {
            devices,
            shared: None,
            console: None,
        };
        let vm = spare.vm();
        let machine = Machine::from_state(spare, &parts, &state);
        let loaded = machine.map(drop);
        end_elsewhere(vm);
        Ok(loaded?)
    }));
}

/// Lets go of all that is left of a spare virtual machine. KVM may take 20 ms and more to end it, for which nobody waits.
fn end_elsewhere(vm: Arc<Vm>) {
    let thread = thread::Builder::new().name("rehearsal".into());
    // Where there can be no thread it ends here and now.
    let _ = thread.spawn(move || drop(vm));
}

/// Nothing depends on it.
fn rehearsed<T>(outcome: Result<T, Error>) {
    if let Err(error) = outcome {
        let reasons = ferry_api::chain(&error).join(": ");
        tracing::debug!("moving a machine's state was not rehearsed: {reasons}");
    }
}

fn save<D: VirtioDevice + 'static>(spare: &Shell, devices: &[Arc<D>]) -> Result<Vec<u8>, Error> {
    let mut stream = StreamWriter::new(Vec::new(), NOWHERE)?;
    spare.save(devices)?.write(&mut stream)?;
    for device in devices {
        let rest = VhostUserStateV1 {
            features: 0,
            config: vec![0],
            rings: vec![RingStateV1 { index: 0, base: 0 }],
            back_end: BackEndStateV1::Absent,
        };
        stream.save(&device_section(device.id()), &rest)?;
    }
    Ok(stream.finish()?.0)
}

/// A device that does nothing. Those that the guest has cannot have another function.
struct Nothing;

impl VirtioDevice for Nothing {
    fn id(&self) -> &str {
        "nothing"
    }

    fn device_type(&self) -> u32 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[2]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn config_generation(&self) -> u8 {
        0
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn attach(&self, _events: Arc<dyn TransportEvents>) {}

    fn activate(&self, _activation: Activation) {}

    fn reset(&self) {}
}
