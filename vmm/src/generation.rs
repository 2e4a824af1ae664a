//! The machine's generation: a random number in the guest's RAM that is another one in each machine that has gone on from the
//! same snapshot (Microsoft, "Virtual Machine Generation ID"). A guest that finds it changed knows that what it has taken
//! for unique may be so no more: Linux reseeds its random number generator.
//!
//! It changes when a guest boots and when it is restored, and not when it is paused or moved.

use std::cell::Cell;
use std::io;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};
use vm_migration::stream::Saved;

use crate::acpi::event::EventLine;
use crate::hypervisor::{self, IOAPIC_PINS, Vm};
use crate::layout;

/// How long it is.
const BYTES: usize = 16;

/// Why a machine could not be given a generation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel gives no random number")]
    Random(#[source] io::Error),
    #[error("it cannot be written to guest RAM")]
    Write(#[source] GuestMemoryError),
    #[error("the saved one is at {0:#x}, where there is no RAM")]
    Place(u64),
    #[error("the saved one is announced by interrupt {0}, which is none of the I/O APIC")]
    Line(u32),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
}

/// Where a guest's generation is and how it hears of a new one. Both are in the ACPI tables that the guest has booted with,
/// and so belong to it, wherever the Ferry that runs it would put them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationStateV1 {
    /// The guest-physical address of the 16 bytes.
    pub address: u64,
    /// The pin of the I/O APIC.
    pub irq: u32,
}

impl Saved for GenerationStateV1 {
    const SCHEMA: &'static str = "generation";
    const VERSION: u16 = 1;
}

/// The generation of a machine.
pub struct Generation {
    address: GuestAddress,
    irq: u32,
    line: EventLine,
    /// Whether the guest is still to be told of a new one.
    changed: Cell<bool>,
}

impl Generation {
    /// That of a guest that boots, and so finds it by itself.
    pub fn at_boot(vm: &Vm) -> Result<Self, Error> {
        let generation = Self::from_state(
            vm,
            &GenerationStateV1 {
                address: layout::GENERATION.0,
                irq: layout::GENERATION_IRQ,
            },
        )?;
        generation.write(vm.ram(), &Number::draw()?)?;
        Ok(generation)
    }

    /// That of a guest that has been saved. It stays the same until [`Generation::renew`].
    pub fn from_state(vm: &Vm, state: &GenerationStateV1) -> Result<Self, Error> {
        let GenerationStateV1 { address, irq } = *state;
        if irq >= IOAPIC_PINS {
            return Err(Error::Line(irq));
        }
        check_place(vm.ram(), GuestAddress(address))?;
        Ok(Generation {
            address: GuestAddress(address),
            irq,
            line: EventLine::new(vm, irq)?,
            changed: Cell::new(false),
        })
    }

    /// What a snapshot says of it. Whether the guest has been told is not part of it, because it will be told of the next one.
    pub fn save(&self) -> GenerationStateV1 {
        let Generation {
            address,
            irq,
            line: _,
            changed: _,
        } = self;
        GenerationStateV1 {
            address: address.0,
            irq: *irq,
        }
    }

    /// Makes it this one, of which the guest is told by [`Generation::announce`].
    pub fn renew(&self, ram: &GuestMemoryMmap, number: &Number) -> Result<(), Error> {
        self.write(ram, number)?;
        self.changed.set(true);
        Ok(())
    }

    /// Tells the guest, which runs, of a new one, if there is any.
    pub fn announce(&self) {
        if self.changed.take() {
            self.line.raise();
        }
    }

    fn write(&self, ram: &GuestMemoryMmap, number: &Number) -> Result<(), Error> {
        ram.write_slice(&number.0, self.address)
            .map_err(Error::Write)
    }
}

/// A random number, for a machine's generation.
pub struct Number([u8; BYTES]);

impl Number {
    /// Draws one: apart from its use, because there may be none, and later may be too late to find out.
    pub fn draw() -> Result<Self, Error> {
        random().map(Number).map_err(Error::Random)
    }
}

fn check_place(ram: &GuestMemoryMmap, address: GuestAddress) -> Result<(), Error> {
    match ram.check_range(address, BYTES) {
        true => Ok(()),
        false => Err(Error::Place(address.0)),
    }
}

fn random() -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    // SAFETY: the buffer is as long as is said. So few bytes come at once or not at all.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        Ok(BYTES) => Ok(bytes),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_lies_in_ram() {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap();
        for inside in [0x1000, 0x1ff0] {
            check_place(&ram, GuestAddress(inside)).unwrap();
        }
        for outside in [0, 0xff8, 0x1ff1, 0x2000, u64::MAX - 8, u64::MAX] {
            let error = check_place(&ram, GuestAddress(outside)).unwrap_err();
            assert!(matches!(error, Error::Place(_)), "{error}");
        }
    }
}
