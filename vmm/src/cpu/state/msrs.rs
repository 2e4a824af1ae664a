//! Model-specific registers.

use std::collections::BTreeSet;
use std::ops::Range;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{Error, MsrStateV1, refused};

/// IA32_TIME_STAMP_COUNTER.
pub const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3a;

/// Hyper-V's, which Ferry never shows to a guest. Reading one would make KVM set its emulation up.
const HYPERV: Range<u32> = 0x4000_0000..0x4000_0200;

/// Registers with which a guest asks KVM to write into its RAM at once. The value has no effect but that, and what was
/// asked for before the snapshot is in the saved RAM: written again, they would change RAM before anything runs, at a
/// place that the guest may use for something else by now.
///
/// The other registers that name a place in RAM (system time, stolen time, end of interrupt) have KVM write there when the
/// vCPU runs.
const WRITING: [u32; 3] = [
    0x11,        // KVM_WALL_CLOCK
    0x4b56_4d00, // KVM_WALL_CLOCK_NEW
    0x4b56_4d07, // KVM_ASYNC_PF_ACK, which delivers what is due
];

/// What KVM has, and older ones do not list: memory types, and what has to be reported of machine checks.
const UNLISTED: [Range<u32>; 6] = [
    0x200..0x210, // variable ranges
    0x250..0x251, // fixed ranges
    0x258..0x25a,
    0x268..0x270,
    0x2ff..0x300, // default
    0x400..0x480, // 32 machine-check banks
];

/// Names for messages, as in Linux' msr-index.h; the others are given by number.
const NAMES: [(u32, &str); 35] = [
    (TSC, "IA32_TSC"),
    (0x11, "KVM_WALL_CLOCK"),
    (0x12, "KVM_SYSTEM_TIME"),
    (FEATURE_CONTROL, "IA32_FEATURE_CONTROL"),
    (0x3b, "IA32_TSC_ADJUST"),
    (0x48, "IA32_SPEC_CTRL"),
    (0x8b, "IA32_UCODE_REV"),
    (0xce, "PLATFORM_INFO"),
    (0xe1, "IA32_UMWAIT_CONTROL"),
    (0x10a, "IA32_ARCH_CAPABILITIES"),
    (0x122, "IA32_TSX_CTRL"),
    (0x140, "MISC_FEATURES_ENABLES"),
    (0x174, "IA32_SYSENTER_CS"),
    (0x175, "IA32_SYSENTER_ESP"),
    (0x176, "IA32_SYSENTER_EIP"),
    (0x1a0, "IA32_MISC_ENABLE"),
    (0x1c4, "IA32_XFD"),
    (0x1c5, "IA32_XFD_ERR"),
    (0x277, "IA32_CR_PAT"),
    (0x2ff, "IA32_MTRR_DEF_TYPE"),
    (0x345, "IA32_PERF_CAPABILITIES"),
    (TSC_DEADLINE, "IA32_TSC_DEADLINE"),
    (0xd90, "IA32_BNDCFGS"),
    (0xda0, "IA32_XSS"),
    (0x4b56_4d00, "KVM_WALL_CLOCK_NEW"),
    (0x4b56_4d01, "KVM_SYSTEM_TIME_NEW"),
    (0x4b56_4d02, "KVM_ASYNC_PF_EN"),
    (0x4b56_4d03, "KVM_STEAL_TIME"),
    (0x4b56_4d04, "KVM_PV_EOI_EN"),
    (0x4b56_4d05, "KVM_POLL_CONTROL"),
    (0xc000_0081, "STAR"),
    (0xc000_0082, "LSTAR"),
    (0xc000_0084, "SYSCALL_MASK"),
    (0xc000_0102, "KERNEL_GS_BASE"),
    (0xc000_0103, "TSC_AUX"),
];

/// A register's name for a message.
fn name(index: u32) -> String {
    match NAMES.iter().find(|(number, _)| *number == index) {
        Some((_, name)) => format!("register {name}"),
        None => format!("register {index:#x}"),
    }
}

/// Which registers are saved on a KVM that lists these.
pub fn worth_saving(listed: &[u32]) -> Vec<u32> {
    let unlisted = UNLISTED.into_iter().flatten();
    let all: BTreeSet<u32> = listed.iter().copied().chain(unlisted).collect();
    all.into_iter()
        .filter(|index| !matches!(*index, TSC | TSC_DEADLINE) && !HYPERV.contains(index))
        .collect()
}

/// Reads registers. Those that this vCPU does not have are left out.
pub fn read(vcpu: &VcpuFd, index: u8, wanted: &[u32]) -> Result<Vec<MsrStateV1>, Error> {
    let mut values = Vec::with_capacity(wanted.len());
    let mut rest = wanted;
    while !rest.is_empty() {
        let asked = rest.len().min(KVM_MAX_MSR_ENTRIES);
        let mut list = list(rest[..asked].iter().map(|&index| kvm_msr_entry {
            index,
            ..Default::default()
        }));
        // KVM stops at the first that it does not have, and tells how many it has read.
        let read = vcpu
            .get_msrs(&mut list)
            .map_err(refused("give the model-specific registers", index))?
            .min(asked);
        values.extend(list.as_slice()[..read].iter().map(|entry| MsrStateV1 {
            index: entry.index,
            value: entry.data,
        }));
        rest = &rest[asked.min(read + 1)..];
    }
    Ok(values)
}

