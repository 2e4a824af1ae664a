//! The sender's job: its course.
//!
//! ```text
//!  job thread   connect, describe, prepare, copy │        │ rest, state, end, READY │           │ COMMIT, RUNNING │ Ended
//!                                          Ready ▼        ▲ Go::Paused     Complete ▼           ▲ Go::Commit
//!  vmm thread                                    pause ───┘                         give it up ─┘
//! ```
//!
//! The owner alone decides that the guest is given up. Until then every error leaves the guest where it is.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ferry_api::config::{Timeouts, VmConfig};
use ferry_api::control::Refusal;
use ferry_api::migration::{Phase, SendRequest, TimeoutStrategy, Unlogged};
use ferry_devices::serial::Rest;
use ferry_devices::vhost_user::Live;
use ferry_devices::virtio::VirtioDevice;
use kvm_bindings::CpuId;
use vm_migration::link::{
    self, FRAME_DATA_MOST, Failure, Last, Link, Message, Patience, Purpose, StreamId, Tls,
};
use vm_migration::pages::Region;
use vm_migration::stream;

use super::describe::{ArrivalV1, GuestV1};
use super::precopy::Logs;
use super::{Error, Lender, Meter, address, most_idle, rehearsal};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::dirty::Loggable;
use crate::lifecycle::Ready;
use crate::machine;
use crate::machine::saving::{MachineState, frequency};
use crate::memory::GuestRam;
use crate::progress::LOOK;

/// A receiver that touches RAM beforehand is waited for as if it touched so many bytes in a second.
const PREFAULT_LEAST: u64 = 256 << 20;

/// For how long an address is tried again at which nobody listens.
const ABSENT: Duration = Duration::from_secs(2);

/// What the vmm thread says to the job.
pub enum Go {
    /// The guest stands still.
    Paused(Box<Stopped>),
    /// The guest was reset, and has begun anew, as that boot.
    Rebooted(u64, Source),
    /// The guest is given up: it may be handed over.
    Commit,
    /// The guest that was handed over is to be taken back, unless the receiver still says otherwise.
    Reclaim,
}

/// A guest that stands still.
pub struct Stopped {
    pub machine: MachineState,
    /// The connections of its devices, in the order of the bus, if they are to be handed over.
    pub lent: Vec<Live>,
    /// What is left of its serial port's far end then.
    pub serial: Rest,
}

/// Where a guest is found, from one reset to the next.
pub struct Source {
    pub ram: GuestRam,
    pub loggable: Loggable,
}

impl Source {
    /// Its RAM.
    pub(super) fn regions(&self) -> Vec<Region<'_>> {
        self.ram.regions()
    }

    /// How much RAM there is.
    pub(super) fn ram_bytes(&self) -> u64 {
        self.regions().iter().map(|region| region.part.bytes).sum()
    }
}

/// What the job says to the vmm thread.
pub enum Word {
    /// Another round of copying RAM begins.
    Round { number: u32, remaining: u64 },
    /// vCPUs are to be held back for so much of their time, in percent.
    Throttle(u8),
    /// It goes on with the guest that has begun anew as that boot.
    Following(u64),
    /// The guest is to be paused, if it is not.
    Ready,
    /// The receiver has everything, and waits: the guest is to be given up.
    Complete,
    /// The guest has been handed over, and nobody has said that it runs.
    Unconfirmed,
    /// It has failed, for this reason, before the guest was given up.
    Failed(Refusal),
    /// The end. An error means that the guest may go on here.
    Ended(Result<(), Error>),
}

/// What the job works with.
pub struct Job<S> {
    pub request: SendRequest,
    pub config: VmConfig,
    pub cpuids: Vec<CpuId>,
    /// In the order of the bus.
    pub devices: Vec<Ready>,
    pub source: Source,
    /// What the guest does, before and afterwards.
    pub arrival: ArrivalV1,
    pub timeouts: Timeouts,
    /// If the guest is to be handed over within this host.
    pub lender: Option<Lender>,
    pub meter: Arc<Meter>,
    /// Closed when the job is given up.
    pub orders: Receiver<Go>,
    pub say: S,
}

