//! The receiver's part of a hand-over: a machine over RAM and connections that another process still has. Nothing of them is touched until
//! the guest is this one's.

use std::os::fd::OwnedFd;

use ferry_api::migration::Phase;
use ferry_devices::serial::{ClientV1, Rest, RestV1};
use ferry_devices::vhost_user::{Live, LiveStateV1};
use vm_migration::link::{Last, Link, Message, Outcome, StreamId};
use vm_migration::ownership::{DEATH, Process};
use vm_migration::stream::StreamReader;

use super::describe::Parts;
use super::lend::live_section;
use super::outside::{Brought, read_standstill};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use crate::machine::saving::{MachineState, RestoreParts, Shell};
use crate::memory::GuestRam;
use crate::migration::fill::{Filled, gather};
use crate::migration::{Error, Incoming, Meter, Place};

/// The most descriptors of one device: a connection, a channel, and two for each of its queues.
const DEVICE_HANDLES_MOST: usize = 2 + 2 * 1024;

impl Incoming {
    /// Everything up to the commit.
    pub(in crate::migration) fn take(
        &mut self,
        parts: &mut Parts,
        place: &Place<'_>,
    ) -> Result<Filled, Error> {
        let meter = self.meter.clone();
        meter.enter(Phase::Prepare);
        let hypervisor = Hypervisor::open()?;
        let files = std::mem::take(&mut parts.ram);
        let ram = GuestRam::of_another_process(&self.config.memory, files)?;
        let shell = Shell::new(&hypervisor, &ram, &self.guest.cpuids)?;
        let process = Process::this().map_err(Error::Ownership)?;
        self.link.send_handles(&[process.handle()], &*meter)?;
        self.link.send(&Message::Prepared, &*meter)?;
        meter.enter(Phase::Machine);
        let state = receive_state(&mut self.link, &meter)?;
        let ids = self.guest.devices.iter().map(|device| device.id.as_str());
        let States {
            machine: state,
            lives,
            serial,
        } = read_states(&state, self.link.attempt(), ids, &parts.outside, &meter)?;
        meter.enter(Phase::Devices);
        let (lives, serial) = receive_handles(&mut self.link, lives, serial, &meter)?;
        if let Some(console) = place.console {
            console.port().take_rest(serial).map_err(Error::FarEnd)?;
        }
        let mut devices = Vec::with_capacity(lives.len());
        let mut queues = Vec::with_capacity(lives.len());
        for (device, live) in self.guest.devices.iter().zip(lives) {
            let error = |source| Error::Connection {
                device: device.id.clone(),
                source,
            };
            queues.push(live.queues().map_err(error)?);
            let taken = (place.adopt)(&device.id, ram.shared_regions(), live);
            devices.push(taken.map_err(error)?);
        }
        let mut machine = Machine::from_state(
            shell,
            &RestoreParts {
                devices: &devices,
                shared: Some(&queues),
                console: place.console,
            },
            &state,
        )?;
        (place.start)(&mut machine)?;
        self.wait_for_ownership(parts, place)?;
        Ok(Filled {
            machine,
            ram,
            adopted: devices,
            good_until: None,
        })
    }

    /// Says that everything is here, and waits until the sender has given the guest up, or has died.
    fn wait_for_ownership(&mut self, parts: &Parts, place: &Place<'_>) -> Result<(), Error> {
        match self.wait_for_commit(place.timeouts) {
            // Where nobody else is left, the guest is whole only here. Whether it ran on there in between, or was ended, is said by
            // the word.
            Err(Error::Link(error)) if error.is_lost() && parts.process.is_dead(DEATH) => {
                tracing::warn!(
                    "the sender has died before it could say so: its guest goes on here"
                );
                self.meter.commit()?;
                self.meter.enter(Phase::Commit);
                self.attempts.note(self.link.attempt(), Outcome::Waiting);
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }
}

fn receive_state(link: &mut Link, meter: &Meter) -> Result<Vec<u8>, Error> {
    let mut state = Vec::new();
    loop {
        let message = link.receive(meter)?;
        if gather(&mut state, &message)? == Last::Yes {
            return Ok(state);
        }
    }
}

/// What is said of a guest that stands still.
struct States {
    machine: MachineState,
    /// By device.
    lives: Vec<LiveStateV1>,
    serial: RestV1,
}

fn read_states<'a>(
    bytes: &[u8],
    attempt: StreamId,
    ids: impl Iterator<Item = &'a str>,
    outside: &Brought,
    meter: &Meter,
) -> Result<States, Error> {
    let mut stream = StreamReader::new(bytes)?;
    if stream.id() != attempt {
        return Err(Error::Mismatch("attempt"));
    }
    let machine = MachineState::read(&mut stream)?;
    read_standstill(meter, &mut stream)?;
    let lives = ids
        .map(|id| stream.load(&live_section(id)))
        .collect::<Result<Vec<LiveStateV1>, _>>()?;
    let serial = outside.read_rest(&mut stream)?;
    stream.finish()?;
    Ok(States {
        machine,
        lives,
        serial,
    })
}

/// Receives the descriptors of all connections, up to the end of the stream.
fn receive_handles(
    link: &mut Link,
    states: Vec<LiveStateV1>,
    serial: RestV1,
    meter: &Meter,
) -> Result<(Vec<Live>, Rest), Error> {
    let counts: Vec<usize> = states.iter().map(LiveStateV1::descriptors).collect();
    if counts.iter().any(|count| *count > DEVICE_HANDLES_MOST) {
        return Err(Error::Mismatch("number of descriptors"));
    }
    let clients = usize::from(serial.client != ClientV1::None);
    let expected: usize = counts.iter().sum::<usize>() + clients;
    let mut handles: Vec<OwnedFd> = Vec::new();
    let received = loop {
        let received = link.received();
        match link.receive(meter)? {
            Message::Handles { count } if handles.len() + usize::from(count) <= expected => {
                handles.extend(link.take_handles(count)?);
            }
            Message::Handles { .. } => return Err(Error::Mismatch("number of descriptors")),
            Message::End { tallies } => break tallies.iter().eq([&received]),
            _ => {}
        }
    };
    if !received {
        return Err(Error::Mismatch("count or digest of all frames"));
    }
    if handles.len() != expected {
        return Err(Error::Mismatch("number of descriptors"));
    }
    let mut handles = handles.into_iter();
    let lives = states.into_iter().zip(counts).map(|(state, count)| Live {
        state,
        fds: handles.by_ref().take(count).collect(),
    });
    let lives = lives.collect();
    let serial = Rest {
        state: serial,
        client: handles.next(),
    };
    Ok((lives, serial))
}
