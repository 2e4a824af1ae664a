//! Kernels of a few instructions that run on `/dev/kvm` and report through a port what they were given.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestMemoryRegion;

use super::elf::ElfFile;
use super::*;
use crate::cpu::{cpuid::Cpuid, registers};

/// A virtual machine with one processor that has been set up for a kernel.
struct Machine {
    vcpu: VcpuFd,
    // KVM uses these as long as the processor runs.
    _vm: VmFd,
    _ram: GuestMemoryMmap,
}

impl Machine {
    fn boot(kernel: &Kernel) -> Self {
        let ram = ram(64 * MIB);
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .unwrap();
        vm.set_tss_address(layout::KVM_TSS as usize).unwrap();
        vm.create_irq_chip().unwrap();
        registers::mask_pic(&vm).unwrap();
        for region in ram.iter() {
            let slot = kvm_userspace_memory_region {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                ..Default::default()
            };
            // SAFETY: the mapping is as long as said, and `Machine` keeps it for as long as the VM.
            unsafe { vm.set_user_memory_region(slot) }.unwrap();
        }
        let vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&Cpuid::new(&kvm, 1).unwrap().for_vcpu(0).unwrap())
            .unwrap();
        registers::set_msrs(&vcpu, 0).unwrap();
        let entry = kernel.load(&ram, &params("hello", None)).unwrap();
        registers::set_boot_processor(&vcpu, &ram, entry).unwrap();
        Self {
            vcpu,
            _vm: vm,
            _ram: ram,
        }
    }

    /// Four bytes that the guest writes to port 0x80.
    fn report(&mut self) -> u32 {
        match self.vcpu.run().unwrap() {
            VcpuExit::IoOut(0x80, data) => u32::from_le_bytes(data.try_into().unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_pvh_kernel_runs_in_protected_mode_and_finds_its_command_line() {
    #[rustfmt::skip]
    let code = [
        0x8B, 0x03,             // mov eax, [ebx]       the magic number
        0xE7, 0x80,             // out 0x80, eax
        0x8B, 0x4B, 0x18,       // mov ecx, [ebx + 24]  the command line
        0x8B, 0x01,             // mov eax, [ecx]
        0xE7, 0x80,             // out 0x80, eax
        0x66, 0xB8, 0x18, 0x00, // mov ax, 0x18         a segment register may be loaded
        0x8E, 0xC0,             // mov es, ax
        0x26, 0x8B, 0x03,       // mov eax, es:[ebx]
        0xE7, 0x80,             // out 0x80, eax
        0x0F, 0x20, 0xC0,       // mov eax, cr0
        0xE7, 0x80,             // out 0x80, eax
        0xF4,                   // hlt
    ];
    let kernel = open(&ElfFile::new(0x10_0000, &code).build()).unwrap();
    let mut guest = Machine::boot(&kernel);
    assert_eq!(guest.report(), 0x336E_C578);
    assert_eq!(guest.report(), u32::from_le_bytes(*b"hell"));
    assert_eq!(guest.report(), 0x336E_C578);
    assert_eq!(guest.report(), 0x11, "protected mode, no paging");
}

#[test]
fn a_bzimage_runs_in_long_mode_and_finds_its_zero_page() {
    #[rustfmt::skip]
    let code = [
        0x8B, 0x86, 0x02, 0x02, 0x00, 0x00, // mov eax, [rsi + 0x202]  "HdrS"
        0xE7, 0x80,                         // out 0x80, eax
        0x8B, 0x8E, 0x28, 0x02, 0x00, 0x00, // mov ecx, [rsi + 0x228]  the command line
        0x8B, 0x01,                         // mov eax, [rcx]
        0xE7, 0x80,                         // out 0x80, eax
        0x48, 0xC7, 0xC0, 0xFF, 0xFF, 0xFF, 0xFF, // mov rax, -1       a register has 64 bits
        0x48, 0xC1, 0xE8, 0x21,             // shr rax, 33
        0xE7, 0x80,                         // out 0x80, eax
        0x8C, 0xC8,                         // mov eax, cs
        0xE7, 0x80,                         // out 0x80, eax
        0xF4,                               // hlt
    ];
    let kernel = open(&bzimage::file(&code)).unwrap();
    let mut guest = Machine::boot(&kernel);
    assert_eq!(guest.report(), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(guest.report(), u32::from_le_bytes(*b"hell"));
    assert_eq!(guest.report(), 0x7FFF_FFFF);
    assert_eq!(guest.report(), 0x10, "__BOOT_CS");
}

#[test]
fn real_mode_code_that_jumps_to_the_bios_resets_the_machine() {
    let kernel = open(&ElfFile::new(0x10_0000, b"\xF4").build()).unwrap();
    let mut guest = Machine::boot(&kernel);
    let mut sregs = guest.vcpu.get_sregs().unwrap();
    sregs.cr0 &= !1;
    sregs.cs = kvm_bindings::kvm_segment {
        base: 0xF_0000,
        limit: 0xFFFF,
        selector: 0xF000,
        type_: 0xB,
        present: 1,
        s: 1,
        ..Default::default()
    };
    guest.vcpu.set_sregs(&sregs).unwrap();
    let regs = kvm_bindings::kvm_regs {
        rip: 0xFFF0,
        rflags: 2,
        ..Default::default()
    };
    guest.vcpu.set_regs(&regs).unwrap();
    match guest.vcpu.run().unwrap() {
        VcpuExit::IoOut(layout::ACPI_RESET_PORT, [value]) => {
            assert!(ferry_devices::power::acpi_reset(*value).is_some());
        }
        other => panic!("{other:?}"),
    }
}
