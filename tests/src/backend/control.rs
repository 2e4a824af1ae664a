//! The back-end's thread: waits for commands of the test, front-ends, messages and kicks.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use vhost::vhost_user::message::BackendReq;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::script::Script;
use super::session::{Session, Verdict};
use super::wire::{self, Message, flags};
use super::{Options, Shared};

/// What a test tells a running back-end.
#[derive(Debug)]
pub enum Command {
    Die,
    Hang,
    Wake,
    Hold,
    Release,
    AnnounceConfig,
    SendOnChannel(Vec<u8>, usize),
    SendUnasked(Vec<u8>),
}

/// The test's end.
#[derive(Clone, Debug)]
pub struct Remote {
    queue: Arc<Mutex<VecDeque<Command>>>,
    bell: Arc<EventFd>,
}

impl Remote {
    pub fn tell(&self, command: Command) {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(command);
        let _ = self.bell.write(1);
    }
}

/// Listens at `socket` and starts the thread.
pub fn start(
    socket: &Path,
    options: Options,
    script: Script,
    shared: Arc<Shared>,
) -> (Remote, JoinHandle<()>) {
    let listener = UnixListener::bind(socket).expect("a socket in a new directory");
    let queue = Arc::new(Mutex::default());
    let bell = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("an eventfd");
    let remote = Remote {
        queue: Arc::clone(&queue),
        bell: Arc::new(bell.try_clone().expect("an eventfd")),
    };
    let server = Server {
        listener,
        queue,
        bell,
        remote: remote.clone(),
        options: Arc::new(options),
        script,
        shared,
        session: None,
        pace: Pace::Normal,
    };
    let thread = thread::Builder::new()
        .name("test-backend".into())
        .spawn(move || server.run())
        .expect("a thread");
    (remote, thread)
}

/// What the back-end does at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Normal,
    /// Messages, but no requests.
    Holding,
    Hanging,
}

struct Server {
    listener: UnixListener,
    queue: Arc<Mutex<VecDeque<Command>>>,
    bell: EventFd,
    /// For threads that end all this.
    remote: Remote,
    options: Arc<Options>,
    script: Script,
    shared: Arc<Shared>,
    session: Option<Session>,
    pace: Pace,
}

/// What has become ready.
#[derive(Clone, Copy)]
enum Source {
    Bell,
    Listener,
    Socket,
    Channel,
    Kick(usize),
}

impl Server {
    fn run(mut self) {
        loop {
            let result = match self.wait() {
                Source::Bell => match self.obey() {
                    Verdict::Closed => return,
                    Verdict::Open => Ok(Verdict::Open),
                },
                Source::Listener => self.accept(),
                Source::Socket => self.with_session(|session, script| session.serve(script)),
                Source::Channel => self.with_session(|session, _| drain_channel(session)),
                Source::Kick(index) => self.with_session(|session, _| {
                    session.rings[index].take_kick();
                    session.serve_ring(index);
                    Ok(Verdict::Open)
                }),
            };
            if !matches!(result, Ok(Verdict::Open)) && self.session.take().is_some() {
                self.shared.closed();
            }
        }
    }

    fn with_session(
        &mut self,
        act: impl FnOnce(&mut Session, &mut Script) -> io::Result<Verdict>,
    ) -> io::Result<Verdict> {
        match &mut self.session {
            Some(session) => act(session, &mut self.script),
            None => Ok(Verdict::Open),
        }
    }

    fn accept(&mut self) -> io::Result<Verdict> {
        let (socket, _) = self.listener.accept()?;
        self.shared.connected();
        self.session = Some(Session::new(
            socket,
            Arc::clone(&self.options),
            Arc::clone(&self.shared),
            self.remote.clone(),
        ));
        Ok(Verdict::Open)
    }

    fn sources(&self) -> Vec<(Source, RawFd)> {
        let mut sources = vec![(Source::Bell, self.bell.as_raw_fd())];
        if self.pace == Pace::Hanging {
            return sources;
        }
        let Some(session) = &self.session else {
            sources.push((Source::Listener, self.listener.as_raw_fd()));
            return sources;
        };
        sources.push((Source::Socket, session.socket.as_raw_fd()));
        if let Some(channel) = &session.channel {
            sources.push((Source::Channel, channel.as_raw_fd()));
        }
        if self.pace == Pace::Normal {
            for (index, ring) in session.rings.iter().enumerate() {
                if let (true, Some(kick)) = (ring.runs(), &ring.kick) {
                    sources.push((Source::Kick(index), kick.as_raw_fd()));
                }
            }
        }
        sources
    }

    /// What is ready; of several one, as what is done for it may undo the others.
    fn wait(&self) -> Source {
        let sources = self.sources();
        let mut entries: Vec<libc::pollfd> = sources
            .iter()
            .map(|(_, fd)| libc::pollfd {
                fd: *fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        // SAFETY: `entries` is an array of that many elements and lives until after the call.
        unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
        let ready = entries.iter().position(|entry| entry.revents != 0);
        // Interrupted: the bell may always be looked at.
        ready.map_or(Source::Bell, |index| sources[index].0)
    }

    fn obey(&mut self) -> Verdict {
        let _ = self.bell.read();
        loop {
            let next = self
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            match next {
                None => return Verdict::Open,
                Some(Command::Die) => return Verdict::Closed,
                Some(Command::Hang) => self.pace = Pace::Hanging,
                Some(Command::Hold) => self.pace = Pace::Holding,
                Some(Command::Wake | Command::Release) => self.pace = Pace::Normal,
                Some(Command::AnnounceConfig) => {
                    let code = u32::from(BackendReq::CONFIG_CHANGE_MSG);
                    self.send_on_channel(&Message::new(code, flags::VERSION, vec![]).bytes(), 0);
                }
                Some(Command::SendOnChannel(bytes, fds)) => self.send_on_channel(&bytes, fds),
                Some(Command::SendUnasked(bytes)) => {
                    if let Some(session) = &self.session {
                        let _ = wire::send(&session.socket, &bytes, &[]);
                    }
                }
            }
        }
    }

    fn send_on_channel(&mut self, bytes: &[u8], fds: usize) {
        let nothing = || File::open("/dev/null").map(OwnedFd::from);
        let fds: io::Result<Vec<OwnedFd>> = (0..fds).map(|_| nothing()).collect();
        let channel: Option<&UnixStream> = self
            .session
            .as_ref()
            .and_then(|session| session.channel.as_ref());
        if let (Some(channel), Ok(fds)) = (channel, fds) {
            let _ = wire::send(channel, bytes, &fds);
        }
    }
}

/// Reads and forgets what the front-end answers on the back-end channel.
fn drain_channel(session: &mut Session) -> io::Result<Verdict> {
    if let Some(channel) = &mut session.channel
        && channel.read(&mut [0; 4096])? == 0
    {
        session.channel = None;
    }
    Ok(Verdict::Open)
}
