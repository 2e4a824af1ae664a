//! One connection and a peer that writes its bytes by hand.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::EventFd;

use super::harness::HANG;
use super::peer::{answer, send};
use crate::sys::poll;
use crate::vhost_user::connection::{Connection, Question, Reply, Request};
use crate::vhost_user::message::{Acknowledge, HEADER_SIZE, ReplyShape};
use crate::vhost_user::socket::Socket;
use crate::vhost_user::{Cause, During, Limits, Violation};

pub const SHORT: Duration = Duration::from_millis(50);

pub const LIMITS: Limits = Limits {
    connect: HANG,
    request: HANG,
    dead: HANG,
};

pub struct Wire {
    pub connection: Connection,
    pub peer: UnixStream,
    stop: Arc<EventFd>,
}

pub fn wire(limits: Limits) -> Wire {
    let (ours, peer) = UnixStream::pair().unwrap();
    peer.set_read_timeout(Some(HANG)).unwrap();
    let stop = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let socket = Socket::from(OwnedFd::from(ours));
    Wire {
        connection: Connection::new(socket, "test".into(), limits, Arc::clone(&stop)),
        peer,
        stop,
    }
}

/// Has no payload, and is answered with 8 bytes.
pub fn question(request: FrontendReq) -> Question<'static> {
    Question {
        request: Request {
            code: request.into(),
            payload: &[],
            fds: &[],
        },
        acknowledge: Acknowledge::Natural,
        shape: ReplyShape::exactly(8),
    }
}

impl Wire {
    pub fn ask(&mut self, request: FrontendReq, patience: Duration) -> Result<Reply, Cause> {
        self.connection.ask(question(request), patience)
    }

    /// The code of the next request that has come, which has no payload.
    pub fn next_code(&mut self) -> u32 {
        let mut header = [0; HEADER_SIZE];
        self.peer.read_exact(&mut header).unwrap();
        u32::from_ne_bytes(header[..4].try_into().unwrap())
    }

    pub fn has_request(&self) -> bool {
        poll::is_readable(&self.peer)
    }
}

pub fn number(value: u64) -> [u8; 8] {
    value.to_ne_bytes()
}

pub fn is_violation(cause: &Cause, expected: &Violation) -> bool {
    matches!(cause, Cause::Violation { reason, .. } if reason == expected)
}

#[test]
fn a_late_answer_ends_the_attempt_and_nothing_else() {
    let mut wire = wire(LIMITS);
    let late = wire.ask(FrontendReq::GET_FEATURES, SHORT).unwrap_err();
    assert!(matches!(late, Cause::Late { .. }), "{late}");
    assert_eq!(wire.next_code(), 1);

    // The next request stays here until the owed answer has come.
    let again = wire.ask(FrontendReq::GET_QUEUE_NUM, SHORT).unwrap_err();
    assert!(
        matches!(again, Cause::Late { request, .. } if request == FrontendReq::GET_FEATURES.into())
    );
    assert!(!wire.has_request());

    wire.peer.write_all(&answer(1, &number(5))).unwrap();
    let mut peer = wire.peer.try_clone().unwrap();
    let replier = thread::spawn(move || {
        let mut header = [0; HEADER_SIZE];
        peer.read_exact(&mut header).unwrap();
        peer.write_all(&answer(17, &number(6))).unwrap();
    });
    let reply = wire.ask(FrontendReq::GET_QUEUE_NUM, HANG).unwrap();
    assert_eq!(reply.payload, number(6));
    replier.join().unwrap();
}

#[test]
fn an_owed_answer_that_is_wrong_poisons_the_connection() {
    let mut wire = wire(LIMITS);
    wire.ask(FrontendReq::GET_FEATURES, SHORT).unwrap_err();
    wire.peer.write_all(&answer(17, &number(5))).unwrap();
    let cause = wire.ask(FrontendReq::GET_QUEUE_NUM, HANG).unwrap_err();
    let code = FrontendReq::GET_QUEUE_NUM.into();
    assert!(is_violation(&cause, &Violation::WrongRequest(code)));
    let cause = wire.ask(FrontendReq::GET_QUEUE_NUM, HANG).unwrap_err();
    assert!(matches!(cause, Cause::Poisoned));
}

