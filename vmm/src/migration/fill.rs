//! The receiver's job from the description to the commit: it connects to nothing, but is given devices, and makes a machine that
//! stands where the sender's stood.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use ferry_api::config::Timeouts;
use ferry_api::migration::Phase;
use ferry_devices::vhost_user::{Live, RamRegion, VhostUserStateV1};
use ferry_devices::virtio::VirtioDevice;
use vm_migration::link::{
    Error as LinkError, Failure, Last, Link, Message, Outcome, Purpose, StreamId, Tally,
};
use vm_migration::pages::RamTarget;
use vm_migration::stream::StreamReader;

use super::asking::Asked;
use super::committing::Moment;
use super::farewell::Teller;
use super::listen::Incoming;
use super::revival::Revival;
use super::{Error, Farewell, Meter, rehearsal};
use crate::console::Console;
use crate::hypervisor::Hypervisor;
use crate::lifecycle::Ready;
use crate::machine::saving::{MachineState, RestoreParts, Shell};
use crate::machine::{self, Machine};
use crate::memory::GuestRam;
use crate::progress::LOOK;
use crate::snapshot::{device_section, differing};

/// The most bytes of saved state, back-ends' apart: what 32 processors may have makes 8 MiB, and devices and the serial port some
/// MiB more.
const STATE_MOST: usize = 16 << 20;

/// What a guest that is received is filled into.
pub struct Place<'a> {
    /// Where the devices come from, in the order of the bus, once all are there; unless they come with the guest.
    pub devices: &'a Receiver<Vec<Ready>>,
    /// Makes a device over the connection that was handed over for the one of this name.
    pub adopt: &'a Adopt,
    /// Makes a machine's vCPUs, which stand still: while the sender does not wait for that.
    pub start: &'a Start,
    pub console: Option<&'a Console>,
    pub timeouts: &'a Timeouts,
}

/// Makes a device, which is still to be told that it is this process's, over a connection that was handed over.
pub type Adopt = dyn Fn(&str, Arc<[RamRegion]>, Live) -> io::Result<Ready> + Send;

/// Makes the vCPUs of a machine.
pub type Start = dyn Fn(&mut Machine) -> Result<(), machine::Error>;

/// A guest that is here. Nothing of it runs yet.
pub struct Arrived {
    pub machine: Machine,
    pub ram: GuestRam,
    /// The devices that have come with it, if their connections were handed over.
    pub adopted: Vec<Ready>,
    pub farewell: Farewell,
}

/// What the job has made of what it has received.
pub(super) struct Filled {
    pub machine: Machine,
    pub ram: GuestRam,
    /// As in [`Arrived`].
    pub adopted: Vec<Ready>,
    /// Until when it may be started, unless somebody else says so.
    pub good_until: Option<Moment>,
}

impl Incoming {
    /// Receives the guest; in the end it is this Ferry's, and nothing runs yet.
    ///
    /// # Errors
    /// The sender has kept it, or takes it back. Devices may have been given some of their state.
    pub fn fill(mut self, place: &Place<'_>) -> Result<Arrived, Error> {
        let mut parts = self.parts.take();
        let outcome = Teller::start().and_then(|teller| {
            let filled = match &mut parts {
                Some(parts) => self.take(parts, place)?,
                None => self.receive(place)?,
            };
            Ok((filled, teller))
        });
        let attempt = self.link.attempt();
        match outcome {
            Ok((filled, teller)) => {
                let Filled {
                    machine,
                    ram,
                    adopted,
                    good_until,
                } = filled;
                let Incoming {
                    listener,
                    link,
                    attempts,
                    meter,
                    ..
                } = self;
                let (ownership, service) = match parts {
                    Some(mut parts) => {
                        let service = parts.outside.take_service();
                        (Some(parts.ownership), service)
                    }
                    None => (None, None),
                };
                Ok(Arrived {
                    machine,
                    ram,
                    adopted,
                    farewell: Farewell::new(&attempts, &meter, link, listener, ownership, teller)
                        .with_service(service)
                        .good_until(good_until),
                })
            }
            Err(error) => {
                let told = self.attempts.outcome(attempt);
                self.attempts.note(attempt, Outcome::Discarded);
                let reason = self.meter.reason().map(Failure::new);
                self.link
                    .give_up(&reason.unwrap_or_else(|| error.failure()));
                // A sender that was told that all is here may be in doubt.
                if told != Outcome::Unknown {
                    self.attempts.keep_answering(self.listener);
                }
                // It may take a while, for which no sender waits.
                if let Some(Err(error)) = self.remains.map(|ram| ram.discard()) {
                    tracing::warn!(
                        "the RAM of a guest that has not come is not given back: {error}"
                    );
                }
                Err(error)
            }
        }
    }

