//! The sender's way to a connection.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use socket2::{Domain, SockAddr, Socket, Type};

use super::connection::{Introduction, Link};
use super::error::{Error, Violation};
use super::order::Side;
use super::socket::{self, TICK, Transport, Waited, Want};
use super::tls::{self, Handshake};
use super::versions::Versions;
use super::wire::{ANSWER, Answer, Preamble};
use super::{Address, Patience, Purpose, StreamId, Tls};
use crate::watch::Watch;

impl Link {
    /// Connects to a receiver, and waits until it has answered the preamble.
    ///
    /// # Errors
    /// Nobody is there or answers in time, the receiver refuses, or is not who it should be; or it was cancelled.
    pub fn connect(
        to: &Address,
        tls: Option<&Tls>,
        attempt: StreamId,
        purpose: Purpose,
        patience: Patience,
        watch: &dyn Watch,
    ) -> Result<Link, Error> {
        let dial = Dial {
            to,
            patience,
            watch,
            deadline: Instant::now() + patience.connect,
        };
        let mut transport = dial.transport(tls)?;
        let versions = Versions::known();
        let preamble = Preamble {
            oldest: versions.oldest,
            newest: versions.newest,
            purpose,
            attempt,
        };
        let version = dial.introduce(&mut transport, preamble)?;
        let introduction = Introduction {
            peer: to.clone(),
            side: Side::Sender,
            attempt,
            purpose,
            version,
        };
        let mut link = Link::new(transport, introduction, patience);
        link.was_accepted();
        Ok(link)
    }
}

/// One attempt to connect.
struct Dial<'a> {
    to: &'a Address,
    patience: Patience,
    watch: &'a dyn Watch,
    deadline: Instant,
}

const CONNECTING: &str = "connecting";
const AGREEING: &str = "waiting for the receiver to accept";

