//! The vmm thread: owner of the virtual machine from its definition to its end.
//!
//! ```text
//!            create           boot                      pause, resume
//!  (absent) ───────▶ Created ──────▶ booting ──▶ Running ⇄ pausing, Paused, resuming
//!     ▲                 │               ▲          │   │ reset, vm.reboot
//!     │ delete          │ delete   boot │          │   ▼
//!     └── deleting ◀────┴──────────── Shutdown ◀───┘  rebooting ──▶ Running
//!                                             shutting down
//! ```
//!
//! One thread owns all of this ([`Vmm`]) and waits for nothing but events, so that whoever asks is answered at once
//! ([`table`] says what is allowed when). What takes time is done elsewhere and reported here: files, RAM and KVM by
//! a [`boot`] job, whatever a back-end has to answer by that device's own worker.

mod boot;
mod boot_job;
mod counters;
mod describe;
mod devices;
mod pause;
mod receiving;
mod requests;
mod restoring;
mod saving;
mod sending;
mod stop;
mod table;
#[cfg(test)]
mod tests;
mod vm;
mod vmm;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use ferry_api::config::{Timeouts, VmConfig};
use ferry_api::control::Refusal;
use ferry_api::events::{EventLog, Monitor};
use ferry_api::server::{Limits, Server, ServerSocket, SocketError, SocketPlace};
use ferry_api::snapshot::RestoreRequest;
use ferry_devices::power::ResetSource;
use ferry_devices::vhost_user;

use crate::cli::OnReset;
use crate::{console, hypervisor, machine, memory, migration, payload, snapshot};

pub use boot_job::{Built, Outside};
pub use devices::{DeviceKey, Ready};
use vmm::Vmm;

/// How a run has ended in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest has powered itself off.
    PowerOff,
    /// The operator has ended it.
    Quit,
    /// The guest wanted a reset, and [`OnReset::Exit`] was asked for.
    Reset(ResetSource),
    /// The guest's processor gave up.
    TripleFault,
    /// The guest runs elsewhere now.
    Migrated,
    /// The guest was handed to another process, which has ended since.
    Lost,
}

/// Why a guest could not be started or run on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Device(#[from] vhost_user::Error),
    #[error(transparent)]
    Payload(#[from] payload::Error),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Console(#[from] console::Error),
    #[error("the guest cannot be restored")]
    Snapshot(#[from] snapshot::Error),
    #[error("the guest cannot be received")]
    Migration(#[from] migration::Error),
    #[error("cannot {step}")]
    System {
        step: &'static str,
        source: io::Error,
    },
    #[error("--api-socket")]
    ApiSocket(#[from] SocketError),
    #[error("--event-monitor")]
    Monitor(#[source] io::Error),
    #[error("the guest crashed: {0}")]
    Crash(String),
    #[error("the guest has ended meanwhile")]
    Ended,
    #[error("it was given up: {0}")]
    Cancelled(&'static str),
}

impl Error {
    /// Whether it is the user's to mend: exit status 2.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Payload(_) | Error::ApiSocket(_) | Error::Monitor(_) => true,
            Error::Device(error) => error.is_unreachable(),
            Error::Console(error) => error.is_usage(),
            _ => false,
        }
    }

    /// As a client is told.
    fn refusal(&self) -> Refusal {
        let mut refusal = Refusal::failed(self);
        // A flag alone is no reason, and not what a client has written.
        if refusal.chain.len() > 1
            && let Some(field) = refusal.chain[0].strip_prefix("--").map(str::to_owned)
        {
            refusal.chain.remove(0);
            refusal.chain[0].insert_str(0, &format!("{field}: "));
        }
        refusal
    }
}

fn system(step: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { step, source }
}

/// What is done before any client can ask for anything.
pub enum First {
    Boot(VmConfig),
    Restore(RestoreRequest),
}

/// What to run, and how.
pub struct Plan {
    /// What is done at once; none if clients are to say.
    pub first: Option<First>,
    /// Where clients are served.
    pub api_socket: Option<SocketPlace>,
    /// Where events are written.
    pub event_monitor: Option<Monitor>,
    pub timeouts: Timeouts,
    pub on_reset: OnReset,
}

/// Runs until Ferry is to end.
///
/// # Errors
/// What made the guest that was asked for on the command line, or Ferry itself, fail.
pub fn run(plan: Plan) -> Result<Ending, Error> {
    // What the user may have got wrong comes before anything is started, and before any descriptor is opened whose
    // number the user may have named.
    if let Some(Monitor::Fd(fd)) = &plan.event_monitor {
        open_already(*fd).map_err(Error::Monitor)?;
    }
    let socket = plan
        .api_socket
        .as_ref()
        .map(ServerSocket::open)
        .transpose()?;
    // Before there is any thread.
    let mut vmm = Vmm::new(&plan)?;
    let server = match (socket, plan.event_monitor) {
        (None, None) => None,
        (socket, monitor) => {
            let log = Arc::new(EventLog::new(monitor).map_err(Error::Monitor)?);
            vmm.watch(log.clone());
            let control = Arc::new(vmm.control());
            socket
                .map(|socket| Server::start(socket, control, log, Limits::default()))
                .transpose()
                .map_err(system("start the API's thread"))?
        }
    };
    if let Some(server) = &server {
        vmm.receive_clients_at(server.reception());
    }
    let ending = vmm.run(plan.first);
    // Writes the answers that are still to be written.
    drop(server);
    ending
}

/// Makes sure that there is such a descriptor.
fn open_already(fd: RawFd) -> io::Result<()> {
    // SAFETY: the call reads the flags of a descriptor, if there is one, and has no memory arguments.
    match unsafe { libc::fcntl(fd, libc::F_GETFD) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
