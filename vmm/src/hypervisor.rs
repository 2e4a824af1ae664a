//! KVM: what Ferry needs of it, and the virtual machine it makes.

pub mod chips;
pub mod dirty;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use ferry_devices::interrupt::{Doorbells, Gsi, MsiMessage, MsiRouter};
use kvm_bindings::{
    KVM_API_VERSION, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::layout;

/// Why KVM could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot open /dev/kvm: is the kvm module loaded, and may this user read and write the device?"
    )]
    Open(#[source] errno::Error),
    #[error("/dev/kvm speaks API version {0}, not 12")]
    Version(i32),
    #[error("this kernel's KVM lacks {0}, which Ferry needs")]
    Capability(&'static str),
    #[error("KVM refused to {step}")]
    Refused {
        step: &'static str,
        source: errno::Error,
    },
}

impl Error {
    /// To be used as `map_err(Error::refused("create a vCPU"))`.
    pub fn refused(step: &'static str) -> impl FnOnce(errno::Error) -> Error {
        move |source| Error::Refused { step, source }
    }
}

/// What Ferry cannot do without; everything else is asked for where it is used.
const REQUIRED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
];
/// KVM_CAP_IOEVENTFD_ANY_LENGTH: a doorbell that any write rings.
const CAP_IOEVENTFD_ANY_LENGTH: libc::c_ulong = 122;

/// `/dev/kvm`, found usable.
pub struct Hypervisor {
    kvm: Kvm,
}

impl Hypervisor {
    /// Opens KVM and asks for everything that Ferry cannot do without.
    pub fn open() -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(Error::Open)?;
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(Error::Version(version));
        }
        for (capability, name) in REQUIRED {
            if !kvm.check_extension(capability) {
                return Err(Error::Capability(name));
            }
        }
        Ok(Hypervisor { kvm })
    }

    /// The system-wide KVM interface.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// A virtual machine with `ram`, in-kernel interrupt controllers and PIT, and no vCPU yet.
    pub fn create_vm(&self, ram: &GuestMemoryMmap) -> Result<Vm, Error> {
        let fd = self
            .kvm
            .create_vm()
            .map_err(Error::refused("create a virtual machine"))?;
        if fd.check_extension_raw(CAP_IOEVENTFD_ANY_LENGTH) <= 0 {
            return Err(Error::Capability("KVM_CAP_IOEVENTFD_ANY_LENGTH"));
        }
        if fd.check_extension(Cap::SetIdentityMapAddr) {
            fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
                .map_err(Error::refused("place its identity map"))?;
        }
        if fd.check_extension(Cap::SetTssAddr) {
            fd.set_tss_address(layout::KVM_TSS as usize)
                .map_err(Error::refused("place its task state segment"))?;
        }
        // Before the interrupt controllers: afterwards KVM would wait for a grace period of theirs, some 5 ms.
        register_ram(&fd, ram, 0)?;
        fd.create_irq_chip()
            .map_err(Error::refused("create the interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit)
            .map_err(Error::refused("create the PIT"))?;
        Ok(Vm {
            fd,
            messages: Mutex::new(Vec::new()),
            ram: ram.clone(),
        })
    }
}

/// Tells KVM of RAM, or of other `flags` of the RAM that it knows.
fn register_ram(fd: &VmFd, ram: &GuestMemoryMmap, flags: u32) -> Result<(), Error> {
    for (slot, region) in (0..).zip(ram.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping stays in place for as long as the virtual machine lives: `Vm` owns a handle to it.
        unsafe { fd.set_user_memory_region(slot) }
            .map_err(Error::refused("take the guest's RAM"))?;
    }
    Ok(())
}

/// A virtual machine. It belongs to the process that made it.
///
/// It has to be kept while its vCPUs run: they would run on without it, but KVM takes irqfds and ioeventfds
/// away with it.
pub struct Vm {
    fd: VmFd,
    /// The message of each MSI line, from [`FIRST_MSI`] on.
    messages: Mutex<Vec<MsiMessage>>,
    /// What KVM has been given pointers to.
    ram: GuestMemoryMmap,
}

/// Pins of the I/O APIC, which have the first lines of the routing table.
pub const IOAPIC_PINS: u32 = 24;
const FIRST_MSI: u32 = IOAPIC_PINS;
/// KVM's limit to the routing table (`KVM_MAX_IRQ_ROUTES`), less the lines of the interrupt controllers.
const MAX_MESSAGES: usize = 4096 - 16 - IOAPIC_PINS as usize;

impl Vm {
    /// The file descriptor that KVM knows this machine by.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The RAM of its guest.
    pub fn ram(&self) -> &GuestMemoryMmap {
        &self.ram
    }

    /// Creates vCPU `id`, whose APIC id is the same.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, Error> {
        self.fd
            .create_vcpu(id.into())
            .map_err(Error::refused("create a vCPU"))
    }

    /// Every signal on `event` is an edge on pin `irq` of the interrupt controllers.
    pub fn wire_irq(&self, irq: u32, event: &EventFd) -> Result<(), Error> {
        self.fd
            .register_irqfd(event, irq)
            .map_err(Error::refused("wire an interrupt"))
    }

    /// The same, until what this returns is dropped: for an event that another machine is to have then. As long as it is wired to one
    /// machine, and somebody holds that, KVM refuses to wire it to another one (from Linux 6.17 on).
    pub fn borrow_irq(self: &Arc<Self>, irq: u32, event: &EventFd) -> Result<Wire, Error> {
        let event = event
            .try_clone()
            .map_err(|error| errno::Error::new(error.raw_os_error().unwrap_or(libc::EMFILE)))
            .map_err(Error::refused("wire an interrupt"))?;
        self.wire_irq(irq, &event)?;
        Ok(Wire {
            vm: self.clone(),
            irq,
            event,
        })
    }

    fn set_routes(&self, messages: &[MsiMessage]) -> io::Result<()> {
        let entries: Vec<_> = pin_routes().chain(message_routes(messages)).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::other("the interrupt routing table is full"))?;
        self.fd.set_gsi_routing(&table).map_err(into_io)
    }
}

