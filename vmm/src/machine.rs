//! A machine: everything that lives from one guest's first instruction to its reset or power-off.
//!
//! RAM, back-end connections and the serial port's outside live longer; a reboot builds a new machine around them, so
//! that a guest which starts anew meets nothing of the one before.

pub mod saving;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ferry_api::config::VmConfig;
use ferry_devices::pci::{PciBus, PciBusFull, RestoreError, Wiring};
use ferry_devices::serial::BadSerialState;
use ferry_devices::vhost_user::VhostUserDevice;
use ferry_devices::virtio::pci::{BAR_SIZE, SaveError, VirtioPci};
use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;

use crate::acpi::event::EventLine;
use crate::acpi::{self, AcpiInfo};
use crate::boot::{self, EntryPoint};
use crate::console::Console;
use crate::cpu::clock::StoppedClock;
use crate::cpu::cpuid::{self, Cpuid};
use crate::cpu::gate::NotParked;
use crate::cpu::registers;
use crate::cpu::state::{self, Host};
use crate::cpu::vcpu::{self, ErrandError, GuestEnd, Vcpus};
use crate::generation::{self, Generation};
use crate::hypervisor::dirty::Loggable;
use crate::hypervisor::{self, Hypervisor, Vm, Wire};
use crate::io_space::{ExitCounters, IoSpace};
use crate::layout;
use crate::memory::GuestRam;
use crate::payload::Payload;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error("cannot load the guest")]
    Boot(#[from] boot::Error),
    #[error("cannot write the ACPI tables")]
    Acpi(#[from] acpi::Error),
    #[error("cannot give the machine its generation")]
    Generation(#[from] generation::Error),
    #[error("cannot set up the processors")]
    Cpu(#[from] registers::Error),
    #[error("cannot describe the processors to the guest")]
    Cpuid(#[from] cpuid::Error),
    #[error("{device}: cannot be put on the PCI bus")]
    Pci { device: String, source: io::Error },
    #[error("{device}: {source}")]
    BusFull { device: String, source: PciBusFull },
    #[error("cannot start a thread for vCPU {index}")]
    Thread { index: u8, source: io::Error },
    #[error(transparent)]
    NotParked(#[from] NotParked),
    #[error("the guest is not paused")]
    NotStopped,
    #[error("cannot ask the processors for their state")]
    Errand(#[from] ErrandError),
    #[error("cannot move the processors' state")]
    State(#[from] state::Error),
    #[error("a device cannot be saved now")]
    Save(#[from] SaveError),
    #[error("{device}: cannot be restored")]
    Restore {
        device: String,
        source: RestoreError,
    },
    #[error("{device}: cannot take its interrupts away")]
    Wiring { device: String, source: io::Error },
    #[error("cannot write or read the state")]
    Stream(#[from] vm_migration::stream::Error),
    #[error("cannot restore the serial port")]
    Serial(#[from] BadSerialState),
    #[error("the saved machine has another {0} than this one")]
    Mismatch(String),
}

/// How long vCPUs may take to stand still. They wait for no one, so only a machine that hardly runs at all needs more.
const PARK_LIMIT: Duration = Duration::from_secs(5);

/// What a machine is built from, and what outlives it.
pub struct Parts<'a> {
    pub hypervisor: &'a Hypervisor,
    pub config: &'a VmConfig,
    pub ram: &'a GuestRam,
    pub payload: &'a Payload,
    pub devices: &'a [Arc<VhostUserDevice>],
    pub console: Option<&'a Console>,
}

/// What has to be known of the processors in order to save them.
struct Processors {
    host: Host,
    /// What KVM was told that each says of itself, by ascending index.
    cpuids: Vec<CpuId>,
}

/// What a machine does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The guest runs.
    Running,
    /// It stands still, as after [`Machine::park`], until [`Machine::release`].
    Parked,
}

/// A machine whose guest is loaded.
///
/// ```text
///                               ┌────────▶ running ◀──release──┐
///  build, from_state ──▶ built ─┤ start        └─────park────▶ parked ──drop──▶ gone
///                               └─────────────────────────────▶┘
/// ```
pub struct Machine {
    /// Until the guest is started.
    vcpu_fds: Vec<VcpuFd>,
    /// From then on. Before all others, because they run what follows.
    vcpus: Option<Vcpus>,
    io: Arc<IoSpace>,
    functions: Vec<Arc<VirtioPci>>,
    /// While it is parked, and until a machine with saved state is started.
    stopped_clock: Option<StoppedClock>,
    processors: Arc<Processors>,
    button: EventLine,
    generation: Generation,
    /// The console's, which outlives this machine.
    _serial: Option<Wire>,
    /// Last, because it goes after everything that is wired to it.
    vm: Arc<Vm>,
}

impl Machine {
    /// Builds a machine and loads the guest into its RAM. Nothing runs yet.
    pub fn build(parts: &Parts<'_>) -> Result<Machine, Error> {
        let ram = parts.ram.mapping();
        let vm = Arc::new(parts.hypervisor.create_vm(ram)?);
        registers::mask_pic(vm.fd())?;
        let (pci, functions) = build_bus(parts, &vm)?;
        let serial = parts
            .console
            .map(|console| vm.borrow_irq(layout::COM1_IRQ, console.interrupt()))
            .transpose()?;
        let button = EventLine::new(&vm, layout::POWER_BUTTON_IRQ)?;
        let generation = Generation::at_boot(&vm)?;
        let vcpus = parts.config.cpus.boot_vcpus;
        let cpuid = Cpuid::new(parts.hypervisor.kvm(), vcpus)?;
        let rsdp = acpi::build(
            ram,
            &AcpiInfo {
                vcpus,
                serial: match parts.console {
                    Some(_) => acpi::Serial::Present,
                    None => acpi::Serial::Absent,
                },
                pci64: layout::pci64_window(parts.config.memory.size, cpuid.phys_bits()),
            },
        )?;
        let entry = parts.payload.load(ram, rsdp)?;
        let cpuids = (0..vcpus)
            .map(|index| cpuid.for_vcpu(index))
            .collect::<Result<Vec<_>, _>>()?;
        let vcpu_fds = build_vcpus(parts, &vm, &cpuids, entry)?;
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
            stopped_clock: None,
            processors: Arc::new(Processors {
                host: Host::ask(parts.hypervisor.kvm())?,
                cpuids,
            }),
            button,
            generation,
            _serial: serial,
            vm,
        })
    }

    /// Starts the vCPUs. `ended` is called, from any vCPU's thread, when the guest ends by itself.
    ///
    /// # Errors
    /// There are no threads for them, or, with [`Begin::Parked`], some do not come to a rest. The machine is of no use then.
    pub fn start(
        &mut self,
        begin: Begin,
        ended: impl Fn(GuestEnd) + Clone + Send + 'static,
    ) -> Result<(), Error> {
        let fds = std::mem::take(&mut self.vcpu_fds);
        let begin = match begin {
            Begin::Running => vcpu::Begin::Running {
                hidden_ticks: self.start_clock(),
            },
            Begin::Parked => vcpu::Begin::Parked,
        };
        let vcpus = Vcpus::spawn(fds, &self.io, self.vm.ram(), begin, ended)
            .map_err(|(index, source)| Error::Thread { index, source })?;
        if begin == vcpu::Begin::Parked {
            vcpus.wait_parked(PARK_LIMIT)?;
            let vm = &self.vm;
            self.stopped_clock
                .get_or_insert_with(|| StoppedClock::read(vm.fd()));
        }
        self.vcpus = Some(vcpus);
        if begin != vcpu::Begin::Parked {
            self.generation.announce();
        }
        Ok(())
    }

    /// Whether there are vCPUs.
    pub fn is_started(&self) -> bool {
        self.vcpus.is_some()
    }

    /// Makes all vCPUs stand still, and the guest's time with them. They may do so already.
    ///
    /// # Errors
    /// The guest has just ended, or vCPUs do not come out of KVM; then all of them run on.
    pub fn park(&mut self) -> Result<(), Error> {
        let Some(vcpus) = &self.vcpus else {
            return Ok(());
        };
        if self.stopped_clock.is_some() {
            return Ok(());
        }
        vcpus.park(PARK_LIMIT)?;
        self.stopped_clock = Some(StoppedClock::read(self.vm.fd()));
        Ok(())
    }

    /// Takes the devices' interrupts away from a machine that is parked, until it is released: signals wait in their eventfds, and
    /// another machine may have those.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn unwire_interrupts(&self) -> Result<(), Error> {
        let mut functions = self.functions.iter();
        functions.try_for_each(|function| {
            let unwired = function.set_wiring(Wiring::Unwired);
            unwired.map_err(|source| Error::Wiring {
                device: function.id().to_owned(),
                source,
            })
        })
    }

    /// Lets parked vCPUs go on. Interrupts that were taken away are wired again: no other machine has them by then, because the process of
    /// that one has not started the guest, and wires them no sooner.
    pub fn release(&mut self) {
        for function in &self.functions {
            if let Err(error) = function.set_wiring(Wiring::Wired) {
                // What its guest waits for may not come.
                let device = function.id();
                tracing::error!(device, "the device's interrupts cannot be wired: {error}");
            }
        }
        let ticks = self.start_clock();
        if let Some(vcpus) = &self.vcpus {
            vcpus.release(ticks);
            self.generation.announce();
        }
    }

    /// Lets the guest's time go on from where it stopped; returns the ticks to be hidden from it.
    fn start_clock(&mut self) -> u64 {
        match self
            .stopped_clock
            .take()
            .map(|clock| clock.start(self.vm.fd()))
        {
            Some(Ok(ticks)) => ticks,
            Some(Err(error)) => {
                // The guest sees a jump of its time, which it can live with.
                tracing::warn!("the guest's clock could not be set back: {error}");
                0
            }
            None => 0,
        }
    }

    /// Makes the guest another one than all that have gone on or will go on from the same snapshot. It is told once it is
    /// released.
    ///
    /// # Errors
    /// None that can be foreseen: that there is RAM for it was found when the machine was made.
    pub fn new_generation(&self, number: &generation::Number) -> Result<(), Error> {
        Ok(self.generation.renew(self.vm.ram(), number)?)
    }

    /// What it takes to log which pages of RAM the guest writes.
    pub fn loggable(&self) -> Loggable {
        Loggable(self.vm.clone())
    }

    /// Holds vCPUs back for so many percent of their time, at most 99.
    pub fn throttle(&mut self, percent: u8) {
        if let Some(vcpus) = &mut self.vcpus {
            vcpus.throttle(percent);
        }
    }

    /// What the processors say of themselves, by ascending index.
    pub fn cpuids(&self) -> &[CpuId] {
        &self.processors.cpuids
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.button.raise();
    }

    /// How often vCPUs have left KVM for Ferry.
    pub fn exits(&self) -> &ExitCounters {
        &self.io.exits
    }

    /// The devices' PCI functions, in the order of the bus, on which the first is device 1.
    pub fn functions(&self) -> &[Arc<VirtioPci>] {
        &self.functions
    }

    /// Stops the guest and takes the machine apart. RAM, back-ends and the serial port's outside stay.
    pub fn stop(mut self) {
        self.vcpus = None;
        let exits = &self.io.exits;
        let notify: u64 = self
            .functions
            .iter()
            .map(|function| function.doorbell_exits())
            .sum();
        tracing::info!(
            "vCPU exits: pio={} mmio={} notify={notify} other={}",
            ExitCounters::read(&exits.pio),
            ExitCounters::read(&exits.mmio),
            ExitCounters::read(&exits.other),
        );
    }
}

fn build_bus(parts: &Parts<'_>, vm: &Arc<Vm>) -> Result<(PciBus, Vec<Arc<VirtioPci>>), Error> {
    let mut bus = PciBus::default();
    let mut functions = Vec::new();
    let bars = (layout::PCI32.start as u32..).step_by(BAR_SIZE as usize);
    for (device, bar) in parts.devices.iter().zip(bars) {
        let name = || ferry_devices::virtio::VirtioDevice::id(device.as_ref()).to_string();
        let function =
            VirtioPci::new(device.clone(), bar, vm.clone(), vm.clone()).map_err(|source| {
                Error::Pci {
                    device: name(),
                    source,
                }
            })?;
        bus.add(function.clone()).map_err(|source| Error::BusFull {
            device: name(),
            source,
        })?;
        functions.push(function);
    }
    Ok((bus, functions))
}

fn build_vcpus(
    parts: &Parts<'_>,
    vm: &Vm,
    cpuids: &[CpuId],
    entry: EntryPoint,
) -> Result<Vec<VcpuFd>, Error> {
    let mut vcpus = Vec::with_capacity(cpuids.len());
    for (index, cpuid) in (0..).zip(cpuids) {
        let fd = vm.create_vcpu(index)?;
        fd.set_cpuid2(cpuid)
            .map_err(hypervisor::Error::refused("take a vCPU's CPUID"))?;
        registers::set_msrs(&fd, index)?;
        vcpus.push(fd);
    }
    if let Some(boot) = vcpus.first() {
        registers::set_boot_processor(boot, parts.ram.mapping(), entry)?;
    }
    Ok(vcpus)
}