    fn receive(&mut self, place: &Place<'_>) -> Result<Filled, Error> {
        let meter = self.meter.clone();
        meter.enter(Phase::Prepare);
        let hypervisor = Hypervisor::open()?;
        let ram = self.prepare_ram()?;
        let devices = self.wait_for_devices(place)?;
        let machine = self
            .receive_into(&hypervisor, &ram, &devices, place)
            .and_then(|mut machine| {
                (place.start)(&mut machine)?;
                let good_until = self.wait_for_commit(place.timeouts)?;
                Ok((machine, good_until))
            });
        match machine {
            Ok((machine, good_until)) => Ok(Filled {
                machine,
                ram,
                adopted: Vec::new(),
                good_until,
            }),
            Err(error) => {
                // The connections stay for the next attempt, but nothing of this RAM does.
                devices.iter().for_each(|device| device.set_ram([].into()));
                self.remains = Some(ram);
                Err(error)
            }
        }
    }

    fn receive_into(
        &mut self,
        hypervisor: &Hypervisor,
        ram: &GuestRam,
        devices: &[Ready],
        place: &Place<'_>,
    ) -> Result<Machine, Error> {
        let meter = self.meter.clone();
        let differences = differing(&self.guest.devices(), devices);
        if !differences.is_empty() {
            return Err(Error::Differences(differences));
        }
        let shared = ram.shared_regions();
        for device in devices {
            device.set_ram(shared.clone());
        }
        // Now, while the guest runs. A back-end of an attempt before may hang since.
        tell_ram(&mut self.link, devices, &meter, place.timeouts.request)?;
        let regions = ram.regions();
        meter.set_ram_total(regions.iter().map(|region| region.part.bytes).sum());
        // Made now, while the guest still runs.
        rehearsal::loading(hypervisor, ram, &self.guest, devices);
        // On a busy host a machine may take a while.
        look(&mut self.link)?;
        let shell = Shell::new(hypervisor, ram, &self.guest.cpuids)?;
        // Nothing in this process touches what is missing of RAM as long as this is there.
        let target = RamTarget::new(&regions, self.connections).map_err(Error::Map)?;
        self.link.send(&Message::Prepared, &*meter)?;
        meter.enter(Phase::Precopy);
        let extra = self.wait_for_joins(place.timeouts.request)?;
        let (state, tallies) = self.receive_ram(&target, extra)?;
        drop(target);
        meter.enter(Phase::Machine);
        let (state, rests) = read_state(&state, self.link.attempt(), devices)?;
        let machine = Machine::from_state(
            shell,
            &RestoreParts {
                devices,
                shared: None,
                console: place.console,
            },
            &state,
        )?;
        meter.enter(Phase::Devices);
        let revival = Revival {
            devices,
            rests: &rests,
            meter: &meter,
            limit: place.timeouts.request,
        };
        revival.revive(&mut self.link, &machine, self.state_most, &tallies)?;
        Ok(machine)
    }

