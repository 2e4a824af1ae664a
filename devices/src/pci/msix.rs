//! MSI-X (PCI Local Bus Specification 3.0, 6.8.2): vectors, masks and pending bits.
//!
//! A *source* is an eventfd that something signals: a queue's call, or a configuration change. The
//! guest binds each source to a vector; several may share one. While a vector can deliver, its
//! sources are attached to the interrupt controller as irqfds and Ferry sees nothing of the
//! interrupts. While it is masked the sources are detached, and a signal simply stays in the
//! eventfd: the pending bit is read from there, and attaching the source again delivers it. So
//! masking sends nothing to a back-end.
//!
//! ```text
//!             message programmed, unmasked, function enabled and unmasked
//!   detached ─────────────────────────────────────────────────────────────▶ attached
//!   (pending = eventfd readable)  ◀─────────────────────────────────────── (delivers)
//!                         any mask set, or function disabled
//! ```
//!
//! While a function is *unwired*, all of its sources are detached, whatever the guest has set: an eventfd can be wired to one
//! machine at a time, and one that moves between processes is unwired here before it is wired there.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::RestoreError;
use crate::interrupt::{Gsi, MsiMessage, MsiRouter};
use crate::sys::poll;

/// Bytes in one entry of the vector table.
pub const ENTRY_SIZE: u64 = 16;
/// What a driver writes to unbind a source (Virtual I/O Device 1.2, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;
const ENTRY_MASKED: u32 = 1;

/// Something that raises interrupts: an index into the sources given to [`MsiX::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(pub usize);

struct Entry {
    message: MsiMessage,
    masked: bool,
    /// Allocated when the vector is first used, because most tables are larger than what guests use.
    gsi: Option<Gsi>,
    /// The message that `gsi` delivers now.
    routed: Option<MsiMessage>,
}

struct SourceState {
    event: Arc<EventFd>,
    vector: Option<u16>,
    attached: Option<Gsi>,
}

/// Whether interrupts go to this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// They do, as far as the guest lets them.
    Wired,
    /// They stay in their eventfds, for another machine or until later.
    Unwired,
}

/// The vectors of one function.
pub struct MsiX {
    router: Arc<dyn MsiRouter>,
    entries: Vec<Entry>,
    sources: Vec<SourceState>,
    enabled: bool,
    function_masked: bool,
    wiring: Wiring,
    /// Whether the log has been told of a failure: once, because a guest could fill it.
    complained: bool,
}

impl MsiX {
    /// `vectors` vectors, 1 to 2048, masked and unbound as after a reset.
    pub fn new(router: Arc<dyn MsiRouter>, vectors: u16, sources: Vec<Arc<EventFd>>) -> Self {
        MsiX {
            router,
            entries: (0..vectors)
                .map(|_| Entry {
                    message: MsiMessage::default(),
                    masked: true,
                    gsi: None,
                    routed: None,
                })
                .collect(),
            sources: sources
                .into_iter()
                .map(|event| SourceState {
                    event,
                    vector: None,
                    attached: None,
                })
                .collect(),
            enabled: false,
            function_masked: false,
            wiring: Wiring::Wired,
            complained: false,
        }
    }

    /// The vectors as they were saved, with as many sources. A signal that was pending is pending again, in the
    /// source's eventfd; if its vector can deliver, it is delivered as soon as it is wired: whatever takes interrupts has to be
    /// there already. `control` is the register that is part of configuration space.
    ///
    /// # Errors
    /// Another number of vectors or sources; the interrupt controller takes no more.
    pub fn from_state(
        router: Arc<dyn MsiRouter>,
        sources: Vec<Arc<EventFd>>,
        control: u16,
        state: &MsiXStateV1,
        wiring: Wiring,
    ) -> Result<Self, RestoreError> {
        let MsiXStateV1 {
            vectors,
            sources: saved,
        } = state;
        if vectors.len() != sources.len() || saved.len() != sources.len() {
            return Err(RestoreError::misfit(format!(
                "it had {} vectors for {} interrupt sources, and has {}",
                vectors.len(),
                saved.len(),
                sources.len()
            )));
        }
        let mut msix = MsiX::new(router, vectors.len() as u16, sources);
        msix.wiring = wiring;
        for (entry, saved) in msix.entries.iter_mut().zip(vectors) {
            let VectorStateV1 {
                address,
                data,
                masked,
            } = *saved;
            entry.message = MsiMessage { address, data };
            entry.masked = masked;
        }
        for (source, saved) in msix.sources.iter_mut().zip(saved) {
            let SourceStateV1 { vector, pending } = *saved;
            if vector.is_some_and(|vector| usize::from(vector) >= msix.entries.len()) {
                return Err(RestoreError::misfit(
                    "an interrupt source is bound to a vector that is not there".into(),
                ));
            }
            source.vector = vector;
            if pending {
                source
                    .event
                    .write(1)
                    .map_err(RestoreError::host("signal a pending interrupt"))?;
            }
        }
        msix.take_control(control);
        msix.route_all()
            .map_err(RestoreError::host("route interrupts"))?;
        for index in 0..msix.sources.len() {
            msix.settle_source(index)
                .map_err(RestoreError::host("route an interrupt"))?;
        }
        Ok(msix)
    }

