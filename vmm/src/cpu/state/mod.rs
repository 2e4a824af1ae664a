//! The state of a virtual processor that stands still: taken out of KVM, and put into another.
//!
//! * [`capture`] and [`load`] say in which order, and why
//! * [`Host`] is what this host's KVM can hold of it
//! * [`features`] compares the processor that a guest knows with this host's
//! * [`abi`]: KVM's structs as bytes
//!
//! Time is handled apart: a vCPU's time stamp counter is saved as what the guest would have read at the moment when the
//! machine stopped, so that all vCPUs that agreed agree again.

pub mod abi;
pub mod capture;
pub mod features;
mod host;
pub mod load;
mod msrs;
mod xsave;

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use serde::{Deserialize, Serialize};
use vm_migration::stream::Saved;

pub use abi::{Abi, Blob};
pub use host::Host;

/// Why a vCPU's state cannot be taken, or put into a vCPU of this host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("KVM does not {step} of vCPU {vcpu}")]
    Kvm {
        step: &'static str,
        vcpu: u8,
        source: kvm_ioctls::Error,
    },
    #[error("KVM does not tell {what}")]
    Host {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("this host lacks what the guest's processors have: {}", names.join(", "))]
    Lacking { names: Vec<String> },
    #[error(
        "the guest's time stamp counter runs at {saved} kHz and this host's at {here} kHz; \
         it can only go on where it runs at the same frequency"
    )]
    Frequency { saved: u32, here: u32 },
    #[error("no vCPU {vcpu} can have had the saved state: {reason}")]
    Impossible { vcpu: u8, reason: String },
}

/// To be used as `map_err(refused("give the registers", index))`.
fn refused(step: &'static str, vcpu: u8) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { step, vcpu, source }
}

/// Saved state of one vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuStateV1 {
    /// What it says of itself, for the guest to find unchanged.
    pub cpuid: Vec<Abi<kvm_cpuid_entry2>>,
    /// What the guest would have read from its time stamp counter when the machine stopped.
    pub tsc: u64,
    /// The counter's frequency, if KVM tells it.
    pub tsc_khz: Option<u32>,
    /// The counter's value at which the local APIC's timer fires; 0 if it is not armed in that mode.
    pub tsc_deadline: u64,
    /// Running, halted, waiting for a start-up interrupt.
    pub mp_state: Abi<kvm_mp_state>,
    /// General registers.
    pub regs: Abi<kvm_regs>,
    /// Segments, control registers, EFER, base of the local APIC.
    pub sregs: Abi<kvm_sregs>,
    /// Debug registers.
    pub debug_regs: Abi<kvm_debugregs>,
    /// Which parts of the extended state are in use.
    pub xcrs: Abi<kvm_xcrs>,
    /// Extended state in XSAVE's uncompacted format, 4096 bytes or more.
    pub xsave: Blob,
    /// Local APIC, with interrupts that it holds.
    pub lapic: Abi<kvm_lapic_state>,
    /// Exceptions, interrupts and NMIs on their way.
    pub events: Abi<kvm_vcpu_events>,
    /// Model-specific registers by ascending number, without the time stamp counter and its deadline.
    pub msrs: Vec<MsrStateV1>,
    /// What KVM knows of virtualisation inside the guest; none on a KVM that does not save it.
    pub nested: Option<Blob>,
}

impl Saved for VcpuStateV1 {
    const SCHEMA: &'static str = "vcpu";
    const VERSION: u16 = 1;
    const MOST: usize = 256 << 10;
}

/// A saved model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrStateV1 {
    /// Its number.
    pub index: u32,
    /// Its value.
    pub value: u64,
}
