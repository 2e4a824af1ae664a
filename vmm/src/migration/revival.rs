//! The receiver's devices: they get their rings, and their back-ends the state of those that the guest has left.

use std::time::Duration;

use ferry_devices::vhost_user::{BackEndStateV1, Loading, StateLimits, VhostUserStateV1};
use ferry_devices::virtio::VirtioDevice;
use vm_migration::link::{Link, Message, Tally};

use super::asking::Asked;
use super::fill::look;
use super::pulse::Pulse;
use super::{Error, Meter};
use crate::lifecycle::Ready;
use crate::machine::Machine;

/// Devices that take over from others.
pub(super) struct Revival<'a> {
    pub devices: &'a [Ready],
    /// What the sender says of each of them, in the same order.
    pub rests: &'a [VhostUserStateV1],
    pub meter: &'a Meter,
    /// How long each step of a device may take, with those before it that it was told of at the same time.
    pub limit: Duration,
}

impl<'a> Revival<'a> {
    /// Brings them to where only their rings are to be started. Each goes its own way: memory and features, the state of its back-end as it
    /// comes, up to the end of the stream, its rings. `most` bounds what a back-end may hold, and `extra` is what went over the extra
    /// connections.
    pub fn revive(
        &self,
        link: &mut Link,
        machine: &Machine,
        most: u64,
        extra: &[Tally],
    ) -> Result<(), Error> {
        let restored = self.restore(machine);
        let loads = self.begin_loads(most);
        let mut set_up = Asked::new("take the device's rings", self.limit);
        let others = self.devices.iter().zip(&loads);
        for (device, _) in others.filter(|(_, load)| load.is_none()) {
            set_up.ask(device, |device, done| device.set_up_rings(done));
        }
        restored.wait(self.meter, || look(link))?;
        self.load(link, loads, &mut set_up, extra)?;
        set_up.wait(self.meter, || look(link))
    }

    /// Gives every device its rings, and memory and features to its back-end.
    fn restore(&self, machine: &Machine) -> Asked<'a> {
        let mut restored = Asked::new("take the device's memory and features", self.limit);
        let parts = self.devices.iter().zip(self.rests);
        for ((device, rest), function) in parts.zip(machine.functions()) {
            let activation = match rest.rings.is_empty() {
                true => None,
                false => function.activation(),
            };
            restored.ask(device, |device, done| {
                device.restore(activation, rest, done);
            });
        }
        restored
    }

    /// For each device: what takes the state of its back-end, if that has some.
    fn begin_loads(&self, most: u64) -> Vec<Option<Loading>> {
        let limits = StateLimits {
            reply: self.limit,
            silence: self.limit,
            most,
        };
        let is_carried = |rest: &VhostUserStateV1| rest.back_end == BackEndStateV1::Carried;
        let pairs = self.devices.iter().zip(self.rests);
        let carriers = pairs.clone().filter(|(_, rest)| is_carried(rest));
        self.meter
            .expect_devices(carriers.map(|(device, _)| device.id().to_owned()));
        pairs
            .map(|(device, rest)| is_carried(rest).then(|| device.begin_load(&limits)))
            .collect()
    }

    /// Loads what back-ends hold, as it comes, up to the end of the stream; those that have it are told of their rings.
    fn load(
        &self,
        link: &mut Link,
        mut loads: Vec<Option<Loading>>,
        set_up: &mut Asked<'a>,
        extra: &[Tally],
    ) -> Result<(), Error> {
        let (devices, meter) = (self.devices, self.meter);
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
                    set_up.ask(&devices[index], |device, done| device.set_up_rings(done));
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
}
