use super::*;

fn entry(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = regs;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn vendor_leaf(last: u32, name: &[u8; 12]) -> kvm_cpuid_entry2 {
    let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    entry(0, 0, [last, word(0), word(8), word(4)])
}

/// An Intel host with 8 cores of 2 threads, full of its own topology.
fn intel() -> Vec<kvm_cpuid_entry2> {
    vec![
        vendor_leaf(0x1F, b"GenuineIntel"),
        entry(
            1,
            0,
            [
                0x906A3,
                0x0B10_0800,
                1 << 15 | 1 << 4 | 1 << 2,
                1 << 28 | 1 << 21,
            ],
        ),
        entry(4, 0, [0x1C00_4121, 0, 0, 0]),
        entry(4, 1, [0x1C00_4143, 0, 0, 0]),
        entry(4, 2, [0x1C03_C163, 0, 0, 0]),
        entry(4, 3, [0, 0, 0, 0]),
        entry(6, 0, [0x77, 2, 9, 1]),
        entry(0xA, 0, [0x0730_0404, 0, 0, 0x603]),
        entry(0xB, 0, [1, 2, 0x100, 11]),
        entry(0xB, 1, [4, 16, 0x201, 11]),
        entry(0x1F, 0, [1, 2, 0x100, 11]),
        entry(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D],
        ),
        entry(0x8000_0001, 0, [0, 0, 1, 0]),
        entry(0x8000_0008, 0, [0x302E, 0, 0, 0]),
    ]
}

/// An AMD host.
fn amd() -> Vec<kvm_cpuid_entry2> {
    vec![
        vendor_leaf(0x10, b"AuthenticAMD"),
        entry(1, 0, [0xA20F10, 0x0510_0800, 0, 1 << 28]),
        entry(0xB, 0, [1, 2, 0x100, 5]),
        entry(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D],
        ),
        entry(
            0x8000_0001,
            0,
            [0, 0, 1 << 22 | 1 << 23 | 1 << 24 | 1 << 28, 0],
        ),
        entry(0x8000_0008, 0, [0x30_3030, 0, 0x700F, 0]),
        entry(0x8000_001D, 0, [0x0000_4121, 0, 0, 0]),
        entry(0x8000_001D, 3, [0x0003_C163, 0, 0, 0]),
        entry(0x8000_001E, 0, [5, 0x102, 0x101, 0]),
        entry(0x8000_0022, 0, [1, 6, 0, 0]),
        entry(0x8000_0026, 0, [1, 2, 0x100, 5]),
    ]
}

/// CPUID of one processor, as it would execute it.
struct Guest(CpuId);

impl Guest {
    fn new(host: &[kvm_cpuid_entry2], vcpus: u8, index: u8) -> Self {
        Self(
            Cpuid::from_supported(host, vcpus, DeadlineTimer::Offered)
                .for_vcpu(index)
                .unwrap(),
        )
    }

    /// EAX, EBX, ECX, EDX; zeros for a leaf that is not there.
    fn cpuid(&self, function: u32, index: u32) -> [u32; 4] {
        let found = self
            .0
            .as_slice()
            .iter()
            .find(|e| (e.function, e.index) == (function, index));
        found.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    }
}

#[test]
fn every_processor_has_its_own_apic_id_in_every_place() {
    for index in 0..32 {
        let guest = Guest::new(&intel(), 32, index);
        assert_eq!(guest.cpuid(1, 0)[1] >> 24, u32::from(index));
        for leaf in [0xB, 0x1F] {
            for level in 0..3 {
                assert_eq!(guest.cpuid(leaf, level)[3], u32::from(index));
            }
        }
        let guest = Guest::new(&amd(), 32, index);
        assert_eq!(guest.cpuid(1, 0)[1] >> 24, u32::from(index));
        assert_eq!(guest.cpuid(0xB, 1)[3], u32::from(index));
        assert_eq!(
            guest.cpuid(0x8000_001E, 0),
            [u32::from(index), u32::from(index), 0, 0]
        );
    }
}

#[test]
fn levels_are_one_thread_per_core_and_all_cores_in_one_package() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (32, 5)] {
        let guest = Guest::new(&intel(), vcpus, 0);
        for leaf in [0xB, 0x1F] {
            assert_eq!(guest.cpuid(leaf, 0)[..3], [0, 1, 0x100]);
            assert_eq!(guest.cpuid(leaf, 1)[..3], [bits, vcpus.into(), 0x201]);
            assert_eq!(guest.cpuid(leaf, 2)[..3], [0, 0, 2]);
        }
        let features = guest.cpuid(1, 0);
        assert_eq!(features[1] >> 16 & 0xFF, 1 << bits);
        assert_eq!(features[3] >> 28 & 1, u32::from(vcpus > 1), "HTT");
        // What the leaf holds beside is the host's.
        assert_eq!((features[0], features[1] & 0xFFFF), (0x906A3, 0x0800));
    }
}

#[test]
fn intel_caches_are_shared_in_the_package_from_level_3_on() {
    let guest = Guest::new(&intel(), 6, 0);
    let fields = |index| {
        let eax = guest.cpuid(4, index)[0];
        (eax >> 26, eax >> 14 & 0xFFF, eax & 0x3FFF)
    };
    assert_eq!(fields(0), (7, 0, 0x121));
    assert_eq!(fields(1), (7, 0, 0x143));
    assert_eq!(fields(2), (7, 7, 0x163));
    assert_eq!(guest.cpuid(4, 3), [0; 4], "the end of the list");
}

