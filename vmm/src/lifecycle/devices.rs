//! The devices of a definition, and the connections to their back-ends, which outlive the machines they are used in.

use std::io;
use std::sync::Arc;

use ferry_devices::vhost_user::{
    self, BackendSpec, DeviceObserver, DeviceState, Limits, Rouse, Starting, VhostUserDevice,
};
use ferry_devices::virtio::{ActivationFailed, TransportEvents, VirtioDevice};

use super::Error;
use crate::events::{Event, EventSender};
use crate::migration::Adopt;

/// A device whose back-end has been agreed with.
pub type Ready = Arc<VhostUserDevice>;

/// Tells devices apart for as long as Ferry runs: ids can be given anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKey(pub u64);

/// A device of the definition.
pub struct Device {
    pub key: DeviceKey,
    pub spec: BackendSpec,
    pub link: Link,
    /// For which boot the last connection was begun.
    pub begun_for: u64,
    /// How often a connection was made after the first.
    pub reconnects: u64,
    connected_before: bool,
    /// How many suspends and resumes the worker has been asked for and has not answered. At most two, because a
    /// device that owes an answer is not suspended again.
    pub owed: u32,
}

/// The connection to a back-end.
pub enum Link {
    /// None.
    Down,
    /// Being made.
    Starting(Starting),
    /// Made; the device may have failed since.
    Up(Ready),
}

impl Device {
    pub fn new(key: DeviceKey, spec: BackendSpec) -> Self {
        Device {
            key,
            spec,
            link: Link::Down,
            begun_for: 0,
            reconnects: 0,
            connected_before: false,
            owed: 0,
        }
    }

    /// The device, if there is a connection.
    pub fn ready(&self) -> Option<&Ready> {
        match &self.link {
            Link::Up(ready) => Some(ready),
            Link::Down | Link::Starting(_) => None,
        }
    }

    /// Makes a connection for a boot, unless there is one that works or is being made. Answered by
    /// [`Event::DeviceReady`].
    pub fn connect(
        &mut self,
        boot: u64,
        limits: Limits,
        events: &EventSender,
    ) -> Result<(), Error> {
        match &self.link {
            Link::Up(ready) if ready.state() != DeviceState::Failed => return Ok(()),
            Link::Starting(_) => return Ok(()),
            Link::Up(_) | Link::Down => {}
        }
        let observer = Observer {
            key: self.key,
            boot,
            events: events.clone(),
        };
        self.begun_for = boot;
        self.owed = 0;
        // Guest RAM comes later; the back-end is told of it when the guest activates the device.
        let starting =
            VhostUserDevice::start(self.spec.clone(), limits, Arc::new([]), Arc::new(observer))
                .map_err(super::system("start a thread for a device"))?;
        self.link = Link::Starting(starting);
        Ok(())
    }

    /// Whether the connection that was begun for this boot is still being made.
    pub fn is_starting_for(&self, boot: u64) -> bool {
        self.begun_for == boot && matches!(self.link, Link::Starting(_))
    }

    /// A connection was made, or was not, after the guest that it was for had failed to arrive.
    pub fn started_in_reserve(&mut self, boot: u64, outcome: Result<Ready, vhost_user::Error>) {
        if !self.is_starting_for(boot) {
            return;
        }
        match outcome {
            Ok(ready) => self.connected(ready),
            // The next guest has it made anew.
            Err(_) => self.link = Link::Down,
        }
    }

    /// Takes a connection that has been made.
    pub fn connected(&mut self, ready: Ready) {
        self.reconnects += u64::from(self.connected_before);
        self.connected_before = true;
        self.link = Link::Up(ready);
    }

    /// Gives up a connection that is being made.
    pub fn cancel(&mut self) {
        if let Link::Starting(starting) = &self.link {
            starting.cancel();
            self.link = Link::Down;
        }
    }

