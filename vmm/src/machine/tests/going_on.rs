//! Guests that go on where they were.

use kvm_bindings::KVM_MP_STATE_HALTED;
use kvm_ioctls::VcpuExit;
use vm_memory::Bytes;

use super::*;
use crate::cpu::clock;
use crate::cpu::state::{capture, load};

#[test]
fn real_mode_code_goes_on_at_the_very_instruction_and_its_timer_with_it() {
    let mut bench = Bench::new();
    guests::place(
        bench.ram.mapping(),
        &guests::REAL_MODE,
        &guests::REAL_MODE_HANDLER,
    );
    guests::real_mode_vector(bench.ram.mapping(), 8);
    let mut machine = bench.machine(1, |_, fd| real_mode(fd));
    bench.start(&mut machine);
    let ticks = |bench: &Bench| -> u16 { bench.ram.mapping().read_obj(guests::TICKS).unwrap() };
    for _ in 0..4 {
        let before = ticks(&bench);
        bench.wait_for_more(1000);
        bench.wait_until(|| ticks(&bench) >= before + 3);
        let (mut new, _) = bench.move_machine(machine);
        bench.start(&mut new);
        machine = new;
    }
    bench.wait_for_more(1000);
    machine.park().unwrap();
    assert_counts(bench.sent().into_iter(), 256);
}

#[test]
fn a_halted_processor_in_long_mode_is_woken_by_its_timer() {
    for (code, handler) in [
        (&guests::PERIODIC[..], &guests::PERIODIC_HANDLER[..]),
        (&guests::DEADLINE, &guests::DEADLINE_HANDLER),
    ] {
        let mut bench = Bench::new();
        guests::place(bench.ram.mapping(), code, handler);
        let mut machine = bench.machine(1, |_, fd| long_mode(&bench, fd));
        bench.start(&mut machine);
        let mut halted = 0;
        for _ in 0..4 {
            bench.wait_for_more(10);
            let (mut new, state) = bench.move_machine(machine);
            halted += u32::from(state.vcpus[0].mp_state.0.mp_state == KVM_MP_STATE_HALTED);
            bench.start(&mut new);
            machine = new;
        }
        bench.wait_for_more(10);
        machine.park().unwrap();
        assert_counts(bench.sent().into_iter(), 256);
        assert_ne!(halted, 0, "it sleeps almost always");
    }
}

#[test]
fn four_processors_go_on_and_one_that_waits_for_its_start_still_does() {
    let mut bench = Bench::new();
    guests::place(bench.ram.mapping(), &guests::PROTECTED, &[]);
    bench
        .ram
        .mapping()
        .write_slice(&guests::LAST, GuestAddress(0x9000))
        .unwrap();
    let mut machine = bench.machine(4, |index, fd| {
        if index == 3 {
            return;
        }
        protected_mode(&bench, fd);
        let mut regs = fd.get_regs().unwrap();
        regs.rsi = u64::from(index) << 6;
        fd.set_regs(&regs).unwrap();
        let running = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        fd.set_mp_state(running).unwrap();
    });
    bench.start(&mut machine);
    let mut offsets = Vec::new();
    for round in 0..3 {
        bench.wait_for_more(2000);
        let (mut new, state) = bench.move_machine(machine);
        assert_eq!(state.vcpus.len(), 4);
        offsets.push(
            new.vcpu_fds
                .iter()
                .map(clock::tsc_offset)
                .collect::<Vec<_>>(),
        );
        bench.start(&mut new);
        machine = new;
        if round == 1 {
            let ram = bench.ram.mapping();
            ram.write_obj(1u32, guests::START_THE_LAST).unwrap();
        }
    }
    let own = |sent: &[u8], cpu: u8| -> Vec<u8> {
        let own = sent.iter().filter(|byte| *byte >> 6 == cpu);
        own.map(|byte| byte & 0x3f).collect()
    };
    bench.wait_for_more(2000);
    // Each of them has had its turn.
    while (0..4).any(|cpu| own(&bench.sent(), cpu).is_empty()) {
        bench.wait_for_more(100);
    }
    machine.park().unwrap();
    let sent = bench.sent();
    for cpu in 0..4 {
        assert_counts(own(&sent, cpu).into_iter(), 64);
    }
    for offsets in offsets {
        assert!(
            offsets.iter().all(|offset| *offset == offsets[0]),
            "{offsets:?}"
        );
    }
}

/// A vCPU that has left KVM in the middle of its first instruction, and has been given the answer 0x1234.
fn answered(bench: &Bench, code: &[u8]) -> (Machine, VcpuFd) {
    guests::place(bench.ram.mapping(), code, &[]);
    let mut machine = bench.machine(1, |_, fd| protected_mode(bench, fd));
    let mut fd = machine.vcpu_fds.pop().unwrap();
    match fd.run().unwrap() {
        VcpuExit::IoIn(0, data) => data.copy_from_slice(&0x1234u32.to_le_bytes()),
        VcpuExit::MmioRead(0xd000_0000, data) => data.copy_from_slice(&0x1234u32.to_le_bytes()),
        other => panic!("{other:?}"),
    }
    (machine, fd)
}

#[test]
fn an_exit_that_waits_for_its_answer_is_completed_before_anything_is_saved() {
    const PORT: [u8; 3] = [0xed, 0xe7, 0x80]; // in eax, dx; out 0x80, eax
    const MEMORY: [u8; 7] = [0xa1, 0, 0, 0, 0xd0, 0xe7, 0x80]; // mov eax, [0xd0000000]; out 0x80, eax
    for (code, length) in [(&PORT[..], 1), (&MEMORY, 5)] {
        let bench = Bench::new();
        let (machine, mut fd) = answered(&bench, code);
        fd.set_kvm_immediate_exit(1);
        assert_eq!(fd.run().unwrap_err().errno(), libc::EINTR);
        let now = clock::host_ticks();
        let Processors { host, cpuids } = &*machine.processors;
        let state = capture::capture(&fd, 0, &cpuids[0], host, now).unwrap();
        let regs = state.regs.0;
        assert_eq!(regs.rax, 0x1234);
        assert_eq!(regs.rip, guests::ENTRY.0 + length, "behind the instruction");
        drop(fd);
        let vm = bench.hypervisor.create_vm(bench.ram.mapping()).unwrap();
        let mut fd = vm.create_vcpu(0).unwrap();
        load::identify(&fd, 0, &cpuids[0]).unwrap();
        load::load(&fd, 0, host, &state, now).unwrap();
        match fd.run().unwrap() {
            VcpuExit::IoOut(0x80, data) => assert_eq!(data, 0x1234u32.to_le_bytes()),
            other => panic!("{other:?}"),
        };
    }
}
