//! A device's worker: the one thread that speaks with the device's back-end.
//!
//! It connects, negotiates, then waits for whichever comes first of: an order, something
//! on the main socket (an answer that was late, or the end), a request on the back-end channel, and the
//! handle's being dropped. Orders are carried out one at a time, in the order given.

mod config;
mod drain;
mod live;
mod logging;
mod moving;
mod orders;
mod restore;
mod session;
mod suspend;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::VhostUserProtocolFeatures;
use vmm_sys_util::eventfd::EventFd;

use self::moving::Moving;
use self::orders::Current;
use self::session::Session;
use super::connection::Connection;
use super::device::{DeviceObserver, DeviceState, VhostUserDevice};
use super::dirty_log::DirtyLog;
use super::error::Cause;
use super::frontend::{Frontend, Patience};
use super::memory::RamRegion;
use super::moving::TransferError;
use super::negotiated::Negotiated;
use super::rings::Parts;
use super::shared::Shared;
use super::{Limits, negotiation};
use crate::chain;
use crate::sys::poll::{self, Interest};

/// How often the rings are looked at while something waits for them to run empty.
const DRAIN_INTERVAL: Duration = Duration::from_millis(1);

pub(super) struct Worker {
    shared: Arc<Shared>,
    limits: Limits,
    frontend: Frontend,
    negotiated: Negotiated,
    /// Guest RAM as the back-end has been told of it.
    told_ram: Option<Arc<[RamRegion]>>,
    /// The rings of former sessions, where the back-end was told that they are.
    former: BTreeMap<u16, Parts>,
    /// Since the guest's last reset: which rings the back-end has been given.
    session: Option<Session>,
    /// Whether LOG_ALL may be among the features that the back-end has been told.
    log_all: bool,
    /// Where the back-end is to note what it writes.
    log: Option<Arc<DirtyLog>>,
    /// The move of state that is under way.
    moving: Option<Moving>,
    /// Whether the back-end may still be busy with a move that nobody has asked it about.
    unsettled: bool,
    /// Whether state has been on its way into the back-end since the device last went on.
    loads: bool,
    /// Why the state of the device that is being restored is not there, once that is known.
    not_loaded: Option<TransferError>,
    /// Whether another process has the connection, too: then nothing is said here, and nothing heard.
    lent: bool,
    /// How many moves have been begun.
    moves: u64,
    /// The configuration space has to be fetched again.
    config_is_stale: bool,
    /// Who asked for what is being done, and is still to be answered.
    current: Option<Current>,
    /// Whether the log has been told that the back-end refuses something. A guest can provoke that at will.
    refusal_logged: bool,
    /// The same of requests in flight that delay something.
    slow_drain_logged: bool,
}

/// How a worker's life with its back-end came to its end.
struct Ended {
    cause: Cause,
    unanswered: Option<Current>,
    had_rings: bool,
}

/// Answers those who are still waiting when the worker ends, however it ends.
struct CloseInbox(Arc<Shared>);

impl Drop for CloseInbox {
    fn drop(&mut self) {
        self.0.close_inbox();
    }
}

