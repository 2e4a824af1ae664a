//! A connection between two Ferries that somebody interferes with.
//!
//! It stands between sender and receiver, knows frames from their headers, and passes them on one by one. At a given frame it
//! does what it was told to, and the frame then goes on, or nothing does. Descriptors go on with the frame that they came with.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vm_migration::link::{HANDLES_MOST, Kind};

use crate::process::POLL;

/// Bytes of the preamble, and of the answer to it.
const PREAMBLE: usize = 48;
/// Bytes of control data.
const CONTROL: usize = rustix::cmsg_space!(ScmRights(HANDLES_MOST));
/// Bytes of a frame's header.
const HEADER: usize = 16;

/// Whether something is done before a frame is passed on, or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

/// A frame on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub when: When,
    /// Its kind …
    pub kind: Kind,
    /// … and the how manieth of this kind it is, from 1.
    pub nth: u32,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It goes on.
    PassOn,
    /// It goes on with one bit of the frame changed, in this byte of it. (Its header has 16.)
    Damage(usize),
    /// Both ends are closed, of every connection, and for this time nobody gets through, or until [`FaultProxy::open`].
    Cut(Duration),
    /// Both ends are closed, of this connection alone.
    CutThis,
    /// Nothing more is passed on, on no connection, and nothing is closed. New connections get through.
    Freeze,
}

/// What is done at a place.
pub enum Act {
    /// This. Who is cut off behind a frame does not hear the answer to it.
    Just(Then),
    /// What this says, which may take its time. Meanwhile other frames are passed on.
    Ask(Box<dyn FnOnce() -> Then + Send>),
}

impl Act {
    pub fn ask(act: impl FnOnce() -> Then + Send + 'static) -> Act {
        Act::Ask(Box::new(act))
    }

    pub fn then(self) -> Then {
        match self {
            Act::Just(then) => then,
            Act::Ask(act) => act(),
        }
    }
}

/// A place at which the frame waits for the test.
pub struct Halt {
    reached: Receiver<()>,
    order: Sender<Then>,
}

impl Halt {
    /// This, and what the proxy does there.
    pub fn new() -> (Halt, Act) {
        let (arrive, reached) = channel();
        let (order, orders) = channel();
        let act = move || {
            let _ = arrive.send(());
            // The test has ended.
            orders.recv().unwrap_or(Then::Freeze)
        };
        (Halt { reached, order }, Act::ask(act))
    }

    /// Waits until the frame is there, and waits.
    pub fn reached(&self) {
        let limit = Duration::from_secs(60);
        let reached = self.reached.recv_timeout(limit);
        assert!(reached.is_ok(), "the frame has not come within {limit:?}");
    }

    /// Lets the frame go on, or what else is said here.
    pub fn then(self, then: Then) {
        let _ = self.order.send(then);
    }
}

/// The proxy at work; ends when it is dropped.
pub struct FaultProxy {
    shared: Arc<Shared>,
}

struct Shared {
    to: PathBuf,
    state: Mutex<State>,
    done: Condvar,
    /// Locked for writing where no other frame may be passed on.
    passing: RwLock<()>,
}

struct State {
    /// What is still to be done, one after the other.
    due: VecDeque<(Place, Act)>,
    /// How much of it has not been done, with what is being done.
    undone: usize,
    /// How many frames of the next place's kind have come.
    seen: u32,
    /// Kinds that have come, once each.
    kinds: Vec<Kind>,
    dark_until: Option<Instant>,
    /// The connections, both ends of each.
    connections: Vec<Arc<Connection>>,
    over: bool,
}

struct Connection {
    ends: [UnixStream; 2],
    frozen: Mutex<bool>,
}