impl Dial<'_> {
    fn transport(&self, tls: Option<&Tls>) -> Result<Transport, Error> {
        let session = match (tls, self.to) {
            (None, _) => None,
            (Some(tls), Address::Tcp { host, .. }) => {
                let session = tls.client(host).map_err(|source| Error::Tls {
                    peer: self.to.clone(),
                    step: CONNECTING,
                    source,
                })?;
                Some(session)
            }
            (Some(_), Address::Unix(_)) => {
                let reason = "TLS is for TCP: a unix socket has no name to check";
                return Err(self.io(CONNECTING)(io::Error::other(reason)));
            }
        };
        let socket = self.socket()?;
        Transport::new(socket, session).map_err(self.io(CONNECTING))
    }

    fn io(&self, step: &'static str) -> impl Fn(io::Error) -> Error {
        move |error| Error::from_io(error, self.to, step)
    }

    fn check(&self, step: &'static str) -> Result<(), Error> {
        match self.watch.cancelled() {
            true => Err(self.ended(Waited::Cancelled, step)),
            false if Instant::now() >= self.deadline => Err(self.ended(Waited::Late, step)),
            false => Ok(()),
        }
    }

    fn ended(&self, how: Waited, step: &'static str) -> Error {
        let peer = self.to.clone();
        match how {
            Waited::Cancelled => Error::Cancelled { peer, step },
            _ => Error::Silent {
                peer,
                step,
                limit: self.patience.connect,
            },
        }
    }

    fn socket(&self) -> Result<Socket, Error> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for (domain, address) in self.addresses()? {
            let socket = Socket::new(domain, Type::STREAM, None).map_err(self.io(CONNECTING))?;
            socket.set_nonblocking(true).map_err(self.io(CONNECTING))?;
            match self.connected(&socket, &address)? {
                Ok(()) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(match last.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::Absent {
                peer: self.to.clone(),
                source: last,
            },
            _ => self.io(CONNECTING)(last),
        })
    }

    /// The inner error is the address's, the outer one ends it all.
    fn connected(&self, socket: &Socket, address: &SockAddr) -> Result<io::Result<()>, Error> {
        loop {
            self.check(CONNECTING)?;
            match socket.connect(address) {
                Ok(()) => return Ok(Ok(())),
                // The receiver's backlog is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(TICK / 4),
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Ok(Err(error)),
            }
        }
        loop {
            self.check(CONNECTING)?;
            use std::os::fd::AsRawFd;
            let mut entry = [socket::poll_entry(socket.as_raw_fd(), libc::POLLOUT)];
            if socket::poll(&mut entry, TICK).map_err(self.io(CONNECTING))? {
                let error = socket.take_error().map_err(self.io(CONNECTING))?;
                return Ok(error.map_or(Ok(()), Err));
            }
        }
    }

    fn addresses(&self) -> Result<Vec<(Domain, SockAddr)>, Error> {
        let (host, port) = match self.to {
            Address::Unix(path) => {
                let address = SockAddr::unix(path).map_err(self.io(CONNECTING))?;
                return Ok(vec![(Domain::UNIX, address)]);
            }
            Address::Tcp { host, port } => (host, *port),
        };
        let found = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => self.look_up(host.clone(), port)?,
        };
        let found = found.into_iter();
        Ok(found
            .map(|at| (Domain::for_address(at), at.into()))
            .collect())
    }

    /// Asks for a name's addresses on a thread of its own, which cannot be interrupted, but be left alone.
    fn look_up(&self, host: String, port: u16) -> Result<Vec<SocketAddr>, Error> {
        const STEP: &str = "looking up the name";
        let (answer, answers) = mpsc::channel();
        let ask = move || {
            let found = (host.as_str(), port).to_socket_addrs();
            // Nobody may be waiting any more.
            let _ = answer.send(found.map(Vec::from_iter));
        };
        let thread = thread::Builder::new().name("look-up".into());
        thread.spawn(ask).map_err(self.io(STEP))?;
        loop {
            self.check(STEP)?;
            match answers.recv_timeout(TICK) {
                Ok(found) => return found.map_err(self.io(STEP)),
                Err(mpsc::RecvTimeoutError::Timeout) => (),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(self.io(STEP)(io::ErrorKind::NotFound.into()));
                }
            }
        }
    }

    /// Sends the preamble, and reads the answer: the version.
    fn introduce(&self, transport: &mut Transport, preamble: Preamble) -> Result<u16, Error> {
        let bytes = preamble.encode();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match transport.write(&[IoSlice::new(rest)]) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(transport, Want::Write)?;
                }
                // The receiver may have said why.
                Err(_) => break,
            }
        }
        let mut answer = [0; ANSWER];
        let heard = self.read(transport, &mut answer);
        heard.map_err(|error| one_sided(error, transport.handshake(), &answer))?;
        let violated = |violation| Error::Protocol {
            peer: self.to.clone(),
            violation,
        };
        let answer = Answer::decode(&answer, preamble.attempt).map_err(violated)?;
        if answer.version != 0 {
            return Ok(answer.version);
        }
        let mut reason = vec![0; answer.reason.into()];
        self.read(transport, &mut reason)?;
        let reason = String::from_utf8(reason).map_err(|_| violated(Violation::Preamble))?;
        Err(Error::Refused {
            peer: self.to.clone(),
            reason: reason.replace(|c: char| c.is_control(), " "),
        })
    }

    fn read(&self, transport: &mut Transport, mut buffer: &mut [u8]) -> Result<(), Error> {
        while !buffer.is_empty() {
            self.check(AGREEING)?;
            match transport.read(buffer) {
                Ok(0) => {
                    return Err(Error::Closed {
                        peer: self.to.clone(),
                        step: AGREEING,
                    });
                }
                Ok(read) => buffer = &mut buffer[read..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(transport, Want::Read)?;
                }
                Err(error) => return Err(self.io(AGREEING)(error)),
            }
        }
        Ok(())
    }

    fn wait(&self, transport: &Transport, want: Want) -> Result<(), Error> {
        let waited = transport.wait(want, self.watch, self.deadline);
        match waited.map_err(self.io(AGREEING))? {
            Waited::Ready => Ok(()),
            ended => Err(self.ended(ended, AGREEING)),
        }
    }
}

/// Says so if a connection has ended, with this `heard` instead of an answer, because only one of the two sides uses TLS.
fn one_sided(error: Error, handshake: Handshake, heard: &[u8]) -> Error {
    match (error, handshake) {
        (Error::Closed { peer, .. }, Handshake::Begun) => Error::TlsHere { peer },
        (Error::Closed { peer, .. }, Handshake::Absent) if tls::is_alert(heard) => {
            Error::TlsThere { peer }
        }
        (error, _) => error,
    }
}
