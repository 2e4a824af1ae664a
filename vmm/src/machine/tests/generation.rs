//! Guests that hear of a new generation, once.

use vm_memory::Bytes;

use super::*;
use crate::generation::{self, GenerationStateV1, Number};

/// Long mode, halted: the announcement of a new generation comes as vector 0x40, whose handler is that of
/// [`guests::PERIODIC`].
#[rustfmt::skip]
const LISTENS: [u8; 62] = [
    0x0f, 0x01, 0x1c, 0x25, 0x00, 0xc8, 0x00, 0x00,             // lidt [0xc800]
    0xbc, 0x00, 0x00, 0x09, 0x00,                               // mov esp, 0x90000
    0xbf, 0x00, 0x00, 0xe0, 0xfe,                               // mov edi, 0xfee00000
    0xc7, 0x87, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // enabled
    0xc7, 0x87, 0x00, 0x00, 0xe0, 0xff, 0x32, 0x00, 0x00, 0x00, // I/O APIC: pin 17
    0xc7, 0x87, 0x10, 0x00, 0xe0, 0xff, 0x40, 0x00, 0x00, 0x00, // edge, vector 0x40
    0x31, 0xdb,                                                 // xor ebx, ebx
    0xc6, 0x04, 0x25, 0x00, 0x06, 0x00, 0x00, 0x01,             // mov byte [0x600], 1
    0xfb, 0xf4, 0xeb, 0xfc,                                     // sti; hlt; again
];
const LISTENING: GuestAddress = GuestAddress(0x600);

fn number(bench: &Bench) -> [u8; 16] {
    bench.ram.mapping().read_obj(layout::GENERATION).unwrap()
}

fn listener(bench: &Bench) -> Machine {
    guests::place(bench.ram.mapping(), &LISTENS, &guests::PERIODIC_HANDLER);
    let mut machine = bench.machine(1, |_, fd| long_mode(bench, fd));
    bench.start(&mut machine);
    bench.wait_until(|| bench.ram.mapping().read_obj::<u8>(LISTENING).unwrap() == 1);
    machine
}

#[test]
fn a_guest_that_is_restored_as_another_one_is_told_so_once_it_runs() {
    let mut bench = Bench::new();
    let mut machine = listener(&bench);
    let mut numbers = vec![number(&bench)];
    assert_ne!(numbers[0], [0; 16]);
    for round in 0..3 {
        let (mut new, _) = bench.move_machine(machine);
        bench.begin(&mut new, Begin::Parked);
        assert!(numbers.contains(&number(&bench)));
        new.new_generation(&Number::draw().unwrap()).unwrap();
        assert!(!numbers.contains(&number(&bench)));
        numbers.push(number(&bench));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bench.sent().len(), round);
        new.release();
        bench.wait_for_more(1);
        machine = new;
    }
    // Neither a pause, nor a move that changes nothing, is announced.
    machine.park().unwrap();
    machine.release();
    let (mut new, _) = bench.move_machine(machine);
    bench.start(&mut new);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bench.sent(), [0, 1, 2]);
    assert_eq!(Some(&number(&bench)), numbers.last());
}

#[test]
fn each_boot_is_another_generation() {
    let bench = Bench::new();
    let machine = unusual(&bench);
    let first = number(&bench);
    machine.stop();
    let _second = unusual(&bench);
    assert_ne!(first, number(&bench));
}

#[test]
fn where_the_saved_guest_has_its_generation_it_stays() {
    let bench = Bench::new();
    let mut state = unusual(&bench).save().unwrap();
    let elsewhere = GuestAddress(0x12_3458);
    state.generation = GenerationStateV1 {
        address: elsewhere.0,
        irq: 19,
    };
    let before = number(&bench);
    let new = bench.restore(&state).unwrap();
    new.new_generation(&Number::draw().unwrap()).unwrap();
    assert_eq!(number(&bench), before);
    let number: [u8; 16] = bench.ram.mapping().read_obj(elsewhere).unwrap();
    assert_ne!(number, [0; 16]);
    assert_eq!(new.generation.save(), state.generation);
}

#[test]
fn a_saved_generation_that_cannot_be_is_refused() {
    let bench = Bench::new();
    let good = unusual(&bench).save().unwrap();
    let mut state = good.clone();
    state.generation.irq = 24;
    assert!(matches!(
        bench.restore(&state),
        Err(Error::Generation(generation::Error::Line(24)))
    ));
    let mut state = good;
    for address in [16 << 20, (16 << 20) - 15, u64::MAX] {
        state.generation.address = address;
        assert!(matches!(
            bench.restore(&state),
            Err(Error::Generation(generation::Error::Place(place))) if place == address
        ));
    }
}