    /// Sets RAM aside, and touches it if the definition says so, while the sender waits.
    fn prepare_ram(&mut self) -> Result<GuestRam, Error> {
        let memory = &self.config.memory;
        let ram = GuestRam::new(memory)?;
        if !memory.prefault {
            return Ok(ram);
        }
        let (meter, link) = (&*self.meter, &mut self.link);
        let cancel = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (sender, done) = channel::<()>();
            let ram = &ram;
            let work = move || {
                ram.prefault(memory, cancel);
                drop(sender);
            };
            std::thread::Builder::new()
                .name("prefault".into())
                .spawn_scoped(scope, work)
                .map_err(Error::Thread)?;
            let waited = wait_for_end(&done, || meter.unless_cancelled().and_then(|()| look(link)));
            waited.inspect_err(|_| cancel.store(true, Ordering::Relaxed))
        })?;
        Ok(ram)
    }

    fn wait_for_devices(&mut self, place: &Place<'_>) -> Result<Vec<Ready>, Error> {
        loop {
            match self.meter.wait(place.devices, Instant::now() + LOOK)? {
                Some(devices) => return Ok(devices),
                None => look(&mut self.link)?,
            }
        }
    }

    /// Takes the other connections. Whoever asks meanwhile is answered.
    fn wait_for_joins(&mut self, limit: Duration) -> Result<Vec<Link>, Error> {
        let deadline = Instant::now() + limit;
        let attempt = self.link.attempt();
        let mut extra = Vec::new();
        while extra.len() + 1 < usize::from(self.connections) {
            let due = extra.len() as u16 + 1;
            // Also while strangers come and go.
            if Instant::now() >= deadline {
                return Err(Error::NotJoined {
                    number: due + 1,
                    of: self.connections,
                    limit,
                });
            }
            look(&mut self.link)?;
            let until = Instant::now() + LOOK;
            let mut link = match self.listener.accept(&*self.meter, Some(until)) {
                Ok(link) => link,
                Err(LinkError::Silent { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            match link.purpose() {
                Purpose::Join { index } if index == due && link.attempt() == attempt => {
                    link.accept_it()?;
                    extra.push(link);
                }
                _ => self.turn_away(link),
            }
        }
        Ok(extra)
    }

    /// Receives RAM over all connections, and the saved state; returns it, with what went over the extra connections.
    fn receive_ram(
        &mut self,
        target: &RamTarget<'_>,
        extra: Vec<Link>,
    ) -> Result<(Vec<u8>, Vec<Tally>), Error> {
        let meter = &*self.meter;
        let main = &mut self.link;
        std::thread::scope(|scope| {
            let (working, ended) = channel::<()>();
            let threads: Vec<_> = extra
                .into_iter()
                .map(|link| {
                    let working = working.clone();
                    let work = move || {
                        let received = receive_extra(link, target, meter);
                        drop(working);
                        received
                    };
                    std::thread::Builder::new()
                        .name("pages".into())
                        .spawn_scoped(scope, work)
                        .map_err(Error::Thread)
                })
                .collect();
            drop(working);
            let state = receive_main(main, target, meter).and_then(|state| {
                wait_for_end(&ended, || look(main))?;
                Ok(state)
            });
            // Connections that still wait for something would wait for their limit.
            let state = state.inspect_err(|_| meter.cancel());
            let mut tallies = Vec::new();
            let mut errors: Vec<Error> = Vec::new();
            for outcome in threads.into_iter().map(join) {
                match outcome {
                    Ok(tally) => tallies.push(tally),
                    Err(error) => errors.push(error),
                }
            }
            let state = state.map_err(|error| errors.push(error));
            // The first of those that say the most.
            let cause = errors.into_iter().rev().max_by_key(Error::cause);
            match (state, cause) {
                (Ok(state), None) => Ok((state, tallies)),
                (_, Some(cause)) => Err(cause),
                (Err(()), None) => Err(Error::Cancelled),
            }
        })
    }
}

/// Lets a sender that waits know that this side is there, and notices if the sender is not.
pub(super) fn look(link: &mut Link) -> Result<(), Error> {
    link.keep_alive_if_due()?;
    // The sender may be far ahead: what it sends is for who comes next.
    Ok(link.notice()?)
}

/// Waits until all who have a sender of this channel are done with it, unless `look` has an error meanwhile.
fn wait_for_end(
    ended: &Receiver<()>,
    mut look: impl FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    while ended.recv_timeout(LOOK) != Err(RecvTimeoutError::Disconnected) {
        look()?;
    }
    Ok(())
}

/// Tells back-ends of guest RAM.
fn tell_ram(
    link: &mut Link,
    devices: &[Ready],
    meter: &Meter,
    limit: Duration,
) -> Result<(), Error> {
    let mut asked = Asked::new("take the guest's memory", limit);
    for device in devices {
        asked.ask(device, |device, done| device.tell_ram(done));
    }
    asked.wait(meter, || look(link))
}

fn receive_main(link: &mut Link, target: &RamTarget<'_>, meter: &Meter) -> Result<Vec<u8>, Error> {
    let mut state = Vec::new();
    loop {
        let message = link.receive_into(target, meter)?;
        if gather(&mut state, &message)? == Last::Yes {
            return Ok(state);
        }
    }
}

/// Adds what a message has of the saved state to it; says whether that was the last.
pub(super) fn gather(state: &mut Vec<u8>, message: &Message<'_>) -> Result<Last, Error> {
    match message {
        Message::State(piece) if state.len() + piece.len() > STATE_MOST => {
            Err(Error::StateTooLarge(state.len() + piece.len()))
        }
        Message::State(piece) => {
            state.extend_from_slice(piece);
            Ok(Last::No)
        }
        Message::StateEnd => Ok(Last::Yes),
        _ => Ok(Last::No),
    }
}

/// Receives RAM over an extra connection to its end; returns what went over it.
fn receive_extra(mut link: Link, target: &RamTarget<'_>, meter: &Meter) -> Result<Tally, Error> {
    let outcome = loop {
        match link.receive_into(target, meter) {
            Ok(Message::End { tallies }) => break Ok(tallies.into_owned()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    match outcome {
        Ok(tallies) if tallies == [link.received()] => Ok(link.received()),
        Ok(_) => {
            meter.cancel();
            Err(Error::Mismatch("count or digest of a connection's frames"))
        }
        Err(error) => {
            // The main connection need not wait for its limit.
            meter.cancel();
            Err(error.into())
        }
    }
}

fn join<T>(thread: Result<ScopedJoinHandle<'_, Result<T, Error>>, Error>) -> Result<T, Error> {
    match thread?.join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

pub(super) fn read_state(
    bytes: &[u8],
    attempt: StreamId,
    devices: &[Ready],
) -> Result<(MachineState, Vec<VhostUserStateV1>), Error> {
    let mut stream = StreamReader::new(bytes)?;
    if stream.id() != attempt {
        return Err(Error::Mismatch("attempt"));
    }
    let state = MachineState::read(&mut stream)?;
    let rests = devices
        .iter()
        .map(|device| stream.load(&device_section(device.id())))
        .collect::<Result<Vec<_>, _>>()?;
    stream.finish()?;
    Ok((state, rests))
}
