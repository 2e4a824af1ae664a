//! A machine's way into saved state and back. RAM and back-ends travel apart.

use std::io::{Read, Write};
use std::sync::Arc;

use ferry_devices::pci::{PciBus, PciBusStateV1};
use ferry_devices::serial::SerialStateV1;
use ferry_devices::vhost_user::VhostUserDevice;
use ferry_devices::virtio::pci::{Events, VirtioPci, VirtioPciStateV1};
use ferry_devices::virtio::{ActiveQueue, VirtioDevice};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_migration::stream::{self, Saved, StreamReader, StreamWriter};

use super::{Error, Machine, PARK_LIMIT, Processors};
use crate::acpi::event::EventLine;
use crate::console::Console;
use crate::cpu::clock::{ClockStateV1, StoppedClock};
use crate::cpu::cpuid::Cpuid;
use crate::cpu::state::{Abi, Host, VcpuStateV1, capture, features, load};
use crate::generation::{Generation, GenerationStateV1};
use crate::hypervisor::chips::ChipsStateV1;
use crate::hypervisor::{Hypervisor, Vm};
use crate::io_space::{ExitCounters, IoSpace};
use crate::layout;
use crate::memory::GuestRam;

/// Everything of a machine but its RAM and what its back-ends hold. Each part is a section of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineState {
    /// By ascending index.
    pub vcpus: Vec<VcpuStateV1>,
    pub chips: ChipsStateV1,
    pub clock: ClockStateV1,
    pub generation: GenerationStateV1,
    pub pci: PciBusStateV1,
    /// If there is a serial port.
    pub serial: Option<SerialStateV1>,
    /// In the order of the bus.
    pub functions: Vec<FunctionState>,
}

/// A device's PCI function.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionState {
    /// The name of the device.
    pub id: String,
    pub state: VirtioPciStateV1,
}

/// A virtual machine with vCPUs that know nothing yet but what they say of themselves: what of a machine can be made before its state is
/// there.
pub struct Shell {
    host: Host,
    /// What processors could say of themselves here. To ask KVM for it takes longer than most of the rest.
    offered: Cpuid,
    vm: Arc<Vm>,
    vcpus: Vec<VcpuFd>,
    cpuids: Vec<CpuId>,
}

impl Shell {
    /// A virtual machine with that RAM, whose contents may still come, and with a vCPU for each of `cpuids`.
    ///
    /// # Errors
    /// KVM does not make it.
    pub fn new<'a>(
        hypervisor: &Hypervisor,
        ram: &GuestRam,
        cpuids: impl IntoIterator<Item = &'a Vec<Abi<kvm_cpuid_entry2>>>,
    ) -> Result<Self, Error> {
        let cpuids = (0..)
            .zip(cpuids)
            .map(|(index, cpuid)| load::cpuid_of(cpuid, index))
            .collect::<Result<Vec<CpuId>, _>>()?;
        let count = u8::try_from(cpuids.len()).unwrap_or(u8::MAX);
        let host = Host::ask(hypervisor.kvm())?;
        let offered = Cpuid::new(hypervisor.kvm(), count)?;
        let vm = Arc::new(hypervisor.create_vm(ram.mapping())?);
        let vcpus = (0..count)
            .map(|index| vm.create_vcpu(index))
            .collect::<Result<Vec<_>, _>>()?;
        for (index, (vcpu, cpuid)) in (0..).zip(vcpus.iter().zip(&cpuids)) {
            load::identify(vcpu, index, cpuid)?;
        }
        Ok(Shell {
            host,
            offered,
            vm,
            vcpus,
            cpuids,
        })
    }

    /// The virtual machine itself.
    pub fn vm(&self) -> Arc<Vm> {
        Arc::clone(&self.vm)
    }

    /// The state of a machine that was made of it just now, with functions for `devices` that no driver has found.
    ///
    /// # Errors
    /// A vCPU cannot be saved.
    pub fn save<D: VirtioDevice + 'static>(
        &self,
        devices: &[Arc<D>],
    ) -> Result<MachineState, Error> {
        let clock = StoppedClock::read(self.vm.fd());
        let vcpus = (0..).zip(self.vcpus.iter().zip(&self.cpuids));
        Ok(MachineState {
            vcpus: vcpus
                .map(|(index, (fd, cpuid))| {
                    capture::capture(fd, index, cpuid, &self.host, clock.host_ticks())
                })
                .collect::<Result<_, _>>()?,
            chips: self.vm.save_chips()?,
            clock: clock.save(),
            generation: GenerationStateV1 {
                address: 0,
                irq: layout::POWER_BUTTON_IRQ,
            },
            pci: PciBus::default().save(),
            serial: None,
            functions: new_functions(&self.vm, devices)?,
        })
    }
}

