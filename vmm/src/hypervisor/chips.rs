//! The state of what KVM emulates for the machine as a whole: interrupt controllers and timer.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use serde::{Deserialize, Serialize};
use vm_migration::stream::Saved;

use super::{Error, Vm};
use crate::cpu::state::Abi;

/// Saved interrupt controllers and timer. Lines of ACPI events, as pins of the I/O APIC, have no state of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChipsStateV1 {
    /// The first 8259.
    pub pic_master: Abi<kvm_irqchip>,
    /// The second 8259.
    pub pic_slave: Abi<kvm_irqchip>,
    /// The I/O APIC, with edges that it has not delivered.
    pub ioapic: Abi<kvm_irqchip>,
    /// The 8254.
    pub pit: Abi<kvm_pit_state2>,
}

impl Saved for ChipsStateV1 {
    const SCHEMA: &'static str = "chips";
    const VERSION: u16 = 1;
}

impl Vm {
    /// Takes the state of interrupt controllers and timer. All vCPUs are parked.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn save_chips(&self) -> Result<ChipsStateV1, Error> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            self.fd
                .get_irqchip(&mut chip)
                .map_err(Error::refused("give the state of an interrupt controller"))?;
            Ok(Abi(chip))
        };
        let mut pit = self
            .fd
            .get_pit2()
            .map_err(Error::refused("give the state of the PIT"))?;
        for channel in &mut pit.channels {
            // A time of this host's. KVM sets its own when it starts the counters again, from their beginning.
            channel.count_load_time = 0;
        }
        Ok(ChipsStateV1 {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: Abi(pit),
        })
    }

    /// Gives interrupt controllers and timer their saved state. The vCPUs have theirs, because the I/O APIC delivers at
    /// once what it has kept, and an interrupt that comes too early would be overwritten.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn load_chips(&self, state: &ChipsStateV1) -> Result<(), Error> {
        let ChipsStateV1 {
            pic_master,
            pic_slave,
            ioapic,
            pit,
        } = state;
        for (chip_id, chip) in [
            (KVM_IRQCHIP_PIC_MASTER, pic_master),
            (KVM_IRQCHIP_PIC_SLAVE, pic_slave),
            (KVM_IRQCHIP_IOAPIC, ioapic),
        ] {
            let chip = kvm_irqchip { chip_id, ..chip.0 };
            self.fd
                .set_irqchip(&chip)
                .map_err(Error::refused("set the state of an interrupt controller"))?;
        }
        self.fd
            .set_pit2(&pit.0)
            .map_err(Error::refused("set the state of the PIT"))
    }
}
