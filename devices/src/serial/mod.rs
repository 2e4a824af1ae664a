//! The serial port, a 16550 at I/O port 0x3f8, and where it leads.
//!
//! ```text
//!  vCPU threads                              serial thread
//!  write ─▶ Uart ─▶ Output (1 MiB, bounded) ─────▶ terminal, pty, file, socket
//!  read  ◀─ Uart ◀─ backlog (4 KiB)         ◀───── terminal, pty, socket
//!             └─▶ interrupt eventfd
//! ```
//!
//! A vCPU thread never waits for the far end: it puts bytes into a queue in memory, whose oldest bytes
//! give way when it is full. In the other direction nothing is lost: what does not fit into the
//! guest's FIFO stays in the backlog, and what does not fit there is not read from the far end yet.

mod escape;
mod lending;
mod loss;
mod output;
mod pty;
mod sink;
mod socket;
mod stdio;
#[cfg(test)]
mod tests;
mod uart;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

pub use lending::{ClientV1, FarEndV1, Rest, RestV1, SocketFileV1};
use lending::{Duty, Lendable, Pending, Post};
use output::Output;
use sink::Opened;
pub use sink::Sink;
use uart::Uart;
pub use uart::{BadSerialState, SerialStateV1};

/// The far end of the serial port cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// A file or socket cannot be made or opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The path, as the user gave it.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Another process listens on the socket.
    #[error("another process listens on {}", path.display())]
    InUse {
        /// The path, as the user gave it.
        path: PathBuf,
    },
    /// The terminal, a pseudo-terminal or the serial thread is not to be had.
    #[error("cannot set up {what}")]
    Setup {
        /// What was being set up.
        what: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// What the serial port signals.
#[derive(Debug)]
pub struct SerialEvents {
    /// The guest's interrupt; an irqfd on the line of COM1, edge-triggered. Non-blocking.
    pub interrupt: EventFd,
    /// The operator typed Ctrl-A x: the VMM is to end.
    pub escape: EventFd,
}

/// A 16550 with its far end.
///
/// Dropping it stops the serial thread without waiting for it; output that is still queued is lost
/// unless [`SerialPort::flush`] came first.
#[derive(Debug)]
pub struct SerialPort {
    shared: Arc<Shared>,
    pty: Option<PathBuf>,
    socket: Option<socket::SocketFile>,
    lendable: Lendable,
    /// Of a far end that was another process's, until the rest of it is there.
    pending: Mutex<Option<Pending>>,
    /// Output that another process has left, until the guest is this one's.
    held: Mutex<Vec<u8>>,
}

/// What vCPU threads and the serial thread have in common.
#[derive(Debug)]
struct Shared {
    uart: Mutex<Uart>,
    output: Arc<Output>,
    duty: Duty,
    stop: AtomicBool,
}

impl Shared {
    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SerialPort {
    /// Opens the far end and starts the thread that serves it.
    ///
    /// The thread inherits the caller's signal mask.
    pub fn new(sink: &Sink, events: SerialEvents) -> Result<Self, SerialError> {
        Self::on(sink::open(sink)?, events)
    }

    fn on(opened: Opened, events: SerialEvents) -> Result<Self, SerialError> {
        Self::with_post(opened, events, Post::Serving)
    }

    fn with_post(opened: Opened, events: SerialEvents, post: Post) -> Result<Self, SerialError> {
        let setup = |cause| SerialError::Setup {
            what: "an event descriptor",
            cause,
        };
        let lendable = Lendable::of(&opened).map_err(setup)?;
        let output = Arc::new(Output::new().map_err(setup)?);
        let waits = matches!(post, Post::Away);
        let shared = Arc::new(Shared {
            uart: Mutex::new(Uart::new(events.interrupt, Arc::clone(&output))),
            output,
            duty: Duty::new(match opened.line {
                Some(_) => post,
                None => Post::Unmanned,
            }),
            stop: AtomicBool::new(false),
        });
        let mut pending = None;
        match opened.line {
            None => shared.output.discard(),
            Some(line) if waits => {
                let escape = events.escape;
                pending = Some(Pending { line, escape });
            }
            Some(line) => worker::start(line, Arc::clone(&shared), events.escape)?,
        }
        Ok(Self {
            shared,
            pty: opened.pty,
            socket: opened.socket,
            lendable,
            pending: Mutex::new(pending),
            held: Mutex::default(),
        })
    }

    /// Reads the register at `offset` (0 to 7). Called on vCPU threads; returns at once.
    pub fn read(&self, offset: u8) -> u8 {
        self.shared.uart().read(offset)
    }

    /// Writes the register at `offset` (0 to 7). Called on vCPU threads; returns at once.
    pub fn write(&self, offset: u8, value: u8) {
        self.shared.uart().write(offset, value);
    }

    /// Puts the registers into the state they have after power-on. The far end stays, and so does what
    /// is queued in both directions.
    pub fn reset(&self) {
        self.shared.uart().reset();
    }

    /// The registers, and input that the guest has not read. The vCPUs are at rest.
    pub fn save(&self) -> SerialStateV1 {
        self.shared.uart().save()
    }

    /// Takes over saved registers and input in place of its own, as a whole. The far end stays; what it has sent already
    /// comes after the saved input. An interrupt that was pending is raised again: interrupt controllers and processors
    /// have to have their state.
    ///
    /// # Errors
    /// No serial port can have had such a state. Then nothing has changed.
    pub fn load(&self, state: &SerialStateV1) -> Result<(), BadSerialState> {
        self.shared.uart().load(state)
    }

    /// Waits until the far end has taken all output, up to `limit`; not at all if there is
    /// nobody to take it. Returns the number of bytes that remain; what another process has taken over does not.
    pub fn flush(&self, limit: Duration) -> usize {
        match self.shared.duty.is_away() {
            true => 0,
            false => self.shared.output.flush(limit),
        }
    }

    /// Number of bytes of output lost because the far end was too slow, or not there.
    pub fn lost(&self) -> u64 {
        self.shared.output.lost()
    }

    /// The path of the pseudo-terminal, with [`Sink::Pty`].
    pub fn pty(&self) -> Option<&std::path::Path> {
        self.pty.as_deref()
    }
}

impl Drop for SerialPort {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.output.wake();
    }
}
