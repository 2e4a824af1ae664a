//! A server that answers one connection after the other as it is told, byte for byte.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// What happens on one connection.
pub enum Turn {
    /// Read the request, write these bytes, close.
    Answer(Vec<u8>),
    /// Read the request, write these bytes, and then nothing until the client leaves.
    Hang(Vec<u8>),
    /// Write these bytes without reading the request, and close.
    Interrupt(Vec<u8>),
    /// Close, whether the request has come or not.
    Leave,
    /// Close once there is a request, and read nothing of it.
    Ignore,
}

/// A request as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET /api/v1/vmm.ping`.
    pub line: String,
    pub body: String,
}

/// The server. Its socket goes away with it.
pub struct Server {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    requests: Receiver<Request>,
}

impl Server {
    pub fn start(turns: Vec<Turn>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, requests) = channel();
        std::thread::spawn(move || {
            for turn in turns {
                let (mut stream, _) = listener.accept().unwrap();
                let bytes = match turn {
                    Turn::Interrupt(bytes) => {
                        let _ = stream.write_all(&bytes);
                        continue;
                    }
                    Turn::Leave => continue,
                    Turn::Ignore => {
                        wait_for_bytes(&stream);
                        continue;
                    }
                    Turn::Answer(ref bytes) | Turn::Hang(ref bytes) => bytes,
                };
                let _ = sender.send(read_request(&mut stream));
                // The client may have left, which is for the test to notice.
                let _ = stream.write_all(bytes);
                if let Turn::Hang(_) = turn {
                    let _ = stream.read(&mut [0]);
                }
            }
        });
        Server {
            _directory: directory,
            socket,
            requests,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The next request.
    pub fn request(&self) -> Request {
        self.requests.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

fn wait_for_bytes(stream: &UnixStream) {
    let mut poll = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid pollfd, of a stream that is open.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 60_000) }, 1);
}

fn read_request(stream: &mut UnixStream) -> Request {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let line = head.lines().next().unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    Request {
        line: line.strip_suffix(" HTTP/1.1").unwrap().to_owned(),
        body: String::from_utf8(body).unwrap(),
    }
}

/// An answer with a body, as Ferry sends it: without a reason phrase.
pub fn answer(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    (head + body).into_bytes()
}

/// The answer to what was done and has nothing to tell.
pub fn done() -> Vec<u8> {
    b"HTTP/1.1 204 \r\n\r\n".to_vec()
}