    /// Stops the device's queues. Answered by [`Event::DeviceQuiet`].
    pub fn quieten(&self, stop: u64, events: &EventSender) {
        let Some(ready) = self.ready() else { return };
        ready.attach(Arc::new(Quietener {
            key: self.key,
            stop,
            events: events.clone(),
        }));
        ready.reset();
    }

    /// Suspends the device. Answered by [`Event::DeviceSuspended`].
    pub fn suspend(&mut self, events: &EventSender) {
        let Some(ready) = self.ready() else { return };
        let (key, events) = (self.key, events.clone());
        ready.suspend(move |outcome| events.send(Event::DeviceSuspended { key, outcome }));
        self.owed += 1;
    }

    /// Lends the connection to another process. Answered by [`Event::DeviceLent`].
    pub fn lend(&mut self, events: &EventSender) {
        let Some(ready) = self.ready() else { return };
        let (key, events) = (self.key, events.clone());
        ready.lend(move |outcome| {
            let outcome = outcome.map(Box::new);
            events.send(Event::DeviceLent { key, outcome });
        });
        self.owed += 1;
    }

    /// Makes the connection this process's again, or for the first time, and leaves the device as it is. Answered by
    /// [`Event::DeviceResumed`].
    pub fn own(&mut self, events: &EventSender) {
        let Some(ready) = self.ready() else { return };
        let (key, events) = (self.key, events.clone());
        ready.own(move |outcome| events.send(Event::DeviceResumed { key, outcome }));
        self.owed += 1;
    }

    /// Resumes the device, or what an unfinished suspend will have stopped: as soon as what is returned is dropped. Answered by
    /// [`Event::DeviceResumed`].
    pub fn resume(&mut self, events: &EventSender) -> Option<Rouse> {
        let ready = self.ready()?;
        let (key, events) = (self.key, events.clone());
        let rouse = ready.resume(move |outcome| events.send(Event::DeviceResumed { key, outcome }));
        self.owed += 1;
        Some(rouse)
    }
}

/// What makes devices over connections that another process hands over, one for each that a boot has.
pub fn adopt(devices: &[Device], boot: u64, limits: Limits, events: &EventSender) -> Box<Adopt> {
    let known: Vec<(DeviceKey, BackendSpec)> = devices
        .iter()
        .map(|device| (device.key, device.spec.clone()))
        .collect();
    let events = events.clone();
    Box::new(move |id, ram, live| {
        let mut known = known.iter();
        let (key, spec) = known
            .find(|(_, spec)| spec.id == id)
            .ok_or(io::ErrorKind::NotFound)?;
        let observer = Observer {
            key: *key,
            boot,
            events: events.clone(),
        };
        VhostUserDevice::take_over(spec.clone(), limits, ram, live, Arc::new(observer))
    })
}

impl Drop for Device {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Passes what happens to a device on to the vmm thread.
struct Observer {
    key: DeviceKey,
    /// For which boot the connection was begun.
    boot: u64,
    events: EventSender,
}

impl DeviceObserver for Observer {
    fn ready(&self, _id: &str, outcome: Result<Ready, vhost_user::Error>) {
        self.events.send(Event::DeviceReady {
            key: self.key,
            boot: self.boot,
            outcome,
        });
    }

    fn failed(&self, _id: &str, error: &vhost_user::Error) {
        self.events.send(Event::DeviceFailed {
            key: self.key,
            error: error.clone(),
        });
    }
}

/// Stands in for the transport while there is none.
struct Quietener {
    key: DeviceKey,
    /// Which stop has asked.
    stop: u64,
    events: EventSender,
}

impl TransportEvents for Quietener {
    fn activated(&self, _: Result<(), ActivationFailed>) {}

    fn reset_done(&self) {
        self.events.send(Event::DeviceQuiet {
            key: self.key,
            stop: self.stop,
        });
    }

    fn config_changed(&self) {}

    fn failed(&self) {}
}
