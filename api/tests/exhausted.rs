//! A process without file descriptors left. In a program of its own, because the limit is the process's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what cannot be unwrapped has failed the test"
)]

mod common;

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{TestServer, receive, request};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static WARNINGS: AtomicUsize = AtomicUsize::new(0);

/// Counts warnings.
struct Warnings;

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        WARNINGS.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn allow_descriptors_below(number: libc::rlim_t) {
    let limit = libc::rlimit {
        rlim_cur: number,
        rlim_max: number.max(256),
    };
    // SAFETY: `limit` is a valid rlimit.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
}

#[test]
fn having_no_descriptors_is_told_once_and_passes() {
    tracing::subscriber::set_global_default(Warnings).unwrap();
    allow_descriptors_below(256);
    let server = TestServer::start();
    let path = socket2::SockAddr::unix(&server.path).unwrap();
    let kind = socket2::Type::STREAM;
    let new = || socket2::Socket::new(socket2::Domain::UNIX, kind, None).unwrap();
    // The server gets none for these clients. All that it could close for them are these clients' own.
    let clients: Vec<_> = (0..2).map(|_| new()).collect();
    let highest = new();
    allow_descriptors_below(highest.as_raw_fd() as libc::rlim_t);
    for client in &clients {
        client.connect(&path).unwrap();
    }
    common::wait_until(|| WARNINGS.load(Ordering::Relaxed) > 0);
    // Many tries.
    std::thread::sleep(Duration::from_secs(1));
    allow_descriptors_below(256);
    for client in clients {
        let mut stream = std::os::unix::net::UnixStream::from(OwnedFd::from(client));
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        stream
            .write_all(&request("GET", "/api/v1/vmm.ping", ""))
            .unwrap();
        assert_eq!(receive(&mut stream).status(), 200);
    }
    assert_eq!(WARNINGS.load(Ordering::Relaxed), 1);
}
