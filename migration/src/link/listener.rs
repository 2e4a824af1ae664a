//! The receiver's way to connections.
//!
//! Clients are heard at the same time, so that one that says nothing keeps nobody waiting.

use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::connection::{Introduction, Link};
use super::error::Error;
use super::order::Side;
use super::socket::{self, TICK, Transport, Want};
use super::strangers::Strangers;
use super::tls::{self, Handshake};
use super::versions::Versions;
use super::wire::{PREAMBLE, Preamble};
use super::{Address, Patience, Tls};
use crate::watch::Watch;

/// How long a client has to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// How many clients may be introducing themselves; the one that has taken longest makes room.
const CLIENTS_MOST: usize = 32;
const BACKLOG: libc::c_int = 128;

const LISTENING: &str = "setting up the socket";
const ACCEPTING: &str = "waiting for a sender";

/// A socket that senders connect to.
pub struct Listener {
    socket: Socket,
    address: Address,
    tls: Option<Tls>,
    _path: Option<OwnPath>,
    clients: VecDeque<Client>,
    patience: Patience,
    strangers: Strangers,
    /// Whether clients could not be accepted lately for want of something.
    is_exhausted: bool,
}

/// A client that has not introduced itself.
struct Client {
    transport: Transport,
    from: Address,
    since: Instant,
    preamble: [u8; PREAMBLE],
    there: usize,
}

impl Listener {
    /// Listens. A unix socket is for this user alone, takes the place of one that nobody listens on, and is removed in the
    /// end. With `tls`, which is for TCP, every client has to show a certificate.
    ///
    /// # Errors
    /// The address is in use, or cannot be used.
    pub fn bind(address: &Address, tls: Option<&Tls>) -> Result<Listener, Error> {
        let wrong = |error| Error::from_io(error, address, LISTENING);
        let (socket, path) = match address {
            Address::Unix(_) if tls.is_some() => {
                return Err(wrong(io::Error::other("TLS is for TCP")));
            }
            Address::Unix(path) => {
                let (socket, path) = bind_unix(path).map_err(wrong)?;
                (socket, Some(path))
            }
            Address::Tcp { host, port } => (bind_tcp(host, *port).map_err(wrong)?, None),
        };
        socket.set_nonblocking(true).map_err(wrong)?;
        socket.listen(BACKLOG).map_err(wrong)?;
        let local = socket.local_addr().map_err(wrong)?.as_socket();
        Ok(Listener {
            socket,
            address: local.map_or_else(|| address.clone(), Address::from),
            tls: tls.cloned(),
            _path: path,
            clients: VecDeque::new(),
            patience: Patience::default(),
            strangers: Strangers::default(),
            is_exhausted: false,
        })
    }

    /// Where it listens, with the port that the kernel has chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Bounds how long nothing may come or go on the connections that are accepted from now on.
    pub fn set_silence(&mut self, limit: Duration) {
        self.patience.silence = limit;
    }

    /// Whether only this host can connect.
    pub fn is_loopback(&self) -> bool {
        match &self.address {
            Address::Unix(_) => true,
            Address::Tcp { host, .. } => host
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
        }
    }

    /// Waits for a client that has introduced itself. It has to be [accepted](Link::accept_it) or
    /// [refused](Link::refuse) then. Others are dropped; the first of them are
    /// warned of, the rest counted.
    ///
    /// # Errors
    /// It was cancelled, the deadline has passed, or the socket failed.
    pub fn accept(&mut self, watch: &dyn Watch, deadline: Option<Instant>) -> Result<Link, Error> {
        let started = Instant::now();
        loop {
            if watch.cancelled() {
                return Err(Error::Cancelled {
                    peer: self.address.clone(),
                    step: ACCEPTING,
                });
            }
            // Before others make those leave who were here first.
            if let Some(link) = self.introduced() {
                return Ok(link);
            }
            self.take_clients()?;
            if let Some(link) = self.introduced() {
                return Ok(link);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Error::Silent {
                    peer: self.address.clone(),
                    step: ACCEPTING,
                    limit: started.elapsed(),
                });
            }
            self.wait()?;
        }
    }

    fn wait(&self) -> Result<(), Error> {
        let mut entries = vec![socket::poll_entry(self.socket.as_raw_fd(), libc::POLLIN)];
        let clients = self.clients.iter();
        entries.extend(clients.map(|client| client.transport.poll_entry(Want::Read)));
        socket::poll(&mut entries, TICK)
            .map(drop)
            .map_err(|error| Error::from_io(error, &self.address, ACCEPTING))
    }

    /// Takes those who have connected.
    fn take_clients(&mut self) -> Result<(), Error> {
        for _ in 0..CLIENTS_MOST {
            match self.socket.accept() {
                Ok((socket, from)) => {
                    self.is_exhausted = false;
                    self.take_client(socket, &from);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Of this one client, or nothing.
                Err(error) if is_passing(&error) => {}
                Err(error) if is_exhaustion(&error) => {
                    if !std::mem::replace(&mut self.is_exhausted, true) {
                        tracing::warn!(
                            "{}: cannot accept a client, and will try again without a word: {error}",
                            self.address
                        );
                    }
                    // It is still there: without the pause, this would be a busy loop.
                    std::thread::sleep(TICK);
                    break;
                }
                Err(error) => return Err(Error::from_io(error, &self.address, ACCEPTING)),
            }
        }
        Ok(())
    }

    fn take_client(&mut self, socket: Socket, from: &SockAddr) {
        let from = from
            .as_socket()
            .map_or_else(|| self.address.clone(), Address::from);
        let session = self.tls.as_ref().map(Tls::server).transpose();
        let session = session.map_err(io::Error::other);
        match session.and_then(|session| Transport::new(socket, session)) {
            Ok(transport) => {
                if self.clients.len() == CLIENTS_MOST
                    && let Some(client) = self.clients.pop_front()
                {
                    client.dropped("too many others came", &mut self.strangers);
                }
                self.clients.push_back(Client {
                    transport,
                    from,
                    since: Instant::now(),
                    preamble: [0; PREAMBLE],
                    there: 0,
                });
            }
            Err(error) => self
                .strangers
                .tell(format_args!("{from}: a client was dropped: {error}")),
        }
    }

    /// Hears all clients, and returns the first that has introduced itself.
    fn introduced(&mut self) -> Option<Link> {
        for _ in 0..self.clients.len() {
            let mut client = self.clients.pop_front()?;
            match client.hear() {
                Heard::Preamble(preamble) => match client.introduce(preamble, self.patience) {
                    Ok(link) => return Some(link),
                    Err(error) => self
                        .strangers
                        .tell(format_args!("a client was refused: {error}")),
                },
                Heard::NotYet if client.since.elapsed() < INTRODUCTION => {
                    self.clients.push_back(client);
                }
                Heard::NotYet => {
                    client.dropped("it did not introduce itself in time", &mut self.strangers);
                }
                Heard::Wrong(reason) => client.dropped(&reason, &mut self.strangers),
            }
        }
        None
    }
}