impl Connection {
    fn close(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl FaultProxy {
    /// Listens at `at` and leads to `to`. What is to be done is done in its order.
    pub fn start(at: &Path, to: &Path, due: impl IntoIterator<Item = (Place, Act)>) -> Self {
        let listener = UnixListener::bind(at).expect("a socket in a new directory");
        listener.set_nonblocking(true).expect("a flag");
        let due: VecDeque<_> = due.into_iter().collect();
        let shared = Arc::new(Shared {
            to: to.to_owned(),
            state: Mutex::new(State {
                undone: due.len(),
                due,
                seen: 0,
                kinds: Vec::new(),
                dark_until: None,
                connections: Vec::new(),
                over: false,
            }),
            done: Condvar::new(),
            passing: RwLock::new(()),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        FaultProxy { shared }
    }

    /// Waits until all that is to be done has been done; false if that takes too long.
    pub fn wait(&self, limit: Duration) -> bool {
        let state = self.shared.state();
        let waited = self
            .shared
            .done
            .wait_timeout_while(state, limit, |state| state.undone > 0);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.undone == 0
    }

    /// Lets everybody through again.
    pub fn open(&self) {
        self.shared.state().dark_until = None;
    }

    /// The kinds of frames that have come so far.
    pub fn kinds(&self) -> Vec<Kind> {
        self.shared.state().kinds.clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.over = true;
        for connection in state.connections.drain(..) {
            connection.close();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>, listener: &UnixListener) {
        while !self.state().over {
            match listener.accept() {
                Ok((stream, _)) => self.lead(stream),
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    fn lead(self: &Arc<Self>, sender: UnixStream) {
        let dark = self.state().dark_until;
        if dark.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let Ok(receiver) = UnixStream::connect(&self.to) else {
            return;
        };
        let ends = [&sender, &receiver].map(|end| {
            end.set_nonblocking(false).expect("a flag");
            end.try_clone().expect("a descriptor")
        });
        let connection = Arc::new(Connection {
            ends,
            frozen: Mutex::new(false),
        });
        self.state().connections.push(Arc::clone(&connection));
        let pairs = [(&sender, &receiver), (&receiver, &sender)];
        for (from, to) in pairs {
            let (from, to) = (from.try_clone(), to.try_clone());
            let (Ok(from), Ok(to)) = (from, to) else {
                return connection.close();
            };
            let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || shared.pass(&connection, from, to));
        }
    }

    /// Passes one direction on, to its end.
    fn pass(&self, connection: &Connection, mut from: UnixStream, mut to: UnixStream) {
        let mut first = [0; PREAMBLE];
        let introduced = from
            .read_exact(&mut first)
            .and_then(|()| to.write_all(&first));
        // A refusal has no frames behind it.
        let refused = first[8..10] == [0, 0];
        let passed = introduced.and_then(|()| match refused {
            true => io::copy(&mut from, &mut to).map(drop),
            false => self.pass_frames(connection, &from, &to),
        });
        if passed.is_err() && !is_frozen(connection) {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    fn pass_frames(
        &self,
        connection: &Connection,
        from: &UnixStream,
        to: &UnixStream,
    ) -> io::Result<()> {
        loop {
            let mut frame = vec![0; HEADER];
            let mut handles = Vec::new();
            receive(from, &mut frame, &mut handles)?;
            let (kind, length) = header(&frame)?;
            frame.resize(HEADER + length, 0);
            receive(from, &mut frame[HEADER..], &mut handles)?;
            match self.due_at(kind) {
                None => self.forward(connection, to, &frame, handles)?,
                Some((When::Before, act)) => {
                    if let Then::Damage(at) = self.act(act, connection)? {
                        frame[at] ^= 0x10;
                    }
                    self.forward(connection, to, &frame, handles)?;
                }
                Some((When::After, Act::Just(then))) => {
                    let alone = self.passing.write();
                    let passed = forward(connection, to, &frame, handles);
                    self.act(Act::Just(then), connection)?;
                    drop(alone);
                    passed?;
                }
                Some((When::After, act)) => {
                    let passed = self.forward(connection, to, &frame, handles);
                    self.act(act, connection)?;
                    passed?;
                }
            }
        }
    }

    /// Passes a frame on, unless somebody else's has to be the last.
    fn forward(
        &self,
        connection: &Connection,
        to: &UnixStream,
        frame: &[u8],
        handles: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let _with_others = self.passing.read();
        forward(connection, to, frame, handles)
    }

    /// What is to be done at this frame.
    fn due_at(&self, kind: Kind) -> Option<(When, Act)> {
        let mut state = self.state();
        if !state.kinds.contains(&kind) {
            state.kinds.push(kind);
        }
        let place = state.due.front().map(|(place, _)| *place)?;
        state.seen += u32::from(place.kind == kind);
        if place.kind != kind || state.seen != place.nth {
            return None;
        }
        state.seen = 0;
        let (place, act) = state.due.pop_front()?;
        Some((place.when, act))
    }

    fn act(&self, act: Act, connection: &Connection) -> io::Result<Then> {
        let then = act.then();
        let mut state = self.state();
        let outcome = match then {
            Then::PassOn | Then::Damage(_) => Ok(then),
            Then::Cut(dark) => {
                state.dark_until = Some(Instant::now() + dark);
                for connection in &state.connections {
                    connection.close();
                }
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Then::CutThis => {
                connection.close();
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Then::Freeze => {
                for connection in &state.connections {
                    *lock(&connection.frozen) = true;
                }
                Err(io::ErrorKind::BrokenPipe.into())
            }
        };
        state.undone -= 1;
        self.done.notify_all();
        outcome
    }
}

/// Fills the buffer, and takes the descriptors that come with it.
fn receive(from: &UnixStream, mut buffer: &mut [u8], handles: &mut Vec<OwnedFd>) -> io::Result<()> {
    while !buffer.is_empty() {
        let mut space = [MaybeUninit::uninit(); CONTROL];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(buffer)];
        let received = recvmsg(from, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                handles.extend(fds);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[received.bytes..];
    }
    Ok(())
}

fn forward(
    connection: &Connection,
    to: &UnixStream,
    frame: &[u8],
    handles: Vec<OwnedFd>,
) -> io::Result<()> {
    if is_frozen(connection) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    // As without a proxy, who writes to somebody who is gone finds out.
    send(to, frame, handles).inspect_err(|_| connection.close())
}

/// Sends a frame, with its descriptors.
fn send(mut to: &UnixStream, frame: &[u8], handles: Vec<OwnedFd>) -> io::Result<()> {
    let fds: Vec<_> = handles.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let slices = [IoSlice::new(frame)];
    let sent = sendmsg(to, &slices, &mut control, SendFlags::NOSIGNAL)?;
    to.write_all(&frame[sent..])
}

fn is_frozen(connection: &Connection) -> bool {
    *lock(&connection.frozen)
}

fn header(bytes: &[u8]) -> io::Result<(Kind, usize)> {
    let code = u16::from_be_bytes([bytes[0], bytes[1]]);
    let length = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let kind = Kind::ALL.into_iter().find(|kind| *kind as u16 == code);
    let kind = kind.ok_or_else(|| io::Error::other(format!("no kind {code}")))?;
    Ok((kind, length as usize))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
