//! The far end on its way to another process of the host, which goes on with it: nothing is opened anew, so that whoever is there does
//! not notice.
//!
//! ```text
//!                lend             at rest: the thread tells what is left
//!   Serving ───────────▶ Leaving ────────────────────────────────────────▶ Away
//!      ▲                    │                                               │
//!      └────── serve ───────┴───────────────────── serve ───────────────────┘
//! ```
//!
//! From *Away* on the serial thread touches the far end no more: whatever comes from there is the other process's to read. It begins in
//! that state where the far end was another process's before. A port that ends there leaves the far end alone.
//!
//! What can be said while the guest runs is [`SerialPort::far_end`]; what only its standstill settles, namely output that has not got
//! through and a client, is [`Rest`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_migration::stream::Saved;
use vmm_sys_util::eventfd::EventFd;

use super::output::OUTPUT_MOST;
use super::sink::{Failure, Line, Opened, duplicate};
use super::socket::{Identity, SocketFile};
use super::worker::CHUNK;
use super::{SerialError, SerialEvents, SerialPort, pty, worker};

/// What a far end is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FarEndV1 {
    /// There is none, or it takes nothing.
    Nowhere,
    /// Standard input and output, which stay with the process that was started on them.
    Terminal,
    /// A file or a FIFO. One descriptor.
    File,
    /// A pseudo-terminal. Two descriptors: Ferry's side and the clients'.
    Pty,
    /// A unix socket that listens. One descriptor.
    Socket(SocketFileV1),
}

impl FarEndV1 {
    /// How many descriptors go with it.
    pub fn descriptors(&self) -> usize {
        match self {
            FarEndV1::Nowhere | FarEndV1::Terminal => 0,
            FarEndV1::File | FarEndV1::Socket(_) => 1,
            FarEndV1::Pty => 2,
        }
    }
}

/// The place of a socket in the file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFileV1 {
    /// Absolute.
    pub path: PathBuf,
    /// The number of the file system's device.
    pub device: u64,
    /// The file's number.
    pub inode: u64,
}

/// What is left when the guest stands still.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestV1 {
    /// Output that the far end has not taken.
    #[serde(with = "as_bytes")]
    pub output: Vec<u8>,
    /// Who is connected to the socket.
    pub client: ClientV1,
}

/// The most output that is left: what waits, and what the serial thread has taken.
const REST_MOST: usize = OUTPUT_MOST + CHUNK;

impl Saved for RestV1 {
    const SCHEMA: &'static str = "serial-rest";
    const VERSION: u16 = 1;
    const MOST: usize = REST_MOST + 64;
}

/// A client of a socket, of which one descriptor goes along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientV1 {
    /// There is none.
    #[default]
    None,
    /// It sends and takes.
    Both,
    /// It has ended its own direction, and takes what there is.
    Takes,
    /// It takes nothing any more; what it has sent is still read.
    Sends,
}

/// What is left when the guest stands still, with the client's descriptor.
#[derive(Debug, Default)]
pub struct Rest {
    /// What is known of it.
    pub state: RestV1,
    /// The client, if there is one.
    pub client: Option<OwnedFd>,
}

/// Takes the rest, on the serial thread.
pub(super) type Taker = Box<dyn FnOnce(io::Result<Rest>) + Send>;

/// Whose the far end is.
pub(super) enum Post {
    Serving,
    Leaving(Taker),
    Away,
    /// There is no serial thread, or it has failed: there is nothing that could be left.
    Unmanned,
}

impl std::fmt::Debug for Post {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Post::Serving => "Serving",
            Post::Leaving(_) => "Leaving",
            Post::Away => "Away",
            Post::Unmanned => "Unmanned",
        })
    }
}

/// The same, for several threads.
#[derive(Debug)]
pub(super) struct Duty(Mutex<Post>);

impl Duty {
    pub fn new(post: Post) -> Self {
        Duty(Mutex::new(post))
    }

    pub fn post(&self) -> MutexGuard<'_, Post> {
        lock(&self.0)
    }

    /// Whether the far end is, or is about to be, another process's.
    pub fn is_away(&self) -> bool {
        matches!(*self.post(), Post::Leaving(_) | Post::Away)
    }
}

/// A far end that has come from another process, until the rest is there.
#[derive(Debug)]
pub(super) struct Pending {
    pub line: Line,
    pub escape: EventFd,
}

/// Descriptors of the far end that stay the same for as long as there is a port, for another process.
#[derive(Debug, Default)]
pub(super) struct Lendable {
    what: Option<FarEndV1>,
    handles: Vec<OwnedFd>,
}

impl Lendable {
    /// Of what was opened.
    pub fn of(opened: &Opened) -> io::Result<Self> {
        let Some(line) = &opened.line else {
            return Ok(Lendable::default());
        };
        let copy = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
        let (what, handles) = match (&opened.socket, &line.listener, &line.keep, &line.output) {
            _ if line.escape.is_some() => (FarEndV1::Terminal, Vec::new()),
            (Some(file), Some(listener), ..) => (file.describe()?, vec![copy(listener)?]),
            (_, _, Some(keep), Some(output)) => (FarEndV1::Pty, vec![copy(output)?, copy(keep)?]),
            (_, _, None, Some(output)) => (FarEndV1::File, vec![copy(output)?]),
            _ => return Ok(Lendable::default()),
        };
        Ok(Lendable {
            what: Some(what),
            handles,
        })
    }
}

