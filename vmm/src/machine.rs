//! A machine: everything that lives from one guest's first instruction to its reset or power-off.
//!
//! RAM, back-end connections and the serial port's outside live longer; a reboot builds a new machine around them, so
//! that a guest which starts anew meets nothing of the one before.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_api::config::VmConfig;
use ferry_devices::pci::{PciBus, PciBusFull};
use ferry_devices::vhost_user::VhostUserDevice;
use ferry_devices::virtio::pci::{BAR_SIZE, VirtioPci};
use kvm_ioctls::VcpuFd;

use crate::acpi::{self, AcpiInfo};
use crate::boot::{self, EntryPoint};
use crate::console::Console;
use crate::cpu::cpuid::{self, Cpuid};
use crate::cpu::registers;
use crate::cpu::vcpu::{GuestEnd, Vcpu};
use crate::hypervisor::{self, Hypervisor, Vm};
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
}

/// What a machine is built from, and what outlives it.
pub struct Parts<'a> {
    pub hypervisor: &'a Hypervisor,
    pub config: &'a VmConfig,
    pub ram: GuestRam,
    pub payload: &'a Payload,
    pub devices: &'a [Arc<VhostUserDevice>],
    pub console: Option<&'a Console>,
}

/// A machine whose guest is loaded.
pub struct Machine {
    vcpu_fds: Vec<VcpuFd>,
    vcpus: Vec<Vcpu>,
    io: Arc<IoSpace>,
    functions: Vec<Arc<VirtioPci>>,
    /// Last, because it goes after everything that is wired to it.
    _vm: Arc<Vm>,
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
            vcpus: Vec::new(),
            io: Arc::new(io),
            functions,
            _vm: vm,
        })
    }

    /// Lets the guest run. `ended` is called, from any vCPU's thread, when it ends by itself.
    pub fn start(
        &mut self,
        ended: impl Fn(GuestEnd) + Clone + Send + 'static,
    ) -> Result<(), Error> {
        for (index, fd) in (0..).zip(std::mem::take(&mut self.vcpu_fds)) {
            let vcpu = Vcpu::spawn(index, fd, self.io.clone(), ended.clone())
                .map_err(|source| Error::Thread { index, source })?;
            self.vcpus.push(vcpu);
        }
        Ok(())
    }

    /// Stops the guest and takes the machine apart. RAM, back-ends and the serial port's outside stay.
    pub fn stop(mut self) {
        self.stop_vcpus();
        let exits = &self.io.exits;
        let notify: u64 = self
            .functions
            .iter()
            .map(|function| function.doorbell_exits())
            .sum();
        tracing::info!(
            "vCPU exits: pio={} mmio={} notify={notify} other={}",
            exits.pio.load(Ordering::Relaxed),
            exits.mmio.load(Ordering::Relaxed),
            exits.other.load(Ordering::Relaxed),
        );
    }

    fn stop_vcpus(&mut self) {
        self.vcpus.iter().for_each(Vcpu::stop);
        self.vcpus.drain(..).for_each(Vcpu::join);
    }
}

impl Drop for Machine {
    // A machine whose start failed half-way must not leave vCPUs behind.
    fn drop(&mut self) {
        self.stop_vcpus();
    }
}

fn build_bus(parts: &Parts<'_>, vm: &Arc<Vm>) -> Result<(PciBus, Vec<Arc<VirtioPci>>), Error> {
    let mut bus = PciBus::default();
    let mut functions = Vec::new();
    let bars = (layout::PCI32.start as u32..).step_by(BAR_SIZE as usize);
    for (device, bar) in parts.devices.iter().zip(bars) {
        let name = || ferry_devices::virtio::VirtioDevice::id(device.as_ref()).to_string();
        let function = VirtioPci::new(
            device.clone(),
            parts.ram.mapping().clone(),
            bar,
            vm.clone(),
            vm.clone(),
        )
        .map_err(|source| Error::Pci {
            device: name(),
            source,
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
