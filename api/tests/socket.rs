//! The socket that the server listens on.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped has failed the test"
)]

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ferry_api::server::{ServerSocket, SocketError, SocketPlace};

fn open(path: &Path) -> Result<ServerSocket, SocketError> {
    ServerSocket::open(&SocketPlace::Path(path.to_owned()))
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api");
    (directory, path)
}

#[test]
fn a_place_is_a_path_or_a_descriptor() {
    let path = |path: &str| Ok(SocketPlace::Path(path.into()));
    assert_eq!("/run/ferry".parse(), path("/run/ferry"));
    assert_eq!("path=/run/ferry".parse(), path("/run/ferry"));
    assert_eq!("path=\"/run/a,b\"".parse(), path("/run/a,b"));
    assert_eq!("fd=5".parse(), Ok(SocketPlace::Fd(5)));
    let long = "x".repeat(108);
    for wrong in ["", "path=", "fd=", "fd=x", "fd=-1", "a,b", "port=7", &long] {
        assert!(wrong.parse::<SocketPlace>().is_err(), "{wrong}");
    }
}

#[test]
fn the_socket_is_the_users_alone_and_goes_away() {
    let (_directory, path) = directory();
    let socket = open(&path).unwrap();
    let metadata = path.metadata().unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    UnixStream::connect(&path).unwrap();
    drop(socket);
    assert!(!path.exists());
}

#[test]
fn a_socket_left_behind_is_replaced() {
    let (_directory, path) = directory();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _socket = open(&path).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_live_socket_is_left_alone() {
    let (_directory, path) = directory();
    let first = open(&path).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, SocketError::Live(_)), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("another process serves") && text.contains("/api: end it"));
    UnixStream::connect(&path).unwrap();
    drop(first);
    open(&path).unwrap();
}

#[test]
fn a_live_socket_with_a_full_queue_is_left_alone() {
    let (_directory, path) = directory();
    let listener = open(&path).unwrap();
    let mut clients = Vec::new();
    while let Ok(client) = connect_at_once(&path) {
        clients.push(client);
    }
    assert!(matches!(open(&path), Err(SocketError::Live(_))));
    drop(listener);
}

fn connect_at_once(path: &Path) -> std::io::Result<UnixStream> {
    // A blocking connect would wait: one that fails at once is made by giving it no time at all.
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || sender.send(UnixStream::connect(path)));
    receiver
        .recv_timeout(std::time::Duration::from_millis(300))
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let (directory, path) = directory();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(open(&path), Err(SocketError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    assert!(matches!(
        open(directory.path()),
        Err(SocketError::NotASocket(_))
    ));
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/nonexistent", &link).unwrap();
    assert!(matches!(open(&link), Err(SocketError::NotASocket(_))));
    let error = open(Path::new("/nonexistent/api")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot bind a socket to /nonexistent/api"
    );
}

#[test]
fn somebody_elses_file_is_not_removed_at_the_end() {
    let (_directory, path) = directory();
    let socket = open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(socket);
    assert!(path.exists());
}

#[test]
fn only_one_of_many_gets_the_place_of_one_left_behind() {
    let (_directory, path) = directory();
    drop(UnixListener::bind(&path).unwrap());
    let opened: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&path))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(opened.iter().filter(|socket| socket.is_ok()).count(), 1);
    UnixStream::connect(&path).unwrap();
}

/// The system gives it an address.
fn listens_for_packets() -> OwnedFd {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    let family = libc::AF_UNIX as libc::sa_family_t;
    // SAFETY: these calls take any descriptor, and bind reads the family alone.
    unsafe {
        let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, kind, 0));
        let fd = socket.as_raw_fd();
        assert_eq!(libc::bind(fd, (&raw const family).cast(), 2), 0);
        assert_eq!(libc::listen(fd, 1), 0);
        socket
    }
}

#[test]
fn a_descriptor_has_to_be_a_unix_socket_that_listens() {
    let (_directory, path) = directory();
    let listener = UnixListener::bind(&path).unwrap();
    let given = |fd| ServerSocket::open(&SocketPlace::Fd(fd));
    let socket = given(listener.as_raw_fd()).unwrap();
    drop(socket);
    // Who made it keeps it.
    assert!(path.exists());
    let stream = UnixStream::connect(&path).unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let packets = listens_for_packets();
    for (fd, reason) in [
        (
            packets.as_raw_fd(),
            "is a unix socket for packets, and not for a stream",
        ),
        (0, "is standard input, output or error"),
        (1_000_000, "is not an open socket"),
        (file.as_raw_fd(), "is not an open socket"),
        (tcp.as_raw_fd(), "is not a unix socket"),
        (stream.as_raw_fd(), "is a socket that does not listen"),
    ] {
        let error = given(fd).unwrap_err();
        assert_eq!(error.to_string(), format!("file descriptor {fd} {reason}"));
    }
}
