//! What this host's KVM can hold of a vCPU's state.

use kvm_ioctls::{Cap, Kvm};

use super::{Error, msrs, xsave};

/// Capabilities that decide what is saved; asked for once per machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Model-specific registers that are worth saving, by ascending number.
    pub(super) msrs: Vec<u32>,
    /// Bytes of extended state.
    pub(super) xsave: usize,
    /// Whether KVM saves nested guests.
    pub(super) nested: bool,
}

impl Host {
    /// Asks KVM.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn ask(kvm: &Kvm) -> Result<Self, Error> {
        let listed = kvm.get_msr_index_list().map_err(|source| Error::Host {
            what: "which model-specific registers it has",
            source,
        })?;
        Ok(Host {
            msrs: msrs::worth_saving(listed.as_slice()),
            xsave: match kvm.check_extension_int(Cap::Xsave2) {
                size @ 1.. => xsave::LEAST.max(size as usize),
                _ => xsave::LEAST,
            },
            nested: kvm.check_extension(Cap::NestedState),
        })
    }
}
