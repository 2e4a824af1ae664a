//! The job that saves a guest.
//!
//! ```text
//!  job thread   make the directory, LOG_ALL │        │ state, RAM, back-ends, hold │          │ to disk, manifest
//!                                    Ready  ▼        ▲ Go::Paused           Taken  ▼          │           ▼ Ended
//!  vmm thread                               pause ───┘                             resume     │
//! ```
//!
//! A writer that is dropped removes what it has written, so that every way out but the last leaves no snapshot.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use ferry_api::config::{Timeouts, VmConfig};
use ferry_api::snapshot::{SnapshotRequest, Step};
use ferry_devices::vhost_user::{StateLimits, Transfer, VhostUserStateV1};
use ferry_devices::virtio::VirtioDevice;
use vm_migration::Watch;
use vm_migration::directory::{StateWriter, Writer};
use vm_migration::manifest::{self, DeviceState, rfc3339};
use vm_migration::stream::{Form, Label};

use super::describe;
use super::{
    BACK_END_SCHEMA, BACK_END_VERSION, CONFIG, ConfigStateV1, Error, Meter, back_end_section,
    device_section,
};
use crate::lifecycle::Ready;
use crate::machine::saving::MachineState;
use crate::memory::GuestRam;

/// How often a waiting job looks whether it has been given up.
const LOOK: Duration = Duration::from_millis(20);

/// What the vmm thread says to the job.
pub enum Go {
    /// The guest stands still.
    Paused(Box<Still>),
    /// Whoever wanted to do something while the guest is held is done.
    Released,
}

/// A guest that stands still.
pub struct Still {
    pub machine: MachineState,
    pub ram: GuestRam,
}

/// What the job says to the vmm thread.
pub enum Word {
    /// Another step begins.
    Step(Step),
    /// Back-ends are prepared: the guest is to be paused, if it is not.
    Ready,
    /// Everything is saved: the guest may go on.
    Taken,
    /// The end.
    Ended(Result<(), Error>),
}

/// What the job works with.
pub struct Job<S> {
    pub request: SnapshotRequest,
    pub config: VmConfig,
    /// In the order of the bus.
    pub devices: Vec<Ready>,
    /// Whether back-ends are to prepare themselves.
    pub prepare: bool,
    pub after: manifest::After,
    pub timeouts: Timeouts,
    pub meter: Arc<Meter>,
    /// Closed when the job is given up.
    pub orders: Receiver<Go>,
    pub say: S,
}

impl<S: Fn(Word)> Job<S> {
    /// Saves the guest.
    pub fn run(self) {
        let outcome = self.save();
        (self.say)(Word::Ended(outcome));
    }

    fn save(&self) -> Result<(), Error> {
        let mut writer = Writer::create(&self.request.destination)?;
        if self.prepare {
            self.prepare()?;
        }
        self.step(Step::Pause);
        (self.say)(Word::Ready);
        let still = match self.orders.recv() {
            Ok(Go::Paused(still)) => still,
            Ok(Go::Released) | Err(_) => return Err(Error::Cancelled),
        };
        let mut state = writer.begin_state()?;
        self.step(Step::Machine);
        let rests = self.save_values(&mut state, &still.machine)?;
        // From now on all back-ends collect their state, while RAM is saved.
        let transfers = self.begin_transfers();
        self.save_ram(&mut writer, &still.ram)?;
        self.step(Step::Devices);
        let states = self.save_back_ends(&mut state, transfers)?;
        writer.finish_state(state)?;
        if let Some(limit) = self.request.hold {
            self.hold(limit)?;
        }
        self.unless_cancelled()?;
        // Whether the guest goes on now is up to the owner.
        (self.say)(Word::Taken);
        self.step(Step::Publish);
        let devices = describe::devices(&self.devices, &rests, &still.machine, &states);
        writer.publish(manifest::Description {
            ferry: env!("CARGO_PKG_VERSION").into(),
            created: rfc3339(SystemTime::now()),
            after: self.after,
            paused_ms: u64::try_from(self.meter.paused().as_millis()).unwrap_or(u64::MAX),
            cpu: describe::cpu(&still.machine),
            devices,
        })?;
        Ok(())
    }

    fn step(&self, step: Step) {
        self.meter.enter(step);
        (self.say)(Word::Step(step));
    }

