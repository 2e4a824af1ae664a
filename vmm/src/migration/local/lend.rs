//! The sender's part of a hand-over: from the description to READY, and what becomes of the guest if the link is lost afterwards.

use std::sync::Arc;

use ferry_api::migration::Phase;
use ferry_devices::serial::Rest;
use ferry_devices::vhost_user::Live;
use ferry_devices::virtio::VirtioDevice;
use vm_migration::link::{HANDLES_MOST, Link, Message, Purpose};
use vm_migration::ownership::{DEATH, Ownership, Process, Taken};
use vm_migration::pages::end_main;
use vm_migration::stream::{self, StreamWriter};

use super::describe::{HandOverV1, Parts};
use super::outside::{self, LentOutside};
use crate::hypervisor::Hypervisor;
use crate::machine;
use crate::machine::saving::MachineState;
use crate::migration::handover::Pieces;
use crate::migration::send::{Job, Stopped, Way, Word, send_description};
use crate::migration::{Error, Meter};

/// What a sender has for a hand-over.
pub struct Lender {
    /// Who has the guest.
    pub ownership: Arc<Ownership>,
    /// What goes along.
    outside: LentOutside,
    /// The receiver, once it has said who it is.
    receiver: Option<Process>,
}

impl Lender {
    pub fn new(ownership: Arc<Ownership>, outside: LentOutside) -> Self {
        Lender {
            ownership,
            outside,
            receiver: None,
        }
    }

    /// The receiver has got the commit, or not, and nothing more is heard of it. `Ok`: the guest runs there.
    pub(in crate::migration) fn decide(&self, lost: Error) -> Result<(), Error> {
        if self.ownership.keep().is_ok() {
            return Err(Error::NotTaken(Box::new(lost)));
        }
        match &self.receiver {
            Some(receiver) if receiver.is_dead(DEATH) => Err(Error::Lost),
            _ => Ok(()),
        }
    }
}

impl<S: Fn(Word)> Job<S> {
    /// Everything before the commit.
    pub(in crate::migration) fn lend(
        &mut self,
        way: &Way<'_>,
        links: &mut Vec<Link>,
    ) -> Result<(), Error> {
        let meter = self.meter.clone();
        let Some(lender) = &self.lender else {
            return Err(Error::Cancelled);
        };
        let process = Process::this().map_err(Error::Ownership)?;
        let hypervisor = Hypervisor::open().map_err(machine::Error::from)?;
        let description = stream::encode(&HandOverV1 {
            guest: self.describe(&hypervisor),
            ram_files: self.source.ram.parts().len() as u8,
            outside: lender.outside.description.clone(),
        })?;
        links.push(self.connect_first(way, Purpose::HandOver)?);
        let link = &mut links[0];
        let Lender {
            ownership, outside, ..
        } = lender;
        let handles = Parts::handles(&process, ownership, &self.source.ram, outside);
        link.send_handles(&handles, &*meter)?;
        send_description(link, &description, &meter)?;
        meter.enter(Phase::Prepare);
        let receiver = wait_for_receiver(link, &meter)?;
        if let Some(lender) = &mut self.lender {
            lender.receiver = Some(receiver);
        }
        meter.enter(Phase::Pause);
        (self.say)(Word::Ready);
        match self.wait_paused(links)? {
            Some(stopped) => self.send_machine(&mut links[0], *stopped)?,
            None => return Err(Error::Rebooted),
        }
        end_main(links, &*meter)?;
        meter.enter(Phase::Ready);
        while !matches!(links[0].receive(&*meter)?, Message::Ready) {}
        Ok(())
    }

    fn send_machine(&self, link: &mut Link, stopped: Stopped) -> Result<(), Error> {
        let meter = &*self.meter;
        let Stopped {
            machine,
            lent,
            serial,
        } = stopped;
        meter.bound(self.timeouts.request);
        meter.enter(Phase::Machine);
        self.send_states(link, &machine, &lent, &serial)?;
        meter.enter(Phase::Devices);
        let handles = lent.into_iter().flat_map(|live| live.fds);
        let handles: Vec<_> = handles.chain(serial.client).collect();
        for some in handles.chunks(HANDLES_MOST) {
            let some: Vec<_> = some.iter().map(std::os::fd::AsFd::as_fd).collect();
            link.send_handles(&some, meter)?;
        }
        Ok(())
    }

    fn send_states(
        &self,
        link: &mut Link,
        machine: &MachineState,
        lent: &[Live],
        serial: &Rest,
    ) -> Result<(), Error> {
        if lent.len() != self.devices.len() {
            return Err(Error::Cancelled);
        }
        let attempt = link.attempt();
        let mut values = StreamWriter::new(Pieces::new(link, &*self.meter), attempt)?;
        machine.write(&mut values)?;
        outside::write_standstill(&self.meter, &mut values)?;
        for (device, live) in self.devices.iter().zip(lent) {
            values.save(&live_section(device.id()), &live.state)?;
        }
        if let Some(lender) = &self.lender {
            lender.outside.write_rest(serial, &mut values)?;
        }
        values.finish()?.0.end()
    }
}

/// Waits until the receiver has said who it is and has prepared itself.
fn wait_for_receiver(link: &mut Link, meter: &Meter) -> Result<Process, Error> {
    let mut receiver = None;
    loop {
        match link.receive(meter)? {
            Message::Handles { count } => {
                let mut handles = link.take_handles(count)?;
                receiver = handles.pop().map(Process::new);
            }
            Message::Prepared => return receiver.ok_or(Error::Mismatch("number of descriptors")),
            _ => {}
        }
    }
}

/// The section of what is known of a device's connection.
pub(super) fn live_section(id: &str) -> String {
    format!("live/{id}")
}

impl From<Taken> for Error {
    fn from(_: Taken) -> Self {
        Error::TakenBack
    }
}