impl Worker {
    /// The thread's whole life.
    pub fn run(shared: Arc<Shared>, limits: Limits, observer: &dyn DeviceObserver) {
        let id = shared.spec.id.clone();
        let _close = CloseInbox(Arc::clone(&shared));
        let worker = match Self::start(&shared, limits) {
            Ok(worker) => worker,
            Err(cause) => {
                let error = shared.error_from(cause);
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
        worker.live(observer);
    }

    /// The rest of the thread's life, with a back-end.
    fn live(self, observer: &dyn DeviceObserver) {
        let shared = Arc::clone(&self.shared);
        let id = &shared.spec.id;
        // The connection is closed when this returns.
        let ended = self.serve();
        if matches!(ended.cause, Cause::Stopped) {
            return;
        }
        let error = shared.error_from(ended.cause);
        tracing::error!(device = id, "the device has failed: {}", chain(&error));
        shared.set_error(error.clone());
        shared.set_rings(Default::default());
        let told = ended.unanswered.is_some_and(|current| current.fail(&error));
        if !told
            && ended.had_rings
            && let Some(transport) = shared.transport()
        {
            transport.failed();
        }
        observer.failed(id, &error);
        orders::serve_failed(&shared);
    }

    fn start(shared: &Arc<Shared>, limits: Limits) -> Result<Self, Cause> {
        let spec = &shared.spec;
        let socket = negotiation::connect(&spec.socket, limits.connect, &shared.stop)?;
        let mut connection = Connection::new(
            socket,
            spec.id.as_str().into(),
            limits,
            Arc::clone(&shared.stop),
        );
        connection.count_in(Arc::clone(&shared.counters));
        let mut frontend = Frontend::new(
            connection,
            VhostUserProtocolFeatures::empty(),
            Patience::PerMessage(limits.request),
        );
        let negotiated = negotiation::negotiate(&mut frontend, spec)?;
        tracing::debug!(device = spec.id, ?negotiated, "negotiated");
        Ok(Worker::new(shared, limits, frontend, negotiated))
    }

    fn new(
        shared: &Arc<Shared>,
        limits: Limits,
        frontend: Frontend,
        negotiated: Negotiated,
    ) -> Self {
        Worker {
            shared: Arc::clone(shared),
            limits,
            frontend,
            negotiated,
            told_ram: None,
            former: BTreeMap::new(),
            session: None,
            log_all: false,
            log: None,
            moving: None,
            unsettled: false,
            loads: false,
            not_loaded: None,
            lent: false,
            moves: 0,
            config_is_stale: false,
            current: None,
            refusal_logged: false,
            slow_drain_logged: false,
        }
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
        match self.lent {
            true => self.wait_for_orders()?,
            false => {
                let deadline = self.frontend.connection().dead_at();
                self.wait(deadline)?;
            }
        }
        while let Some(order) = self.shared.next_order() {
            self.carry_out(order)?;
        }
        if self.lent {
            return Ok(());
        }
        // An order does not wait for a queue of writes.
        while !self.shared.has_order(|_| true)
            && let Some(write) = self.shared.next_write()
        {
            self.write_config(&write)?;
        }
        self.refresh_config()
    }

    /// Waits for an order, the back-end or `deadline`, and takes what the back-end sent.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<(), Cause> {
        let connection = self.frontend.connection();
        let mut entries = [
            poll::entry(Some(&*self.shared.stop), Interest::Read),
            poll::entry(Some(&self.shared.wake), Interest::Read),
            poll::entry(Some(&*connection), connection.interest()),
            poll::entry(connection.channel(), Interest::Read),
        ];
        poll::wait(&mut entries, deadline).map_err(|source| Cause::Io {
            step: "wait for the back-end",
            source,
        })?;
        let [stop, wake, _main, channel] = entries.map(|entry| poll::ready(&entry));
        if stop {
            return Err(Cause::Stopped);
        }
        if wake {
            clear(&self.shared.wake);
        }
        if channel {
            connection.serve_channel()?;
        }
        // Also when it is not ready: an answer may have been owed for too long.
        connection.idle()
    }

    /// Waits for an order, and for nothing else.
    fn wait_for_orders(&mut self) -> Result<(), Cause> {
        let mut entries = [
            poll::entry(Some(&*self.shared.stop), Interest::Read),
            poll::entry(Some(&self.shared.wake), Interest::Read),
        ];
        poll::wait(&mut entries, None).map_err(|source| Cause::Io {
            step: "wait for an order",
            source,
        })?;
        if poll::ready(&entries[0]) {
            return Err(Cause::Stopped);
        }
        clear(&self.shared.wake);
        Ok(())
    }

    fn log_refusal(&mut self, cause: Cause, consequence: &str) {
        let error = self.shared.error_from(cause);
        let id = &self.shared.spec.id;
        if self.refusal_logged {
            tracing::debug!(device = id, "{consequence}: {}", chain(&error));
        } else {
            self.refusal_logged = true;
            tracing::warn!(device = id, "{consequence}: {}", chain(&error));
        }
    }
}

/// Takes an eventfd's signals; it is non-blocking, and having none is fine.
fn clear(event: &EventFd) {
    let _ = event.read();
}