/// One register, if the vCPU has it.
pub fn read_one(vcpu: &VcpuFd, index: u8, register: u32) -> Result<Option<u64>, Error> {
    let values = read(vcpu, index, &[register])?;
    Ok(values.first().map(|register| register.value))
}

/// Whether a saved register is given to a new vCPU.
fn is_loaded(register: &MsrStateV1) -> bool {
    // Hyper-V's are in no snapshot that Ferry has made, and some of them write into RAM, too.
    !WRITING.contains(&register.index) && !HYPERV.contains(&register.index)
}

/// Sets registers to their saved values, all but those that would write into RAM.
///
/// Only what differs is written. Many registers say something of the processor and cannot be written even with the value that they
/// have; and some, when written, make KVM set something up that the guest does not use.
///
/// # Errors
/// [`Error::Lacking`] names all that this vCPU does not have or that do not take the value. One that it does not have
/// and that was zero is a feature that the guest did not use.
pub fn write(vcpu: &VcpuFd, index: u8, saved: &[MsrStateV1]) -> Result<(), Error> {
    let saved = || saved.iter().filter(|register| is_loaded(register));
    let wanted: Vec<u32> = saved().map(|register| register.index).collect();
    let present = read(vcpu, index, &wanted)?;
    let differs = |register: &&MsrStateV1| match present
        .iter()
        .find(|present| present.index == register.index)
    {
        Some(present) => present.value != register.value,
        None => register.value != 0,
    };
    let todo: Vec<MsrStateV1> = saved().filter(differs).copied().collect();
    let mut names = Vec::new();
    let mut rest = &todo[..];
    while !rest.is_empty() {
        let given = rest.len().min(KVM_MAX_MSR_ENTRIES);
        let list = list(rest[..given].iter().map(|register| kvm_msr_entry {
            index: register.index,
            data: register.value,
            ..Default::default()
        }));
        let written = vcpu
            .set_msrs(&list)
            .map_err(refused("set the model-specific registers", index))?
            .min(given);
        if let Some(refused) = rest[..given].get(written) {
            names.push(name(refused.index));
        }
        rest = &rest[given.min(written + 1)..];
    }
    match names.is_empty() {
        true => Ok(()),
        false => Err(Error::Lacking { names }),
    }
}

/// Writes one register.
pub fn write_one(vcpu: &VcpuFd, index: u8, register: MsrStateV1) -> Result<(), Error> {
    let MsrStateV1 {
        index: number,
        value,
    } = register;
    let entry = kvm_msr_entry {
        index: number,
        data: value,
        ..Default::default()
    };
    let written = vcpu
        .set_msrs(&list(std::iter::once(entry)))
        .map_err(refused("set a model-specific register", index))?;
    match written {
        0 => Err(Error::Lacking {
            names: vec![name(number)],
        }),
        _ => Ok(()),
    }
}

/// At most as many entries as KVM takes at once.
fn list(entries: impl Iterator<Item = kvm_msr_entry>) -> Msrs {
    let entries: Vec<_> = entries.take(KVM_MAX_MSR_ENTRIES).collect();
    #[expect(
        clippy::expect_used,
        reason = "fails above KVM_MAX_MSR_ENTRIES, and there are no more"
    )]
    Msrs::from_entries(&entries).expect("no more than KVM takes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_write_into_ram_at_once_is_not_loaded() {
        let loaded = |index| is_loaded(&MsrStateV1 { index, value: 1 });
        assert!(!loaded(0x11) && !loaded(0x4b56_4d00) && !loaded(0x4b56_4d07));
        assert!(!loaded(0x4000_0001));
        // Where KVM keeps the time up to date is to be known to it.
        assert!(loaded(0x12) && loaded(0x4b56_4d01) && loaded(0x4b56_4d02) && loaded(0x4b56_4d03));
        assert!(loaded(FEATURE_CONTROL));
    }

    #[test]
    fn time_and_hyper_v_are_not_among_the_rest_and_memory_types_are() {
        let saved = worth_saving(&[0x3a, TSC, TSC_DEADLINE, 0x4000_0010, 0x2ff]);
        assert!(!saved.contains(&TSC) && !saved.contains(&TSC_DEADLINE));
        assert!(!saved.contains(&0x4000_0010));
        assert!(saved.contains(&0x3a) && saved.contains(&0x201));
        assert_eq!(saved.iter().filter(|index| **index == 0x2ff).count(), 1);
        assert!(saved.is_sorted());
    }
}
