//! Interrupts that are on their way.

use ferry_devices::pci::PciFunction;
use ferry_devices::virtio::pci::Events;
use ferry_devices::virtio::{Activation, TransportEvents, VirtioDevice};

use super::*;
use crate::cpu::clock;
use crate::cpu::state::capture;

/// A device that does nothing.
#[derive(Default)]
struct Idle {
    events: Mutex<Option<Arc<dyn TransportEvents>>>,
}

impl VirtioDevice for Idle {
    fn id(&self) -> &str {
        "idle0"
    }
    fn device_type(&self) -> u32 {
        2
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }
    fn features(&self) -> u64 {
        1 << 32
    }
    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn config_generation(&self) -> u8 {
        0
    }
    fn write_config(&self, _: u64, _: &[u8]) {}
    fn attach(&self, events: Arc<dyn TransportEvents>) {
        *self.events.lock().unwrap() = Some(events);
    }
    fn activate(&self, _: Activation) {}
    fn reset(&self) {}
}

/// Whether the local APIC of processor 0 holds an interrupt with this vector.
fn holds(fd: &VcpuFd, vector: usize) -> bool {
    const REQUESTED: usize = 0x200;
    let word = fd.get_lapic().unwrap().regs[REQUESTED + vector / 32 * 16 + vector % 32 / 8];
    word as u8 & 1 << (vector % 8) != 0
}

#[test]
fn an_interrupt_behind_a_masked_vector_arrives_on_another_machine_once_it_is_unmasked() {
    const ENABLED: usize = 0xf1;
    const VECTOR: usize = 0x41;
    const TABLE: u64 = 0x8000;
    let bench = Bench::new();
    guests::place(bench.ram.mapping(), &guests::HALTED, &[]);
    let mut machine = bench.machine(1, |_, fd| {
        real_mode(fd);
        let mut lapic = fd.get_lapic().unwrap();
        lapic.regs[ENABLED] = 1;
        fd.set_lapic(&lapic).unwrap();
    });
    let device = Arc::new(Idle::default());
    let function = VirtioPci::new(
        device.clone(),
        0xc000_0000,
        machine.vm.clone(),
        machine.vm.clone(),
    )
    .unwrap();
    let mut capability = [0; 4];
    let mut at = 0x40;
    while capability[0] != 0x11 {
        function.read_config(at, &mut capability);
        at = if capability[0] == 0x11 {
            at
        } else {
            capability[1].into()
        };
    }
    function.write_config(at + 2, &0x8000u16.to_le_bytes());
    function.write_bar(TABLE, &0xfee0_0000u64.to_le_bytes());
    function.write_bar(TABLE + 8, &(VECTOR as u32).to_le_bytes());
    // Bound to configuration changes, and masked still.
    function.write_bar(16, &0u16.to_le_bytes());
    let events = device.events.lock().unwrap().clone().unwrap();
    events.config_changed();
    machine.functions.push(function);
    bench.start(&mut machine);
    machine.park().unwrap();
    let mut state = through_a_stream(&machine.save().unwrap());
    drop(machine);

    let function = state.functions.pop().unwrap();
    assert_eq!(function.id, "idle0");
    let new = bench.restore(&state).unwrap();
    let (router, bells) = (new.vm.clone(), new.vm.clone());
    let function =
        VirtioPci::from_state(device, router, bells, &function.state, Events::New).unwrap();
    let mut pending = [0];
    function.read_bar(0xc000, &mut pending);
    assert_eq!(pending, [1]);
    assert!(!holds(&new.vcpu_fds[0], VECTOR));
    function.write_bar(TABLE + 12, &0u32.to_le_bytes());
    bench.wait_until(|| holds(&new.vcpu_fds[0], VECTOR));
    function.read_bar(0xc000, &mut pending);
    assert_eq!(pending, [0]);

    // What a local APIC holds is saved with it.
    let Processors { host, cpuids } = &*new.processors;
    let fd = &new.vcpu_fds[0];
    let now = clock::host_ticks();
    state.vcpus[0] = capture::capture(fd, 0, &cpuids[0], host, now).unwrap();
    drop(function);
    drop(new);
    let third = bench.restore(&state).unwrap();
    assert!(holds(&third.vcpu_fds[0], VECTOR));
}
