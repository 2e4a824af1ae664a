//! What the guest's processors say of themselves: what KVM can do on this host, less what would mislead a guest, and
//! with Ferry's own topology in place of the host's.
//!
//! All processors are cores of one package, with one thread each, and processor *n* has APIC id *n* (the MADT says the
//! same). There are many places in which CPUID tells this, and kernels differ in which they believe:
//!
//! | leaf | who | what |
//! |---|---|---|
//! | 1 | all | initial APIC id, number of ids in the package, HTT |
//! | 4 | Intel | cores that share each cache, number of ids in the package |
//! | 0xB, 0x1F | all, Intel | levels of the topology, x2APIC id |
//! | 0x8000_0001 | AMD | CmpLegacy |
//! | 0x8000_0008 | AMD | number of cores |
//! | 0x8000_001D | AMD | cores that share each cache |
//! | 0x8000_001E | AMD | APIC id, core id, node |
//!
//! Performance counters are hidden: what they count is the host's, and a snapshot could not move them.

use std::arch::x86_64::__cpuid;
use std::ops::RangeInclusive;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

/// Why there is no CPUID for the guest.
#[derive(Debug, Error)]
pub enum Error {
    /// KVM does not tell what it supports.
    #[error("KVM does not tell which CPU features it supports")]
    Supported(#[source] kvm_ioctls::Error),
    /// More leaves than KVM takes.
    #[error("KVM lists more CPUID leaves than it takes")]
    TooMany,
}

/// Whether the local APIC's timer can be set to a value of the time stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeadlineTimer {
    Offered,
    Absent,
}

/// Who made the processor, as far as CPUID differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vendor {
    Intel,
    /// AMD, and Hygon, whose processors are AMD's.
    Amd,
    Other,
}

/// CPUID of a virtual machine's processors.
#[derive(Clone, Debug)]
pub struct Cpuid {
    /// What is common to all processors; APIC ids are filled in for each.
    entries: Vec<kvm_cpuid_entry2>,
}

/// Physical address width if the processor does not tell: the least of any with long mode.
const LEAST_PHYS_BITS: u8 = 36;

impl Cpuid {
    /// Asks KVM what it supports and makes of it a machine with `vcpus` processors.
    ///
    /// # Errors
    /// [`Error::Supported`].
    pub fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, Error> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::Supported)?;
        // KVM_GET_SUPPORTED_CPUID never lists the deadline timer, because it takes an in-kernel APIC.
        let timer = if kvm.check_extension(Cap::TscDeadlineTimer) {
            DeadlineTimer::Offered
        } else {
            DeadlineTimer::Absent
        };
        let mut supported = supported.as_slice().to_vec();
        add_brand(&mut supported);
        Ok(Self::from_supported(&supported, vcpus, timer))
    }

    fn from_supported(supported: &[kvm_cpuid_entry2], vcpus: u8, timer: DeadlineTimer) -> Self {
        let mut leaves = Leaves(supported.to_vec());
        features(&mut leaves, timer);
        hide_performance_counters(&mut leaves);
        topology(&mut leaves, Package::of(vcpus));
        Self { entries: leaves.0 }
    }

    /// CPUID of one processor.
    ///
    /// # Errors
    /// [`Error::TooMany`] if KVM supports as many leaves as it takes, so that there is no room for topology.
    pub fn for_vcpu(&self, index: u8) -> Result<CpuId, Error> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                leaf::FEATURES => set_bits(&mut entry.ebx, 24, 8, index.into()),
                leaf::TOPOLOGY | leaf::TOPOLOGY_V2 => entry.edx = index.into(),
                leaf::AMD_TOPOLOGY => {
                    entry.eax = index.into();
                    set_bits(&mut entry.ebx, 0, 8, index.into());
                }
                _ => {}
            }
        }
        CpuId::from_entries(&entries).map_err(|_| Error::TooMany)
    }

    /// What is common to all processors, features among it.
    pub fn entries(&self) -> &[kvm_cpuid_entry2] {
        &self.entries
    }

    /// Bits of a guest-physical address that the guest can use.
    #[must_use]
    pub fn phys_bits(&self) -> u8 {
        let size = self
            .entries
            .iter()
            .find(|entry| entry.function == leaf::ADDRESS_SIZE);
        let Some([bits, _, guest_bits, _]) = size.map(|entry| entry.eax.to_le_bytes()) else {
            return LEAST_PHYS_BITS;
        };
        // Nested paging can reach fewer addresses than the processor; then newer KVMs say so.
        match (bits, guest_bits) {
            (0, _) => LEAST_PHYS_BITS,
            (bits, 0) => bits,
            (bits, guest_bits) => bits.min(guest_bits),
        }
    }
}

