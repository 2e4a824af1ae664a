//! Which pages of RAM the guest writes, as KVM logs it (Linux' Documentation/virt/kvm/api.rst, 4.8).

use std::sync::Arc;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::{Error, Vm, register_ram};

/// Bytes of a page of the log.
const PAGE: u64 = 4096;
/// Pages that a word of the log is about.
const PAGES_IN_WORD: u64 = u64::BITS as u64;

/// A virtual machine whose writes can be logged.
#[derive(Clone)]
pub struct Loggable(pub Arc<Vm>);

impl Loggable {
    /// Begins to log, with nothing logged yet. May be called while vCPUs run.
    ///
    /// # Errors
    /// KVM does not do it.
    pub fn start(&self) -> Result<DirtyLog, Error> {
        let vm = self.0.clone();
        register_ram(&vm.fd, &vm.ram, kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES)?;
        Ok(DirtyLog { vm })
    }
}

/// KVM's log of one virtual machine. It ends when this is dropped.
pub struct DirtyLog {
    vm: Arc<Vm>,
}

impl DirtyLog {
    /// Takes what is logged: `each` gets 64 pages at a time, by the number of the first one (the guest-physical address
    /// divided by 4096), if any of them has been written. From now on they count as clean.
    ///
    /// # Errors
    /// KVM does not tell; some pages may have been taken already.
    pub fn take(&self, mut each: impl FnMut(u64, u64)) -> Result<(), Error> {
        for (slot, region) in (0..).zip(self.vm.ram.iter()) {
            let words = self
                .vm
                .fd
                .get_dirty_log(slot, region.len() as usize)
                .map_err(Error::refused("tell which pages the guest has written"))?;
            let first = region.start_addr().raw_value() / PAGE;
            for (index, word) in (0..).zip(words) {
                if word != 0 {
                    each(first + index * PAGES_IN_WORD, word);
                }
            }
        }
        Ok(())
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        if let Err(error) = register_ram(&self.vm.fd, &self.vm.ram, 0) {
            // The guest is slower than it could be, and otherwise well.
            tracing::warn!("KVM goes on logging what the guest writes: {error}");
        }
    }
}
