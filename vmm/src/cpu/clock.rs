//! The guest's time, which stands still while its vCPUs do.
//!
//! Two clocks are stopped: kvmclock, which KVM keeps for the whole machine, and the TSC, which a vCPU reads with an
//! offset of its own. All vCPUs have the same offset, and it changes by the same amount for all.
//!
//! Only the guest's monotonic time goes on from where it stopped. Its wall clock is then behind by as long as it was
//! paused, until the guest asks someone for the time.

use std::arch::x86_64::_rdtsc;
use std::cell::Cell;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clock_data, kvm_device_attr,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_migration::stream::Saved;
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

/// Saved kvmclock. Time stamp counters are saved with their vCPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStateV1 {
    /// Where it stopped, in nanoseconds; none on a KVM without kvmclock.
    pub kvmclock: Option<u64>,
}

impl Saved for ClockStateV1 {
    const SCHEMA: &'static str = "clock";
    const VERSION: u16 = 1;
}

impl StoppedClock {
    /// Reads the clocks. All vCPUs have to be parked.
    pub fn read(vm: &VmFd) -> Self {
        StoppedClock {
            kvmclock: vm.get_clock().ok(),
            host_ticks: host_ticks(),
        }
    }

    /// The clock of a machine that has been given saved state and stands still since now.
    pub fn from_state(state: &ClockStateV1) -> Self {
        let ClockStateV1 { kvmclock } = *state;
        StoppedClock {
            kvmclock: kvmclock.map(|clock| kvm_clock_data {
                clock,
                ..Default::default()
            }),
            host_ticks: host_ticks(),
        }
    }

    /// Where kvmclock stopped.
    pub fn save(&self) -> ClockStateV1 {
        let StoppedClock {
            kvmclock,
            // The vCPUs' counters are saved in relation to it.
            host_ticks: _,
        } = self;
        ClockStateV1 {
            kvmclock: kvmclock.map(|clock| clock.clock),
        }
    }

    /// Where the host's TSC was.
    pub fn host_ticks(&self) -> u64 {
        self.host_ticks
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

/// The host's TSC now.
pub fn host_ticks() -> u64 {
    // SAFETY: every x86_64 processor has the instruction, and Linux lets processes use it unless one forbids it to
    // itself by prctl(PR_SET_TSC).
    unsafe { _rdtsc() }
}

/// What is added to the host's TSC, modulo 2^64, to give the guest's; `None` where KVM does not let it be seen.
pub fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let offset = Cell::new(0u64);
    // SAFETY: the ioctl belongs to a vCPU; it reads the attribute and writes eight bytes to its address, which is
    // that of `offset`.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &offset_attribute(&offset)) };
    (result >= 0).then_some(offset.get())
}

/// Sets the offset that [`tsc_offset`] tells.
///
/// # Errors
/// KVM does not take it.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), errno::Error> {
    let offset = Cell::new(offset);
    // SAFETY: the ioctl belongs to a vCPU; it reads the attribute, and eight bytes from its address, which is that of
    // `offset`.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &offset_attribute(&offset)) } {
        0.. => Ok(()),
        _ => Err(errno::Error::last()),
    }
}

fn offset_attribute(offset: &Cell<u64>) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: offset.as_ptr() as u64,
        flags: 0,
    }
}

/// Sets a vCPU's TSC back by `ticks`. Where KVM does not let its offset be seen, the TSC goes on as it is.
///
/// # Errors
/// KVM does not take the new offset.
pub fn hide_ticks(vcpu: &VcpuFd, ticks: u64) -> Result<(), errno::Error> {
    match tsc_offset(vcpu) {
        Some(offset) => set_tsc_offset(vcpu, offset.wrapping_sub(ticks)),
        None => Ok(()),
    }
}

/// Tells the guest that it was paused, so that its watchdogs do not take the pause for a lock-up. It matters only to
/// guests that use kvmclock; for others KVM refuses, which is fine.
pub fn announce_pause(vcpu: &VcpuFd) {
    let _ = vcpu.kvmclock_ctrl();
}