    /// Routes all vectors that a restored function needs, at once: each change of the routing table takes its time, however
    /// small it is.
    fn route_all(&mut self) -> io::Result<()> {
        if !self.enabled || self.function_masked {
            return Ok(());
        }
        let bound = self.sources.iter().filter_map(|source| source.vector);
        let mut vectors: Vec<usize> = bound.map(usize::from).collect();
        vectors.sort_unstable();
        vectors.dedup();
        vectors.retain(|vector| !self.entries[*vector].masked);
        let mut routes = Vec::new();
        for vector in &vectors {
            let gsi = self.router.allocate()?;
            self.entries[*vector].gsi = Some(gsi);
            routes.push((gsi, self.entries[*vector].message));
        }
        self.router.route_all(&routes)?;
        for vector in vectors {
            let entry = &mut self.entries[vector];
            entry.routed = Some(entry.message);
        }
        Ok(())
    }

    /// The vectors, and which sources have a signal that no one has taken yet. Whatever signals the sources has
    /// to be at rest: a signal to a source that is attached is the interrupt controller's, which saves it itself.
    pub fn save(&self) -> MsiXStateV1 {
        let MsiX {
            router: _,
            entries,
            sources,
            // Both are in the message control register.
            enabled: _,
            function_masked: _,
            wiring: _,
            complained: _,
        } = self;
        let vector = |entry: &Entry| {
            let Entry {
                message: MsiMessage { address, data },
                masked,
                // Another machine has other lines.
                gsi: _,
                routed: _,
            } = *entry;
            VectorStateV1 {
                address,
                data,
                masked,
            }
        };
        let source = |source: &SourceState| {
            let SourceState {
                event,
                vector,
                attached,
            } = source;
            SourceStateV1 {
                vector: *vector,
                pending: attached.is_none() && poll::is_readable(&**event),
            }
        };
        MsiXStateV1 {
            vectors: entries.iter().map(vector).collect(),
            sources: sources.iter().map(source).collect(),
        }
    }

    /// Takes all sources away from the interrupt controller, or gives it those that can deliver. A signal in between waits in its
    /// eventfd.
    ///
    /// # Errors
    /// The interrupt controller refuses; `EBUSY` says that another machine has one of the eventfds. It may be tried again.
    pub fn set_wiring(&mut self, wiring: Wiring) -> io::Result<()> {
        self.wiring = wiring;
        // One that is refused does not take the others along.
        let mut outcome = Ok(());
        for index in 0..self.sources.len() {
            outcome = outcome.and(self.settle_source(index));
        }
        outcome
    }

    /// The body of the capability of a function with that many vectors, at least one: message control, table at `table`
    /// and pending bits at `pending` bytes into BAR 0, both multiples of 8.
    pub fn capability(vectors: u16, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        let last = vectors - 1;
        body[0..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..10].copy_from_slice(&pending.to_le_bytes());
        body
    }

    /// The bits of message control that the guest may change, as a mask from the capability's body on.
    pub const WRITABLE: [u8; 2] = (CONTROL_ENABLE | CONTROL_MASK).to_le_bytes();

    /// Takes over what the guest wrote to message control.
    pub fn set_control(&mut self, control: u16) {
        self.take_control(control);
        self.settle();
    }

    fn take_control(&mut self, control: u16) {
        self.enabled = control & CONTROL_ENABLE != 0;
        self.function_masked = control & CONTROL_MASK != 0;
    }

    /// Binds a source to a vector, or unbinds it with [`NO_VECTOR`]. Returns what the driver reads
    /// back: the vector, or `NO_VECTOR` if there is no such vector.
    pub fn bind(&mut self, source: Source, vector: u16) -> u16 {
        let vector = Some(vector).filter(|&vector| usize::from(vector) < self.entries.len());
        self.sources[source.0].vector = vector;
        self.settle();
        vector.unwrap_or(NO_VECTOR)
    }

