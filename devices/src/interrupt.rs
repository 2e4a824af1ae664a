//! What devices ask of the hypervisor: message-signalled interrupts and doorbells.
//!
//! Both are wired once and then work without Ferry: an *irqfd* turns a write to an eventfd into a
//! guest interrupt, an *ioeventfd* turns a guest's write to a doorbell register into an eventfd
//! signal.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// A line of the interrupt controller's routing table (KVM: "GSI").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gsi(pub u32);

/// An MSI message as the guest programmed it (PCI Local Bus Specification 3.0, 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// The address the device writes to, on x86 `0xFEEx_xxxx`.
    pub address: u64,
    /// The value it writes: vector and delivery mode.
    pub data: u32,
}

/// Routes message-signalled interrupts into the guest.
///
/// Called from vCPU threads: an implementation returns at once.
pub trait MsiRouter: Send + Sync {
    /// Reserves one line. Lines are never given back while the machine lives.
    fn allocate(&self) -> io::Result<Gsi>;

    /// Makes `gsi` deliver `message` from now on.
    fn route(&self, gsi: Gsi, message: MsiMessage) -> io::Result<()>;

    /// The same of several lines, each at most once, where that takes less time at once. If it fails, some may have changed.
    fn route_all(&self, routes: &[(Gsi, MsiMessage)]) -> io::Result<()> {
        let mut routes = routes.iter();
        routes.try_for_each(|(gsi, message)| self.route(*gsi, *message))
    }

    /// Every signal on `source` raises `gsi`, beginning with one that is already pending.
    fn attach(&self, gsi: Gsi, source: &EventFd) -> io::Result<()>;

    /// Signals on `source` stay pending in the eventfd again.
    fn detach(&self, gsi: Gsi, source: &EventFd) -> io::Result<()>;
}

/// Turns guest writes at an address into eventfd signals.
///
/// Called from vCPU threads: an implementation returns at once.
pub trait Doorbells: Send + Sync {
    /// Every guest write, of any size and value, at guest-physical `address` signals `bell`.
    fn attach(&self, address: u64, bell: &EventFd) -> io::Result<()>;

    /// Ends what [`Doorbells::attach`] began.
    fn detach(&self, address: u64, bell: &EventFd) -> io::Result<()>;
}