/// What a machine with saved state is built from, and what outlives it.
pub struct RestoreParts<'a> {
    /// In the order of the bus, with their back-ends at rest.
    pub devices: &'a [Arc<VhostUserDevice>],
    /// Of devices that were handed over with their connections, in the same order: the queues that their back-ends work with. Then
    /// interrupts are not wired before [`Machine::release`].
    pub shared: Option<&'a [Vec<ActiveQueue>]>,
    pub console: Option<&'a Console>,
}

const VCPU: &str = "vcpu/";
const FUNCTION: &str = "pci/";

impl MachineState {
    /// Writes a section for each part.
    pub fn write<W: Write>(&self, stream: &mut StreamWriter<W>) -> Result<(), stream::Error> {
        let MachineState {
            vcpus,
            chips,
            clock,
            generation,
            pci,
            serial,
            functions,
        } = self;
        for (index, vcpu) in vcpus.iter().enumerate() {
            stream.save(&format!("{VCPU}{index}"), vcpu)?;
        }
        stream.save("chips", chips)?;
        stream.save("clock", clock)?;
        stream.save("generation", generation)?;
        stream.save("pci", pci)?;
        if let Some(serial) = serial {
            stream.save("serial", serial)?;
        }
        for FunctionState { id, state } in functions {
            stream.save(&format!("{FUNCTION}{id}"), state)?;
        }
        Ok(())
    }

    /// The names of the sections that it is written to.
    pub fn section_names(&self) -> Vec<String> {
        let vcpus = (0..self.vcpus.len()).map(|index| format!("{VCPU}{index}"));
        let fixed = ["chips", "clock", "generation", "pci"].map(str::to_owned);
        let serial = self.serial.iter().map(|_| "serial".to_owned());
        let functions = self
            .functions
            .iter()
            .map(|it| format!("{FUNCTION}{}", it.id));
        vcpus.chain(fixed).chain(serial).chain(functions).collect()
    }

    /// Reads what [`MachineState::write`] has written, up to the first section that is not the machine's.
    pub fn read<R: Read>(stream: &mut StreamReader<R>) -> Result<Self, stream::Error> {
        let mut vcpus = Vec::new();
        // No guest has more, so the loop ends: a name that is not due is an error.
        while next_is(stream, VcpuStateV1::SCHEMA)? {
            vcpus.push(stream.load(&format!("{VCPU}{}", vcpus.len()))?);
        }
        let chips = stream.load("chips")?;
        let clock = stream.load("clock")?;
        let generation = stream.load("generation")?;
        let pci = stream.load("pci")?;
        let serial = match next_is(stream, SerialStateV1::SCHEMA)? {
            true => Some(stream.load("serial")?),
            false => None,
        };
        let mut functions = Vec::new();
        while next_is(stream, VirtioPciStateV1::SCHEMA)? {
            let name = stream.peek()?.map(|label| label.name.clone());
            let name = name.unwrap_or_default();
            functions.push(FunctionState {
                id: name.strip_prefix(FUNCTION).unwrap_or_default().to_owned(),
                state: stream.load(&name)?,
            });
        }
        Ok(MachineState {
            vcpus,
            chips,
            clock,
            generation,
            pci,
            serial,
            functions,
        })
    }
}

fn next_is<R: Read>(stream: &mut StreamReader<R>, schema: &str) -> Result<bool, stream::Error> {
    Ok(stream.peek()?.is_some_and(|label| label.schema == schema))
}

