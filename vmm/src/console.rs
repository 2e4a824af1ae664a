//! The guest's serial port, connected to where the user wants it.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferry_api::config::SerialConfig;
use ferry_devices::serial::{FarEndV1, Rest, SerialError, SerialEvents, SerialPort, Sink};
use vmm_sys_util::eventfd::EventFd;

use crate::terminal::RawMode;

/// How long the end of the guest's output may take to be written: a reader that has stopped reading does not
/// keep Ferry.
const FLUSH: Duration = Duration::from_secs(2);

/// Why the serial port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--serial")]
    Port(#[from] SerialError),
    #[error("--serial: cannot set up the terminal")]
    Terminal(#[source] io::Error),
}

impl Error {
    /// Whether it is the user's to mend: exit status 2.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Error::Port(SerialError::Open { .. } | SerialError::InUse { .. })
        )
    }
}

/// Whose output comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// That of a guest from its boot on.
    Begins,
    /// That of a guest which has said something already: a file is not emptied.
    GoesOn,
}

/// A far end that another process lends with its guest.
pub struct LentFarEnd {
    pub what: FarEndV1,
    pub handles: Vec<OwnedFd>,
}

/// A serial port and its far end. Both outlive a reboot of the guest.
pub struct Console {
    port: Arc<SerialPort>,
    interrupt: EventFd,
    /// The far end that a guest has had in the process before and is to lose, until it is this one's.
    former: Mutex<Option<SerialPort>>,
    /// Puts the terminal back at the end.
    _raw: Option<RawMode>,
}

impl Console {
    /// Opens what `config` names; none if there is to be no serial port. `escape` is signalled when the operator
    /// types Ctrl-A x.
    pub fn open(
        config: &SerialConfig,
        output: Output,
        escape: EventFd,
    ) -> Result<Option<Console>, Error> {
        let sink = match config {
            SerialConfig::Off => return Ok(None),
            SerialConfig::Null => Sink::Null,
            SerialConfig::Tty => Sink::Tty,
            SerialConfig::Pty => Sink::Pty,
            SerialConfig::File(path) => match output {
                Output::Begins => Sink::File(path.clone()),
                Output::GoesOn => Sink::FileGoesOn(path.clone()),
            },
            SerialConfig::Socket(path) => Sink::Socket(path.clone()),
        };
        let (interrupt, events) = events(escape)?;
        let raw = match sink {
            Sink::Tty => RawMode::enter().map_err(Error::Terminal)?,
            _ => None,
        };
        let port = SerialPort::new(&sink, events)?;
        if let Some(path) = port.pty() {
            // Not a log message, because at the default level the user would not see where to connect.
            // Whoever closed standard error does not want to know.
            let _ = writeln!(
                io::stderr(),
                "ferry: the serial port is at {}",
                path.display()
            );
        }
        Ok(Some(Console {
            port: Arc::new(port),
            interrupt,
            former: Mutex::default(),
            _raw: raw,
        }))
    }

    /// A console on a far end that another process has still got, until the guest is this process's ([`Console::serve`]).
    pub fn on_lent(far_end: LentFarEnd, escape: EventFd) -> Result<Console, Error> {
        let (interrupt, events) = events(escape)?;
        let LentFarEnd { what, handles } = far_end;
        Ok(Console {
            port: Arc::new(SerialPort::on_lent(&what, handles, events)?),
            interrupt,
            former: Mutex::default(),
            _raw: None,
        })
    }

    /// Takes a far end that the guest has had elsewhere and loses with its arrival: nobody else removes its socket.
    pub fn replace(&self, far_end: LentFarEnd) -> Result<(), Error> {
        let unused =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::Terminal)?;
        let LentFarEnd { what, handles } = far_end;
        let former = SerialPort::on_lent(&what, handles, events(unused)?.1)?;
        *self.former() = Some(former);
        Ok(())
    }

    /// The far end is this process's: again, or for the first time.
    pub fn serve(&self) {
        let former = self.former().take();
        if let Some(former) = former {
            former.serve();
        }
        self.port.serve();
    }

    /// Gives the far end to another process; `take` gets what is left of it, and must not wait.
    pub fn lend(&self, take: impl FnOnce(io::Result<Rest>) + Send + 'static) {
        self.port.lend(take);
    }

    fn former(&self) -> std::sync::MutexGuard<'_, Option<SerialPort>> {
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port, for the machine's I/O space.
    pub fn port(&self) -> &Arc<SerialPort> {
        &self.port
    }

    /// Signalled when the port wants the guest's attention.
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }
}

fn events(escape: EventFd) -> Result<(EventFd, SerialEvents), Error> {
    let interrupt =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::Terminal)?;
    let events = SerialEvents {
        interrupt: interrupt.try_clone().map_err(Error::Terminal)?,
        escape,
    };
    Ok((interrupt, events))
}

impl Drop for Console {
    fn drop(&mut self) {
        let rest = self.port.flush(FLUSH);
        if rest > 0 {
            tracing::warn!("serial: {rest} bytes of the guest's output were not taken in time");
        }
    }
}
