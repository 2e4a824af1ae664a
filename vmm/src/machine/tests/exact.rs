//! What is saved, to the last bit, and what is refused.

use vm_migration::stream::{Saved, encode};

use super::*;
use crate::cpu::clock;
use crate::cpu::state::{Blob, VcpuStateV1, capture, features};

#[test]
fn what_is_loaded_is_what_was_saved() {
    let bench = Bench::new();
    let machine = unusual(&bench);
    let state = machine.save().unwrap();
    assert_eq!(state, machine.save().unwrap(), "saving changes nothing");
    let regs = &state.vcpus[1].regs.0;
    assert_eq!((regs.rax, regs.r15), (0x1122_3344_5566_7788, u64::MAX));
    drop(machine);
    let new = bench.restore(&state).unwrap();
    let clock = new.stopped_clock.as_ref().unwrap();
    for (index, fd) in (0..).zip(&new.vcpu_fds) {
        let mut again = {
            let Processors { host, cpuids } = &*new.processors;
            let cpuid = &cpuids[usize::from(index)];
            capture::capture(fd, index, cpuid, host, clock.host_ticks()).unwrap()
        };
        let saved = &state.vcpus[usize::from(index)];
        if !counter_obeys(&bench) {
            again.tsc = saved.tsc;
        }
        assert_eq!(again, *saved);
    }
    assert_eq!(new.vm.save_chips().unwrap(), state.chips);
    assert_eq!(clock.save(), state.clock);
}

#[test]
fn saved_state_is_small_and_every_part_of_it_is_refused() {
    let bench = Bench::new();
    let state = unusual(&bench).save().unwrap();
    fn check<T: Saved>(value: &T, most: usize) {
        let bytes = encode(value).unwrap();
        assert!(bytes.len() < most, "{} bytes of {}", bytes.len(), T::SCHEMA);
        for length in 0..bytes.len() {
            assert!(T::read(T::VERSION, &bytes[..length]).is_err(), "{length}");
        }
        assert!(T::read(T::VERSION + 1, &bytes).is_err());
    }
    check(&state.vcpus[0], 64 << 10);
    check(&state.chips, 4 << 10);
    check(&state.clock, 16);
    check(&state.generation, 16);
    check(&state.pci, 16);
}

#[test]
fn what_this_host_lacks_is_refused_by_name() {
    let bench = Bench::new();
    let state = unusual(&bench).save().unwrap();
    let refusal = |change: &dyn Fn(&mut VcpuStateV1)| {
        let mut state = state.clone();
        change(&mut state.vcpus[1]);
        let error = bench.restore(&state).err().expect("a refusal");
        crate::logging::chain(&error)
    };
    let text = refusal(&|vcpu| {
        let leaf = vcpu.cpuid.iter_mut().find(|leaf| leaf.0.function == 7);
        leaf.unwrap().0.ebx |= 1 << 2;
    });
    assert!(text.contains("sgx"), "{text}");
    let text = refusal(&|vcpu| vcpu.xsave.0[512 + 7] |= 0x40);
    assert!(text.contains("component 62"), "{text}");
    let text = refusal(&|vcpu| {
        vcpu.msrs.push(state::MsrStateV1 {
            index: 0xda1,
            value: 1,
        });
    });
    assert!(text.contains("register 0xda1"), "{text}");
    let text = refusal(&|vcpu| vcpu.tsc_khz = vcpu.tsc_khz.map(|khz| khz / 2).or(Some(1)));
    assert!(
        text.contains("kHz") || state.vcpus[0].tsc_khz.is_none(),
        "{text}"
    );
    let text = refusal(&|vcpu| vcpu.xsave = Blob(vec![0; 4095]));
    assert!(text.contains("4095 bytes"), "{text}");
    let text = refusal(&|vcpu| {
        let leaf = vcpu.cpuid.iter_mut().find(|leaf| leaf.0.function == 0);
        leaf.unwrap().0.ebx ^= 1;
    });
    assert!(text.contains("a processor by"), "{text}");
}

#[test]
fn a_register_that_is_not_here_and_was_zero_is_no_hindrance() {
    let bench = Bench::new();
    let mut state = unusual(&bench).save().unwrap();
    state.vcpus[0].msrs.push(state::MsrStateV1 {
        index: 0xda1,
        value: 0,
    });
    bench.restore(&state).unwrap();
}

#[test]
fn the_guests_time_stands_still_from_the_stop_to_the_start() {
    let mut bench = Bench::new();
    let machine = unusual(&bench);
    let (mut machine, before) = bench.move_machine(machine);
    std::thread::sleep(Duration::from_millis(300));
    let (started, start) = (clock::host_ticks(), Instant::now());
    bench.start(&mut machine);
    machine.park().unwrap();
    let (ran, elapsed) = (clock::host_ticks() - started, start.elapsed());
    let after = machine.save().unwrap();
    if counter_obeys(&bench) {
        for (before, after) in before.vcpus.iter().zip(&after.vcpus) {
            assert!(
                after.tsc - before.tsc <= ran,
                "{} in {ran}",
                after.tsc - before.tsc
            );
        }
    }
    if let (Some(before), Some(after)) = (before.clock.kvmclock, after.clock.kvmclock) {
        assert!(u128::from(after - before) <= elapsed.as_nanos() + 1_000_000);
    }
}

/// Whether this KVM does what it is told of a time stamp counter. One that lets guests read the host's does not.
pub fn counter_obeys(bench: &Bench) -> bool {
    let vm = bench.hypervisor.create_vm(bench.ram.mapping()).unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let wanted = clock::tsc_offset(&fd).map(|offset| offset.wrapping_sub(1 << 32));
    wanted.is_some_and(|wanted| {
        clock::set_tsc_offset(&fd, wanted).unwrap();
        clock::tsc_offset(&fd) == Some(wanted)
    })
}

#[test]
fn this_hosts_own_processor_lacks_nothing() {
    let bench = Bench::new();
    let state = unusual(&bench).save().unwrap();
    let offered = Cpuid::new(bench.hypervisor.kvm(), 2).unwrap();
    for vcpu in &state.vcpus {
        features::check(vcpu, offered.entries()).unwrap();
    }
}