impl Machine {
    /// The state of a machine that is parked, and whose devices are suspended or its interrupts taken away: nothing signals an interrupt
    /// or rings a bell. It may go
    /// on afterwards, and be saved again.
    ///
    /// # Errors
    /// A vCPU or a device that cannot be saved at this moment. Nothing has changed.
    pub fn save(&self) -> Result<MachineState, Error> {
        let Machine {
            vcpu_fds: _,
            vcpus: Some(vcpus),
            io,
            functions,
            stopped_clock: Some(stopped_clock),
            processors,
            // A press is an edge at the I/O APIC.
            button: _,
            generation,
            // What it is wired to has state of its own.
            _serial: _,
            vm,
        } = self
        else {
            return Err(Error::NotStopped);
        };
        // Functions before interrupt controllers: what KVM has taken from them already has arrived there.
        let functions = functions
            .iter()
            .map(|function| {
                Ok(FunctionState {
                    id: function.id().to_owned(),
                    state: function.save()?,
                })
            })
            .collect::<Result<_, Error>>()?;
        let (known, stopped_at) = (processors.clone(), stopped_clock.host_ticks());
        let vcpus = vcpus
            .each(PARK_LIMIT, move |index, fd| {
                let cpuid = &known.cpuids[usize::from(index)];
                capture::capture(fd, index, cpuid, &known.host, stopped_at)
            })?
            .into_iter()
            .collect::<Result<_, _>>()?;
        let IoSpace {
            pci,
            serial,
            exits: _,
        } = &**io;
        Ok(MachineState {
            vcpus,
            chips: vm.save_chips()?,
            clock: stopped_clock.save(),
            generation: generation.save(),
            pci: pci.save(),
            serial: serial.as_ref().map(|port| port.save()),
            functions,
        })
    }

    /// Makes a shell into a machine that stands where the saved one stood; [`Machine::start`] lets it go on. Devices that had been started
    /// wait for their own state.
    ///
    /// RAM has what the guest had in it. The order: vCPUs, so that there are local APICs to take interrupts; interrupt controllers; then whatever raises
    /// interrupts. KVM keeps nothing that comes before.
    ///
    /// # Errors
    /// This host lacks something, or the state does not fit the parts.
    pub fn from_state(
        shell: Shell,
        parts: &RestoreParts<'_>,
        state: &MachineState,
    ) -> Result<Machine, Error> {
        let Shell {
            host,
            offered,
            vm,
            vcpus: vcpu_fds,
            cpuids,
        } = shell;
        if vcpu_fds.len() != state.vcpus.len() {
            return Err(Error::Mismatch("number of vCPUs".into()));
        }
        let cpuids = tell_again(&vcpu_fds, cpuids, check_vcpus(&offered, state)?)?;
        let clock = StoppedClock::from_state(&state.clock);
        for (index, (fd, state)) in (0..).zip(vcpu_fds.iter().zip(&state.vcpus)) {
            load::load(fd, index, &host, state, clock.host_ticks())?;
        }
        vm.load_chips(&state.chips)?;
        let (pci, functions) = load_bus(parts, &vm, state)?;
        let wire = match (parts.console, &state.serial) {
            (Some(console), Some(serial)) => {
                console.port().load(serial)?;
                Some(vm.borrow_irq(layout::COM1_IRQ, console.interrupt())?)
            }
            (None, None) => None,
            _ => return Err(Error::Mismatch("serial port".into())),
        };
        let button = EventLine::new(&vm, layout::POWER_BUTTON_IRQ)?;
        let generation = Generation::from_state(&vm, &state.generation)?;
        let io = IoSpace {
            pci,
            serial: parts.console.map(|console| console.port().clone()),
            exits: ExitCounters::default(),
        };
        Ok(Machine {
            vcpu_fds,
            vcpus: None,
            io: Arc::new(io),
            functions,
            stopped_clock: Some(clock),
            processors: Arc::new(Processors { host, cpuids }),
            button,
            generation,
            _serial: wire,
            vm,
        })
    }
}

/// Corrects what vCPUs were told of themselves, where it has become something else: a guest that was booted elsewhere may have begun anew
/// on the way here.
fn tell_again(vcpus: &[VcpuFd], told: Vec<CpuId>, right: Vec<CpuId>) -> Result<Vec<CpuId>, Error> {
    for (index, (vcpu, (told, right))) in (0..).zip(vcpus.iter().zip(told.iter().zip(&right))) {
        if told != right {
            load::identify(vcpu, index, right)?;
        }
    }
    Ok(right)
}

/// Makes sure that this host has what the saved processors have, before anything is built; returns what each says of
/// itself.
pub fn check_host(kvm: &Kvm, state: &MachineState) -> Result<Vec<CpuId>, Error> {
    let count = match u8::try_from(state.vcpus.len()) {
        Ok(count @ 1..) => count,
        _ => return Err(Error::Mismatch("number of vCPUs".into())),
    };
    check_vcpus(&Cpuid::new(kvm, count)?, state)
}

