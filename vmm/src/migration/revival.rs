//! The receiver's devices: they get their rings, and their back-ends the state of those that the guest has left.

use std::time::{Duration, Instant};

use ferry_devices::vhost_user::{BackEndStateV1, Loading, StateLimits, VhostUserStateV1};
use ferry_devices::virtio::VirtioDevice;
use vm_migration::link::{Link, Message, Tally};

use super::fill::look;
use super::pulse::Pulse;
use super::send::{Done, ask_all};
use super::{Error, Meter};
use crate::lifecycle::Ready;
use crate::machine::Machine;

/// Devices that take over from others.
pub(super) struct Revival<'a> {
    pub devices: &'a [Ready],
    /// What the sender says of each of them, in the same order.
    pub rests: &'a [VhostUserStateV1],
    pub meter: &'a Meter,
    /// How long each step may take.
    pub limit: Duration,
}

impl Revival<'_> {
    /// Loads what back-ends hold, as it comes, up to the end of the stream.
    /// `most` bounds what one of them may hold, and `extra` is what went over the extra connections.
    pub fn load(&self, link: &mut Link, most: u64, extra: &[Tally]) -> Result<(), Error> {
        let (devices, rests, meter) = (self.devices, self.rests, self.meter);
        let limits = StateLimits {
            reply: self.limit,
            silence: self.limit,
            most,
        };
        let begin = |(device, rest): (&Ready, &VhostUserStateV1)| {
            (rest.back_end == BackEndStateV1::Carried).then(|| device.begin_load(&limits))
        };
        let mut loads: Vec<Option<Loading>> = devices.iter().zip(rests).map(begin).collect();
        let carriers = devices
            .iter()
            .zip(&loads)
            .filter(|(_, load)| load.is_some());
        meter.expect_devices(carriers.map(|(device, _)| device.id().to_owned()));
        // What a back-end is given, so that the connection can be used while it takes its time.
        let mut spare = Vec::new();
        loop {
            // What was received, without the end itself.
            let received = link.received();
            match link.receive(meter)? {
                Message::Chunk { device, .. } => {
                    let index = usize::from(device);
                    let loading = loads.get_mut(index).and_then(Option::as_mut);
                    let loading = loading.ok_or(Error::Mismatch("list of back-ends with state"))?;
                    let chunk = link.take_chunk(&mut spare);
                    let watch = meter.device(devices[index].id());
                    let pulse = Pulse::new(link, &watch);
                    pulse.outcome(loading.write(chunk, &pulse))?;
                }
                Message::ChunkEnd { device, total } => {
                    let index = usize::from(device);
                    let loading = loads.get_mut(index).and_then(Option::take);
                    let loading = loading.ok_or(Error::Mismatch("list of back-ends with state"))?;
                    let watch = meter.device(devices[index].id());
                    let pulse = Pulse::new(link, &watch);
                    let loaded = pulse.outcome(loading.finish(&pulse))?;
                    if loaded != total {
                        return Err(Error::Mismatch("size of a back-end's state"));
                    }
                    watch.checked();
                }
                Message::End { tallies } => {
                    if loads.iter().any(Option::is_some) {
                        return Err(Error::Mismatch("list of back-ends with state"));
                    }
                    let expected = std::iter::once(&received).chain(extra);
                    return match tallies.iter().eq(expected) {
                        true => Ok(()),
                        false => Err(Error::Mismatch("count or digest of all frames")),
                    };
                }
                _ => {}
            }
        }
    }

    /// Gives every device its rings, and memory and features to its back-end.
    pub fn restore(&self, link: &mut Link, machine: &Machine) -> Result<(), Error> {
        let all: Vec<&Ready> = self.devices.iter().collect();
        let parts = || self.devices.iter().zip(self.rests).zip(machine.functions());
        self.ask(
            link,
            &all,
            "take the device's memory and features",
            |device, done| {
                let part = parts().find(|((it, _), _)| it.id() == device.id());
                let Some(((_, rest), function)) = part else {
                    return;
                };
                let activation = match rest.rings.is_empty() {
                    true => None,
                    false => function.activation(),
                };
                device.restore(activation, rest, done);
            },
        )
    }

    /// Tells back-ends of rings, without starting them.
    pub fn set_up_rings(&self, link: &mut Link) -> Result<(), Error> {
        let pairs = self.devices.iter().zip(self.rests);
        let running: Vec<&Ready> = pairs
            .filter(|(_, rest)| !rest.rings.is_empty())
            .map(|(device, _)| device)
            .collect();
        let step = "take the device's rings";
        self.ask(link, &running, step, |device, done| {
            device.set_up_rings(done)
        })
    }

    fn ask(
        &self,
        link: &mut Link,
        devices: &[&Ready],
        step: &'static str,
        ask: impl Fn(&Ready, Done),
    ) -> Result<(), Error> {
        let limit = self.limit;
        ask_all(
            devices,
            self.meter,
            Instant::now() + limit,
            || look(link),
            ask,
            |device| Error::Late {
                device: device.id().to_owned(),
                step,
                limit,
            },
        )
    }
}
