//! Machines on `/dev/kvm` that are stopped, saved, taken apart and built again around the same RAM.

mod errands;
mod exact;
mod generation;
mod going_on;
mod guests;
mod interrupts;
mod lost_ram;
mod parked;

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use ferry_api::config::{MemoryConfig, SerialConfig};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs};
use tempfile::TempDir;
use vm_memory::GuestAddress;
use vm_migration::stream::{StreamId, StreamReader, StreamWriter};
use vmm_sys_util::eventfd::EventFd;

use super::saving::{MachineState, RestoreParts, Shell};
use super::*;
use crate::boot::linux;
use crate::console;
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

fn memory() -> MemoryConfig {
    MemoryConfig {
        size: 16 << 20,
        shared: true,
        hugepages: false,
        hugepage_size: None,
        prefault: false,
    }
}

impl Bench {
    fn new() -> Self {
        Self::with_ram(GuestRam::new(&memory()).unwrap())
    }

    fn with_ram(ram: GuestRam) -> Self {
        install_kick_handler().unwrap();
        let mut bench = Bench {
            hypervisor: Hypervisor::open().unwrap(),
            ram,
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
        self.console = Console::open(
            &SerialConfig::File(path.clone()),
            console::Output::Begins,
            escape,
        )
        .unwrap();
        self.outputs.push(path);
    }

    fn machine(&self, cpus: u8, set_up: impl Fn(u8, &VcpuFd)) -> Machine {
        let vm = Arc::new(self.hypervisor.create_vm(self.ram.mapping()).unwrap());
        let cpuid = Cpuid::new(self.hypervisor.kvm(), cpus).unwrap();
        let console = self.console.as_ref().unwrap();
        let serial = vm.borrow_irq(layout::COM1_IRQ, console.interrupt());
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
            button: EventLine::new(&vm, layout::POWER_BUTTON_IRQ).unwrap(),
            generation: Generation::at_boot(&vm).unwrap(),
            _serial: Some(serial.unwrap()),
            vm,
        }
    }

    fn start(&self, machine: &mut Machine) {
        self.begin(machine, Begin::Running);
    }

    fn begin(&self, machine: &mut Machine, begin: Begin) {
        let ended = self.ended.clone();
        machine
            .start(begin, move |end| ended.lock().unwrap().push(end))
            .unwrap();
    }

    fn restore(&self, state: &MachineState) -> Result<Machine, Error> {
        let parts = RestoreParts {
            devices: &[],
            shared: None,
            console: self.console.as_ref(),
        };
        let cpuids = state.vcpus.iter().map(|vcpu| &vcpu.cpuid);
        let shell = Shell::new(&self.hypervisor, &self.ram, cpuids)?;
        Machine::from_state(shell, &parts, state)
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
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).unwrap();
    let regs = kvm_regs {
        rip: guests::ENTRY.0,
        rsp: 0x7000,
        rflags: 2,
        ..Default::default()
    };
    fd.set_regs(&regs).unwrap();
}

fn protected_mode(bench: &Bench, fd: &VcpuFd) {
    let entry = EntryPoint::Pvh {
        entry: guests::ENTRY,
        start_info: GuestAddress(0),
    };
    registers::set_boot_processor(fd, bench.ram.mapping(), entry).unwrap();
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
