//! What a guest, or the process that it runs in, is connected to beside its devices, and what goes with a hand-over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ferry_devices::serial::{FarEndV1, Rest, RestV1};
use serde::{Deserialize, Serialize};
use vm_migration::stream::{StreamReader, StreamWriter};

use crate::console::{Console, LentFarEnd};
use crate::migration::Error;

/// The section of what is left of the serial port's far end once the guest stands still.
const SERIAL: &str = "serial-far-end";

/// What goes along, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideV1 {
    pub serial: FarEndV1,
}

impl OutsideV1 {
    pub fn descriptors(&self) -> usize {
        let OutsideV1 { serial } = self;
        serial.descriptors()
    }

    /// Whether there is more to say of it when the guest stands still.
    fn has_rest(&self) -> bool {
        self.serial.descriptors() > 0
    }
}

/// What goes along.
pub struct LentOutside {
    pub description: OutsideV1,
    handles: Vec<OwnedFd>,
}

impl LentOutside {
    /// Of a guest with this serial port.
    pub fn new(console: Option<&Console>) -> io::Result<Self> {
        let (serial, handles) = match console {
            Some(console) => console.port().far_end(),
            None => (FarEndV1::Nowhere, Vec::new()),
        };
        let handles = handles.into_iter().map(|fd| fd.try_clone_to_owned());
        Ok(LentOutside {
            description: OutsideV1 { serial },
            handles: handles.collect::<io::Result<_>>()?,
        })
    }

    pub fn handles(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.handles.iter().map(AsFd::as_fd)
    }

    /// Says what is left of it. Its descriptors come last of all.
    pub fn write_rest<W: io::Write>(
        &self,
        rest: &Rest,
        stream: &mut StreamWriter<W>,
    ) -> Result<(), Error> {
        if self.description.has_rest() {
            stream.save(SERIAL, &rest.state)?;
        }
        Ok(())
    }
}

/// What has come along.
pub struct Brought {
    description: OutsideV1,
    /// Until a console has it.
    serial: Option<SerialPort>,
}

/// What becomes of the far end that the guest has had.
pub enum SerialPort {
    /// The guest keeps it.
    Kept(LentFarEnd),
    /// The guest gets another one, and this one ends.
    Replaced(LentFarEnd),
}

/// Where the serial port is to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// Where it did.
    Same,
    /// Elsewhere, as the receiver says.
    Other,
}

impl Brought {
    /// What `description` announces.
    ///
    /// # Errors
    /// It cannot go where it did.
    pub fn new(description: &OutsideV1, handles: Vec<OwnedFd>, lead: Lead) -> Result<Self, Error> {
        let OutsideV1 { serial: what } = description;
        let lent = LentFarEnd {
            what: what.clone(),
            handles,
        };
        let serial = match (lead, what) {
            (Lead::Same, FarEndV1::Terminal) => return Err(Error::Terminal),
            (_, FarEndV1::Nowhere | FarEndV1::Terminal) => None,
            (Lead::Same, _) => Some(SerialPort::Kept(lent)),
            (Lead::Other, _) => Some(SerialPort::Replaced(lent)),
        };
        Ok(Brought {
            description: description.clone(),
            serial,
        })
    }

    /// For the console.
    pub fn take_serial(&mut self) -> Option<SerialPort> {
        self.serial.take()
    }

    /// What was left of it when the guest stood still, without the descriptors.
    pub fn read_rest<R: io::Read>(&self, stream: &mut StreamReader<R>) -> Result<RestV1, Error> {
        Ok(match self.description.has_rest() {
            true => stream.load(SERIAL)?,
            false => RestV1::default(),
        })
    }
}
