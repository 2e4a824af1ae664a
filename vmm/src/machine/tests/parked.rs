//! Machines that stand still from the beginning.

use super::*;

#[test]
fn a_restored_guest_stands_still_until_it_is_released() {
    let mut bench = Bench::new();
    guests::place(
        bench.ram.mapping(),
        &guests::REAL_MODE,
        &guests::REAL_MODE_HANDLER,
    );
    guests::real_mode_vector(bench.ram.mapping(), 8);
    let mut machine = bench.machine(1, |_, fd| real_mode(fd));
    bench.start(&mut machine);
    for _ in 0..3 {
        bench.wait_for_more(1000);
        let (mut new, before) = bench.move_machine(machine);
        let sent = bench.sent();
        bench.begin(&mut new, Begin::Parked);
        assert_eq!(new.save().unwrap().vcpus[0].regs, before.vcpus[0].regs);
        std::thread::sleep(Duration::from_millis(50));
        new.park().unwrap();
        assert_eq!(new.save().unwrap().vcpus[0].regs, before.vcpus[0].regs);
        assert_eq!(bench.sent(), sent);
        new.release();
        machine = new;
    }
    bench.wait_for_more(1000);
    machine.park().unwrap();
    assert_counts(bench.sent().into_iter(), 256);
}

#[test]
fn a_machine_that_has_not_run_since_it_was_restored_is_saved_as_it_was() {
    let mut bench = Bench::new();
    let machine = unusual(&bench);
    let (mut new, before) = bench.move_machine(machine);
    bench.begin(&mut new, Begin::Parked);
    let mut after = new.save().unwrap();
    if !exact::counter_obeys(&bench) {
        for (after, before) in std::iter::zip(&mut after.vcpus, &before.vcpus) {
            after.tsc = before.tsc;
        }
    }
    assert_eq!(after, before);
    new.park().unwrap();
    assert_eq!(new.save().unwrap().clock, before.clock);
}

#[test]
fn time_stands_still_for_as_long_as_a_machine_has_not_been_released() {
    let mut bench = Bench::new();
    let machine = unusual(&bench);
    let (mut new, before) = bench.move_machine(machine);
    bench.begin(&mut new, Begin::Parked);
    std::thread::sleep(Duration::from_millis(300));
    let (released, start) = (crate::cpu::clock::host_ticks(), Instant::now());
    new.release();
    new.park().unwrap();
    let (ran, elapsed) = (crate::cpu::clock::host_ticks() - released, start.elapsed());
    let after = new.save().unwrap();
    if exact::counter_obeys(&bench) {
        for (before, after) in before.vcpus.iter().zip(&after.vcpus) {
            assert!(after.tsc - before.tsc <= ran);
        }
    }
    if let (Some(before), Some(after)) = (before.clock.kvmclock, after.clock.kvmclock) {
        assert!(u128::from(after - before) <= elapsed.as_nanos() + 1_000_000);
    }
}

#[test]
fn a_guest_that_has_never_run_can_be_saved_and_ended() {
    let mut bench = Bench::new();
    guests::place(
        bench.ram.mapping(),
        &guests::REAL_MODE,
        &guests::REAL_MODE_HANDLER,
    );
    guests::real_mode_vector(bench.ram.mapping(), 8);
    let mut machine = bench.machine(1, |_, fd| real_mode(fd));
    bench.begin(&mut machine, Begin::Parked);
    let (mut new, state) = bench.move_machine(machine);
    assert_eq!(state.vcpus[0].regs.0.rip, guests::ENTRY.0);
    bench.start(&mut new);
    bench.wait_for_more(1000);
    new.park().unwrap();
    assert_counts(bench.sent().into_iter(), 256);
}
