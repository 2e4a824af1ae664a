//! The serial thread: carries bytes between the queues and the far end.
//!
//! It sleeps in one `poll` for whatever can go on: output that the far end has room for, input that
//! the guest has room for, a client that connects, or a wake-up from a vCPU thread.
//!
//! ```text
//!   with a socket:           accept
//!      Listening ──────────────────────────────▶ Connected
//!          ▲                                         │
//!          └─────────────────────────────────────────┘
//!             both directions have ended; the rest of the output waits for the next client
//! ```
//!
//! While the far end is another process's ([`lending`](super::lending)) it waits for nothing but a wake-up.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::escape::Typed;
use super::lending::{ClientV1, Post, Rest, RestV1};
use super::sink::{Excess, Failure, Line};
use super::{SerialError, Shared};
use crate::sys::poll::{self, Interest};

/// Bytes per read or write. A pipe that reports room takes this many at once (`PIPE_BUF`).
pub const CHUNK: usize = 4096;
/// Input that is read although the guest has no room is thrown away beyond this many waiting bytes.
pub const EXCESS_MOST: usize = 1 << 20;

/// How long accepting pauses when the system has no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Starts the thread, which ends when `shared.stop` is set.
pub fn start(line: Line, shared: Arc<Shared>, escape: EventFd) -> Result<(), SerialError> {
    if line.output.is_none() {
        shared.output.unconnected();
    }
    let mut worker = Worker {
        line,
        shared,
        escape,
        chunk: Vec::with_capacity(CHUNK),
        written: 0,
        told: Told::default(),
    };
    let spawned = thread::Builder::new()
        .name("serial".into())
        .stack_size(128 << 10)
        .spawn(move || worker.run());
    match spawned {
        Ok(_detached) => Ok(()),
        Err(cause) => Err(SerialError::Setup {
            what: "the serial thread",
            cause,
        }),
    }
}

struct Worker {
    line: Line,
    shared: Arc<Shared>,
    escape: EventFd,
    /// Output that has left the queue.
    chunk: Vec<u8>,
    /// How much of it the far end has.
    written: usize,
    told: Told,
}

/// What has been logged and is not to be logged again.
#[derive(Default)]
struct Told {
    input_lost: bool,
    accept_failed: bool,
}