impl SocketFile {
    fn describe(&self) -> io::Result<FarEndV1> {
        let Some(Identity { device, inode }) = self.identity else {
            return Ok(FarEndV1::Nowhere);
        };
        Ok(FarEndV1::Socket(SocketFileV1 {
            path: std::path::absolute(&self.path)?,
            device,
            inode,
        }))
    }
}

impl SerialPort {
    /// What another process needs beforehand to go on with the far end.
    pub fn far_end(&self) -> (FarEndV1, Vec<BorrowedFd<'_>>) {
        let Lendable { what, handles } = &self.lendable;
        let handles = handles.iter().map(AsFd::as_fd).collect();
        (what.clone().unwrap_or(FarEndV1::Nowhere), handles)
    }

    /// Has the serial thread stop, in both directions, and tell what is left. `take` is called on that thread, unless
    /// [`SerialPort::serve`] comes first; a write that is under way is waited for. The vCPUs are at rest.
    pub fn lend(&self, take: impl FnOnce(io::Result<Rest>) + Send + 'static) {
        let stays = matches!(self.lendable.what, None | Some(FarEndV1::Terminal));
        let mut post = self.shared.duty.post();
        if stays || matches!(*post, Post::Unmanned) {
            drop(post);
            return take(Ok(Rest::default()));
        }
        *post = Post::Leaving(Box::new(take));
        drop(post);
        if let Some(file) = &self.socket {
            file.leave();
        }
        self.shared.output.wake();
    }

    /// The far end is this process's, again or for the first time. It may be said at any time.
    pub fn serve(&self) {
        let held = std::mem::take(&mut *lock(&self.held));
        if !held.is_empty() {
            self.shared.output.refill(&held);
        }
        let mut post = self.shared.duty.post();
        if matches!(*post, Post::Leaving(_) | Post::Away) {
            *post = Post::Serving;
        }
        drop(post);
        if let Some(file) = &self.socket {
            file.keep();
        }
        self.shared.output.wake();
    }

    /// A port on a far end that another process has still got. Nothing is done with it before [`SerialPort::serve`].
    ///
    /// # Errors
    /// The descriptors are not what `what` says.
    pub fn on_lent(
        what: &FarEndV1,
        handles: Vec<OwnedFd>,
        events: SerialEvents,
    ) -> Result<Self, SerialError> {
        let opened = take_apart(what, handles).map_err(|cause| SerialError::Setup {
            what: "the serial port's far end, which was handed over",
            cause,
        })?;
        Self::with_post(opened, events, Post::Away)
    }

    /// Takes the rest of a far end that was lent; of one that leads elsewhere now, what has not got through. Before
    /// [`SerialPort::serve`] nothing is done with it.
    ///
    /// # Errors
    /// There cannot be such a rest, or the system refuses.
    pub fn take_rest(&self, rest: Rest) -> Result<(), SerialError> {
        let setup = |cause| SerialError::Setup {
            what: "the serial port's far end, which was handed over",
            cause,
        };
        let Rest {
            state: RestV1 { output, client },
            client: handle,
        } = rest;
        if output.len() > REST_MOST {
            return Err(setup(io::ErrorKind::InvalidData.into()));
        }
        *lock(&self.held) = output;
        let pending = lock(&self.pending).take();
        let Some(Pending { mut line, escape }) = pending else {
            return Ok(());
        };
        if let Some(handle) = handle {
            let socket = std::os::unix::net::UnixStream::from(handle);
            socket.set_nonblocking(true).map_err(setup)?;
            let file = File::from(OwnedFd::from(socket));
            if matches!(client, ClientV1::Both | ClientV1::Sends) {
                line.input = Some(duplicate(&file).map_err(setup)?);
            }
            if matches!(client, ClientV1::Both | ClientV1::Takes) {
                line.output = Some(file);
            }
        }
        worker::start(line, self.shared.clone(), escape)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_apart(what: &FarEndV1, handles: Vec<OwnedFd>) -> io::Result<Opened> {
    let mut handles = handles.into_iter();
    let mut next = || {
        let missing = || io::Error::other("a descriptor is missing");
        handles.next().ok_or_else(missing)
    };
    let mut opened = Opened {
        line: None,
        pty: None,
        socket: None,
    };
    match what {
        FarEndV1::Nowhere | FarEndV1::Terminal => {}
        FarEndV1::File => {
            let mut line = Line::new(Failure::Loses);
            line.output = Some(next()?.into());
            opened.line = Some(line);
        }
        FarEndV1::Pty => {
            let pty = pty::of_another(next()?.into(), next()?)?;
            opened.line = Some(pty.line);
            opened.pty = Some(pty.path);
        }
        FarEndV1::Socket(file) => {
            let listener = UnixListener::from(next()?);
            listener.set_nonblocking(true)?;
            let mut line = Line::new(Failure::WaitsForClient);
            line.listener = Some(listener);
            opened.line = Some(line);
            opened.socket = Some(SocketFile::of_another(file));
        }
    }
    Ok(opened)
}

/// A megabyte byte by byte would take its time.
mod as_bytes {
    use serde::de::Visitor;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_bytes(Bytes)
    }

    struct Bytes;

    impl Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("bytes")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }
    }
}
