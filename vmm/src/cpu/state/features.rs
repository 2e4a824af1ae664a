//! Compares the processor that a guest has been told of with what this host offers.
//!
//! The guest keeps its own CPUID, word for word; so every feature in it has to be here. What a newer host has more stays unseen.

use kvm_bindings::kvm_cpuid_entry2;

use super::{Abi, Error, VcpuStateV1, xsave};

/// A register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Register::Eax => entry.eax,
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        }
    }
}

/// A word of feature bits.
struct Word {
    leaf: u32,
    index: u32,
    register: Register,
    /// Bits that follow from how the guest has set its control registers.
    dynamic: u32,
    /// The bits' names from bit 0 on, as in Linux' /proc/cpuinfo; `-` and what is missing have none.
    names: &'static str,
}

const VENDOR: u32 = 0;
const XSTATE: u32 = 0xd;

const WORDS: [Word; 14] = [
    Word {
        leaf: 1,
        index: 0,
        register: Register::Ecx,
        // OSXSAVE
        dynamic: 1 << 27,
        names: "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr \
                pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - \
                avx f16c rdrand hypervisor",
    },
    Word {
        leaf: 1,
        index: 0,
        register: Register::Edx,
        dynamic: 0,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn \
                clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    },
    Word {
        leaf: 7,
        index: 0,
        register: Register::Ebx,
        dynamic: 0,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm \
                cqm zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - \
                clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    },
    Word {
        leaf: 7,
        index: 0,
        register: Register::Ecx,
        // OSPKE
        dynamic: 1 << 4,
        names: "prefetchwt1 avx512vbmi umip pku - waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq \
                avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - \
                bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    },
    Word {
        leaf: 7,
        index: 0,
        register: Register::Edx,
        dynamic: 0,
        names: "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl \
                md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - \
                pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl \
                intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    },
    Word {
        leaf: 7,
        index: 1,
        register: Register::Eax,
        dynamic: 0,
        names: "- - - - avx_vnni avx512_bf16 lass cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs \
                wrmsrns - amx_fp16 - avx_ifma - - lam",
    },
    Word {
        leaf: XSTATE,
        index: 1,
        register: Register::Eax,
        dynamic: 0,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd",
    },
    Word {
        leaf: 0x4000_0001,
        index: 0,
        register: Register::Eax,
        dynamic: 0,
        names: "kvmclock kvm_nop_io_delay kvm_mmu_op kvmclock2 kvm_asyncpf kvm_steal_time \
                kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_send_ipi \
                kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id \
                kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvmclock_stable",
    },
    Word {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        dynamic: 0,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw \
                ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core \
                perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    },
    Word {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        dynamic: 0,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp \
                nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    },
    Word {
        leaf: 0x8000_0007,
        index: 0,
        register: Register::Edx,
        dynamic: 0,
        names: "- - - - - - - - constant_tsc",
    },
    Word {
        leaf: 0x8000_0008,
        index: 0,
        register: Register::Ebx,
        dynamic: 0,
        names: "clzero irperf xsaveerptr - - - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - \
                amd_stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no - amd_psfd",
    },
    Word {
        leaf: 0x8000_000a,
        index: 0,
        register: Register::Edx,
        dynamic: 0,
        names: "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - \
                pausefilter - pfthreshold avic - v_vmsave_vmload vgif",
    },
    Word {
        leaf: 0x8000_0021,
        index: 0,
        register: Register::Eax,
        dynamic: 0,
        names: "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs",
    },
];

impl Word {
    fn read(&self, entries: &[kvm_cpuid_entry2]) -> u32 {
        find(entries, self.leaf, self.index).map_or(0, |entry| self.register.of(entry))
    }

    fn name(&self, bit: u32) -> String {
        match self.names.split_whitespace().nth(bit as usize) {
            Some(name) if name != "-" => name.to_owned(),
            _ => format!(
                "CPUID {:#x}.{} {:?} bit {bit}",
                self.leaf, self.index, self.register
            ),
        }
    }
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    entries
        .iter()
        .find(|entry| entry.function == leaf && entry.index == index)
}

/// Makes sure that this host has all that a saved vCPU has been told of and uses. `offered` is what a new guest would be
/// told here.
///
/// # Errors
/// [`Error::Lacking`] with all names.
pub fn check(state: &VcpuStateV1, offered: &[kvm_cpuid_entry2]) -> Result<(), Error> {
    check_cpuid(&state.cpuid, xsave::in_use(&state.xsave), offered)
}

/// As [`check`], of a vCPU of which no more is known than its CPUID and which components of extended state it uses.
///
/// # Errors
/// As of [`check`].
pub fn check_cpuid(
    cpuid: &[Abi<kvm_cpuid_entry2>],
    in_use: u64,
    offered: &[kvm_cpuid_entry2],
) -> Result<(), Error> {
    let saved: Vec<_> = cpuid.iter().map(|entry| entry.0).collect();
    let mut names = Vec::new();
    let (maker, here) = (vendor(&saved), vendor(offered));
    if maker != here {
        names.push(format!("a processor by {maker} (this one is by {here})"));
    }
    for word in &WORDS {
        let lacking = word.read(&saved) & !word.read(offered) & !word.dynamic;
        let bits = (0..u32::BITS).filter(|bit| lacking & 1 << bit != 0);
        names.extend(bits.map(|bit| word.name(bit)));
    }
    let needed = components(&saved) | in_use;
    names.extend(xsave::names(needed & !components(offered)));
    match names.is_empty() {
        true => Ok(()),
        false => Err(Error::Lacking { names }),
    }
}

/// The names of all features that a saved vCPU has been told of, each once, sorted; and who makes it.
pub fn describe(state: &VcpuStateV1) -> (String, Vec<String>) {
    let entries: Vec<_> = state.cpuid.iter().map(|entry| entry.0).collect();
    let names = WORDS.iter().flat_map(|word| {
        let set = word.read(&entries);
        (0..u32::BITS)
            .filter(move |bit| set & 1 << bit != 0)
            .map(|bit| word.name(bit))
    });
    let names: std::collections::BTreeSet<String> = names.collect();
    (vendor(&entries), names.into_iter().collect())
}

/// The components of extended state that a processor has. x87 and SSE are there without XSAVE too.
fn components(entries: &[kvm_cpuid_entry2]) -> u64 {
    let user = find(entries, XSTATE, 0)
        .map_or(0, |entry| u64::from(entry.eax) | u64::from(entry.edx) << 32);
    let supervisor = find(entries, XSTATE, 1)
        .map_or(0, |entry| u64::from(entry.ecx) | u64::from(entry.edx) << 32);
    user | supervisor | 0b11
}

fn vendor(entries: &[kvm_cpuid_entry2]) -> String {
    let words = find(entries, VENDOR, 0).map_or([0; 3], |leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.escape_ascii().to_string()
}
