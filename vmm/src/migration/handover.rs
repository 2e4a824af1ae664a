//! The sender's job from the pause to the end: the rest of RAM, the state, and the commit.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use ferry_api::migration::{Phase, Unlogged};
use ferry_devices::vhost_user::{StateLimits, Transfer};
use ferry_devices::virtio::VirtioDevice;
use vm_migration::Watch;
use vm_migration::link::{FRAME_DATA_MOST, Link, Message, Outcome, Purpose};
use vm_migration::pages::{Bitmap, end_extra, end_main, send_all, send_dirty};
use vm_migration::stream::StreamWriter;

use super::going_on::GoingOn;
use super::precopy::Logs;
use super::pulse::Pulse;
use super::send::{Go, Job, Way, Word};
use super::{Error, Meter};
use crate::machine::saving::MachineState;
use crate::snapshot::device_section;

/// How long a guest may stand still, in request timeouts, apart from what it takes to move its state.
const STOP_LIMITS: u32 = 4;
/// How often the receiver is asked what has become of an attempt.
const ASK: Duration = Duration::from_secs(1);
/// Of what two hosts take for the same time, this part is the most by which they differ: clocks are set right by less than 0.1 %.
const CLOCKS_DIFFER: u32 = 16;

impl<S: Fn(Word)> Job<S> {
    /// Sends what is left of a guest that stands still, and waits until the receiver has all of it. `rest` are the logs,
    /// and what was written before the guest was paused; without them all RAM is left.
    pub(super) fn finish(
        &self,
        links: &mut [Link],
        state: &MachineState,
        rest: Option<(&Logs, Bitmap)>,
    ) -> Result<(), Error> {
        let meter = &*self.meter;
        meter.enter(Phase::Ram);
        meter.bound(STOP_LIMITS * self.timeouts.request);
        // They collect their state meanwhile.
        let transfers = self.begin_transfers();
        self.send_rest(links, rest)?;
        end_extra(links, meter).map_err(|error| links[0].explain(error))?;
        meter.enter(Phase::Machine);
        let attempt = links[0].attempt();
        let mut values = StreamWriter::new(Pieces::new(&mut links[0], meter), attempt)?;
        state.write(&mut values)?;
        for device in &self.devices {
            values.save(&device_section(device.id()), &device.rest()?)?;
        }
        values.finish()?.0.end()?;
        meter.enter(Phase::Devices);
        for (index, transfer) in (0..).zip(transfers) {
            if let Some(transfer) = transfer {
                self.send_back_end(&mut links[0], index, transfer)?;
            }
        }
        end_main(links, meter)?;
        meter.enter(Phase::Ready);
        while !matches!(links[0].receive(meter)?, Message::Ready) {}
        Ok(())
    }

    fn send_rest(&self, links: &mut [Link], rest: Option<(&Logs, Bitmap)>) -> Result<(), Error> {
        let meter = &*self.meter;
        let regions = self.source.regions();
        let Some((logs, mut pages)) = rest else {
            send_all(links, &regions, &meter.pages, meter)?;
            return Ok(());
        };
        pages.add(&logs.take()?);
        let unlogged = self.devices.iter().any(|device| !device.can_log());
        if unlogged && self.request.unlogged == Unlogged::Resend {
            pages = logs.everything();
        }
        send_dirty(links, &regions, &pages, &meter.pages, meter)?;
        Ok(())
    }

    fn begin_transfers(&self) -> Vec<Option<Transfer>> {
        let limits = StateLimits {
            reply: self.timeouts.request,
            silence: self.timeouts.request,
            most: self.request.state_most,
        };
        let carriers = self.devices.iter().filter(|device| device.carries_state());
        self.meter
            .expect_devices(carriers.map(|device| device.id().to_owned()));
        let devices = self.devices.iter();
        devices
            .map(|device| device.carries_state().then(|| device.begin_save(&limits)))
            .collect()
    }

    /// Passes on what a back-end holds, as it comes.
    fn send_back_end(&self, link: &mut Link, device: u16, transfer: Transfer) -> Result<(), Error> {
        let watch = self.meter.device(self.devices[usize::from(device)].id());
        let pulse = Pulse::new(link, &watch);
        let read = transfer.read(
            &mut |data: &[u8]| pulse.send(&Message::Chunk { device, data }),
            &pulse,
        );
        let total = pulse.outcome(read)?;
        pulse.send(&Message::ChunkEnd { device, total })?;
        watch.checked();
        Ok(())
    }

