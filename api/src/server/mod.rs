//! The REST server: HTTP/1.1 on a unix socket, on one thread of its own.
//!
//! The thread runs one single-threaded runtime. It never waits for the owner of the virtual machine: each request is a
//! task that awaits its [`Reply`](crate::control::Reply), so that ping and info answer while a pause takes its time. A
//! client that leaves drops its wait; what it asked for goes on.
//!
//! A connection is in one of these phases, which decide what may be closed and when:
//!
//! ```text
//!        first byte        head complete        body complete          answer known
//!   Idle ─────────▶ Head ──────────────▶ Body ──────────────▶ Answering ────────▶ Writing
//!    ▲                                                                              │
//!    └──────────────────────────── all of it written ───────────────────────────────┘
//! ```
//!
//! - *Head* and *Body* together, and *Writing*, end after [`Limits::receive`]: a slow client is closed, with status 408 if
//!   its head had arrived.
//! - *Idle* may last for ever, unless another process takes this one's place ([`Reception`]). When [`Limits::connections`]
//!   are open and another client comes, the connection that has waited longest for its client is closed, so that clients
//!   that are slow on purpose do not lock out others. A connection whose request is being answered is never closed for
//!   that; if all are, the new one is.
//! - Bodies in memory are bounded one by one and all together; what is beyond is read and thrown away, so that the client
//!   gets to read the answer.

mod action;
mod answer;
mod body;
mod connection;
mod metrics;
mod reception;
mod response;
pub(crate) mod routes;
mod socket;
mod stream;
mod table;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;

pub use action::{Action, Failure, read_action};
pub use reception::{Pausing, Reception};
pub use socket::{LentSocket, ServerSocket, SocketError, SocketFile, SocketPlace, WrongPlace};

use crate::control::Control;
use crate::events::EventLog;
use body::Budget;
use table::Table;

/// What clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a request to its last, and for writing the answer.
    pub receive: Duration,
    /// Connections at once.
    pub connections: usize,
    /// Requests at once whose answer takes its time, such as a pause, their clients still there or not. With those who
    /// wait for events far fewer than connections, so that there is always room for somebody else.
    pub unanswered: usize,
    /// Requests at once in the hands of the owner that it answers as soon as it gets to them. More wait for their turn.
    pub prompt: usize,
    /// Bytes in one body.
    pub body: usize,
    /// Bytes in all bodies together.
    pub bodies: usize,
    /// Clients at once that wait for events.
    pub watchers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            receive: Duration::from_secs(10),
            connections: 256,
            unanswered: 64,
            prompt: 64,
            body: 4 << 20,
            bodies: 32 << 20,
            watchers: 64,
        }
    }
}

/// The largest head of a request, and what is read ahead at most, in bytes.
const HEAD_MOST: usize = 16 << 10;
/// The most fields in the head of a request.
const FIELDS_MOST: usize = 100;
/// How long the end waits for answers to be written.
const FAREWELL: Duration = Duration::from_millis(500);
/// How often slow clients are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How long accepting pauses when the system has no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// How long a complaint holds: where descriptors come and go, each failure may be the first one.
const SILENCE: Duration = Duration::from_secs(60);

/// A server that runs. Dropped, it writes the answers that are known, ends its thread and removes its socket.
#[derive(Debug)]
pub struct Server {
    reception: Reception,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no descriptor or thread left.
    pub fn start(
        socket: ServerSocket,
        control: Arc<dyn Control>,
        events: Arc<EventLog>,
        limits: Limits,
    ) -> io::Result<Server> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let (reception, orders) = reception::new(&socket)?;
        let thread = std::thread::Builder::new()
            .name("api".into())
            .spawn(move || {
                let work = Work {
                    control,
                    events,
                    limits,
                };
                run(&runtime, socket, orders, work);
            })?;
        Ok(Server {
            reception,
            thread: Some(thread),
        })
    }

    /// What says whether clients are taken in, and where.
    pub fn reception(&self) -> Reception {
        self.reception.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.reception.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread is started with.
struct Work {
    control: Arc<dyn Control>,
    events: Arc<EventLog>,
    limits: Limits,
}

/// What all connections share.
struct Shared {
    control: Arc<dyn Control>,
    events: Arc<EventLog>,
    limits: Limits,
    /// Apart from each other, so that clients that ask for a hundred deletions and leave keep nobody from asking how the
    /// machine is, or from ending Ferry.
    unanswered: Arc<Semaphore>,
    prompt: Arc<Semaphore>,
    watchers: Semaphore,
    bodies: Rc<Budget>,
    table: Table,
    /// Turns true when the server is to end.
    stop: watch::Sender<bool>,
}

fn run(runtime: &Runtime, socket: ServerSocket, orders: reception::Orders, work: Work) {
    let limits = work.limits;
    let shared = Rc::new(Shared {
        control: work.control,
        events: work.events,
        limits,
        unanswered: Arc::new(Semaphore::new(limits.unanswered)),
        prompt: Arc::new(Semaphore::new(limits.prompt)),
        watchers: Semaphore::new(limits.watchers),
        bodies: Rc::new(Budget::new(limits.bodies)),
        table: Table::default(),
        stop: watch::Sender::new(false),
    });
    LocalSet::new().block_on(runtime, async move {
        let sweeping = tokio::task::spawn_local(sweep(shared.clone()));
        // Ends when the server is dropped.
        reception::run(socket, orders, shared.clone()).await;
        sweeping.abort();
        shared.stop.send_replace(true);
        let _ = tokio::time::timeout(FAREWELL, shared.table.emptied()).await;
    });
}

/// What goes wrong again and again is told once, and then again only if it has worked in between, and a while has passed.
#[derive(Debug, Default)]
struct Complaint {
    /// Whether it has not worked since.
    stands: bool,
    last: Option<Instant>,
}

impl Complaint {
    fn make(&mut self, error: &io::Error) {
        let just_now = self.last.is_some_and(|last| last.elapsed() < SILENCE);
        if !std::mem::replace(&mut self.stands, true) && !just_now {
            self.last = Some(Instant::now());
            tracing::warn!("the API cannot take a connection, and tries again: {error}");
        }
    }

    fn withdraw(&mut self) {
        self.stands = false;
    }
}

fn take_in(stream: UnixStream, shared: &Rc<Shared>) {
    if let Some(entry) = shared.table.admit(shared.limits.connections) {
        tokio::task::spawn_local(connection::serve(stream, entry, shared.clone()));
    }
}

/// Takes clients in. Aborted, it loses none: they wait in the socket.
async fn accept(listener: Rc<UnixListener>, shared: Rc<Shared>) {
    let mut complaint = Complaint::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                complaint.withdraw();
                take_in(stream, &shared);
            }
            Err(error) => {
                complaint.make(&error);
                shared.table.close_longest_waiting();
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
        // A flood of new connections does not keep the ones that are there from being served.
        tokio::task::yield_now().await;
    }
}

/// Closes connections whose clients are too slow.
async fn sweep(shared: Rc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        shared.table.close_slow(shared.limits.receive + SWEEP);
    }
}