impl<S: Fn(Word)> Job<S> {
    /// Moves the guest.
    pub fn run(mut self) {
        let mut logs = None;
        let mut links = Vec::new();
        let outcome = self.send(&mut logs, &mut links);
        if let Err(error) = &outcome {
            // The guest does not wait for what is still to be put back. (One that was given up waits for the end.)
            (self.say)(Word::Failed(Refusal::failed(error)));
        }
        if let Some(logs) = logs {
            logs.stop(&self.devices);
        }
        if let (Err(error), Some(main)) = (&outcome, links.into_iter().next()) {
            // What the owner says is the cause. A receiver that is not told finds out by itself, later.
            let reason = self.meter.reason().map(Failure::new);
            main.give_up(&reason.unwrap_or_else(|| error.failure()));
        }
        let Job {
            say,
            devices,
            source,
            ..
        } = self;
        // Their connections may be closed from now on.
        drop((devices, source));
        say(Word::Ended(outcome));
    }

    /// An error leaves in `links` the connections to a receiver that is to be told.
    fn send(&mut self, logs: &mut Option<Logs>, links: &mut Vec<Link>) -> Result<(), Error> {
        self.check()?;
        let attempt = StreamId::draw().map_err(Error::Random)?;
        self.meter.set_attempt(attempt.to_string());
        let tls = self.request.tls.as_deref().map(Tls::load).transpose()?;
        let way = Way {
            tls: tls.as_ref(),
            attempt,
        };
        if self.lender.is_some() {
            let lent = self.lend(&way, links);
            lent.map_err(|error| self.explained(error))?;
            return self.hand_over(&way, std::mem::take(links));
        }
        // It may take its time: KVM is asked by making a virtual machine. A receiver would wait meanwhile.
        let hypervisor = Hypervisor::open().map_err(machine::Error::from)?;
        let guest = self.describe(&hypervisor);
        let description = stream::encode(&guest)?;
        rehearsal::saving(&hypervisor, &self.source.ram, &guest);
        let connections = self.request.connections;
        self.bound_copying();
        links.push(self.connect_first(&way, Purpose::Migrate { connections })?);
        let sent = self.send_over(&way, &description, links, logs);
        sent.map_err(|error| self.explained(error))?;
        self.hand_over(&way, std::mem::take(links))
    }

    /// Who has given it up may be a limit.
    fn explained(&self, error: Error) -> Error {
        match error.is_cancelled() {
            true if self.meter.is_too_slow() => Error::TooSlow(Box::new(error)),
            true if self.meter.copies_too_long() => Error::Timeout(self.request.timeout),
            _ => error,
        }
    }

    /// From now on the guest is to stand still in time, unless it is to leave however long that takes.
    fn bound_copying(&self) {
        if self.request.timeout_strategy == TimeoutStrategy::Cancel {
            self.meter.bound_copying(Some(self.request.timeout));
        }
    }

