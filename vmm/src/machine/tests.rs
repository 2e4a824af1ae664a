//! Machines on `/dev/kvm` that are stopped, saved, taken apart and built again around the same RAM.

mod guests;

use std::path::PathBuf;
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use ferry_api::config::{MemoryConfig, SerialConfig};
use ferry_devices::pci::PciFunction;
use ferry_devices::virtio::{Activation, TransportEvents, VirtioDevice};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment,
};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use vm_migration::stream::{Saved, StreamId, StreamReader, StreamWriter, encode};
use vmm_sys_util::eventfd::EventFd;

use super::saving::{MachineState, RestoreParts};
use super::*;
use crate::boot::linux;
use crate::cpu::clock;
use crate::cpu::state::{Blob, VcpuStateV1, capture, features, load};
use crate::cpu::vcpu::install_kick_handler;

/// Nothing here takes long; this keeps a failure from hanging.
const LIMIT: Duration = Duration::from_secs(60);

/// Everything that outlives a machine, and what its serial port has sent in the life of each.
struct Bench {
    hypervisor: Hypervisor,
    ram: GuestRam,
    console: Option<Console>,
    outputs: Vec<PathBuf>,
    dir: TempDir,
    ended: Arc<Mutex<Vec<GuestEnd>>>,
}

impl Bench {
    fn new() -> Self {
        install_kick_handler().unwrap();
        let ram = GuestRam::new(&MemoryConfig {
            size: 16 << 20,
            shared: true,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
        });
        let mut bench = Bench {
            hypervisor: Hypervisor::open().unwrap(),
            ram: ram.unwrap(),
            console: None,
            outputs: Vec::new(),
            dir: TempDir::new().unwrap(),
            ended: Arc::default(),
        };
        bench.open_console();
        bench
    }

    /// Another serial port with another far end, as another process would have.
    fn open_console(&mut self) {
        self.console = None;
        let path = self.dir.path().join(format!("{}", self.outputs.len()));
        let escape = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        self.console = Console::open(&SerialConfig::File(path.clone()), escape).unwrap();
        self.outputs.push(path);
    }

    fn machine(&self, cpus: u8, set_up: impl Fn(u8, &VcpuFd)) -> Machine {
        let vm = Arc::new(self.hypervisor.create_vm(self.ram.mapping()).unwrap());
        let cpuid = Cpuid::new(self.hypervisor.kvm(), cpus).unwrap();
        let console = self.console.as_ref().unwrap();
        vm.wire_irq(layout::COM1_IRQ, console.interrupt()).unwrap();
        let cpuids: Vec<_> = (0..cpus)
            .map(|index| cpuid.for_vcpu(index).unwrap())
            .collect();
        let vcpu_fds: Vec<_> = (0..)
            .zip(&cpuids)
            .map(|(index, cpuid)| {
                let fd = vm.create_vcpu(index).unwrap();
                fd.set_cpuid2(cpuid).unwrap();
                registers::set_msrs(&fd, index).unwrap();
                set_up(index, &fd);
                fd
            })
            .collect();
        Machine {
            vcpu_fds,
            vcpus: None,
            io: Arc::new(IoSpace {
                pci: PciBus::default(),
                serial: Some(console.port().clone()),
                exits: ExitCounters::default(),
            }),
            functions: Vec::new(),
            stopped_clock: None,
            processors: Arc::new(Processors {
                host: Host::ask(self.hypervisor.kvm()).unwrap(),
                cpuids,
            }),
            button: PowerButton::new(&vm).unwrap(),
            vm,
        }
    }

    fn start(&self, machine: &mut Machine) {
        let ended = self.ended.clone();
        machine
            .start(move |end| ended.lock().unwrap().push(end))
            .unwrap();
    }

    fn restore(&self, state: &MachineState) -> Result<Machine, Error> {
        let parts = RestoreParts {
            hypervisor: &self.hypervisor,
            ram: &self.ram,
            devices: &[],
            console: self.console.as_ref(),
        };
        Machine::from_state(&parts, state)
    }

    /// Stops the machine, saves it through a stream, takes it apart, and builds it again with another console.
    fn move_machine(&mut self, mut machine: Machine) -> (Machine, MachineState) {
        machine.park().unwrap();
        let state = through_a_stream(&machine.save().unwrap());
        drop(machine);
        self.open_console();
        let machine = self.restore(&state).unwrap();
        (machine, state)
    }

