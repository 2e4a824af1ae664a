//! The devices of a Ferry guest: serial port, PCI, the virtio-pci transport and the vhost-user
//! front-end behind it.
//!
//! This crate knows nothing of KVM or HTTP. What it needs of the hypervisor it asks through the
//! traits in [`interrupt`] and [`virtio`], which the VMM implements.

mod chain;
pub mod interrupt;
pub mod pci;
pub mod power;
pub mod serial;
pub mod sys;
pub mod vhost_user;
pub mod virtio;

pub use chain::chain;
