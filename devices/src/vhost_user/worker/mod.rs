//! A device's worker: the one thread that speaks with the device's back-end.
//!
//! It connects, negotiates, then waits for whichever comes first of: an order from the transport, something
//! on the main socket (an answer that was late, or the end), a request on the back-end channel, and the
//! handle's being dropped. Orders are carried out one at a time, in the order given.

mod session;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::VhostUserProtocolFeatures;
use vmm_sys_util::eventfd::EventFd;

use super::connection::Connection;
use super::device::{
    Action, Command, ConfigWrite, DeviceObserver, DeviceState, Shared, VhostUserDevice,
};
use super::error::{Cause, Error, chain};
use super::frontend::{Frontend, Patience};
use super::memory::RamRegion;
use super::negotiated::Negotiated;
use super::profile::BackendView;
use super::socket::{poll, poll_entry};
use super::{Limits, negotiation};
use crate::virtio::{Activation, ActivationFailed, ActiveQueue, TransportEvents};

/// How often the rings are looked at while a reset waits for them to run empty.
const DRAIN_INTERVAL: Duration = Duration::from_millis(1);

pub(super) struct Worker {
    shared: Arc<Shared>,
    limits: Limits,
    frontend: Frontend,
    negotiated: Negotiated,
    /// Guest RAM as the back-end has been told of it.
    told_ram: Option<Arc<[RamRegion]>>,
    /// Since the guest's last reset: which rings the back-end has been given.
    session: Option<Session>,
    /// The configuration space has to be fetched again.
    config_is_stale: bool,
    /// Who asked for what is being done, and is still to be answered.
    current: Option<Current>,
    /// Whether the log has been told that the back-end refuses something. A guest can provoke that at will.
    refusal_logged: bool,
    /// The same of requests in flight that delay a reset.
    slow_drain_logged: bool,
}

/// The time from an activation to the reset that ends it.
struct Session {
    /// Where the rings are.
    ram: Arc<[RamRegion]>,
    /// Rings that may be running.
    rings: Vec<ActiveQueue>,
}

/// An order that is being carried out.
enum Current {
    Activation(Arc<dyn TransportEvents>),
    Reset(Arc<dyn TransportEvents>),
}

impl Current {
    fn answer_failed(self) {
        match self {
            Current::Activation(transport) => transport.activated(Err(ActivationFailed)),
            Current::Reset(transport) => transport.reset_done(),
        }
    }
}

/// How a worker's life with its back-end came to its end.
struct Ended {
    cause: Cause,
    unanswered: Option<Current>,
    had_rings: bool,
}

impl Worker {
    /// The thread's whole life.
    pub fn run(shared: Arc<Shared>, limits: Limits, observer: &dyn DeviceObserver) {
        let id = shared.spec.id.clone();
        let worker = match Self::start(&shared, limits) {
            Ok(worker) => worker,
            Err(cause) => {
                let error = error(&shared, cause);
                if shared.end_start(DeviceState::Failed) {
                    observer.ready(&id, Err(error));
                }
                return;
            }
        };
        if !shared.end_start(DeviceState::Idle) {
            return;
        }
        let device = VhostUserDevice::new(Arc::clone(&shared), worker.negotiated.clone());
        observer.ready(&id, Ok(Arc::new(device)));
        // The connection is closed when this returns.
        let ended = worker.serve();
        if matches!(ended.cause, Cause::Stopped) {
            return;
        }
        let error = error(&shared, ended.cause);
        tracing::error!(device = id, "the device has failed: {}", chain(&error));
        shared.set_error(error.clone());
        match ended.unanswered {
            Some(current) => current.answer_failed(),
            None if ended.had_rings => {
                if let Some(transport) = shared.transport() {
                    transport.failed();
                }
            }
            None => {}
        }
        observer.failed(&id, &error);
        serve_failed(&shared);
    }