#[test]
fn amd_counts_cores_and_shares_caches() {
    let guest = Guest::new(&amd(), 6, 0);
    let size = guest.cpuid(0x8000_0008, 0);
    assert_eq!((size[2] & 0xFF, size[2] >> 12 & 0xF), (5, 3));
    assert_eq!(guest.cpuid(0x8000_0001, 0)[2], 1 << 22 | 1 << 1);
    assert_eq!(guest.cpuid(0x8000_001D, 0)[0] >> 14 & 0xFFF, 0);
    assert_eq!(guest.cpuid(0x8000_001D, 3)[0] >> 14, 7);
    assert_eq!(guest.cpuid(0x8000_0026, 0), [0; 4]);
    let single = Guest::new(&amd(), 1, 0);
    assert_eq!(single.cpuid(0x8000_0001, 0)[2] & 2, 0);
    assert_eq!(single.cpuid(0x8000_0008, 0)[2] & 0xF0FF, 0);
}

#[test]
fn performance_counters_are_hidden() {
    let guest = Guest::new(&intel(), 2, 0);
    assert_eq!(guest.cpuid(0xA, 0), [0; 4]);
    let features = guest.cpuid(1, 0);
    assert_eq!((features[2] & 0x8014, features[3] & 1 << 21), (0, 0));
    let guest = Guest::new(&amd(), 2, 0);
    assert_eq!(guest.cpuid(0x8000_0022, 0), [0; 4]);
    assert_eq!(
        guest.cpuid(0x8000_0001, 0)[2] & (1 << 23 | 1 << 24 | 1 << 28),
        0
    );
}

#[test]
fn the_guest_knows_that_it_is_one() {
    let guest = Guest::new(&intel(), 1, 0);
    assert_eq!(guest.cpuid(1, 0)[2] >> 31, 1);
    assert_eq!(
        guest.cpuid(0x4000_0000, 0),
        [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D]
    );
    assert_eq!(guest.cpuid(6, 0), [4, 0, 0, 0]);
}

#[test]
fn the_deadline_timer_is_there_only_if_kvm_has_it() {
    let bit = |timer| {
        let guest = Guest(
            Cpuid::from_supported(&intel(), 1, timer)
                .for_vcpu(0)
                .unwrap(),
        );
        guest.cpuid(1, 0)[2] >> 24 & 1
    };
    assert_eq!(bit(DeadlineTimer::Offered), 1);
    assert_eq!(bit(DeadlineTimer::Absent), 0);
}

#[test]
fn leaves_beyond_the_last_one_are_not_made_up() {
    let old = [vendor_leaf(4, b"GenuineIntel"), entry(1, 0, [0; 4])];
    let guest = Guest::new(&old, 4, 1);
    assert_eq!(guest.0.as_slice().len(), 2);
    assert_eq!(Guest::new(&[], 4, 1).0.as_slice().len(), 0);
    // AMD processors do not have this one.
    let mut host = amd();
    host[0].eax = 0x20;
    assert_eq!(Guest::new(&host, 4, 1).cpuid(0x1F, 0), [0; 4]);
}

#[test]
fn address_width_is_the_least_that_anyone_names() {
    let bits = |eax| {
        Cpuid::from_supported(
            &[entry(0x8000_0008, 0, [eax, 0, 0, 0])],
            1,
            DeadlineTimer::Absent,
        )
        .phys_bits()
    };
    assert_eq!(bits(0x3028), 40);
    assert_eq!(bits(0x30_3034), 48);
    assert_eq!(bits(0x34_3030), 48);
    assert_eq!(bits(0), 36);
    assert_eq!(
        Cpuid::from_supported(&[], 1, DeadlineTimer::Absent).phys_bits(),
        36
    );
}

#[test]
fn kvm_takes_it_for_32_processors() {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let cpuid = Cpuid::new(&kvm, 32).unwrap();
    assert!((36..=57).contains(&cpuid.phys_bits()));
    for index in [0u8, 1, 31] {
        let vcpu = vm.create_vcpu(index.into()).unwrap();
        vcpu.set_cpuid2(&cpuid.for_vcpu(index).unwrap()).unwrap();
        let read = Guest(vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap());
        assert_eq!(read.cpuid(1, 0)[1] >> 24, u32::from(index));
        assert_eq!(read.cpuid(1, 0)[2] >> 31, 1);
    }
}

#[test]
fn guests_see_the_name_of_the_hosts_processor() {
    let kvm = Kvm::new().unwrap();
    let guest = Guest(Cpuid::new(&kvm, 1).unwrap().for_vcpu(0).unwrap());
    let leaves = (0x8000_0002..=0x8000_0004).flat_map(|leaf| guest.cpuid(leaf, 0));
    let name: Vec<u8> = leaves.flat_map(u32::to_le_bytes).collect();
    let name = String::from_utf8_lossy(&name);
    let name = name.trim_matches(['\0', ' ']);
    let host = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = host.lines().find(|line| line.starts_with("model name"));
    assert_eq!(model.unwrap().split_once(": ").unwrap().1, name);
}
