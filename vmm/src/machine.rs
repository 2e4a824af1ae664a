//! A machine: everything that lives from one guest's first instruction to its reset or power-off.
//!
//! RAM, back-end connections and the serial port's outside live longer; a reboot builds a new machine around them, so
//! that a guest which starts anew meets nothing of the one before.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ferry_api::config::VmConfig;
use ferry_devices::pci::{PciBus, PciBusFull};
use ferry_devices::vhost_user::VhostUserDevice;
use ferry_devices::virtio::pci::{BAR_SIZE, VirtioPci};
use kvm_ioctls::VcpuFd;

use crate::acpi::{self, AcpiInfo};
use crate::boot::{self, EntryPoint};
use crate::console::Console;
use crate::cpu::clock::StoppedClock;
use crate::cpu::cpuid::{self, Cpuid};
use crate::cpu::gate::NotParked;
use crate::cpu::registers;
use crate::cpu::vcpu::{GuestEnd, Vcpus};
use crate::hypervisor::{self, Hypervisor, Vm};
use crate::io_space::{ExitCounters, IoSpace};
use crate::layout;
use crate::memory::GuestRam;
use crate::payload::Payload;
use crate::power_button::PowerButton;

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error("cannot load the guest")]
    Boot(#[from] boot::Error),
    #[error("cannot write the ACPI tables")]
    Acpi(#[from] acpi::Error),
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

/// A machine whose guest is loaded.
///
/// ```text
///  built ──start──▶ running ⇄ parked (park, release) ──drop──▶ gone
/// ```
pub struct Machine {
    /// Until the guest is started.
    vcpu_fds: Vec<VcpuFd>,
    /// From then on. Before all others, because they run what follows.
    vcpus: Option<Vcpus>,
    io: Arc<IoSpace>,
    functions: Vec<Arc<VirtioPci>>,
    stopped_clock: Option<StoppedClock>,
    button: PowerButton,
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
        if let Some(console) = parts.console {
            vm.wire_irq(layout::COM1_IRQ, console.interrupt())?;
        }
        let button = PowerButton::new(&vm)?;
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
        let vcpu_fds = build_vcpus(parts, &vm, &cpuid, entry)?;
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
            button,
            vm,
        })
    }

    /// Lets the guest run. `ended` is called, from any vCPU's thread, when it ends by itself.
    pub fn start(
        &mut self,
        ended: impl Fn(GuestEnd) + Clone + Send + 'static,
    ) -> Result<(), Error> {
        let fds = std::mem::take(&mut self.vcpu_fds);
        let vcpus = Vcpus::spawn(fds, &self.io, ended)
            .map_err(|(index, source)| Error::Thread { index, source })?;
        self.vcpus = Some(vcpus);
        Ok(())
    }

    /// Makes all vCPUs stand still, and the guest's time with them.
    ///
    /// # Errors
    /// The guest has just ended, or vCPUs do not come out of KVM; then all of them run on.
    pub fn park(&mut self) -> Result<(), Error> {
        let Some(vcpus) = &self.vcpus else {
            return Ok(());
        };
        vcpus.park(PARK_LIMIT)?;
        self.stopped_clock = Some(StoppedClock::read(self.vm.fd()));
        Ok(())
    }

    /// Lets parked vCPUs go on.
    pub fn release(&mut self) {
        let ticks = match self
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
        };
        if let Some(vcpus) = &self.vcpus {
            vcpus.release(ticks);
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.button.press();
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
    cpuid: &Cpuid,
    entry: EntryPoint,
) -> Result<Vec<VcpuFd>, Error> {
    let count = parts.config.cpus.boot_vcpus;
    let mut vcpus = Vec::with_capacity(count.into());
    for index in 0..count {
        let fd = vm.create_vcpu(index)?;
        let cpuid = cpuid.for_vcpu(index)?;
        fd.set_cpuid2(&cpuid)
            .map_err(hypervisor::Error::refused("take a vCPU's CPUID"))?;
        registers::set_msrs(&fd, index)?;
        vcpus.push(fd);
    }
    if let Some(boot) = vcpus.first() {
        registers::set_boot_processor(boot, parts.ram.mapping(), entry)?;
    }
    Ok(vcpus)
}