    fn start(shared: &Arc<Shared>, limits: Limits) -> Result<Self, Cause> {
        let spec = &shared.spec;
        let socket = negotiation::connect(&spec.socket, limits.connect, &shared.stop)?;
        let connection = Connection::new(
            socket,
            spec.id.as_str().into(),
            limits,
            Arc::clone(&shared.stop),
        );
        let mut frontend = Frontend::new(
            connection,
            VhostUserProtocolFeatures::empty(),
            Patience::PerMessage(limits.request),
        );
        let negotiated = negotiation::negotiate(&mut frontend, spec)?;
        tracing::debug!(device = spec.id, ?negotiated, "negotiated");
        if let Some(caution) = spec.profile.rules().caution(negotiated.backend_features) {
            tracing::warn!(device = spec.id, "{caution}");
        }
        Ok(Worker {
            shared: Arc::clone(shared),
            limits,
            frontend,
            negotiated,
            told_ram: None,
            session: None,
            config_is_stale: false,
            current: None,
            refusal_logged: false,
            slow_drain_logged: false,
        })
    }

    fn serve(mut self) -> Ended {
        loop {
            if let Err(cause) = self.turn() {
                return Ended {
                    cause,
                    unanswered: self.current,
                    had_rings: self.session.is_some(),
                };
            }
        }
    }

    /// Waits for something, and does it.
    fn turn(&mut self) -> Result<(), Cause> {
        let deadline = self.frontend.connection().dead_at();
        self.wait(deadline)?;
        while let Some(command) = self.shared.next_command() {
            self.carry_out(command)?;
        }
        // An order does not wait for a queue of writes.
        while !self.shared.has_command()
            && let Some(write) = self.shared.next_write()
        {
            self.write_config(&write)?;
        }
        self.config_is_stale |= self.frontend.connection().take_config_changed();
        let settled = self.frontend.connection().dead_at().is_none();
        if self.config_is_stale && settled {
            self.config_is_stale = false;
            self.fetch_config()?;
        }
        Ok(())
    }

