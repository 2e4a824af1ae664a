//! What a peer says of devices in a migration or a hand-over: their saved state.
//!
//! The first byte chooses what the rest is. Whatever that is, reading it ends without a panic; what is taken is written and read
//! as the same, and a function that is made of it can be driven, and saved again.
#![no_main]

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use ferry_devices::interrupt::{Doorbells, Gsi, MsiMessage, MsiRouter};
use ferry_devices::pci::{PciBus, PciBusStateV1, PciFunction};
use ferry_devices::serial::RestV1;
use ferry_devices::vhost_user::{Live, LiveStateV1, VhostUserStateV1};
use ferry_devices::virtio::pci::{BAR_SIZE, Events, VirtioPci, VirtioPciStateV1};
use ferry_devices::virtio::{Activation, TransportEvents, VirtioDevice};
use libfuzzer_sys::fuzz_target;
use vm_migration::stream::{Saved, encode};
use vmm_sys_util::eventfd::EventFd;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    match choice % 5 {
        0 => drop(read::<VirtioPciStateV1>(bytes).map(|state| drive(&state))),
        1 => drop(read::<VhostUserStateV1>(bytes)),
        2 => {
            if let Some(state) = read::<LiveStateV1>(bytes) {
                let fds = Vec::new();
                Live { state, fds }.queues().expect_err("it has none");
            }
        }
        3 => drop(read::<RestV1>(bytes)),
        _ => {
            if let Some(state) = read::<PciBusStateV1>(bytes) {
                let bus = PciBus::from_state(&state);
                bus.write_port(4, &[0xff; 4]);
                bus.read_port(4, &mut [0; 4]);
                assert_eq!(bus.save(), state);
            }
        }
    }
});

fn read<T: Saved + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let value = T::read(T::VERSION, bytes).ok()?;
    let again = encode(&value).expect("what was read can be written");
    let again = T::read(T::VERSION, &again).expect("it was written");
    assert_eq!(again, value);
    Some(value)
}

/// Makes a function of it, and does with it what a guest can do.
fn drive(state: &VirtioPciStateV1) {
    let wires = Arc::new(Nowhere);
    let function =
        VirtioPci::from_state(Arc::new(Device), wires.clone(), wires, state, Events::New);
    let Ok(function) = function else {
        return;
    };
    assert_eq!(
        function.save().expect("it is at rest").registers,
        state.registers
    );
    let _ = function.activation();
    let mut data = [0; 4];
    for offset in (0..256).step_by(4) {
        function.read_config(offset, &mut data);
        function.write_config(offset, &[0xff; 4]);
    }
    for offset in (0..u64::from(BAR_SIZE)).step_by(52) {
        function.read_bar(offset, &mut data);
        function.write_bar(offset, &data);
    }
    let _ = function.decoded();
}

/// A device that does nothing.
struct Device;

impl VirtioDevice for Device {
    fn id(&self) -> &str {
        "disk0"
    }

    fn device_type(&self) -> u32 {
        2
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256]
    }

    fn features(&self) -> u64 {
        u64::MAX
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_generation(&self) -> u8 {
        0
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn attach(&self, _events: Arc<dyn TransportEvents>) {}

    fn activate(&self, _activation: Activation) {}

    fn reset(&self) {}
}

/// Interrupts and doorbells that lead nowhere.
struct Nowhere;

impl MsiRouter for Nowhere {
    fn allocate(&self) -> io::Result<Gsi> {
        Ok(Gsi(24))
    }

    fn route(&self, _gsi: Gsi, _message: MsiMessage) -> io::Result<()> {
        Ok(())
    }

    fn attach(&self, _gsi: Gsi, _source: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn detach(&self, _gsi: Gsi, _source: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

impl Doorbells for Nowhere {
    fn attach(&self, _address: u64, _bell: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn detach(&self, _address: u64, _bell: &EventFd) -> io::Result<()> {
        Ok(())
    }
}
