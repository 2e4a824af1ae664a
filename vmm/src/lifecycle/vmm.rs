//! The owner itself: what it has, and its loop.

use std::sync::Arc;
use std::time::Instant;

use ferry_api::config::Timeouts;
use ferry_api::config::VmConfig;
use ferry_api::control::{Refusal, VmInfo, VmState};
use ferry_api::events::EventLog;
use ferry_api::server::Reception;
use ferry_devices::power::PowerRequest;

use super::boot::Cause;
use super::devices::{Device, DeviceKey};
use super::receiving::Receiving;
use super::restoring::Restoring;
use super::saving::Saving;
use super::sending::{Departed, Sending};
use super::stop::After;
use super::vm::{Phase, VirtualMachine, Waiters};
use super::{Ending, Error, First, Plan, system};
use crate::cli::OnReset;
use crate::cpu::vcpu::{self, GuestEnd};
use crate::events::{Event, EventSender, Events};
use crate::logging::chain;
use crate::migration::{self, Attempts};
use crate::snapshot::Meter;

/// The owner of the virtual machine.
pub struct Vmm {
    pub(super) timeouts: Timeouts,
    on_reset: OnReset,
    pub(super) events: Events,
    pub(super) vm: Option<VirtualMachine>,
    /// A snapshot under way.
    pub(super) saving: Option<Saving>,
    /// A snapshot that is being read, before there is a virtual machine.
    pub(super) restoring: Option<Restoring>,
    /// A migration to another Ferry under way.
    pub(super) sending: Option<Sending>,
    /// A sender that is waited for, before there is a virtual machine.
    pub(super) receiving: Option<Receiving>,
    /// The migration of a guest that runs elsewhere, while what it had here is given back, and what comes then.
    pub(super) departed: Option<Departed>,
    /// What has become of guests that were to be received.
    pub(super) attempts: Arc<Attempts>,
    /// Connections to back-ends that a guest was to have who has not arrived: the next one that has the same devices gets them.
    pub(super) reserve: Vec<Device>,
    /// How the last migration stands.
    pub(super) migration: Option<Arc<migration::Meter>>,
    /// How the last snapshot or restore stands.
    pub(super) meter: Option<Arc<Meter>>,
    /// Who is told of events; none if nobody could see them.
    pub(super) log: Option<Arc<EventLog>>,
    /// Where clients are taken in; none if there is no API.
    pub(super) reception: Option<Reception>,
    /// What is said of the guest once another process has this one's place.
    pub(super) succeeded: Option<Box<VmInfo>>,
    /// When Ferry ends, as soon as nothing is left to be answered: its guest has left for good, and who follows the migration is to see its end.
    pub(super) leaves_at: Option<Instant>,
    /// How, then.
    pub(super) leaves_as: Ending,
    /// How Ferry ends, once it does.
    ended: Option<Result<Ending, Error>>,
    /// How many guests have been started.
    pub(super) boots: u64,
    // The last numbers given to devices, and to boots, stops and other work whose late word must not be taken for
    // another's.
    pub(super) keys: u64,
    pub(super) numbers: u64,
}

impl Vmm {
    /// An owner without a virtual machine. To be made before any other thread, because it takes over the signals.
    pub fn new(plan: &Plan) -> Result<Self, Error> {
        vcpu::install_kick_handler().map_err(system("handle the signal that stops vCPUs"))?;
        Ok(Vmm {
            timeouts: plan.timeouts,
            on_reset: plan.on_reset,
            events: Events::new().map_err(system("take over the signals"))?,
            vm: None,
            saving: None,
            restoring: None,
            sending: None,
            departed: None,
            receiving: None,
            attempts: Arc::default(),
            reserve: Vec::new(),
            migration: None,
            meter: None,
            log: None,
            reception: None,
            succeeded: None,
            leaves_at: None,
            leaves_as: Ending::Migrated,
            ended: None,
            boots: 0,
            keys: 0,
            numbers: 0,
        })
    }

    /// Tells `log` of events from now on.
    pub fn watch(&mut self, log: Arc<EventLog>) {
        self.log = Some(log);
    }

    /// Says from now on whether clients are taken in there.
    pub fn receive_clients_at(&mut self, reception: Reception) {
        self.reception = Some(reception);
    }

    /// Through which clients reach this owner.
    pub fn control(&self) -> EventSender {
        self.events.sender()
    }