    /// Waits for an order, the back-end or `deadline`, and takes what the back-end sent.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<(), Cause> {
        let connection = self.frontend.connection();
        // poll() skips a negative file descriptor.
        let channel_fd = connection.channel_fd().unwrap_or(-1);
        let mut fds = [
            poll_entry(self.shared.stop.as_raw_fd(), libc::POLLIN),
            poll_entry(self.shared.wake.as_raw_fd(), libc::POLLIN),
            poll_entry(connection.as_raw_fd(), connection.poll_events()),
            poll_entry(channel_fd, libc::POLLIN),
        ];
        poll(&mut fds, deadline).map_err(|source| Cause::Io {
            step: "wait for the back-end",
            source,
        })?;
        let [stop, wake, _main, channel] = fds;
        if stop.revents != 0 {
            return Err(Cause::Stopped);
        }
        if wake.revents != 0 {
            clear(&self.shared.wake);
        }
        if channel.revents != 0 {
            connection.serve_channel()?;
        }
        // Also when it is not ready: an answer may have been owed for too long.
        connection.idle()
    }

    fn carry_out(&mut self, command: Command) -> Result<(), Cause> {
        self.shared.set_state(DeviceState::Changing);
        let deadline = Instant::now() + self.limits.dead;
        self.frontend.set_patience(Patience::Until(deadline));
        let transport = command.transport;
        let result = match command.action {
            Action::Activate(activation) => {
                self.current = Some(Current::Activation(Arc::clone(&transport)));
                self.activate(activation).map(|outcome| {
                    self.current = None;
                    transport.activated(outcome);
                })
            }
            Action::Reset => {
                self.current = Some(Current::Reset(Arc::clone(&transport)));
                self.reset().map(|()| {
                    self.current = None;
                    transport.reset_done();
                })
            }
        };
        let each = Patience::PerMessage(self.limits.request);
        self.frontend.set_patience(each);
        result
    }

    /// Starts the rings. Where that fails and the connection lives on, the guest may reset the device and try again.
    fn activate(&mut self, activation: Activation) -> Result<Result<(), ActivationFailed>, Cause> {
        match self.start_rings(activation) {
            Ok(()) => {
                self.shared.set_state(DeviceState::Active);
                Ok(Ok(()))
            }
            Err(cause) if cause.is_fatal() => Err(cause),
            Err(cause) => {
                self.log_refusal(cause, "the device could not be activated");
                self.shared.set_state(DeviceState::Idle);
                Ok(Err(ActivationFailed))
            }
        }
    }

    /// Stops the rings and puts the back-end's device into its initial state. A back-end
    /// that cannot be stopped would go on writing to guest memory, so here a late answer is the device's end.
    fn reset(&mut self) -> Result<(), Cause> {
        if let Some(session) = self.session.take() {
            let result = self.end_session(&session);
            if let Err(cause) = result {
                self.session = Some(session);
                return Err(match cause {
                    Cause::Late { request, waited } => Cause::Dead { request, waited },
                    other => other,
                });
            }
        }
        self.shared.set_state(DeviceState::Idle);
        Ok(())
    }

    fn write_config(&mut self, write: &ConfigWrite) -> Result<(), Cause> {
        match self.frontend.set_config(write.offset, &write.data) {
            Err(cause) if cause.is_fatal() => Err(cause),
            Err(cause) => {
                self.log_refusal(cause, "a write to the configuration space was lost");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Fetches the configuration space again and tells the transport if it has changed.
    fn fetch_config(&mut self) -> Result<(), Cause> {
        let size = self.negotiated.config_size;
        if size == 0 {
            return Ok(());
        }
        let fetched = match self.frontend.get_config(size) {
            Ok(fetched) => fetched,
            Err(cause) if cause.is_fatal() => return Err(cause),
            Err(cause) => {
                self.config_is_stale = matches!(cause, Cause::Late { .. });
                self.log_refusal(cause, "the configuration space stays as it was");
                return Ok(());
            }
        };
        let view = BackendView {
            features: self.negotiated.backend_features,
            config: Some(&fetched),
            requested_queues: self.shared.spec.num_queues,
        };
        let config = match self.shared.spec.profile.rules().config(&view) {
            Ok(config) => config,
            Err(reason) => {
                let cause = Cause::Unusable { reason };
                self.log_refusal(cause, "the configuration space stays as it was");
                return Ok(());
            }
        };
        if self.shared.set_config(config)
            && let Some(transport) = self.shared.transport()
        {
            transport.config_changed();
        }
        Ok(())
    }

    fn log_refusal(&mut self, cause: Cause, consequence: &str) {
        let error = error(&self.shared, cause);
        let id = &self.shared.spec.id;
        if self.refusal_logged {
            tracing::debug!(device = id, "{consequence}: {}", chain(&error));
        } else {
            self.refusal_logged = true;
            tracing::warn!(device = id, "{consequence}: {}", chain(&error));
        }
    }
}

/// What is left to do for a device that has failed: answering.
fn serve_failed(shared: &Shared) {
    loop {
        while let Some(Command { action, transport }) = shared.next_command() {
            match action {
                Action::Activate(_) => transport.activated(Err(ActivationFailed)),
                Action::Reset => transport.reset_done(),
            }
        }
        shared.clear_writes();
        let mut fds = [
            poll_entry(shared.stop.as_raw_fd(), libc::POLLIN),
            poll_entry(shared.wake.as_raw_fd(), libc::POLLIN),
        ];
        if poll(&mut fds, None).is_err() || fds[0].revents != 0 {
            return;
        }
        clear(&shared.wake);
    }
}

fn error(shared: &Shared, cause: Cause) -> Error {
    Error {
        device: shared.spec.id.clone(),
        socket: shared.spec.socket.clone(),
        cause: Arc::new(cause),
    }
}

/// Takes an eventfd's signals; it is non-blocking, and having none is fine.
fn clear(event: &EventFd) {
    let _ = event.read();
}
