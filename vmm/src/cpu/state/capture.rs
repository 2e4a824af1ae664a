//! Takes the state out of a vCPU.

use kvm_bindings::CpuId;
use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_ioctls::VcpuFd;
use zerocopy::IntoBytes;

use super::{Abi, Blob, Error, Host, VcpuStateV1, msrs, refused, xsave};
use crate::cpu::clock;

/// Takes the state of a vCPU that stands between two instructions, with the answer to its last exit given. The machine
/// stopped when the host's time stamp counter was at `stopped_at`.
///
/// Reading is not without effect, which makes an order:
///
/// 1. MP_STATE first: KVM then carries out an INIT or start-up interrupt that waits, which resets registers.
/// 2. Events: KVM then writes the payload of a pending exception into CR2 or DR6.
/// 3. All else, in any order.
///
/// `cpuid` is what KVM was told, and not what it makes of it: some bits follow from other state, and a KVM that runs guests
/// without the processor's help lists bits that the host has and the guest was never promised.
///
/// # Errors
/// KVM does not tell; the vCPU can go on.
pub fn capture(
    vcpu: &VcpuFd,
    index: u8,
    cpuid: &CpuId,
    host: &Host,
    stopped_at: u64,
) -> Result<VcpuStateV1, Error> {
    let get = |step| refused(step, index);
    let mp_state = vcpu.get_mp_state().map_err(get("give the run state"))?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(get("give the pending events"))?;
    Ok(VcpuStateV1 {
        cpuid: cpuid.as_slice().iter().copied().map(Abi).collect(),
        tsc: tsc_at(vcpu, index, stopped_at)?,
        // Not told by a KVM without KVM_CAP_GET_TSC_KHZ, and as 0 where the counter is of no use.
        tsc_khz: vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0),
        tsc_deadline: msrs::read_one(vcpu, index, msrs::TSC_DEADLINE)?.unwrap_or(0),
        mp_state: Abi(mp_state),
        regs: Abi(vcpu.get_regs().map_err(get("give the registers"))?),
        sregs: Abi(vcpu
            .get_sregs()
            .map_err(get("give the segment registers"))?),
        debug_regs: Abi(vcpu
            .get_debug_regs()
            .map_err(get("give the debug registers"))?),
        xcrs: Abi(vcpu
            .get_xcrs()
            .map_err(get("give the extended control registers"))?),
        xsave: xsave::read(vcpu, index, host)?,
        lapic: Abi(vcpu.get_lapic().map_err(get("give the local APIC"))?),
        events: Abi(events),
        msrs: msrs::read(vcpu, index, &host.msrs)?,
        nested: nested(vcpu, index, host)?,
    })
}

/// What the guest would have read from its time stamp counter at that moment of the host's.
fn tsc_at(vcpu: &VcpuFd, index: u8, stopped_at: u64) -> Result<u64, Error> {
    if let Some(offset) = clock::tsc_offset(vcpu) {
        return Ok(stopped_at.wrapping_add(offset));
    }
    // As exact as two readings are close.
    let now = msrs::read_one(vcpu, index, msrs::TSC)?.unwrap_or(0);
    Ok(now.wrapping_sub(clock::host_ticks().wrapping_sub(stopped_at)))
}

fn nested(vcpu: &VcpuFd, index: u8, host: &Host) -> Result<Option<Blob>, Error> {
    if !host.nested {
        return Ok(None);
    }
    let mut state = KvmNestedStateBuffer::empty();
    vcpu.nested_state(&mut state)
        .map_err(refused("give the nested state", index))?;
    // Without a nested guest there is a header, which says whether the guest has virtualisation on.
    let bytes = state.as_bytes();
    let size = bytes.len().min(state.size as usize);
    Ok(Some(Blob(bytes[..size].to_vec())))
}