/// Leaf numbers (Intel SDM, volume 2, CPUID; AMD APM, volume 3, appendix E).
mod leaf {
    pub const VENDOR: u32 = 0;
    pub const FEATURES: u32 = 1;
    pub const CACHES: u32 = 4;
    pub const POWER: u32 = 6;
    pub const PERFORMANCE: u32 = 0xA;
    pub const TOPOLOGY: u32 = 0xB;
    pub const TOPOLOGY_V2: u32 = 0x1F;
    pub const AMD_FEATURES: u32 = 0x8000_0001;
    pub const ADDRESS_SIZE: u32 = 0x8000_0008;
    pub const AMD_CACHES: u32 = 0x8000_001D;
    pub const AMD_TOPOLOGY: u32 = 0x8000_001E;
    pub const AMD_PERFORMANCE: u32 = 0x8000_0022;
    pub const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;
}

/// A table of leaves.
struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    /// All subleaves of a leaf that are there.
    fn each(&mut self, function: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0
            .iter_mut()
            .filter(move |entry| entry.function == function)
    }

    /// Changes a leaf, or does nothing if KVM does not have it.
    fn with(&mut self, function: u32, change: impl FnOnce(&mut kvm_cpuid_entry2)) {
        if let Some(entry) = self.each(function).next() {
            change(entry);
        }
    }

    /// Takes a leaf away. A leaf that is not there reads as zeros.
    fn remove(&mut self, function: u32) {
        self.0.retain(|entry| entry.function != function);
    }

    /// The highest leaf of the basic range.
    fn last_basic(&self) -> u32 {
        self.0
            .iter()
            .find(|entry| entry.function == leaf::VENDOR)
            .map_or(0, |entry| entry.eax)
    }

    fn vendor(&self) -> Vendor {
        let name = self.0.iter().find(|entry| entry.function == leaf::VENDOR);
        let name = name.map_or([0; 3], |entry| [entry.ebx, entry.edx, entry.ecx]);
        let name: Vec<u8> = name.into_iter().flat_map(u32::to_le_bytes).collect();
        match name.as_slice() {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        }
    }
}

/// Adds the name of the host's processor, which KVM leaves to the VMM: guests show it to their users.
fn add_brand(entries: &mut Vec<kvm_cpuid_entry2>) {
    const BRAND: RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
    entries.retain(|entry| !BRAND.contains(&entry.function));
    if __cpuid(0x8000_0000).eax < *BRAND.end() {
        return;
    }
    entries.extend(BRAND.map(|function| {
        let host = __cpuid(function);
        kvm_cpuid_entry2 {
            function,
            eax: host.eax,
            ebx: host.ebx,
            ecx: host.ecx,
            edx: host.edx,
            ..Default::default()
        }
    }));
}

/// Feature bits that depend on Ferry and not on the host.
fn features(leaves: &mut Leaves, timer: DeadlineTimer) {
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    /// The APIC timer runs in all power states. Everything else in leaf 6 belongs to the host.
    const ARAT: u32 = 1 << 2;
    leaves.with(leaf::FEATURES, |entry| {
        entry.ecx |= HYPERVISOR;
        match timer {
            DeadlineTimer::Offered => entry.ecx |= TSC_DEADLINE,
            DeadlineTimer::Absent => entry.ecx &= !TSC_DEADLINE,
        }
    });
    leaves.with(leaf::POWER, |entry| {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & ARAT, 0, 0, 0);
    });
}

/// Leaves no sign of a performance monitoring unit.
fn hide_performance_counters(leaves: &mut Leaves) {
    const DTES64: u32 = 1 << 2;
    const DS_CPL: u32 = 1 << 4;
    const PDCM: u32 = 1 << 15;
    const DS: u32 = 1 << 21;
    /// AMD's extended counters: core, northbridge, last-level cache.
    const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
    leaves.with(leaf::FEATURES, |entry| {
        entry.ecx &= !(DTES64 | DS_CPL | PDCM);
        entry.edx &= !DS;
    });
    leaves.remove(leaf::PERFORMANCE);
    leaves.with(leaf::AMD_FEATURES, |entry| entry.ecx &= !AMD_COUNTERS);
    leaves.remove(leaf::AMD_PERFORMANCE);
}