    /// Hands the guest over to a receiver that has all of it. An error means that the guest may go on here.
    pub(super) fn hand_over(&self, way: &Way<'_>, links: Vec<Link>) -> Result<(), Error> {
        let meter = &*self.meter;
        let ready = Instant::now();
        let mut links = links.into_iter();
        let Some(mut link) = links.next() else {
            return Err(Error::Cancelled);
        };
        (self.say)(Word::Complete);
        // The owner answers at once, or has given the job up.
        match self.orders.recv() {
            Ok(Go::Commit) => {}
            Ok(Go::Paused(_) | Go::Rebooted(..) | Go::Reclaim) | Err(_) => {
                link.give_up(&Error::Cancelled.failure());
                return Err(Error::Cancelled);
            }
        }
        meter.enter(Phase::Commit);
        let request = self.timeouts.request;
        let committed = Instant::now();
        // The receiver counts from when it was ready, which was earlier: so it is no longer than `request` from now on, wherever the
        // commit may lie meanwhile.
        let good_for = committed - ready + request;
        let sent = commit(&mut link, good_for, meter);
        if let Some(lender) = &self.lender {
            // Who has lent the guest need not be told what has become of it.
            let deadline = Instant::now() + request;
            match sent.and_then(|()| wait_for_running(&mut link, meter, deadline)) {
                Ok(going_on) => meter.guest_went_on(&going_on),
                Err(error) => {
                    lender.decide(error)?;
                    meter.enter(Phase::Release);
                }
            }
            return Ok(());
        }
        sent?;
        let deadline = committed + STOP_LIMITS * request;
        match wait_for_running(&mut link, meter, deadline) {
            Ok(going_on) => meter.guest_went_on(&going_on),
            Err(error) => {
                tracing::warn!(
                    "the guest was handed over, and the receiver has not confirmed it: {}",
                    ferry_api::chain(&error).join(": ")
                );
                drop(link);
                self.ask_until_clear(way, committed + request + ASK + request / CLOCKS_DIFFER)?;
                meter.enter(Phase::Release);
            }
        }
        Ok(())
    }

    /// Asks what has become of a guest that was handed over, until there is an answer, or somebody takes it back. Up to
    /// `good_until` a receiver that was stopped may wake up, find the commit, and start the guest.
    fn ask_until_clear(&self, way: &Way<'_>, good_until: Instant) -> Result<(), Error> {
        self.meter.enter(Phase::Unconfirmed);
        (self.say)(Word::Unconfirmed);
        let mut is_wanted_back = false;
        loop {
            let asked = Instant::now();
            match self.ask(way) {
                Ok(Outcome::Running) => return Ok(()),
                Ok(Outcome::Discarded) => {
                    return Err(Error::NotStarted("the attempt was discarded"));
                }
                Ok(Outcome::NeverStarted) => {
                    return Err(Error::NotStarted("the guest could not be started"));
                }
                Ok(Outcome::Waiting | Outcome::Unknown) => {}
                Err(error) => tracing::debug!(
                    "asked the receiver: {}",
                    ferry_api::chain(&error).join(": ")
                ),
            }
            if is_wanted_back && asked > good_until {
                return Err(Error::Reclaimed);
            }
            match self.meter.wait(&self.orders, asked + ASK) {
                Ok(Some(Go::Reclaim)) => is_wanted_back = true,
                Ok(_) => {}
                // Ferry ends.
                Err(error) => return Err(error),
            }
        }
    }

    fn ask(&self, way: &Way<'_>) -> Result<Outcome, Error> {
        let deadline = Instant::now() + self.timeouts.request;
        let mut link = self.connect(way, Purpose::Ask)?;
        loop {
            match link.receive_for(&*self.meter, deadline)? {
                Some(Message::Outcome(outcome)) => return Ok(outcome),
                Some(_) => {}
                None => return Err(Error::NotConfirmed),
            }
        }
    }
}

fn commit(link: &mut Link, good_for: Duration, meter: &Meter) -> Result<(), Error> {
    // One that has given up, or is gone, would leave the guest unconfirmed.
    link.notice()?;
    // A receiver that has not got it never gets it.
    Ok(link.send(&Message::Commit { good_for }, meter)?)
}

/// It is not known whose the guest is until the answer comes.
fn wait_for_running(link: &mut Link, meter: &Meter, deadline: Instant) -> Result<GoingOn, Error> {
    let going_on = loop {
        match link.receive_for(meter, deadline)? {
            Some(Message::Running { since, timings }) => {
                let timings = timings.into_owned();
                break GoingOn { since, timings };
            }
            Some(_) => {}
            None => return Err(Error::NotConfirmed),
        }
    };
    // A receiver that is not told goes on answering those who ask.
    let _ = link.send(&Message::Bye, meter);
    Ok(going_on)
}

/// Sends what is written to it as pieces of the saved state.
pub(super) struct Pieces<'a> {
    link: &'a mut Link,
    watch: &'a dyn Watch,
    gathered: Vec<u8>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(link: &'a mut Link, watch: &'a dyn Watch) -> Self {
        Pieces {
            link,
            watch,
            gathered: Vec::new(),
        }
    }

    fn send(&mut self) -> Result<(), vm_migration::link::Error> {
        if !self.gathered.is_empty() {
            self.link
                .send(&Message::State(&self.gathered), self.watch)?;
            self.gathered.clear();
        }
        Ok(())
    }

    pub(super) fn end(mut self) -> Result<(), Error> {
        self.send()?;
        Ok(self.link.send(&Message::StateEnd, self.watch)?)
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.gathered.len() == FRAME_DATA_MOST {
            self.send().map_err(io::Error::other)?;
        }
        let room = FRAME_DATA_MOST - self.gathered.len();
        let taken = data.len().min(room);
        self.gathered.extend_from_slice(&data[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