    /// What the guest has sent, over all its machines.
    fn sent(&self) -> Vec<u8> {
        let port = self.console.as_ref().unwrap().port();
        assert_eq!(port.flush(LIMIT), 0);
        assert_eq!(port.lost(), 0);
        let files = self.outputs.iter();
        files
            .flat_map(|path| std::fs::read(path).unwrap())
            .collect()
    }

    /// Waits until so many bytes more have been sent.
    fn wait_for_more(&self, bytes: usize) {
        let path = self.outputs.last().unwrap();
        let length = || std::fs::metadata(path).unwrap().len() as usize;
        self.wait_until(|| length() >= bytes);
    }

    fn wait_until(&self, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            let ended = self.ended.lock().unwrap();
            assert!(ended.is_empty(), "{ended:?}");
            assert!(start.elapsed() < LIMIT, "it does not go on");
            drop(ended);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn through_a_stream(state: &MachineState) -> MachineState {
    let mut stream = StreamWriter::new(Vec::new(), StreamId([7; 16])).unwrap();
    state.write(&mut stream).unwrap();
    let (bytes, _) = stream.finish().unwrap();
    let mut stream = StreamReader::new(&bytes[..]).unwrap();
    let read = MachineState::read(&mut stream).unwrap();
    stream.finish().unwrap();
    assert_eq!(read, *state);
    read
}

fn real_mode(fd: &VcpuFd) {
    let mut sregs = fd.get_sregs().unwrap();
    let flat = |mut segment: kvm_segment| {
        (segment.base, segment.selector) = (0, 0);
        segment
    };
    sregs.cs = flat(sregs.cs);
    fd.set_sregs(&sregs).unwrap();
    let regs = kvm_regs {
        rip: guests::ENTRY.0,
        rsp: 0x7000,
        rflags: 2,
        ..Default::default()
    };
    fd.set_regs(&regs).unwrap();
}

fn long_mode(bench: &Bench, fd: &VcpuFd) {
    let ram = bench.ram.mapping();
    linux::write_page_tables(ram).unwrap();
    guests::long_mode_vector(ram);
    let entry = EntryPoint::Linux64 {
        entry: guests::ENTRY,
        zero_page: layout::ZERO_PAGE,
    };
    registers::set_boot_processor(fd, ram, entry).unwrap();
}

/// The bytes count up, modulo `modulus`, from 0 on.
fn assert_counts(bytes: impl Iterator<Item = u8>, modulus: usize) {
    for (at, byte) in bytes.enumerate() {
        assert_eq!(usize::from(byte), at % modulus, "byte {at}");
    }
}

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
        let entry = EntryPoint::Pvh {
            entry: guests::ENTRY,
            start_info: GuestAddress(0),
        };
        registers::set_boot_processor(fd, bench.ram.mapping(), entry).unwrap();
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
    bench.wait_for_more(2000);
    machine.park().unwrap();
    let sent = bench.sent();
    for cpu in 0..4 {
        let own = || sent.iter().filter(|byte| *byte >> 6 == cpu);
        assert_ne!(own().count(), 0, "processor {cpu} has run");
        assert_counts(own().map(|byte| byte & 0x3f), 64);
    }
    for offsets in offsets {
        assert!(
            offsets.iter().all(|offset| *offset == offsets[0]),
            "{offsets:?}"
        );
    }
}

/// Parks a guest that is halted for ever, having given its processor unusual state.
fn unusual(bench: &Bench) -> Machine {
    guests::place(bench.ram.mapping(), &guests::HALTED, &[]);
    let mut machine = bench.machine(2, |_, fd| {
        real_mode(fd);
        let mut regs = fd.get_regs().unwrap();
        (regs.rax, regs.r15) = (0x1122_3344_5566_7788, u64::MAX);
        fd.set_regs(&regs).unwrap();
        let mut fpu = fd.get_fpu().unwrap();
        fpu.xmm[7] = [0xa5; 16];
        fd.set_fpu(&fpu).unwrap();
        let mut debug = fd.get_debug_regs().unwrap();
        debug.db[1] = 0x1234_5000;
        fd.set_debug_regs(&debug).unwrap();
        let msrs =
            [(0xc000_0082, 0xffff_8000_1234_5678), (0x277, 0x0007_0406)].map(|(index, data)| {
                kvm_bindings::kvm_msr_entry {
                    index,
                    data,
                    ..Default::default()
                }
            });
        let msrs = kvm_bindings::Msrs::from_entries(&msrs).unwrap();
        assert_eq!(fd.set_msrs(&msrs).unwrap(), 2);
        let running = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        fd.set_mp_state(running).unwrap();
    });
    bench.start(&mut machine);
    machine.park().unwrap();
    machine
}

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
fn counter_obeys(bench: &Bench) -> bool {
    let vm = bench.hypervisor.create_vm(bench.ram.mapping()).unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let wanted = clock::tsc_offset(&fd).map(|offset| offset.wrapping_sub(1 << 32));
    wanted.is_some_and(|wanted| {
        clock::set_tsc_offset(&fd, wanted).unwrap();
        clock::tsc_offset(&fd) == Some(wanted)
    })
}

#[test]
fn an_exit_that_waits_for_its_answer_is_completed_before_anything_is_saved() {
    #[rustfmt::skip]
    let code = [
        0x66, 0xb8, 0x00, 0x00, 0x00, 0x00, // mov eax, 0
        0xed,                               // in ax, dx
        0xe7, 0x80,                         // out 0x80, ax
    ];
    let bench = Bench::new();
    guests::place(bench.ram.mapping(), &code, &[]);
    let mut machine = bench.machine(1, |_, fd| real_mode(fd));
    let mut fd = machine.vcpu_fds.pop().unwrap();
    match fd.run().unwrap() {
        kvm_ioctls::VcpuExit::IoIn(0, data) => data.copy_from_slice(&[0x34, 0x12]),
        other => panic!("{other:?}"),
    }
    fd.set_kvm_immediate_exit(1);
    assert_eq!(fd.run().unwrap_err().errno(), libc::EINTR);
    let now = clock::host_ticks();
    let Processors { host, cpuids } = &*machine.processors;
    let state = capture::capture(&fd, 0, &cpuids[0], host, now).unwrap();
    assert_eq!(state.regs.0.rax, 0x1234);
    assert_eq!(
        state.regs.0.rip,
        guests::ENTRY.0 + 7,
        "behind the instruction"
    );
    drop(fd);
    drop(machine);
    let vm = bench.hypervisor.create_vm(bench.ram.mapping()).unwrap();
    let mut fd = vm.create_vcpu(0).unwrap();
    let host = Host::ask(bench.hypervisor.kvm()).unwrap();
    load::load(&fd, 0, &host, &state, now).unwrap();
    match fd.run().unwrap() {
        kvm_ioctls::VcpuExit::IoOut(0x80, data) => assert_eq!(data, [0x34, 0x12]),
        other => panic!("{other:?}"),
    };
}

#[test]
fn a_guest_that_is_not_stopped_is_not_saved() {
    let bench = Bench::new();
    let mut machine = unusual(&bench);
    machine.release();
    assert!(matches!(machine.save(), Err(Error::NotStopped)));
    let vcpus = machine.vcpus.as_ref().unwrap();
    assert!(matches!(
        vcpus.each(LIMIT, |_, _| ()),
        Err(ErrandError::NotParked)
    ));
    machine.park().unwrap();
    machine.save().unwrap();
}

#[test]
fn parked_processors_run_errands_at_the_same_time_each_on_its_own_thread() {
    let bench = Bench::new();
    let machine = unusual(&bench);
    let vcpus = machine.vcpus.as_ref().unwrap();
    let together = Arc::new(Barrier::new(2));
    for _ in 0..3 {
        let together = together.clone();
        let names = vcpus.each(LIMIT, move |index, _| {
            together.wait();
            (index, std::thread::current().name().map(str::to_owned))
        });
        let expected = [(0, Some("vcpu0".into())), (1, Some("vcpu1".into()))];
        assert_eq!(names.unwrap(), expected);
    }
}

#[test]
fn an_errand_that_takes_too_long_holds_nobody() {
    let bench = Bench::new();
    let mut machine = unusual(&bench);
    let wait = Arc::new(Barrier::new(2));
    let long = wait.clone();
    let vcpus = machine.vcpus.as_ref().unwrap();
    let late = vcpus.each(Duration::from_millis(50), move |index, _| {
        if index == 1 {
            long.wait();
        }
    });
    assert!(matches!(late, Err(ErrandError::Late { count: 1, .. })));
    machine.release();
    machine.park().unwrap();
    wait.wait();
    let vcpus = machine.vcpus.as_ref().unwrap();
    assert_eq!(vcpus.each(LIMIT, |index, _| index).unwrap(), [0, 1]);
}

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
    let function = VirtioPci::from_state(device, router, bells, &function.state).unwrap();
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

#[test]
fn this_hosts_own_processor_lacks_nothing() {
    let bench = Bench::new();
    let state = unusual(&bench).save().unwrap();
    let offered = Cpuid::new(bench.hypervisor.kvm(), 2).unwrap();
    for vcpu in &state.vcpus {
        features::check(vcpu, offered.entries()).unwrap();
    }
}