impl Worker {
    fn run(&mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let stepped = match self.is_away() {
                true => self.sleep(),
                false => {
                    self.fetch();
                    self.step()
                }
            };
            if let Err(error) = stepped {
                tracing::error!(device = "serial", "the serial port stops: {error}");
                self.shared.output.discard();
                return;
            }
        }
    }

    /// Whether the far end is another process's. Whoever wants it to be is told what is left of it.
    fn is_away(&self) -> bool {
        let mut post = self.shared.duty.post();
        match &*post {
            Post::Leaving(_) => {}
            Post::Away => return true,
            Post::Serving | Post::Unmanned => return false,
        }
        let before = std::mem::replace(&mut *post, Post::Away);
        // Inside of the lock: if it is to be served again, that is said after this.
        if let Post::Leaving(take) = before {
            take(self.rest());
        }
        true
    }

    fn rest(&self) -> io::Result<Rest> {
        let client = match (&self.line.listener, &self.line.input, &self.line.output) {
            (None, ..) | (_, None, None) => None,
            (_, Some(client), Some(_)) => Some((client, ClientV1::Both)),
            (_, Some(client), None) => Some((client, ClientV1::Sends)),
            (_, None, Some(client)) => Some((client, ClientV1::Takes)),
        };
        let copied = client.map(|(client, _)| client.as_fd().try_clone_to_owned());
        Ok(Rest {
            state: RestV1 {
                output: self.shared.output.rest(&self.chunk[self.written..]),
                client: client.map(|(_, what)| what).unwrap_or_default(),
            },
            client: copied.transpose()?,
        })
    }

    fn sleep(&self) -> io::Result<()> {
        let wake = self.shared.output.wake_event();
        poll::wait(&mut [poll::entry(Some(wake), Interest::Read)], None)?;
        let _ = wake.read();
        Ok(())
    }

    /// Takes output from the queue, if the last piece is written and there is somebody to write to.
    fn fetch(&mut self) {
        if self.written < self.chunk.len() {
            return;
        }
        self.chunk.clear();
        self.written = 0;
        if self.line.output.is_some() {
            self.shared.output.take(&mut self.chunk, CHUNK);
        }
    }

    /// Sleeps, then does what can be done.
    fn step(&mut self) -> io::Result<()> {
        let wants_input = self.reads_all() || self.shared.uart().room() > 0;
        let input = self.line.input.as_ref().filter(|_| wants_input);
        let listener = self.line.listener.as_ref().filter(|_| !self.connected());
        let wake = self.shared.output.wake_event();
        let mut entries = [
            poll::entry(Some(wake), Interest::Read),
            poll::entry(input, Interest::Read),
            self.output_entry(input),
            poll::entry(listener, Interest::Read),
        ];
        poll::wait(&mut entries, None)?;
        let [woken, readable, writable, client] = entries.map(|entry| poll::ready(&entry));
        if woken {
            // Another wake-up may be lost with this one, but not what it was for.
            let _ = wake.read();
            if self.shared.output.loss_begun() {
                tracing::warn!(
                    device = "serial",
                    "output is lost: nobody reads it, or not fast enough"
                );
            }
        }
        if readable {
            self.read();
        }
        if writable {
            self.write();
        }
        if client {
            self.accept();
        }
        Ok(())
    }

    fn connected(&self) -> bool {
        self.line.input.is_some() || self.line.output.is_some()
    }

    /// Whether input is read even if the guest has no room for it. Of a client that takes no output
    /// any more the rest is read, so that there can be a next one: a socket holds only so much.
    fn reads_all(&self) -> bool {
        let leaving = self.line.listener.is_some() && self.line.output.is_none();
        leaving || self.line.excess == Excess::IsRead
    }

    fn output_entry(&self, input: Option<&File>) -> libc::pollfd {
        let output = self.line.output.as_ref();
        if self.written < self.chunk.len() {
            return poll::entry(output, Interest::Write);
        }
        // A client that has ended its own direction may still read. As long as its input is waited
        // for, the end of that tells when it has gone; otherwise only this does.
        let unnoticed = self.line.listener.is_some() && input.is_none();
        poll::entry(output.filter(|_| unnoticed), Interest::HangUp)
    }

    fn read(&mut self) {
        let most = match self.reads_all() {
            true => CHUNK,
            false => self.shared.uart().room().min(CHUNK),
        };
        let mut buffer = [0; CHUNK];
        let Some(input) = &mut self.line.input else {
            return;
        };
        match input.read(&mut buffer[..most]) {
            Ok(0) => self.end_input(),
            Ok(count) => self.receive(&buffer[..count]),
            Err(error) if is_temporary(&error) => {}
            Err(error) => {
                tracing::debug!(device = "serial", "input ends: {error}");
                self.end_input();
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let typed = match &mut self.line.escape {
            Some(escape) => escape.feed(bytes),
            None => Typed {
                bytes: bytes.to_vec(),
                quit: false,
            },
        };
        if typed.quit {
            // The only failure is a counter at its maximum: the VMM knows already.
            let _ = self.escape.write(1);
        }
        let mut uart = self.shared.uart();
        if uart.waiting() <= EXCESS_MOST {
            return uart.receive(&typed.bytes);
        }
        drop(uart);
        if !self.told.input_lost {
            self.told.input_lost = true;
            tracing::warn!(
                device = "serial",
                "input is lost: the guest does not read it"
            );
        }
    }

    fn write(&mut self) {
        let Some(output) = &mut self.line.output else {
            return;
        };
        let rest = &self.chunk[self.written..];
        if rest.is_empty() {
            // The client has hung up.
            return self.end_output();
        }
        match write_once(output, rest) {
            Ok(count) => {
                self.written += count;
                self.shared.output.written(count);
                if let Some(lost) = self.shared.output.loss_ended() {
                    tracing::warn!(device = "serial", "{lost} bytes of output were lost");
                }
            }
            Err(error) if is_temporary(&error) => {}
            Err(error) => self.write_failed(&error),
        }
    }

    fn write_failed(&mut self, error: &io::Error) {
        match self.line.failure {
            Failure::WaitsForClient => self.end_output(),
            Failure::Ends => {
                tracing::warn!(
                    device = "serial",
                    "output goes nowhere from now on: {error}"
                );
                self.line.output = None;
                self.chunk.clear();
                self.written = 0;
                self.shared.output.discard();
            }
            Failure::Loses => {
                let rest = self.chunk.len() - self.written;
                self.written = self.chunk.len();
                if self.shared.output.give_up(rest) {
                    tracing::warn!(device = "serial", "output is lost: {error}");
                }
            }
        }
    }

    fn end_input(&mut self) {
        self.line.input = None;
    }

    fn end_output(&mut self) {
        self.line.output = None;
        self.shared.output.unconnected();
    }

    fn accept(&mut self) {
        let Some(listener) = &self.line.listener else {
            return;
        };
        let accepted = listener.accept().and_then(|(client, _)| {
            client.set_nonblocking(true)?;
            let client = File::from(OwnedFd::from(client));
            Ok((client.try_clone()?, client))
        });
        match accepted {
            Ok((input, output)) => {
                tracing::info!(device = "serial", "a client has connected");
                self.line.input = Some(input);
                self.line.output = Some(output);
                self.shared.output.connected();
            }
            Err(error) if is_temporary(&error) => {}
            Err(error) => {
                if !self.told.accept_failed {
                    self.told.accept_failed = true;
                    tracing::warn!(
                        device = "serial",
                        "cannot accept a client, and will try again without a word: {error}"
                    );
                }
                // Without the pause, a lack of descriptors would make this a busy loop.
                let wake = self.shared.output.wake_event();
                let mut entries = [poll::entry(Some(wake), Interest::Read)];
                let _ = poll::wait(&mut entries, Some(Instant::now() + EXHAUSTED));
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let before = std::mem::replace(&mut *self.shared.duty.post(), Post::Unmanned);
        if let Post::Leaving(take) = before {
            take(Ok(Rest::default()));
        }
    }
}

fn write_once(output: &mut File, bytes: &[u8]) -> io::Result<usize> {
    match output.write(bytes)? {
        0 => Err(ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
    )
}