#[test]
fn an_answer_in_pieces_is_put_together() {
    let mut wire = wire(LIMITS);
    let mut peer = wire.peer.try_clone().unwrap();
    let replier = thread::spawn(move || {
        peer.read_exact(&mut [0; HEADER_SIZE]).unwrap();
        for byte in answer(1, &number(0x0123_4567_89ab_cdef)) {
            peer.write_all(&[byte]).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
    });
    let reply = wire.ask(FrontendReq::GET_FEATURES, HANG).unwrap();
    assert_eq!(reply.payload, number(0x0123_4567_89ab_cdef));
    replier.join().unwrap();
}

#[test]
fn half_an_answer_is_continued_by_the_next_attempt() {
    let mut wire = wire(LIMITS);
    let bytes = answer(1, &number(5));
    wire.ask(FrontendReq::GET_FEATURES, SHORT).unwrap_err();
    wire.peer.write_all(&bytes[..15]).unwrap();
    wire.ask(FrontendReq::GET_FEATURES, SHORT).unwrap_err();
    wire.peer.write_all(&bytes[15..]).unwrap();
    wire.connection.idle().unwrap();
    assert!(wire.connection.dead_at().is_none());
}

#[test]
fn an_answer_owed_for_too_long_is_the_end() {
    let limits = Limits {
        dead: 20 * SHORT,
        ..LIMITS
    };
    let mut wire = wire(limits);
    let late = wire.ask(FrontendReq::GET_FEATURES, SHORT).unwrap_err();
    assert!(!late.is_fatal());
    let dead = wire.ask(FrontendReq::GET_QUEUE_NUM, HANG).unwrap_err();
    assert!(matches!(dead, Cause::Dead { .. }), "{dead}");
    assert!(dead.is_fatal());
}

#[test]
fn while_idle_the_owed_answer_is_taken_or_missed() {
    let limits = Limits {
        dead: 20 * SHORT,
        ..LIMITS
    };
    let mut first = wire(limits);
    first.ask(FrontendReq::GET_FEATURES, SHORT).unwrap_err();
    assert!(first.connection.dead_at().is_some());
    first.peer.write_all(&answer(1, &number(5))).unwrap();
    first.connection.idle().unwrap();
    assert!(first.connection.dead_at().is_none());

    let mut second = wire(limits);
    second.ask(FrontendReq::GET_FEATURES, SHORT).unwrap_err();
    let dead_at = second.connection.dead_at().unwrap();
    thread::sleep(dead_at.saturating_duration_since(Instant::now()));
    let cause = second.connection.idle().unwrap_err();
    assert!(matches!(cause, Cause::Dead { .. }), "{cause}");
}

#[test]
fn wrong_answers_are_named() {
    let good = answer(1, &number(5));
    let with = |at: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    let features = FrontendReq::GET_FEATURES;
    let cases = [
        (
            with(0, 2),
            Violation::WrongRequest(FrontendReq::SET_FEATURES.into()),
        ),
        (with(4, 1), Violation::WrongFlags(1)),
        (with(4, 6), Violation::WrongFlags(6)),
        (with(4, 0x105), Violation::WrongFlags(0x105)),
        (with(8, 4), Violation::WrongSize(4)),
        (with(8, 0), Violation::WrongSize(0)),
        (with(8, u32::MAX), Violation::WrongSize(u32::MAX)),
    ];
    for (bytes, expected) in cases {
        let mut wire = wire(LIMITS);
        let mut peer = wire.peer.try_clone().unwrap();
        // Sent after the request: before, it would be unsolicited.
        let replier = thread::spawn(move || {
            let mut header = [0; HEADER_SIZE];
            peer.read_exact(&mut header).unwrap();
            peer.write_all(&bytes).unwrap();
        });
        let cause = wire.ask(features, HANG).unwrap_err();
        assert!(
            is_violation(&cause, &expected),
            "{cause:?} is not {expected:?}"
        );
        assert!(cause.to_string().contains("GET_FEATURES"), "{cause}");
        replier.join().unwrap();
    }
}

#[test]
fn file_descriptors_are_counted_and_closed() {
    let expectations = [
        (1, Violation::WrongFds(1)),
        (8, Violation::WrongFds(8)),
        (9, Violation::TooManyFds),
        (33, Violation::TooManyFds),
    ];
    for (fds, expected) in expectations {
        let mut wire = wire(LIMITS);
        let mut peer = wire.peer.try_clone().unwrap();
        let (kept, sent) = UnixStream::pair().unwrap();
        let replier = thread::spawn(move || {
            let mut header = [0; HEADER_SIZE];
            peer.read_exact(&mut header).unwrap();
            use vmm_sys_util::sock_ctrl_msg::ScmSocket;
            let bytes = answer(1, &number(5));
            peer.send_with_fds(&[&bytes[..]], &vec![sent.as_raw_fd(); fds])
                .unwrap();
        });
        let cause = wire.ask(FrontendReq::GET_FEATURES, HANG).unwrap_err();
        assert!(is_violation(&cause, &expected), "{fds}: {cause:?}");
        replier.join().unwrap();
        // All copies are closed when the other end sees it.
        kept.set_read_timeout(Some(HANG)).unwrap();
        drop(wire);
        assert_eq!((&kept).read(&mut [0]).unwrap(), 0, "{fds}");
    }
}

#[test]
fn received_file_descriptors_are_closed_on_exec() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    send(&theirs, b"x", 2);
    let received = Socket::from(OwnedFd::from(ours))
        .try_recv(&mut [0; 8])
        .unwrap();
    assert_eq!(received.fds.len(), 2);
    for fd in &received.fds {
        // SAFETY: fcntl() on a descriptor that is open; no pointers.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}

#[test]
fn file_descriptors_reach_the_peer() {
    let mut wire = wire(LIMITS);
    let (mut kept, sent) = UnixStream::pair().unwrap();
    let request = Request {
        code: FrontendReq::SET_BACKEND_REQ_FD.into(),
        payload: &[],
        fds: &[sent.as_fd()],
    };
    wire.connection.tell(request, HANG).unwrap();
    drop(sent);
    let socket = Socket::from(OwnedFd::from(wire.peer));
    let received = socket.try_recv(&mut [0; 64]).unwrap();
    assert_eq!(received.len, HEADER_SIZE);
    let [fd] = <[OwnedFd; 1]>::try_from(received.fds).unwrap();
    UnixStream::from(fd).write_all(b"hello").unwrap();
    let mut text = [0; 5];
    kept.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
}

#[test]
fn bytes_nobody_asked_for_are_a_violation() {
    let mut wire = wire(LIMITS);
    wire.connection.idle().unwrap();
    wire.peer.write_all(&[0]).unwrap();
    let cause = wire.connection.idle().unwrap_err();
    assert!(is_violation(&cause, &Violation::Unsolicited), "{cause:?}");
}

#[test]
fn an_answer_before_the_request_is_a_violation() {
    let mut wire = wire(LIMITS);
    wire.peer.write_all(&answer(1, &number(5))).unwrap();
    let cause = wire.ask(FrontendReq::GET_FEATURES, HANG).unwrap_err();
    assert!(is_violation(&cause, &Violation::Unsolicited), "{cause:?}");
}

#[test]
fn a_peer_that_leaves_is_noticed() {
    let mut idle = wire(LIMITS);
    drop(idle.peer);
    let cause = idle.connection.idle().unwrap_err();
    assert!(matches!(
        cause,
        Cause::Closed {
            during: During::Idle
        }
    ));

    let mut asking = wire(LIMITS);
    let peer = asking.peer.try_clone().unwrap();
    let leaver = thread::spawn(move || {
        let mut header = [0; HEADER_SIZE];
        (&peer).read_exact(&mut header).unwrap();
        peer.shutdown(std::net::Shutdown::Both).unwrap();
    });
    let cause = asking.ask(FrontendReq::GET_FEATURES, HANG).unwrap_err();
    assert!(matches!(cause, Cause::Closed { .. }), "{cause}");
    leaver.join().unwrap();
}

#[test]
fn a_wait_ends_when_the_device_is_given_up() {
    let mut wire = wire(LIMITS);
    let stop = Arc::clone(&wire.stop);
    let stopper = thread::spawn(move || {
        thread::sleep(SHORT);
        stop.write(1).unwrap();
    });
    let cause = wire.ask(FrontendReq::GET_FEATURES, HANG).unwrap_err();
    assert!(matches!(cause, Cause::Stopped), "{cause}");
    stopper.join().unwrap();
}

/// Makes the socket's buffer as small as the kernel allows, and fills it but for a little.
fn shrink(wire: &Wire) {
    let size: libc::c_int = 1;
    // SAFETY: the option's value is an int, given with its size.
    let result = unsafe {
        libc::setsockopt(
            wire.connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

const LARGE: usize = 16 << 10;

#[test]
fn a_request_sent_in_part_is_completed_before_the_next() {
    let mut wire = wire(LIMITS);
    shrink(&wire);
    let payload: Vec<u8> = (0..LARGE).map(|at| at as u8).collect();
    let request = Request {
        code: FrontendReq::SET_CONFIG.into(),
        payload: &payload,
        fds: &[],
    };
    let late = wire.connection.tell(request, SHORT).unwrap_err();
    assert!(matches!(late, Cause::Late { .. }), "{late}");
    assert!(wire.connection.dead_at().is_some());
    assert_eq!(wire.connection.interest(), poll::Interest::ReadOrWrite);

    let mut peer = wire.peer.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let mut message = vec![0; HEADER_SIZE + LARGE];
        peer.read_exact(&mut message).unwrap();
        let mut next = [0; HEADER_SIZE];
        peer.read_exact(&mut next).unwrap();
        peer.write_all(&answer(1, &number(5))).unwrap();
        (message.split_off(HEADER_SIZE), next[0])
    });
    wire.ask(FrontendReq::GET_FEATURES, HANG).unwrap();
    let (received, next) = reader.join().unwrap();
    assert_eq!(received, payload);
    assert_eq!(next, 1);
}

#[test]
fn a_peer_that_never_reads_is_dead_in_the_end() {
    let limits = Limits {
        dead: 20 * SHORT,
        ..LIMITS
    };
    let mut wire = wire(limits);
    shrink(&wire);
    let payload = [0; LARGE];
    let request = Request {
        code: FrontendReq::SET_CONFIG.into(),
        payload: &payload,
        fds: &[],
    };
    wire.connection.tell(request, SHORT).unwrap_err();
    wire.connection.idle().unwrap();
    let cause = wire.ask(FrontendReq::GET_FEATURES, HANG).unwrap_err();
    assert!(matches!(cause, Cause::Dead { .. }), "{cause}");
}

#[test]
fn a_peer_that_leaves_with_a_request_half_read_is_noticed() {
    let mut wire = wire(LIMITS);
    shrink(&wire);
    let request = Request {
        code: FrontendReq::SET_CONFIG.into(),
        payload: &[0; LARGE],
        fds: &[],
    };
    wire.connection.tell(request, SHORT).unwrap_err();
    drop(wire.peer);
    let cause = wire.connection.idle().unwrap_err();
    assert!(matches!(cause, Cause::Closed { .. }), "{cause}");
}