/// An event that is wired to a pin as long as this lives.
pub struct Wire {
    vm: Arc<Vm>,
    irq: u32,
    event: EventFd,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Err(error) = self.vm.fd.unregister_irqfd(&self.event, self.irq) {
            tracing::warn!("KVM does not take interrupt {} away: {error}", self.irq);
        }
    }
}

/// KVM's own default: each pin to the controllers that have it. Setting the table replaces it as a whole.
fn pin_routes() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let route = |gsi: u32, irqchip: u32, pin: u32| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = irqchip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let pic = (0..16).map(move |gsi| match gsi {
        0..8 => route(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        _ => route(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8),
    });
    pic.chain((0..IOAPIC_PINS).map(move |gsi| route(gsi, KVM_IRQCHIP_IOAPIC, gsi)))
}

fn message_routes(messages: &[MsiMessage]) -> impl Iterator<Item = kvm_irq_routing_entry> {
    (FIRST_MSI..).zip(messages).map(|(gsi, message)| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi.address_lo = message.address as u32;
        entry.u.msi.address_hi = (message.address >> 32) as u32;
        entry.u.msi.data = message.data;
        entry
    })
}

impl MsiRouter for Vm {
    fn allocate(&self) -> io::Result<Gsi> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.len() == MAX_MESSAGES {
            return Err(io::Error::other("KVM has no more interrupt lines"));
        }
        messages.push(MsiMessage::default());
        Ok(Gsi(FIRST_MSI + messages.len() as u32 - 1))
    }

    fn route(&self, gsi: Gsi, message: MsiMessage) -> io::Result<()> {
        self.route_all(&[(gsi, message)])
    }

    fn route_all(&self, routes: &[(Gsi, MsiMessage)]) -> io::Result<()> {
        if routes.is_empty() {
            return Ok(());
        }
        // Held across the ioctl, so that two vCPUs' tables cannot overtake each other.
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = messages.clone();
        for (gsi, message) in routes {
            let slot = gsi.0.checked_sub(FIRST_MSI);
            match slot.and_then(|slot| changed.get_mut(slot as usize)) {
                Some(slot) => *slot = *message,
                None => return Err(io::ErrorKind::InvalidInput.into()),
            }
        }
        self.set_routes(&changed)?;
        // Only what KVM has taken: a message that it refuses would spoil every later table, for all devices.
        *messages = changed;
        Ok(())
    }

    fn attach(&self, gsi: Gsi, source: &EventFd) -> io::Result<()> {
        self.fd.register_irqfd(source, gsi.0).map_err(into_io)
    }

    fn detach(&self, gsi: Gsi, source: &EventFd) -> io::Result<()> {
        self.fd.unregister_irqfd(source, gsi.0).map_err(into_io)
    }
}

impl Doorbells for Vm {
    fn attach(&self, address: u64, bell: &EventFd) -> io::Result<()> {
        self.fd
            .register_ioevent(bell, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(into_io)
    }

    fn detach(&self, address: u64, bell: &EventFd) -> io::Result<()> {
        self.fd
            .unregister_ioevent(bell, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(into_io)
    }
}

fn into_io(error: errno::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