/// The one package.
#[derive(Clone, Copy, Debug)]
struct Package {
    /// Cores, at least one.
    cores: u32,
    /// Bits of an APIC id that tell the cores apart.
    id_bits: u32,
}

impl Package {
    fn of(vcpus: u8) -> Self {
        let cores = u32::from(vcpus.max(1));
        Self {
            cores,
            id_bits: cores.next_power_of_two().trailing_zeros(),
        }
    }

    /// APIC ids set aside for the package: at least its cores, and a power of two.
    fn ids(self) -> u32 {
        1 << self.id_bits
    }
}

fn topology(leaves: &mut Leaves, package: Package) {
    let vendor = leaves.vendor();
    basic_topology(leaves, package);
    caches(leaves, leaf::CACHES, package);
    // With subleaves for each level; what KVM has there is the host's, or nothing.
    leaves.remove(leaf::TOPOLOGY);
    leaves.remove(leaf::TOPOLOGY_V2);
    leaves.remove(leaf::AMD_TOPOLOGY_V2);
    let last = leaves.last_basic();
    if last >= leaf::TOPOLOGY {
        levels(leaves, leaf::TOPOLOGY, package);
    }
    if last >= leaf::TOPOLOGY_V2 && vendor == Vendor::Intel {
        levels(leaves, leaf::TOPOLOGY_V2, package);
    }
    if vendor == Vendor::Amd {
        amd_topology(leaves, package);
    }
}

/// Leaf 1.
fn basic_topology(leaves: &mut Leaves, package: Package) {
    const HTT: u32 = 1 << 28;
    leaves.with(leaf::FEATURES, |entry| {
        set_bits(&mut entry.ebx, 16, 8, package.ids());
        if package.cores > 1 {
            entry.edx |= HTT;
        } else {
            entry.edx &= !HTT;
        }
    });
}

/// Who shares which cache, for Intel's leaf 4 and AMD's 0x8000_001D, which are alike: each core has its own level 1
/// and 2, and all share what is above.
fn caches(leaves: &mut Leaves, function: u32, package: Package) {
    for entry in leaves.each(function) {
        let (kind, level) = (entry.eax & 0x1F, entry.eax >> 5 & 0x7);
        if kind == 0 {
            continue;
        }
        let sharing = if level < 3 { 1 } else { package.ids() };
        set_bits(&mut entry.eax, 14, 12, sharing - 1);
        if function == leaf::CACHES {
            set_bits(&mut entry.eax, 26, 6, package.ids() - 1);
        }
    }
}

/// Levels of the topology: threads of a core, and cores of the package.
fn levels(leaves: &mut Leaves, function: u32, package: Package) {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let entry = |index: u32, eax: u32, ebx: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind | index,
        ..Default::default()
    };
    leaves.0.extend([
        entry(0, 0, 1, THREADS),
        entry(1, package.id_bits, package.cores, CORES),
        // A level of kind 0 ends the list; the id in EDX is there all the same.
        entry(2, 0, 0, 0),
    ]);
}

fn amd_topology(leaves: &mut Leaves, package: Package) {
    /// HTT stands for cores and not for threads.
    const CMP_LEGACY: u32 = 1 << 1;
    leaves.with(leaf::AMD_FEATURES, |entry| {
        if package.cores > 1 {
            entry.ecx |= CMP_LEGACY;
        } else {
            entry.ecx &= !CMP_LEGACY;
        }
    });
    leaves.with(leaf::ADDRESS_SIZE, |entry| {
        set_bits(&mut entry.ecx, 0, 8, package.cores - 1);
        set_bits(&mut entry.ecx, 12, 4, package.id_bits);
    });
    caches(leaves, leaf::AMD_CACHES, package);
    leaves.with(leaf::AMD_TOPOLOGY, |entry| {
        // One thread per core, one node; ids are filled in for each processor.
        (entry.ebx, entry.ecx) = (0, 0);
    });
}

/// Replaces `count` bits of a register from bit `at` on.
fn set_bits(register: &mut u32, at: u32, count: u32, value: u32) {
    let mask = ((1 << count) - 1) << at;
    *register = *register & !mask | value << at & mask;
}

#[cfg(test)]
mod tests;