    /// Does what is to be done first, and serves until Ferry is to end.
    pub fn run(mut self, first: Option<First>) -> Result<Ending, Error> {
        match first {
            Some(First::Boot(config)) => {
                self.define(config);
                self.boot(VmState::Created, Cause::Asked, None, Waiters::default());
            }
            Some(First::Restore(request)) => self.restore(request, Waiters::default()),
            None => {}
        }
        loop {
            self.settle_departure();
            if let Some(ended) = self.ended.take() {
                self.close();
                return ended;
            }
            let deadline = match &self.vm {
                Some(vm) => vm.deadline(),
                None => match (&self.restoring, &self.receiving) {
                    (Some(restoring), _) => restoring.deadline,
                    (None, Some(receiving)) => receiving.deadline,
                    (None, None) => None,
                },
            };
            match self
                .events
                .next(deadline.into_iter().chain(self.leaves_at).min())
                .map_err(system("wait for events"))?
            {
                Some(event) => self.on_event(event),
                None => self.on_deadline(),
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Request { request, reply } => self.on_request(request, reply),
            Event::Checked { boot, outcome } => self.on_checked(boot, outcome),
            Event::DeviceReady { key, boot, outcome } => self.on_device_ready(key, boot, outcome),
            Event::DeviceFailed { key, error } => self.on_device_failed(key, &error),
            Event::Built { boot, outcome } => self.on_built(boot, outcome.map(|built| *built)),
            Event::Saving { number, word } => self.on_saving(number, word),
            Event::Sending { number, word } => self.on_sending(number, word),
            Event::Listening { number } => self.on_listening(number),
            Event::Incoming { number, outcome } => self.on_incoming(number, outcome),
            Event::Found { number, outcome } => self.on_found(number, outcome),
            Event::DeviceSuspended { key, outcome } => self.on_device_suspended(key, outcome),
            Event::DeviceLent { key, outcome } => self.on_device_lent(key, outcome),
            Event::SerialLent { number, outcome } => self.on_serial_lent(number, outcome),
            Event::DeviceResumed { key, outcome } => self.on_device_resumed(key, outcome),
            Event::DeviceQuiet { key, stop } => self.on_device_quiet(key, stop),
            Event::Cleaned { number } => self.on_cleaned(number),
            Event::GuestEnded { boot, end } => self.on_guest_ended(boot, end),
            Event::Quit(why) => self.quit(why),
        }
    }

    fn on_deadline(&mut self) {
        if self.leaves_at.is_some_and(|at| at <= Instant::now()) {
            // Whatever had come before is done.
            return self.end(Ok(self.leaves_as));
        }
        match self.vm.as_ref().map(|vm| &vm.phase) {
            Some(Phase::Stopping(_)) => self.on_not_quiet(),
            Some(Phase::Live(_)) => self.on_attempt_late(),
            Some(Phase::Booting(_)) => self.on_boot_late(),
            None if self.receiving.is_some() => self.on_receive_late(),
            None => self.on_restore_late(),
            _ => {}
        }
    }

    /// Takes a definition. There is none yet.
    pub(super) fn define(&mut self, config: VmConfig) {
        let kept = std::mem::take(&mut self.reserve);
        self.vm = Some(VirtualMachine::new(config, kept, &mut self.keys));
        self.publish("vm", "created", []);
    }

    fn on_device_failed(&mut self, key: DeviceKey, error: &ferry_devices::vhost_user::Error) {
        // The worker has logged it, and the guest knows from the device's status.
        let device = self.vm.as_mut().and_then(|vm| vm.device(key));
        if let Some(Device { spec, .. }) = device {
            let id = spec.id.clone();
            self.publish("device", "failed", [("id", id), ("reason", chain(error))]);
            // A guest cannot leave without its back-ends, and rounds may be long.
            self.fail_migration(Refusal::failed(error));
        }
        // A boot begins with devices that work.
        if let Some(Phase::Booting(booting)) = self.vm.as_ref().map(|vm| &vm.phase)
            && booting.cause != Cause::Reset
        {
            self.give_boot_up(error.clone().into());
        }
    }

    fn on_guest_ended(&mut self, boot: u64, end: GuestEnd) {
        // Two processors may end the same guest, but only the first ends it: the other's word must not end the next.
        match self.vm.as_ref().map(|vm| &vm.phase) {
            Some(Phase::Live(live)) if live.boot == boot => {}
            _ => return,
        }
        match end {
            GuestEnd::TripleFault => {
                tracing::warn!("the guest's processor gave up: triple fault");
                self.publish("guest", "triple-fault", []);
                self.end(Ok(Ending::TripleFault));
            }
            GuestEnd::Crash(reason) => {
                self.publish("guest", "crash", [("reason", reason.clone())]);
                self.end(Err(Error::Crash(reason)));
            }
            GuestEnd::Request(PowerRequest::Off) => {
                tracing::info!("the guest has powered off");
                self.publish("guest", "power-off", []);
                self.end(Ok(Ending::PowerOff));
            }
            GuestEnd::Request(PowerRequest::Reset(source)) => {
                tracing::info!("the guest asked for a reset through {source}");
                self.publish("guest", "reset", [("source", source.to_string())]);
                match self.on_reset {
                    OnReset::Exit => self.end(Ok(Ending::Reset(source))),
                    OnReset::Restart => self.stop_guest(After::Restart, Waiters::default()),
                }
            }
        }
    }

    pub(super) fn quit(&mut self, why: &str) {
        tracing::info!("ended by {why}");
        self.end(Ok(Ending::Quit));
    }

    /// Makes Ferry end. The first word counts.
    pub(super) fn end(&mut self, how: Result<Ending, Error>) {
        self.ended.get_or_insert(how);
    }

    /// Takes everything apart. Back-ends see their connections closed; who waits for an answer is told that Ferry ends.
    fn close(&mut self) {
        self.wait_for_terminal();
        // From now on no other process starts it.
        if self.claim_guest() {
            self.keep_serial();
        }
        if let Some(VirtualMachine {
            phase: Phase::Live(live),
            ..
        }) = self.vm.take()
        {
            live.machine.stop();
        }
        self.wait_for_snapshot();
        self.wait_for_migration();
        self.wait_for_listener();
        self.publish("vmm", "shutdown", []);
    }

    /// A boot that is just opening the console may be changing the terminal, which has to be put back.
    fn wait_for_terminal(&mut self) {
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(2);
        let deadline = Instant::now() + LIMIT;
        while let Some(Phase::Booting(booting)) = self.vm.as_ref().map(|vm| &vm.phase)
            && !booting.checked
        {
            match self.events.next(Some(deadline)) {
                Ok(Some(Event::Checked { boot, outcome })) => {
                    self.give_boot_up(Error::Cancelled("Ferry ends"));
                    self.on_checked(boot, outcome);
                }
                Ok(Some(Event::Saving { number, word })) => self.on_saving(number, word),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// A snapshot that is complete but for its way to disk is worth waiting for, and one that is not is to leave nothing
    /// behind.
    fn wait_for_snapshot(&mut self) {
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);
        let deadline = Instant::now() + LIMIT;
        self.guest_of_snapshot_ended();
        while self.saving.is_some() {
            match self.events.next(Some(deadline)) {
                Ok(Some(Event::Saving { number, word })) => self.on_saving(number, word),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Who waits for a sender leaves no socket behind.
    fn wait_for_listener(&mut self) {
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(2);
        let deadline = Instant::now() + LIMIT;
        // That Ferry ends is not refused.
        let _ = self.cancel_receiving("Ferry ends");
        while self.receiving.is_some() {
            match self.events.next(Some(deadline)) {
                Ok(Some(Event::Incoming { number, outcome })) => self.on_incoming(number, outcome),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// A receiver is to know that the guest does not come. A guest that was handed over is not waited for.
    fn wait_for_migration(&mut self) {
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(3);
        let deadline = Instant::now() + LIMIT;
        self.guest_of_migration_ended(After::Delete);
        while self.sending.as_ref().is_some_and(|it| !it.is_handed_over()) {
            match self.events.next(Some(deadline)) {
                Ok(Some(Event::Sending { number, word })) => self.on_sending(number, word),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Tells those who watch.
    pub(super) fn publish<const N: usize>(
        &self,
        source: &'static str,
        event: &'static str,
        properties: [(&'static str, String); N],
    ) {
        if let Some(log) = &self.log {
            let properties = properties.map(|(name, value)| (name.to_owned(), value));
            log.publish(source, event, properties.into());
        }
    }
}
