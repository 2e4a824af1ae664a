//! Puts saved state into a new vCPU.

use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::VcpuFd;
use zerocopy::IntoBytes;

use super::{Abi, Blob, Error, Host, MsrStateV1, VcpuStateV1, msrs, refused, xsave};
use crate::cpu::clock;

/// KVM takes two frequencies for the same if they differ by no more (`tsc_tolerance_ppm`): as much as the same host's
/// differ from one of its boots to the next.
const TOLERANCE_PPM: u64 = 250;

/// Puts `state` into a vCPU that has never run. Its time stamp counter is such that the guest would have read the saved
/// value when the host's was at `started_at`; with the same value for all vCPUs, those that had the same offset have the
/// same again.
///
/// *Before*: guest RAM is in place (PAE's page directory pointers are read from it), and all vCPUs exist, so that an interrupt finds
/// its destination. *Afterwards*: interrupt controllers, then devices.
///
/// The order, each step needing those before it:
///
/// 1. CPUID, which has been [told](identify) already, says which bits and registers there are; KVM checks all that follows against it.
/// 2. SREGS, which enable the local APIC, set its base, and choose between xAPIC and x2APIC.
/// 3. The local APIC, whose state is laid out by that mode. It says how its timer works, without which 9 would be ignored.
/// 4. Nested state, for which EFER and CR4 of 2 have to allow virtualisation, and IA32_FEATURE_CONTROL too.
/// 5. Extended state, registers: setting these drops pending exceptions, so before 7.
/// 6. MSRs.
/// 7. Events, then debug registers: an exception's payload is in them already.
/// 8. MP_STATE: SREGS of a processor at its reset vector make it run.
/// 9. The counter's offset, then TSC_DEADLINE, which arms a timer that goes by it.
///
/// # Errors
/// This host lacks something, or the state cannot be. The vCPU is of no use then.
pub fn load(
    vcpu: &VcpuFd,
    index: u8,
    host: &Host,
    state: &VcpuStateV1,
    started_at: u64,
) -> Result<(), Error> {
    let set = |step| refused(step, index);
    let VcpuStateV1 {
        cpuid: _,
        tsc,
        tsc_khz,
        tsc_deadline,
        mp_state,
        regs,
        sregs,
        debug_regs,
        xcrs,
        xsave,
        lapic,
        events,
        msrs,
        nested,
    } = state;
    check_frequency(*tsc_khz, vcpu.get_tsc_khz().ok())?;
    vcpu.set_sregs(&sregs.0)
        .map_err(set("set the segment registers"))?;
    vcpu.set_lapic(&lapic.0)
        .map_err(set("set the local APIC"))?;
    if let Some(nested) = nested {
        load_nested(vcpu, index, host, msrs, nested)?;
    }
    xsave::write(vcpu, index, host, xsave)?;
    vcpu.set_xcrs(&xcrs.0)
        .map_err(set("set the extended control registers"))?;
    vcpu.set_regs(&regs.0).map_err(set("set the registers"))?;
    msrs::write(vcpu, index, msrs)?;
    vcpu.set_vcpu_events(&events.0)
        .map_err(set("set the pending events"))?;
    vcpu.set_debug_regs(&debug_regs.0)
        .map_err(set("set the debug registers"))?;
    vcpu.set_mp_state(mp_state.0)
        .map_err(set("set the run state"))?;
    start_counter(vcpu, index, *tsc, started_at)?;
    if *tsc_deadline != 0 {
        let register = MsrStateV1 {
            index: msrs::TSC_DEADLINE,
            value: *tsc_deadline,
        };
        msrs::write_one(vcpu, index, register)?;
    }
    Ok(())
}

/// Tells a vCPU that has never run what it says of itself.
///
/// # Errors
/// KVM does not take it.
pub fn identify(vcpu: &VcpuFd, index: u8, cpuid: &CpuId) -> Result<(), Error> {
    vcpu.set_cpuid2(cpuid)
        .map_err(refused("set the CPUID", index))
}

/// A saved CPUID in KVM's form.
///
/// # Errors
/// [`Error::Impossible`]: more entries than KVM takes.
pub fn cpuid_of(saved: &[Abi<kvm_cpuid_entry2>], index: u8) -> Result<CpuId, Error> {
    let entries: Vec<_> = saved.iter().map(|entry| entry.0).collect();
    CpuId::from_entries(&entries).map_err(|_| Error::Impossible {
        vcpu: index,
        reason: format!("its CPUID has {} entries", entries.len()),
    })
}

/// A counter of unknown frequency is one that no guest relies on.
pub fn check_frequency(saved: Option<u32>, here: Option<u32>) -> Result<(), Error> {
    let (Some(saved), Some(here)) = (saved, here) else {
        return Ok(());
    };
    let apart = u64::from(saved.abs_diff(here));
    match apart * 1_000_000 <= u64::from(here) * TOLERANCE_PPM {
        true => Ok(()),
        false => Err(Error::Frequency { saved, here }),
    }
}

fn start_counter(vcpu: &VcpuFd, index: u8, tsc: u64, started_at: u64) -> Result<(), Error> {
    if clock::tsc_offset(vcpu).is_some() {
        let offset = tsc.wrapping_sub(started_at);
        clock::set_tsc_offset(vcpu, offset)
            .map_err(refused("set the time stamp counter", index))?;
        if index == 0 && clock::tsc_offset(vcpu) != Some(offset) {
            tracing::warn!(
                "this KVM shows guests the host's time stamp counter: the guest will see it jump"
            );
        }
        return Ok(());
    }
    // KVM gives counters that are written with nearly the same value at nearly the same time the same offset.
    let register = MsrStateV1 {
        index: msrs::TSC,
        value: tsc,
    };
    msrs::write_one(vcpu, index, register)
}

fn load_nested(
    vcpu: &VcpuFd,
    index: u8,
    host: &Host,
    msrs: &[MsrStateV1],
    nested: &Blob,
) -> Result<(), Error> {
    if !host.nested {
        return Err(Error::Lacking {
            names: vec!["KVM's saving of nested guests".into()],
        });
    }
    let mut state = KvmNestedStateBuffer::empty();
    let Some(target) = state.as_mut_bytes().get_mut(..nested.0.len()) else {
        return Err(Error::Impossible {
            vcpu: index,
            reason: format!("its nested state has {} bytes", nested.0.len()),
        });
    };
    target.copy_from_slice(&nested.0);
    if let Some(control) = msrs
        .iter()
        .find(|register| register.index == msrs::FEATURE_CONTROL)
    {
        msrs::write(vcpu, index, std::slice::from_ref(control))?;
    }
    vcpu.set_nested_state(&state)
        .map_err(refused("set the nested state", index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_match_as_closely_as_one_host_matches_itself() {
        assert!(check_frequency(Some(3_000_000), Some(3_000_000)).is_ok());
        assert!(check_frequency(Some(3_000_700), Some(3_000_000)).is_ok());
        assert!(check_frequency(None, Some(3_000_000)).is_ok());
        let refused = check_frequency(Some(3_001_000), Some(3_000_000)).unwrap_err();
        assert!(refused.to_string().contains("3001000 kHz"), "{refused}");
        assert!(check_frequency(Some(u32::MAX), Some(1)).is_err());
    }
}
