//! A small client of the API: a connection for each request, and a limit on everything that the other side decides.
//!
//! It blocks, it needs no runtime, and it takes nothing for granted about who listens on the socket: the answer's size
//! and its time are bounded, and what is no answer of Ferry's is an error that says so.

mod connection;
mod error;
mod head;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use connection::Connection;
pub use error::{ClientError, Refused, WireError};

/// The longest answer that is taken, in bytes.
pub const ANSWER_MOST: usize = 4 << 20;

/// Where the routes of the API begin.
const PREFIX: &str = "/api/v1/";

/// How often a request is sent at most. A process whose place is taken closes the connections on which nothing has been said yet; several
/// may come and go in a row.
const TRIES: usize = 5;

/// How long a request may take. Nothing waits without one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until the connection is there. It takes time only where many others are in the queue.
    pub connect: Duration,
    /// Between two pieces of an answer, once it has begun.
    pub silence: Duration,
    /// From the beginning to the last byte of the answer.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            silence: Duration::from_secs(5),
            total: Duration::from_secs(10),
        }
    }
}

/// What was done: an answer with a status of 200 to 299.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status: 200 with a body, 204 without.
    pub status: u16,
    /// At most [`ANSWER_MOST`] bytes, JSON on all routes but `/metrics`.
    pub body: Vec<u8>,
}

/// The API on one unix socket. Every request makes a connection of its own, and another one where the first is closed before the request has
/// been read.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    limits: Limits,
}

impl Client {
    /// A client for the Ferry that listens on `socket`. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>, limits: Limits) -> Self {
        Self {
            socket: socket.into(),
            limits,
        }
    }

    /// The socket it speaks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for something, such as `vm.info`.
    pub fn get(&self, route: &str) -> Result<Reply, ClientError> {
        self.exchange(&self.request("GET", &format!("{PREFIX}{route}"), b""))
    }

    /// Asks to do something, such as `vm.pause`; `body` is JSON, or empty.
    pub fn put(&self, route: &str, body: &[u8]) -> Result<Reply, ClientError> {
        self.exchange(&self.request("PUT", &format!("{PREFIX}{route}"), body))
    }

    /// Asks for the metrics in Prometheus' text format.
    pub fn metrics(&self) -> Result<Reply, ClientError> {
        self.exchange(&self.request("GET", "/metrics", b""))
    }

    fn request(&self, method: &str, target: &str, body: &[u8]) -> Vec<u8> {
        let length = body.len();
        let mut request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n"
        );
        if method != "GET" {
            request += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        }
        request += "\r\n";
        let mut request = request.into_bytes();
        request.extend_from_slice(body);
        request
    }

    fn exchange(&self, request: &[u8]) -> Result<Reply, ClientError> {
        let began = Instant::now();
        let mut tries = 1;
        loop {
            match self.try_once(request, began) {
                // Whoever it was has done nothing for it, and its successor may be there.
                Err(error) if error.is_unread() && tries < TRIES => tries += 1,
                outcome => return outcome,
            }
        }
    }

    fn try_once(&self, request: &[u8], began: Instant) -> Result<Reply, ClientError> {
        let mut connection = Connection::open(&self.socket, self.limits, began)?;
        let sent = connection.send(request);
        // Who refuses a request may answer before it has read all of it.
        let reply = match (sent, connection.receive()) {
            (_, Ok(reply)) => reply,
            (Err(error), Err(_)) | (Ok(()), Err(error)) => return Err(error),
        };
        match reply.status {
            200..=299 => Ok(reply),
            status => Err(ClientError::Refused(Refused::new(status, &reply.body))),
        }
    }
}
