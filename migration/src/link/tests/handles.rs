//! Descriptors beside the bytes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::*;
use crate::link::wire::Direction;

fn hand_over_pair() -> [Link; 2] {
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    pair(&mut listener, None, Purpose::HandOver)
}

fn files(count: usize) -> Vec<File> {
    let file = |number: usize| {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&number.to_be_bytes(), 0).unwrap();
        file
    };
    (0..count).map(file).collect()
}

fn number(fd: OwnedFd) -> usize {
    // SAFETY: F_GETFD takes no pointers.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
    assert_eq!(flags, libc::FD_CLOEXEC);
    let mut bytes = [0; 8];
    File::from(fd).read_exact_at(&mut bytes, 0).unwrap();
    usize::from_be_bytes(bytes)
}

fn take(link: &mut Link) -> Result<Vec<usize>, Error> {
    match link.receive(&Unwatched)? {
        Message::Handles { count } => {
            let fds = link.take_handles(count)?;
            Ok(fds.into_iter().map(number).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn they_come_in_their_order_with_the_messages_that_announce_them() {
    let [mut sender, mut receiver] = hand_over_pair();
    let files = files(HANDLES_MOST);
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    sender.send(&Message::Alive, &Unwatched).unwrap();
    sender.send_handles(&fds[..1], &Unwatched).unwrap();
    sender.send_handles(&[], &Unwatched).unwrap();
    sender.send_handles(&fds, &Unwatched).unwrap();
    sender.send_handles(&fds[3..5], &Unwatched).unwrap();
    sender.send(&whole(b"it"), &Unwatched).unwrap();
    assert_eq!(take(&mut receiver).unwrap(), [0]);
    assert!(take(&mut receiver).unwrap().is_empty());
    assert!(take(&mut receiver).unwrap().into_iter().eq(0..HANDLES_MOST));
    // The next frame may be read before these are taken.
    let count = match receiver.receive(&Unwatched).unwrap() {
        Message::Handles { count } => count,
        other => panic!("{other:?}"),
    };
    assert!(receiver.notice().is_ok());
    let fds = receiver.take_handles(count).unwrap();
    assert!(fds.into_iter().map(number).eq(3..5));
    assert!(matches!(
        receiver.receive(&Unwatched).unwrap(),
        Message::Describe { .. }
    ));
}

#[test]
fn they_need_a_hand_over_and_that_has_no_pages() {
    let [mut sender, _receiver] = main_pair();
    let files = files(1);
    let refused = sender.send_handles(&[files[0].as_fd()], &Unwatched);
    assert!(matches!(refused, Err(Error::Io { .. })));
    let refused = sender.send(&Message::Handles { count: 1 }, &Unwatched);
    assert!(matches!(refused, Err(Error::Protocol { .. })));

    let [mut sender, mut receiver] = hand_over_pair();
    sender.send(&whole(b"it"), &Unwatched).unwrap();
    receiver.receive(&Unwatched).unwrap();
    receiver.send(&Message::Prepared, &Unwatched).unwrap();
    sender.receive(&Unwatched).unwrap();
    let page = vec![0; 4096];
    let pages = Message::Pages {
        gpa: 0,
        data: &page,
    };
    assert!(matches!(
        sender.send(&pages, &Unwatched),
        Err(Error::Protocol { .. })
    ));
    sender
        .send_handles(&[files[0].as_fd()], &Unwatched)
        .unwrap();
    assert_eq!(take(&mut receiver).unwrap(), [0]);
}

#[test]
fn one_that_announces_more_than_it_sends_is_found_out() {
    let [mut sender, mut receiver] = hand_over_pair();
    sender
        .send(&Message::Handles { count: 1 }, &Unwatched)
        .unwrap();
    assert!(matches!(take(&mut receiver), Err(Error::Protocol { .. })));
    assert!(matches!(
        receiver.receive(&Unwatched),
        Err(Error::Broken { .. })
    ));
}

#[test]
fn one_that_sends_more_than_it_announces_is_stopped() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    let mut stream = UnixStream::connect(place.path()).unwrap();
    stream
        .write_all(&preamble(Purpose::HandOver).encode())
        .unwrap();
    let mut receiver = listener.accept(&Unwatched, None).unwrap();
    receiver.accept_it().unwrap();
    let files = files(HANDLES_MOST);
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut direction = Direction::new(ATTEMPT, 0, crate::link::order::Side::Sender);
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let frame = direction.header(Kind::Alive, &[], &[]);
                let mut space = [std::mem::MaybeUninit::uninit(); 1024];
                let mut control = SendAncillaryBuffer::new(&mut space);
                assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
                let slices = [std::io::IoSlice::new(&frame)];
                if sendmsg(&stream, &slices, &mut control, SendFlags::NOSIGNAL).is_err() {
                    return;
                }
            }
        });
        let stopped = receiver.receive(&Unwatched);
        assert!(matches!(stopped, Err(Error::Io { .. })), "{stopped:?}");
        drop(receiver);
    });
}