enum Heard {
    Preamble(Preamble),
    NotYet,
    Wrong(String),
}

impl Client {
    fn hear(&mut self) -> Heard {
        while self.there < PREAMBLE {
            match self.transport.read(&mut self.preamble[self.there..]) {
                Ok(0) => return Heard::Wrong("it hung up".into()),
                Ok(read) => self.there += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::NotYet,
                Err(error) => return Heard::Wrong(self.explained(&error)),
            }
        }
        match Preamble::decode(&self.preamble) {
            Ok(preamble) => Heard::Preamble(preamble),
            Err(_) if tls::is_hello(&self.preamble) => Heard::Wrong(
                "it uses TLS, and this receiver does not: both need a tls_dir, or neither".into(),
            ),
            Err(violation) => Heard::Wrong(violation.to_string()),
        }
    }

    /// What an error of the first read says, to those who look for the reason.
    fn explained(&self, error: &io::Error) -> String {
        let cause = error.get_ref().and_then(|it| it.downcast_ref());
        let is_other = matches!(cause, Some(rustls::Error::InvalidMessage(_)));
        match is_other && self.transport.handshake() == Handshake::Begun {
            true => "it does not use TLS, and this receiver does: both need a tls_dir, or neither"
                .into(),
            false => error.to_string(),
        }
    }

    fn introduce(self, preamble: Preamble, patience: Patience) -> Result<Link, Error> {
        let version = preamble.version();
        let introduction = Introduction {
            peer: self.from,
            side: Side::Receiver,
            attempt: preamble.attempt,
            purpose: preamble.purpose,
            version: *version.as_ref().unwrap_or(&0),
        };
        let link = Link::new(self.transport, introduction, patience);
        match version {
            Ok(_) => Ok(link),
            Err(violation) => {
                let error = link.violated(violation);
                link.refuse(&format!(
                    "it speaks {} of the protocol, and this Ferry {}",
                    Versions::known(),
                    preamble.versions()
                ))?;
                Err(error)
            }
        }
    }

    fn dropped(self, reason: &str, strangers: &mut Strangers) {
        strangers.tell(format_args!(
            "{}: a client was dropped: {reason}",
            self.from
        ));
    }
}

fn is_passing(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::ECONNABORTED | libc::EINTR))
}

/// Whether this process or the host has no more of something, for the moment.
fn is_exhaustion(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(
        code,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// The file of a unix socket that is ours.
struct OwnPath {
    path: PathBuf,
    identity: [u64; 2],
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        // Somebody else's may be there by now.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<[u64; 2]> {
    let metadata = fs::symlink_metadata(path)?;
    Ok([metadata.dev(), metadata.ino()])
}

fn bind_unix(path: &Path) -> io::Result<(Socket, OwnPath)> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                let reason = "there is a file of that name, which is no socket";
                return Err(io::Error::new(error.kind(), reason));
            }
            if !is_stale(&address)? {
                return Err(error);
            }
            fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        result => result?,
    }
    let identity = identity(path)?;
    let own = OwnPath {
        path: path.to_owned(),
        identity,
    };
    // Nobody can connect before it listens.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok((socket, own))
}

/// Whether nobody listens on a socket.
fn is_stale(address: &SockAddr) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    Ok(probe.connect(address).is_err_and(refused))
}

fn bind_tcp(host: &str, port: u16) -> io::Result<Socket> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (host, port).to_socket_addrs()? {
        match bind_address(address) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_address(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Connections that ended a moment ago must not be in the way.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
