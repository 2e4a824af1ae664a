//! What the vmm thread waits for: one queue of events, and signals.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Instant;

use ferry_api::control::{Control, Reply, Request};
use ferry_devices::sys::poll::{self, Interest};
use ferry_devices::{serial, vhost_user};
use vmm_sys_util::eventfd::EventFd;

use crate::cpu::vcpu::GuestEnd;
use crate::lifecycle::{self, Built, DeviceKey, Outside, Ready};
use crate::migration::{self, Incoming, send};
use crate::snapshot;
use crate::snapshot::restore::Found;
use crate::snapshot::save::Word;

/// Something that the vmm thread has to act on.
pub enum Event {
    /// A client wants something.
    Request { request: Request, reply: Reply },
    /// A boot's job has looked at all that the user may have got wrong.
    Checked {
        boot: u64,
        outcome: Result<Outside, lifecycle::Error>,
    },
    /// A back-end has been connected to and negotiated with, or not.
    DeviceReady {
        key: DeviceKey,
        /// For which boot it was begun.
        boot: u64,
        outcome: Result<Ready, vhost_user::Error>,
    },
    /// A boot's job has ended.
    Built {
        boot: u64,
        outcome: Result<Box<Built>, lifecycle::Error>,
    },
    /// The job of a snapshot has come to a point where the owner has something to do.
    Saving { number: u64, word: Word },
    /// The job that sends a guest has come to a point where the owner has something to do.
    Sending { number: u64, word: send::Word },
    /// A sender can come.
    Listening { number: u64 },
    /// A sender has come, and described its guest.
    Incoming {
        number: u64,
        outcome: Result<Box<Incoming>, migration::Error>,
    },
    /// A snapshot has been read and checked, as far as that is possible without its devices.
    Found {
        number: u64,
        outcome: Result<Box<Found>, snapshot::Error>,
    },
    /// A device that was ready is of no use any more.
    DeviceFailed {
        key: DeviceKey,
        error: vhost_user::Error,
    },
    /// A device has come to rest, as it was asked to before a pause, or not.
    DeviceSuspended {
        key: DeviceKey,
        outcome: Result<(), vhost_user::Error>,
    },
    /// A device has given out its connection, as it was asked to before a hand-over, or not.
    DeviceLent {
        key: DeviceKey,
        outcome: Result<Box<vhost_user::Live>, vhost_user::Error>,
    },
    /// The serial port has let go of its far end, as it was asked to before a hand-over, or not.
    SerialLent {
        number: u64,
        outcome: io::Result<serial::Rest>,
    },
    /// A device runs again, as it was asked to after a pause, or not.
    DeviceResumed {
        key: DeviceKey,
        outcome: Result<(), vhost_user::Error>,
    },
    /// A device has stopped all its queues, as it was asked to after a guest's end.
    DeviceQuiet { key: DeviceKey, stop: u64 },
    /// The job that gives back what a guest had is done.
    Cleaned { number: u64 },
    /// The guest has ended.
    GuestEnded { boot: u64, end: GuestEnd },
    /// The operator wants the guest to end: a signal, or the terminal's escape.
    Quit(&'static str),
}

/// The sending half: cheap to clone, and never waits.
#[derive(Clone)]
pub struct EventSender {
    sender: Sender<Event>,
    wake: Arc<EventFd>,
}

impl EventSender {
    /// Hands an event to the vmm thread.
    pub fn send(&self, event: Event) {
        // Without a receiver Ferry is on its way out, and no one needs the event.
        if self.sender.send(event).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

impl Control for EventSender {
    fn submit(&self, request: Request, reply: Reply) {
        self.send(Event::Request { request, reply });
    }
}

/// The vmm thread's half.
pub struct Events {
    receiver: Receiver<Event>,
    sender: EventSender,
    signals: OwnedFd,
    escape: EventFd,
}

/// Signals that end Ferry in good order.
const QUIT_SIGNALS: [(libc::c_int, &str); 3] = [
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGHUP, "SIGHUP"),
];

impl Events {
    /// Takes over the signals of this process: to be called before any other thread is started, because threads
    /// inherit the mask.
    pub fn new() -> io::Result<Self> {
        let signals = block_signals()?;
        let (sender, receiver) = mpsc::channel();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let escape = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Events {
            receiver,
            sender: EventSender { sender, wake },
            signals,
            escape,
        })
    }

    /// A handle for those who have something to tell.
    pub fn sender(&self) -> EventSender {
        self.sender.clone()
    }

    /// To be signalled when the operator types the escape sequence at the guest's terminal.
    pub fn escape(&self) -> io::Result<EventFd> {
        self.escape.try_clone()
    }

    /// The next event; none once `deadline` has passed.
    pub fn next(&self, deadline: Option<Instant>) -> io::Result<Option<Event>> {
        loop {
            // Before looking into the queue, so that what is sent after the look wakes the wait.
            let _ = self.sender.wake.read();
            if let Ok(event) = self.receiver.try_recv() {
                return Ok(Some(event));
            }
            if self.escape.read().is_ok() {
                return Ok(Some(Event::Quit("Ctrl-A x")));
            }
            if let Some(signal) = self.read_signal() {
                return Ok(Some(Event::Quit(signal)));
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(None);
            }
            self.wait(deadline)?;
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> io::Result<()> {
        let mut entries = [
            poll::entry(Some(&*self.sender.wake), Interest::Read),
            poll::entry(Some(&self.signals), Interest::Read),
            poll::entry(Some(&self.escape), Interest::Read),
        ];
        poll::wait(&mut entries, deadline)
    }

    fn read_signal(&self) -> Option<&'static str> {
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has `size` bytes; signalfd writes whole records.
        let read = unsafe { libc::read(self.signals.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if read != size as isize {
            return None;
        }
        // SAFETY: the record was written in full.
        let number = unsafe { info.assume_init() }.ssi_signo as libc::c_int;
        QUIT_SIGNALS
            .iter()
            .find(|(signal, _)| *signal == number)
            .map(|(_, name)| *name)
    }
}

fn block_signals() -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that the other calls work on, and the fd that signalfd returns is
    // new and belongs to no one else.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for (signal, _) in QUIT_SIGNALS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        let result = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}
