//! What a guest, or the process that it runs in, is connected to beside its devices, and what goes with a hand-over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ferry_api::events::LentMonitor;
use ferry_api::server::{LentSocket, SocketFile};
use ferry_devices::serial::{FarEndV1, Rest, RestV1};
use serde::{Deserialize, Serialize};
use vm_migration::stream::{Saved, StreamReader, StreamWriter};

use crate::console::{Console, LentFarEnd};
use crate::migration::{Error, Meter};

/// The section of what is left of the serial port's far end once the guest stands still.
const SERIAL: &str = "serial-far-end";

/// The section of since when the guest stands still.
const STANDSTILL: &str = "standstill";
/// The longest standstill that is believed.
const STANDSTILL_MOST: Duration = Duration::from_secs(3600);

/// Since when a guest stands still that ran before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StandstillV1 {
    /// In nanoseconds of the monotonic clock, which both processes have in common.
    since: Option<u64>,
}

impl Saved for StandstillV1 {
    const SCHEMA: &'static str = "standstill";
    const VERSION: u16 = 1;
}

/// Says since when the guest stands still.
pub fn write_standstill<W: io::Write>(
    meter: &Meter,
    stream: &mut StreamWriter<W>,
) -> Result<(), Error> {
    let since = meter
        .stopped_at()
        .map(|at| monotonic().saturating_sub(at.elapsed()));
    let since = since.and_then(|time| u64::try_from(time.as_nanos()).ok());
    Ok(stream.save(STANDSTILL, &StandstillV1 { since })?)
}

/// Counts that as this side's standstill.
pub fn read_standstill<R: io::Read>(
    meter: &Meter,
    stream: &mut StreamReader<R>,
) -> Result<(), Error> {
    let StandstillV1 { since } = stream.load(STANDSTILL)?;
    let elapsed = since.and_then(|since| monotonic().checked_sub(Duration::from_nanos(since)));
    if let Some(elapsed) = elapsed.filter(|elapsed| *elapsed <= STANDSTILL_MOST)
        && let Some(at) = Instant::now().checked_sub(elapsed)
    {
        meter.guest_has_stopped(at);
    }
    Ok(())
}

fn monotonic() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes to `time` alone.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// What goes along, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideV1 {
    pub serial: FarEndV1,
    /// If the receiver takes the sender's place.
    service: Option<ServiceV1>,
}

/// Through what a process is reached. Three descriptors: the socket, the monitor, and a pipe that is at its end when the sender has
/// written all that it had to; without a monitor the first one alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ServiceV1 {
    /// Where the API's socket is, unless it was given without a path.
    socket: Option<SocketFile>,
    /// Whether there is an event monitor.
    monitor: bool,
}

/// The same, with the descriptors.
pub struct Service {
    pub socket: LentSocket,
    pub monitor: Option<LentMonitor>,
}

impl OutsideV1 {
    pub fn descriptors(&self) -> usize {
        let OutsideV1 { serial, service } = self;
        let service = service.as_ref().map_or(0, |service| match service.monitor {
            true => 3,
            false => 1,
        });
        serial.descriptors() + service
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
    /// Of a guest with this serial port, and, if its process is to be replaced, of that.
    pub fn new(console: Option<&Console>, service: Option<Service>) -> io::Result<Self> {
        let (serial, handles) = match console {
            Some(console) => console.port().far_end(),
            None => (FarEndV1::Nowhere, Vec::new()),
        };
        let handles = handles.into_iter().map(|fd| fd.try_clone_to_owned());
        let mut handles = handles.collect::<io::Result<Vec<_>>>()?;
        let service = service.map(|Service { socket, monitor }| {
            let described = ServiceV1 {
                socket: socket.file,
                monitor: monitor.is_some(),
            };
            handles.push(socket.listener);
            if let Some(LentMonitor { file, before }) = monitor {
                handles.extend([file.into(), before]);
            }
            described
        });
        Ok(LentOutside {
            description: OutsideV1 { serial, service },
            handles,
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
    /// Until the guest is this process's.
    service: Option<Service>,
}

impl ServiceV1 {
    fn with(&self, handles: Vec<OwnedFd>) -> Result<Service, Error> {
        let ServiceV1 { socket, monitor } = self;
        let mut handles = handles.into_iter();
        let mut next = || {
            handles
                .next()
                .ok_or(Error::Mismatch("number of descriptors"))
        };
        Ok(Service {
            socket: LentSocket {
                listener: next()?,
                file: socket.clone(),
            },
            monitor: match monitor {
                true => Some(LentMonitor {
                    file: next()?.into(),
                    before: next()?,
                }),
                false => None,
            },
        })
    }
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
        let OutsideV1 {
            serial: what,
            service,
        } = description;
        let mut handles = handles;
        let rest = handles.split_off(what.descriptors().min(handles.len()));
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
            service: match service {
                Some(service) => Some(service.with(rest)?),
                None => None,
            },
        })
    }

    /// For the process, if it takes the sender's place.
    pub fn take_service(&mut self) -> Option<Service> {
        self.service.take()
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