fn check_vcpus(offered: &Cpuid, state: &MachineState) -> Result<Vec<CpuId>, Error> {
    (0..)
        .zip(&state.vcpus)
        .map(|(index, vcpu)| {
            features::check(vcpu, offered.entries())?;
            Ok(load::cpuid_of(&vcpu.cpuid, index)?)
        })
        .collect()
}

/// As [`check_host`], of processors of which no more is known than what they say of themselves.
pub fn check_processors(kvm: &Kvm, cpuids: &[Vec<Abi<kvm_cpuid_entry2>>]) -> Result<(), Error> {
    let count = match u8::try_from(cpuids.len()) {
        Ok(count @ 1..) => count,
        _ => return Err(Error::Mismatch("number of vCPUs".into())),
    };
    let offered = Cpuid::new(kvm, count)?;
    let mut checks = cpuids.iter();
    checks.try_for_each(|cpuid| Ok(features::check_cpuid(cpuid, 0, offered.entries())?))
}

/// Makes sure that time stamp counters run here as the saved ones did: apart from [`check_host`], because KVM tells it of a
/// vCPU only.
pub fn check_frequency(kvm: &Kvm, state: &MachineState) -> Result<(), Error> {
    let frequencies: Vec<u32> = state.vcpus.iter().filter_map(|it| it.tsc_khz).collect();
    check_frequencies(kvm, &frequencies)
}

/// As [`check_frequency`].
pub fn check_frequencies(kvm: &Kvm, saved: &[u32]) -> Result<(), Error> {
    if saved.is_empty() {
        return Ok(());
    }
    let here = frequency(kvm);
    let mut checks = saved.iter();
    checks.try_for_each(|saved| Ok(load::check_frequency(Some(*saved), here)?))
}

/// The frequency of the time stamp counters that guests see here, in kHz.
pub fn frequency(kvm: &Kvm) -> Option<u32> {
    let vm = kvm.create_vm();
    // A KVM that refuses even that does so again, and tells why, when a machine is made.
    let vcpu = vm.and_then(|vm| vm.create_vcpu(0));
    vcpu.and_then(|vcpu| vcpu.get_tsc_khz()).ok()
}

/// The state of functions that no driver has found yet.
fn new_functions<D: VirtioDevice + 'static>(
    vm: &Arc<Vm>,
    devices: &[Arc<D>],
) -> Result<Vec<FunctionState>, Error> {
    let new = |device: &Arc<D>| {
        let bar = layout::PCI32.start as u32;
        let function = VirtioPci::new(device.clone(), bar, vm.clone(), vm.clone());
        let function = function.map_err(|source| Error::Pci {
            device: device.id().to_owned(),
            source,
        })?;
        Ok(FunctionState {
            id: device.id().to_owned(),
            state: function.save()?,
        })
    };
    devices.iter().map(new).collect()
}

fn load_bus(
    parts: &RestoreParts<'_>,
    vm: &Arc<Vm>,
    state: &MachineState,
) -> Result<(PciBus, Vec<Arc<VirtioPci>>), Error> {
    let mut bus = PciBus::from_state(&state.pci);
    let mut functions = Vec::with_capacity(parts.devices.len());
    let names = parts.devices.iter().map(|device| device.id());
    if !names.eq(state.functions.iter().map(|function| function.id.as_str())) {
        return Err(Error::Mismatch("devices".into()));
    }
    for (index, (device, saved)) in parts.devices.iter().zip(&state.functions).enumerate() {
        let events = match parts.shared.map(|all| all.get(index)) {
            Some(Some(queues)) => Events::Shared(queues),
            Some(None) => return Err(Error::Mismatch("devices".into())),
            None => Events::New,
        };
        let (router, bells) = (vm.clone(), vm.clone());
        let function = VirtioPci::from_state(device.clone(), router, bells, &saved.state, events)
            .map_err(|source| Error::Restore {
            device: saved.id.clone(),
            source,
        })?;
        bus.add(function.clone()).map_err(|source| Error::BusFull {
            device: saved.id.clone(),
            source,
        })?;
        functions.push(function);
    }
    Ok((bus, functions))
}
