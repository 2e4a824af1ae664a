//! The guest's time, which stands still while its vCPUs do.
//!
//! Two clocks are stopped: kvmclock, which KVM keeps for the whole machine, and the TSC, which a vCPU reads with an
//! offset of its own. All vCPUs have the same offset, and it changes by the same amount for all.
//!
//! Only the guest's monotonic time goes on from where it stopped. Its wall clock is then behind by as long as it was
//! paused, until the guest asks someone for the time.

use std::arch::x86_64::_rdtsc;
use std::cell::Cell;
use std::io;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clock_data, kvm_device_attr,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// The machine's time at the moment when its vCPUs stopped.
pub struct StoppedClock {
    /// Not on a KVM without kvmclock.
    kvmclock: Option<kvm_clock_data>,
    host_ticks: u64,
}

impl StoppedClock {
    /// Reads the clocks. All vCPUs have to be parked.
    pub fn read(vm: &VmFd) -> Self {
        StoppedClock {
            kvmclock: vm.get_clock().ok(),
            host_ticks: host_ticks(),
        }
    }

    /// Sets kvmclock back to where it stopped; returns the ticks by which the TSC has to be set back.
    ///
    /// # Errors
    /// KVM's, if it does not take back the time that it has given.
    pub fn start(self, vm: &VmFd) -> Result<u64, errno::Error> {
        if let Some(clock) = self.kvmclock {
            vm.set_clock(&kvm_clock_data {
                clock: clock.clock,
                // No flags: with KVM_CLOCK_REALTIME, KVM would add the time that has passed.
                ..Default::default()
            })?;
        }
        Ok(host_ticks().saturating_sub(self.host_ticks))
    }
}

fn host_ticks() -> u64 {
    // SAFETY: every x86_64 processor has the instruction, and Linux lets processes use it unless one forbids it to
    // itself by prctl(PR_SET_TSC).
    unsafe { _rdtsc() }
}

/// Sets a vCPU's TSC back by `ticks`. Where KVM does not let its offset be seen, the TSC goes on as it is.
///
/// # Errors
/// KVM does not take the new offset.
pub fn hide_ticks(vcpu: &VcpuFd, ticks: u64) -> io::Result<()> {
    let offset = Cell::new(0u64);
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: offset.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the ioctl belongs to a vCPU; it reads the attribute and writes eight bytes to its address, which is
    // that of `offset`.
    if unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) } < 0 {
        return Ok(());
    }
    // The guest's TSC is the host's plus the offset, modulo 2^64.
    offset.set(offset.get().wrapping_sub(ticks));
    // SAFETY: as before, but it reads the eight bytes.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells the guest that it was paused, so that its watchdogs do not take the pause for a lock-up. It matters only to
/// guests that use kvmclock; for others KVM refuses, which is fine.
pub fn announce_pause(vcpu: &VcpuFd) {
    let _ = vcpu.kvmclock_ctrl();
}