    /// Has back-ends get their state ready while the guest runs, and gives them time for it.
    fn prepare(&self) -> Result<(), Error> {
        let mut waiting = Vec::new();
        for device in self.devices.iter().filter(|device| prepares(device)) {
            let (sender, receiver) = std::sync::mpsc::channel();
            device.prepare_save(move |outcome| {
                let _ = sender.send(outcome);
            });
            waiting.push((device, receiver));
        }
        if waiting.is_empty() {
            return Ok(());
        }
        self.step(Step::Prepare);
        let begun = Instant::now();
        for (device, receiver) in waiting {
            match self.wait(&receiver, begun + self.timeouts.request)? {
                Some(outcome) => outcome?,
                // Its state takes longer then, which is no reason to give up.
                None => tracing::warn!(
                    device = device.id(),
                    "the back-end has not answered yet whether it prepares its state"
                ),
            }
        }
        while begun.elapsed() < self.request.prepare {
            self.unless_cancelled()?;
            let left = self.request.prepare.saturating_sub(begun.elapsed());
            std::thread::sleep(left.min(LOOK));
        }
        Ok(())
    }

    fn save_values(
        &self,
        state: &mut StateWriter,
        machine: &MachineState,
    ) -> Result<Vec<VhostUserStateV1>, Error> {
        let json = self.config.clone().with_absolute_paths().to_json();
        state.save(CONFIG, &ConfigStateV1 { json })?;
        machine.write(state)?;
        let mut rests = Vec::with_capacity(self.devices.len());
        for device in &self.devices {
            let rest = device.rest()?;
            state.save(&device_section(device.id()), &rest)?;
            rests.push(rest);
        }
        Ok(rests)
    }

    fn save_ram(&self, writer: &mut Writer, ram: &GuestRam) -> Result<(), Error> {
        self.step(Step::Ram);
        let parts = ram.parts();
        self.meter
            .ram_begins(parts.iter().map(|part| part.ram.bytes).sum());
        for part in parts {
            writer.save_ram(part.guest.0, part.ram, &*self.meter)?;
        }
        self.meter.ram_ends();
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
        let begin = |device: &Ready| device.carries_state().then(|| device.begin_save(&limits));
        self.devices.iter().map(begin).collect()
    }

    /// Returns what was saved of each device.
    fn save_back_ends(
        &self,
        state: &mut StateWriter,
        transfers: Vec<Option<Transfer>>,
    ) -> Result<Vec<DeviceState>, Error> {
        let mut states = Vec::with_capacity(transfers.len());
        for (device, transfer) in self.devices.iter().zip(transfers) {
            let Some(transfer) = transfer else {
                states.push(DeviceState::Stateless);
                continue;
            };
            let watch = self.meter.device(device.id());
            let label = Label {
                name: back_end_section(device.id()),
                form: Form::Chunks,
                schema: BACK_END_SCHEMA.into(),
                version: BACK_END_VERSION,
            };
            let totals = state.save_chunks(label, self.request.state_most, |append| {
                transfer.read(append, &watch).map(drop).map_err(Error::from)
            })?;
            watch.checked();
            states.push(DeviceState::Saved {
                bytes: totals.bytes,
            });
        }
        Ok(states)
    }

    /// Waits until the guest may go on.
    fn hold(&self, limit: Duration) -> Result<(), Error> {
        self.step(Step::Hold);
        let deadline = Instant::now() + limit;
        loop {
            match self.wait(&self.orders, deadline)? {
                Some(Go::Released) => return Ok(()),
                Some(Go::Paused(_)) => {}
                None => return Err(Error::HeldTooLong(limit)),
            }
        }
    }

    /// Waits for something to arrive; none at the deadline.
    fn wait<T>(&self, receiver: &Receiver<T>, deadline: Instant) -> Result<Option<T>, Error> {
        loop {
            self.unless_cancelled()?;
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left.min(LOOK)) {
                Ok(item) => return Ok(Some(item)),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Cancelled),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn unless_cancelled(&self) -> Result<(), Error> {
        match self.meter.cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}

/// Whether a back-end collects its state once it has to log what it writes, as virtiofsd does.
fn prepares(device: &Ready) -> bool {
    device.carries_state() && device.negotiated().offers_preparation()
}
