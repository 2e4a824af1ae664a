//! The job that saves a guest.
//!
//! ```text
//!  job thread   make the directory, LOG_ALL │        │ state, RAM and back-ends, hold │   │ to disk, manifest
//!                                     Ready ▼        ▲ Go::Paused               Taken ▼   ▲ Go::Publish    ▼ Ended
//!  vmm thread                               pause ───┘                                resume
//! ```
//!
//! A writer that is dropped removes what it has written, so that every way out but the last leaves no snapshot.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use ferry_api::config::{Timeouts, VmConfig};
use ferry_api::control::Refusal;
use ferry_api::snapshot::{SnapshotRequest, Step};
use ferry_devices::vhost_user::{StateLimits, Transfer, VhostUserStateV1};
use ferry_devices::virtio::VirtioDevice;
use vm_migration::directory::{StateWriter, Writer};
use vm_migration::manifest::{self, Cpu, Description, Device, DeviceState, rfc3339};
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
    /// What is written is to become a snapshot.
    Publish,
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
    /// Everything is saved: the guest may go on, once the snapshot is not to be given up any more.
    Taken,
    /// It has failed, for this reason. What was written is still to be removed.
    Failed(Refusal),
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

/// A snapshot that lacks nothing but its manifest.
struct Written {
    writer: Writer,
    cpu: Cpu,
    devices: Vec<Device>,
}

impl<S: Fn(Word) + Sync> Job<S> {
    /// Saves the guest.
    pub fn run(self) {
        let mut writer = None;
        let written = self.write(&mut writer);
        if let Err(error) = &written {
            // The guest does not wait for what was written to be removed.
            (self.say)(Word::Failed(Refusal::failed(error)));
        }
        drop(writer);
        let Job {
            after,
            meter,
            orders,
            say,
            // Their connections may be closed from now on.
            devices: _,
            ..
        } = self;
        let outcome = written.and_then(|written| publish(written, after, &meter, &orders, &say));
        say(Word::Ended(outcome));
    }

    /// Writes all but the manifest. Until that is done, `kept` has what was written.
    fn write(&self, kept: &mut Option<Writer>) -> Result<Written, Error> {
        let writer = kept.insert(Writer::create(&self.request.destination)?);
        if self.prepare {
            self.prepare()?;
        }
        self.step(Step::Pause);
        (self.say)(Word::Ready);
        let still = match self.orders.recv() {
            Ok(Go::Paused(still)) => still,
            Ok(Go::Released | Go::Publish) | Err(_) => return Err(Error::Cancelled),
        };
        let mut state = writer.begin_state()?;
        self.step(Step::Machine);
        let rests = self.save_values(&mut state, &still.machine)?;
        let states = self.save_bulk(writer, &mut state, &still.ram)?;
        writer.finish_state(state)?;
        if let Some(limit) = self.request.hold {
            self.hold(limit)?;
        }
        self.meter.unless_cancelled()?;
        match kept.take() {
            Some(writer) => Ok(Written {
                writer,
                cpu: describe::cpu(&still.machine),
                devices: describe::devices(&self.devices, &rests, &still.machine, &states),
            }),
            None => Err(Error::Cancelled),
        }
    }

    /// Saves RAM, and at the same time what back-ends hold.
    fn save_bulk(
        &self,
        writer: &mut Writer,
        state: &mut StateWriter,
        ram: &GuestRam,
    ) -> Result<Vec<DeviceState>, Error> {
        let transfers = self.begin_transfers();
        self.step(Step::Ram);
        let (meter, say) = (&*self.meter, &self.say);
        let mut save_ram = move || {
            let saved = save_ram(writer, ram, meter);
            enter(Step::Devices, meter, say);
            saved.inspect_err(|_| meter.cancel())
        };
        if transfers.iter().all(Option::is_none) {
            save_ram()?;
            return self.save_back_ends(state, transfers);
        }
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("snapshot-ram".into())
                .spawn_scoped(scope, save_ram)
                .map_err(Error::Thread)?;
            let states = self.save_back_ends(state, transfers);
            let states = states.inspect_err(|_| self.meter.cancel());
            let saved = match thread.join() {
                Ok(saved) => saved,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            // When one fails, the other one is cancelled.
            match (saved, states) {
                (Ok(()), states) => states,
                (Err(error), Ok(_)) => Err(error),
                (Err(error), Err(other)) if error.is_cancelled() => Err(other),
                (Err(error), Err(_)) => Err(error),
            }
        })
    }

    fn step(&self, step: Step) {
        enter(step, &self.meter, &self.say);
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
            match self.meter.wait(&receiver, begun + self.timeouts.request)? {
                Some(outcome) => outcome?,
                // Its state takes longer then, which is no reason to give up.
                None => tracing::warn!(
                    device = device.id(),
                    "the back-end has not answered yet whether it prepares its state"
                ),
            }
        }
        while begun.elapsed() < self.request.prepare {
            self.meter.unless_cancelled()?;
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
            match self.meter.wait(&self.orders, deadline)? {
                Some(Go::Released) => return Ok(()),
                Some(Go::Paused(_) | Go::Publish) => {}
                None => return Err(Error::HeldTooLong(limit)),
            }
        }
    }
}

/// Whether a back-end collects its state once it has to log what it writes, as virtiofsd does.
fn prepares(device: &Ready) -> bool {
    device.carries_state() && device.negotiated().offers_preparation()
}

/// Makes what is written a snapshot, if nobody has given it up meanwhile.
fn publish(
    written: Written,
    after: manifest::After,
    meter: &Meter,
    orders: &Receiver<Go>,
    say: &impl Fn(Word),
) -> Result<(), Error> {
    let Written {
        writer,
        cpu,
        devices,
    } = written;
    say(Word::Taken);
    // The owner answers at once, or has given the job up.
    while !matches!(orders.recv().map_err(|_| Error::Cancelled)?, Go::Publish) {}
    // It has begun with the owner's word, before the guest went on.
    say(Word::Step(Step::Publish));
    writer.publish(Description {
        ferry: env!("CARGO_PKG_VERSION").into(),
        created: rfc3339(SystemTime::now()),
        after,
        paused_ms: u64::try_from(meter.paused().as_millis()).unwrap_or(u64::MAX),
        cpu,
        devices,
    })?;
    Ok(())
}

fn save_ram(writer: &mut Writer, ram: &GuestRam, meter: &Meter) -> Result<(), Error> {
    let parts = ram.parts();
    meter.ram_begins(parts.iter().map(|part| part.ram.bytes).sum());
    for part in parts {
        writer.save_ram(part.guest.0, part.ram, meter)?;
    }
    meter.ram_ends();
    Ok(())
}

/// Begins a step.
fn enter(step: Step, meter: &Meter, say: &impl Fn(Word)) {
    meter.enter(step);
    say(Word::Step(step));
}