    /// What may stand in the way on this side.
    fn check(&self) -> Result<(), Error> {
        let cannot_log = |device: &&Ready| !device.can_log();
        let copies = self.arrival == ArrivalV1::Running && self.lender.is_none();
        let refuse = copies && self.request.unlogged == Unlogged::Refuse;
        match self.devices.iter().find(cannot_log) {
            Some(device) if refuse => Err(Error::Unlogged {
                device: device.id().to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Connects to a receiver, which may just be beginning to listen, and is to prepare itself in time.
    pub(super) fn connect_first(&self, way: &Way<'_>, purpose: Purpose) -> Result<Link, Error> {
        let begun = Instant::now();
        let mut link = loop {
            match self.connect(way, purpose) {
                Err(link::Error::Absent { .. }) if begun.elapsed() < ABSENT => {
                    self.meter.unless_cancelled()?;
                    std::thread::sleep(LOOK);
                }
                outcome => break outcome?,
            }
        };
        let touched = Duration::from_secs(self.source.ram_bytes() / PREFAULT_LEAST);
        link.set_idle(most_idle(&self.timeouts) + touched);
        Ok(link)
    }

    pub(super) fn connect(&self, way: &Way<'_>, purpose: Purpose) -> Result<Link, link::Error> {
        let to = address(&self.request.destination);
        let patience = Patience {
            connect: self.timeouts.request,
            silence: self.timeouts.request,
        };
        let meter = &*self.meter;
        Link::connect(&to, way.tls, way.attempt, purpose, patience, meter)
    }

    /// Everything before the commit.
    fn send_over(
        &mut self,
        way: &Way<'_>,
        description: &[u8],
        links: &mut Vec<Link>,
        logs: &mut Option<Logs>,
    ) -> Result<(), Error> {
        let meter = &*self.meter.clone();
        meter.set_ram_total(self.source.ram_bytes());
        send_description(&mut links[0], description, meter)?;
        meter.enter(Phase::Prepare);
        if self.arrival == ArrivalV1::Running {
            // While the receiver prepares itself, too.
            let logs = logs.insert(Logs::new(&self.source)?);
            logs.start(&self.devices, meter, self.timeouts.request, &mut links[0])?;
        }
        while !matches!(links[0].receive(meter)?, Message::Prepared) {}
        for index in 1..self.request.connections {
            let joined = self.connect(way, Purpose::Join { index });
            let joined = joined.map_err(|error| match links[0].explain(error) {
                told @ (link::Error::PeerFailed { .. } | link::Error::Cancelled { .. }) => {
                    told.into()
                }
                source => Error::Join {
                    number: index + 1,
                    of: self.request.connections,
                    source,
                },
            });
            links.push(joined?);
        }
        loop {
            let rest = match logs {
                Some(logs) => Some(self.copy_while_it_runs(links, logs)?),
                None => None,
            };
            meter.enter(Phase::Pause);
            meter.bound_copying(None);
            (self.say)(Word::Ready);
            match self.wait_paused(links)? {
                Some(stopped) => {
                    return self.finish(links, &stopped.machine, logs.as_ref().zip(rest));
                }
                // All over again.
                None => {
                    self.bound_copying();
                    if let Some(logs) = logs {
                        logs.follow(&self.source)?;
                    }
                }
            }
        }
    }

    /// Whether the guest has begun anew meanwhile; then it goes on with that.
    pub(super) fn has_rebooted(&mut self) -> bool {
        match self.orders.try_recv() {
            Ok(Go::Rebooted(boot, source)) => {
                self.follow(boot, source);
                true
            }
            _ => false,
        }
    }

    fn follow(&mut self, boot: u64, source: Source) {
        self.source = source;
        (self.say)(Word::Following(boot));
    }

    /// The state of the guest once it stands still; none if it has begun anew instead.
    pub(super) fn wait_paused(
        &mut self,
        links: &mut [Link],
    ) -> Result<Option<Box<Stopped>>, Error> {
        loop {
            match self.meter.wait(&self.orders, Instant::now() + LOOK)? {
                Some(Go::Paused(stopped)) => return Ok(Some(stopped)),
                Some(Go::Rebooted(boot, source)) => {
                    self.follow(boot, source);
                    return Ok(None);
                }
                Some(Go::Commit | Go::Reclaim) => return Err(Error::Cancelled),
                None => {
                    // A guest does not go on standing still for a receiver that has given up; only for the moment in which that
                    // may say why.
                    links.first_mut().map_or(Ok(()), Link::notice)?;
                    let alive = links.iter_mut().try_for_each(Link::keep_alive_if_due);
                    alive.map_err(|error| links[0].explain(error))?;
                }
            }
        }
    }

    /// What the receiver is to be told beforehand.
    pub(super) fn describe(&self, hypervisor: &Hypervisor) -> GuestV1 {
        GuestV1::new(
            &self.config,
            &self.cpuids,
            frequency(hypervisor.kvm()),
            &self.devices,
            self.arrival,
        )
    }
}

pub(super) fn send_description(link: &mut Link, bytes: &[u8], meter: &Meter) -> Result<(), Error> {
    let mut pieces = bytes.chunks(FRAME_DATA_MOST).peekable();
    while let Some(piece) = pieces.next() {
        let last = match pieces.peek() {
            Some(_) => Last::No,
            None => Last::Yes,
        };
        link.send(&Message::Describe { piece, last }, meter)?;
    }
    Ok(())
}

/// How the receiver is reached.
pub(super) struct Way<'a> {
    pub tls: Option<&'a Tls>,
    pub attempt: StreamId,
}