    /// The vector that a source is bound to, or [`NO_VECTOR`].
    pub fn vector(&self, source: Source) -> u16 {
        self.sources[source.0].vector.unwrap_or(NO_VECTOR)
    }

    /// Reads the vector table at `offset` bytes, in 4 or 8 bytes.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (word, at) in data.chunks_mut(4).zip((offset..).step_by(4)) {
            let value = self.table_word(at).to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
    }

    /// Writes the vector table at `offset` bytes, in 4 or 8 bytes; anything else is ignored.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) {
            return;
        }
        for (word, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
            let Some(entry) = self.entries.get_mut((at / ENTRY_SIZE) as usize) else {
                continue;
            };
            let value = word
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u32::from(byte));
            let address = entry.message.address;
            match at % ENTRY_SIZE {
                0 => entry.message.address = address & !0xffff_ffff | u64::from(value),
                4 => entry.message.address = address & 0xffff_ffff | u64::from(value) << 32,
                8 => entry.message.data = value,
                _ => entry.masked = value & ENTRY_MASKED != 0,
            }
        }
        self.settle();
    }

    /// Reads the pending bits at `offset` bytes.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let first = at.saturating_mul(8);
            *byte = (0..8).fold(0, |bits, bit| {
                bits | u8::from(self.is_pending(first.saturating_add(bit))) << bit
            });
        }
    }

    /// Unbinds all sources and forgets their pending signals, as a device reset does.
    pub fn unbind_all(&mut self) {
        for source in &mut self.sources {
            source.vector = None;
        }
        self.settle();
        for source in &self.sources {
            // Nothing pending is as good as something taken away.
            let _ = source.event.read();
        }
    }

    fn table_word(&self, at: u64) -> u32 {
        let Some(entry) = self.entries.get((at / ENTRY_SIZE) as usize) else {
            return 0;
        };
        match at % ENTRY_SIZE {
            0 => entry.message.address as u32,
            4 => (entry.message.address >> 32) as u32,
            8 => entry.message.data,
            12 => u32::from(entry.masked),
            _ => 0,
        }
    }

    fn is_pending(&self, vector: u64) -> bool {
        self.sources.iter().any(|source| {
            source.vector.map(u64::from) == Some(vector)
                && source.attached.is_none()
                && poll::is_readable(&*source.event)
        })
    }

    /// Brings the interrupt controller in line with what the guest has programmed.
    fn settle(&mut self) {
        for index in 0..self.sources.len() {
            let Err(error) = self.settle_source(index) else {
                continue;
            };
            if !std::mem::replace(&mut self.complained, true) {
                let vector = self.sources[index].vector;
                tracing::error!(?vector, "cannot route an MSI-X vector: {error}");
            }
        }
    }

    fn settle_source(&mut self, index: usize) -> io::Result<()> {
        let delivering = self.enabled && !self.function_masked;
        let source = &mut self.sources[index];
        let entry = source
            .vector
            .map(|vector| &mut self.entries[usize::from(vector)])
            .filter(|entry| delivering && !entry.masked);
        let wanted = match entry {
            None => None,
            Some(entry) => {
                let gsi = match entry.gsi {
                    Some(gsi) => gsi,
                    None => *entry.gsi.insert(self.router.allocate()?),
                };
                if entry.routed != Some(entry.message) {
                    self.router.route(gsi, entry.message)?;
                    entry.routed = Some(entry.message);
                }
                Some(gsi)
            }
        };
        let wanted = wanted.filter(|_| self.wiring == Wiring::Wired);
        if source.attached == wanted {
            return Ok(());
        }
        if let Some(gsi) = source.attached {
            self.router.detach(gsi, &source.event)?;
            source.attached = None;
        }
        if let Some(gsi) = wanted {
            self.router.attach(gsi, &source.event)?;
            source.attached = Some(gsi);
        }
        Ok(())
    }
}

impl Drop for MsiX {
    // The eventfds outlive the function: the interrupt controller must let go of them.
    fn drop(&mut self) {
        self.enabled = false;
        self.settle();
    }
}

/// Saved vectors. Message control is part of configuration space, and saved with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsiXStateV1 {
    /// The vector table, by ascending vector.
    pub vectors: Vec<VectorStateV1>,
    /// What raises the vectors, by ascending [`Source`].
    pub sources: Vec<SourceStateV1>,
}

/// A saved entry of the vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorStateV1 {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// The mask bit.
    pub masked: bool,
}

/// A saved interrupt source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStateV1 {
    /// The vector that it is bound to.
    pub vector: Option<u16>,
    /// Whether it has been signalled and the signal not been delivered: the vector's pending bit.
    pub pending: bool,
}

#[cfg(test)]
mod tests;
