//! The state in which virtual processors start.
//!
//! The boot processor begins in the kernel, as its [`EntryPoint`] demands. All others wait for the guest's INIT and
//! start-up interrupts, as KVM creates them; they only need the model-specific registers that firmware would have set
//! on every processor alike ([`set_msrs`]).

use kvm_bindings::{
    Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::boot::EntryPoint;
use crate::layout;

/// Why a processor could not be set up.
#[derive(Debug, Error)]
pub enum Error {
    /// KVM refuses.
    #[error("KVM does not {step} of vCPU {vcpu}")]
    Kvm {
        /// What was asked of it.
        step: &'static str,
        /// The processor.
        vcpu: u8,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refuses for the machine.
    #[error("KVM does not {step}")]
    Vm {
        /// What was asked of it.
        step: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Guest RAM cannot be written.
    #[error("cannot write the descriptor table to guest RAM")]
    Ram(#[source] GuestMemoryError),
}

// Bits of control registers (Intel SDM, volume 3, 2.5).
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The flags register's bit that is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

// Selectors. Linux wants its __BOOT_CS at 0x10 and its __BOOT_DS at 0x18.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Width of the code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// 32-bit protected mode.
    Protected,
    /// 64-bit mode.
    Long,
}

/// Registers of the boot processor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BootRegisters {
    /// General registers.
    pub regs: kvm_regs,
    /// Segments and control registers.
    pub sregs: kvm_sregs,
    /// Floating point unit as after FNINIT, with all SSE exceptions masked.
    pub fpu: kvm_fpu,
}

impl BootRegisters {
    /// Makes them for an entry point. `initial` are the processor's own as KVM created it: of these the local APIC's
    /// base address is kept.
    #[must_use]
    pub fn new(entry: EntryPoint, initial: &kvm_sregs) -> Self {
        let fpu = kvm_fpu {
            fcw: 0x37F,
            mxcsr: 0x1F80,
            ..Default::default()
        };
        match entry {
            EntryPoint::Pvh { entry, start_info } => Self {
                regs: kvm_regs {
                    rip: entry.0,
                    rbx: start_info.0,
                    rflags: RFLAGS,
                    ..Default::default()
                },
                sregs: sregs(initial, Mode::Protected),
                fpu,
            },
            EntryPoint::Linux64 { entry, zero_page } => Self {
                regs: kvm_regs {
                    rip: entry.0,
                    rsi: zero_page.0,
                    rflags: RFLAGS,
                    ..Default::default()
                },
                sregs: sregs(initial, Mode::Long),
                fpu,
            },
        }
    }
}

fn sregs(initial: &kvm_sregs, mode: Mode) -> kvm_sregs {
    let gdt = descriptors(mode);
    let data = segment(DATA, &gdt);
    let mut sregs = kvm_sregs {
        cs: segment(CODE, &gdt),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(TASK, &gdt),
        ldt: kvm_segment {
            unusable: 1,
            type_: 2,
            ..Default::default()
        },
        cr0: CR0_PE | CR0_ET,
        apic_base: initial.apic_base,
        ..Default::default()
    };
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = (size_of_val(&gdt) - 1) as u16;
    if mode == Mode::Long {
        sregs.cr3 = layout::PAGE_TABLES.0;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    sregs
}

/// The descriptor table, indexed by selector / 8 (Intel SDM, volume 3, 3.4.5): flat code and data, accessed already,
/// and a busy task state segment, which the processor must have but never uses.
fn descriptors(mode: Mode) -> [u64; 5] {
    let code = match mode {
        Mode::Protected => 0x00CF_9B00_0000_FFFF,
        Mode::Long => 0x00AF_9B00_0000_FFFF,
    };
    [0, 0, code, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067]
}

/// What loading a selector makes of its descriptor.
fn segment(selector: u16, gdt: &[u64]) -> kvm_segment {
    let descriptor = gdt.get(usize::from(selector / 8)).copied().unwrap_or(0);
    let bits = |at: u32, count: u32| (descriptor >> at & ((1 << count) - 1)) as u32;
    let bit = |at: u32| bits(at, 1) as u8;
    let limit = bits(0, 16) | bits(48, 4) << 16;
    let g = bit(55);
    kvm_segment {
        base: (bits(16, 24) | bits(56, 8) << 24).into(),
        limit: if g == 1 { limit << 12 | 0xFFF } else { limit },
        selector,
        type_: bits(40, 4) as u8,
        s: bit(44),
        dpl: bits(45, 2) as u8,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g,
        ..Default::default()
    }
}

/// Writes the descriptor table for an entry point into guest RAM, so that a guest that loads a segment register finds
/// what is in it already.
///
/// # Errors
/// [`Error::Ram`].
pub fn write_gdt(ram: &GuestMemoryMmap, entry: EntryPoint) -> Result<(), Error> {
    let mode = match entry {
        EntryPoint::Pvh { .. } => Mode::Protected,
        EntryPoint::Linux64 { .. } => Mode::Long,
    };
    for (to, descriptor) in (layout::GDT.0..).step_by(8).zip(descriptors(mode)) {
        ram.write_slice(&descriptor.to_le_bytes(), GuestAddress(to))
            .map_err(Error::Ram)?;
    }
    Ok(())
}

/// Sets the boot processor, vCPU 0, to its entry point: descriptor table in RAM, registers, and the local interrupt
/// pins of its APIC.
///
/// # Errors
/// [`Error::Ram`], [`Error::Kvm`].
pub fn set_boot_processor(
    vcpu: &VcpuFd,
    ram: &GuestMemoryMmap,
    entry: EntryPoint,
) -> Result<(), Error> {
    let kvm = |step| {
        move |source| Error::Kvm {
            step,
            vcpu: 0,
            source,
        }
    };
    write_gdt(ram, entry)?;
    let initial = vcpu
        .get_sregs()
        .map_err(kvm("give the segment registers"))?;
    let boot = BootRegisters::new(entry, &initial);
    vcpu.set_sregs(&boot.sregs)
        .map_err(kvm("set the segment registers"))?;
    vcpu.set_regs(&boot.regs)
        .map_err(kvm("set the registers"))?;
    vcpu.set_fpu(&boot.fpu)
        .map_err(kvm("set the floating point unit"))?;
    let mut lapic = vcpu.get_lapic().map_err(kvm("give the local APIC"))?;
    connect_local_pins(&mut lapic);
    vcpu.set_lapic(&lapic).map_err(kvm("set the local APIC"))
}

/// Local vector table entries for the pins (Intel SDM, volume 3, 11.5.1), and their delivery modes.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 0b100 << 8;
const DELIVER_EXTINT: u32 = 0b111 << 8;

/// Connects the 8259 to LINT0 and NMI to LINT1, as firmware leaves the boot processor ("virtual wire mode", Intel
/// MultiProcessor Specification 1.4, 3.6.2.2). The guest sets up the others.
fn connect_local_pins(lapic: &mut kvm_lapic_state) {
    for (register, value) in [(LVT_LINT0, DELIVER_EXTINT), (LVT_LINT1, DELIVER_NMI)] {
        for (to, byte) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
            *to = byte as std::ffi::c_char;
        }
    }
}

/// Masks all inputs of the 8259s, as firmware does.
///
/// KVM creates them unmasked and with vectors from 0 on. A Linux guest that finds hardware-reduced ACPI never touches
/// them, but leaves LINT0 open: without this, the serial port's interrupt would reach it as exception 4.
///
/// # Errors
/// [`Error::Vm`].
pub fn mask_pic(vm: &VmFd) -> Result<(), Error> {
    for chip_id in [
        kvm_bindings::KVM_IRQCHIP_PIC_MASTER,
        kvm_bindings::KVM_IRQCHIP_PIC_SLAVE,
    ] {
        let mut chip = kvm_bindings::kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip).map_err(|source| Error::Vm {
            step: "give the state of an 8259",
            source,
        })?;
        chip.chip.pic.imr = 0xFF;
        vm.set_irqchip(&chip).map_err(|source| Error::Vm {
            step: "set the state of an 8259",
            source,
        })?;
    }
    Ok(())
}

/// IA32_MISC_ENABLE, and its bit for fast string operations.
const MISC_ENABLE: u32 = 0x1A0;
const FAST_STRINGS: u64 = 1 << 0;
/// IA32_MTRR_DEF_TYPE: MTRRs on, write-back where none says otherwise.
const MTRR_DEF_TYPE: u32 = 0x2FF;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets what firmware sets on every processor. A register that this processor does not have is left out: all of them
/// are refinements.
///
/// # Errors
/// [`Error::Kvm`].
pub fn set_msrs(vcpu: &VcpuFd, index: u8) -> Result<(), Error> {
    let fail = |step| {
        move |source| Error::Kvm {
            step,
            vcpu: index,
            source,
        }
    };
    let mut wanted = vec![kvm_msr_entry {
        index: MTRR_DEF_TYPE,
        data: MTRR_WRITE_BACK,
        ..Default::default()
    }];
    let mut misc = msrs(&[kvm_msr_entry {
        index: MISC_ENABLE,
        ..Default::default()
    }]);
    if let (Ok(1), Some(misc)) = (vcpu.get_msrs(&mut misc), misc.as_slice().first()) {
        wanted.push(kvm_msr_entry {
            data: misc.data | FAST_STRINGS,
            ..*misc
        });
    }
    for entry in wanted {
        // KVM answers how many it has set.
        let set = vcpu
            .set_msrs(&msrs(&[entry]))
            .map_err(fail("set model-specific registers"))?;
        if set == 0 {
            tracing::debug!(vcpu = index, msr = entry.index, "not there, left out");
        }
    }
    Ok(())
}

/// A list of a few entries.
fn msrs(entries: &[kvm_msr_entry]) -> Msrs {
    #[expect(
        clippy::expect_used,
        reason = "fails above KVM_MAX_MSR_ENTRIES, 256, and here is one"
    )]
    Msrs::from_entries(entries).expect("a few entries")
}

#[cfg(test)]
mod tests;
