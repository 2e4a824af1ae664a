use kvm_bindings::kvm_irqchip;
use kvm_ioctls::Kvm;

use super::*;

const PVH: EntryPoint = EntryPoint::Pvh {
    entry: GuestAddress(0x10_0000),
    start_info: layout::START_INFO,
};
const LINUX: EntryPoint = EntryPoint::Linux64 {
    entry: GuestAddress(0x100_0200),
    zero_page: layout::ZERO_PAGE,
};

fn machine() -> (VmFd, VcpuFd) {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .unwrap();
    vcpu.set_cpuid2(&cpuid).unwrap();
    (vm, vcpu)
}

fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

#[test]
fn descriptors_are_flat() {
    for (mode, l, db) in [(Mode::Protected, 0, 1), (Mode::Long, 1, 0)] {
        let gdt = descriptors(mode);
        let code = segment(CODE, &gdt);
        assert_eq!((code.base, code.limit, code.g), (0, u32::MAX, 1));
        assert_eq!((code.type_, code.s, code.present), (0xB, 1, 1));
        assert_eq!((code.l, code.db, code.dpl), (l, db, 0));
        let data = segment(DATA, &gdt);
        assert_eq!((data.base, data.limit), (0, u32::MAX));
        assert_eq!((data.type_, data.s, data.db), (3, 1, 1));
        let task = segment(TASK, &gdt);
        assert_eq!((task.base, task.limit), (0, 0x67));
        assert_eq!((task.type_, task.s, task.present), (0xB, 0, 1));
    }
}

#[test]
fn kvm_takes_both_entries_and_gives_them_back() {
    let (_vm, vcpu) = machine();
    let ram = ram();
    set_boot_processor(&vcpu, &ram, PVH).unwrap();
    let (regs, sregs) = (vcpu.get_regs().unwrap(), vcpu.get_sregs().unwrap());
    assert_eq!((regs.rip, regs.rbx), (0x10_0000, layout::START_INFO.0));
    assert_eq!(regs.rflags & 0x200, 0, "interrupts are off");
    assert_eq!((sregs.cr0 & 0x8000_0001, sregs.cr4, sregs.efer), (1, 0, 0));
    assert_eq!((sregs.cs.selector, sregs.cs.db), (CODE, 1));

    // As after a reboot: nothing of the other entry is left.
    set_boot_processor(&vcpu, &ram, LINUX).unwrap();
    let (regs, sregs) = (vcpu.get_regs().unwrap(), vcpu.get_sregs().unwrap());
    assert_eq!((regs.rip, regs.rsi, regs.rbx), (0x100_0200, 0x3000, 0));
    assert_eq!(sregs.cr0 & 0x8000_0001, 0x8000_0001);
    assert_eq!((sregs.cr3, sregs.cr4, sregs.efer), (0x4000, 0x20, 0x500));
    assert_eq!((sregs.cs.l, sregs.ds.selector), (1, DATA));
    assert_ne!(sregs.apic_base & 1 << 11, 0, "the local APIC stays on");
}

#[test]
fn the_descriptor_table_in_ram_is_the_one_that_is_loaded() {
    let ram = ram();
    for (entry, mode) in [(PVH, Mode::Protected), (LINUX, Mode::Long)] {
        write_gdt(&ram, entry).unwrap();
        let table = BootRegisters::new(entry, &kvm_sregs::default()).sregs.gdt;
        let read = |n: u64| -> u64 { ram.read_obj(GuestAddress(table.base + n * 8)).unwrap() };
        let found: Vec<u64> = (0..(u64::from(table.limit) + 1) / 8).map(read).collect();
        assert_eq!(found, descriptors(mode));
    }
}

#[test]
fn local_pins_are_connected() {
    let (_vm, vcpu) = machine();
    set_boot_processor(&vcpu, &ram(), PVH).unwrap();
    let lapic = vcpu.get_lapic().unwrap();
    let register = |at: usize| {
        let bytes: Vec<u8> = lapic.regs[at..at + 4].iter().map(|b| *b as u8).collect();
        u32::from_le_bytes(bytes.try_into().unwrap())
    };
    assert_eq!(register(LVT_LINT0), 0x700);
    assert_eq!(register(LVT_LINT1), 0x400);
}

#[test]
fn model_specific_registers_are_set_where_they_exist() {
    let (_vm, vcpu) = machine();
    set_msrs(&vcpu, 0).unwrap();
    let mut read = msrs(&[kvm_msr_entry {
        index: MTRR_DEF_TYPE,
        ..Default::default()
    }]);
    assert_eq!(vcpu.get_msrs(&mut read).unwrap(), 1);
    assert_eq!(read.as_slice()[0].data, MTRR_WRITE_BACK);
}

#[test]
fn the_8259s_are_masked() {
    let (vm, _vcpu) = machine();
    mask_pic(&vm).unwrap();
    for chip_id in 0..2 {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: KVM has filled in this member for an 8259.
        assert_eq!(unsafe { chip.chip.pic.imr }, 0xFF);
    }
}
