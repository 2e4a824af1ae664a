//! Peers that lie, and connections that damage or end.

use super::*;
use crate::link::order::Side;
use crate::link::wire::{ANSWER, Direction, FRAME_HEADER, PREAMBLE, Preamble};

/// A receiver hears these bytes, the preamble included.
fn receiver_hears(listener: &mut Listener, place: &Place, bytes: &[u8]) -> Result<(), Error> {
    let mut client = UnixStream::connect(place.path()).unwrap();
    // What is written fits into the socket.
    client.write_all(bytes).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let soon = Some(Instant::now() + Duration::from_millis(50));
    let mut link = listener.accept(&Unwatched, soon)?;
    link.accept_it()?;
    receive_guest(vec![link], &ram())
}

/// A sender hears these bytes, the answer to its preamble included.
fn sender_hears(listener: &UnixListener, place: &Place, bytes: &[u8]) -> Result<(), Error> {
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut client, _) = listener.accept().unwrap();
            let _ = client.write_all(bytes);
            let _ = client.shutdown(std::net::Shutdown::Write);
            let mut waste = vec![0; 1 << 16];
            while client.read(&mut waste).is_ok_and(|got| got != 0) {}
        });
        let purpose = Purpose::Migrate { connections: 1 };
        let sent = connect(&place.address(), None, purpose)
            .and_then(|link| send_guest(&mut [link], &filled_ram()).map(drop));
        receiver.join().unwrap();
        sent
    })
}

/// Where frames begin, and the end.
fn frames(bytes: &[u8], start: usize) -> Vec<usize> {
    let mut at = start;
    let mut starts = vec![at];
    while at < bytes.len() {
        let length = u32::from_be_bytes(bytes[at + 4..at + 8].try_into().unwrap());
        at += FRAME_HEADER + length as usize;
        starts.push(at);
    }
    assert_eq!(at, bytes.len());
    starts
}

/// Every byte of headers and small frames, and some of the pages.
fn places(bytes: &[u8], start: usize) -> Vec<usize> {
    let starts = frames(bytes, start);
    let mut places = Vec::new();
    for frame in starts.windows(2) {
        let close = (frame[0] + 32).min(frame[1]);
        places.extend(frame[0]..close);
        places.extend((close..frame[1]).step_by(509));
    }
    places
}

#[test]
fn damage_to_the_senders_stream_is_found() {
    let [bytes, _] = recorded();
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    receiver_hears(&mut listener, &place, &bytes).unwrap();
    for at in places(&bytes, PREAMBLE) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        let result = receiver_hears(&mut listener, &place, &bytes);
        let error = result.expect_err("damage was not found");
        // A length that is larger, and allowed, waits for more.
        let known = matches!(error, Error::Protocol { .. } | Error::Closed { .. });
        assert!(known, "byte {at}: {error:?}");
    }
}

#[test]
fn damage_to_the_receivers_stream_is_found() {
    let [_, bytes] = recorded();
    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    // What would be in order later comes too early.
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        let result = sender_hears(&listener, &place, &bytes);
        result.expect_err("damage was not found");
    }
}

#[test]
fn damage_to_a_preamble_is_found() {
    let preamble = Preamble {
        oldest: 1,
        newest: 1,
        purpose: Purpose::Join { index: 3 },
        attempt: ATTEMPT,
    };
    let bytes = preamble.encode();
    assert_eq!(Preamble::decode(&bytes), Ok(preamble));
    for bit in 0..8 * PREAMBLE {
        let mut bytes = bytes;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Preamble::decode(&bytes), Err(Violation::Preamble), "{bit}");
    }
}

#[test]
fn a_stream_that_is_cut_off_is_no_stream() {
    let [bytes, _] = recorded();
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    for start in frames(&bytes, PREAMBLE) {
        for end in [start, start + 1, start + FRAME_HEADER, start + 40] {
            if end < bytes.len() {
                let result = receiver_hears(&mut listener, &place, &bytes[..end]);
                let error = result.expect_err("it was cut off");
                assert!(matches!(error, Error::Closed { .. }), "{end}: {error:?}");
            }
        }
    }
    let [_, bytes] = recorded();
    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    for end in 0..bytes.len() {
        let result = sender_hears(&listener, &place, &bytes[..end]);
        result.expect_err("it was cut off");
    }
}

#[test]
fn a_stream_of_another_attempt_is_refused() {
    let [mut bytes, mut answers] = recorded();
    let preamble = Preamble {
        oldest: OLDEST,
        newest: NEWEST,
        purpose: Purpose::Migrate { connections: 1 },
        attempt: StreamId([6; 16]),
    };
    bytes[..PREAMBLE].copy_from_slice(&preamble.encode());
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    let error = receiver_hears(&mut listener, &place, &bytes).unwrap_err();
    assert!(matches!(violation(error), Violation::Checksum(_)));

    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    let answer = wire::Answer {
        version: NEWEST,
        reason: 0,
        attempt: StreamId([6; 16]),
    };
    answers[..ANSWER].copy_from_slice(&answer.encode());
    let error = sender_hears(&listener, &place, &answers).unwrap_err();
    assert_eq!(violation(error), Violation::Attempt);
}

#[test]
fn frames_that_are_repeated_left_out_or_swapped_are_found() {
    let [bytes, _] = recorded();
    let starts = frames(&bytes, PREAMBLE);
    let frame = |number: usize| &bytes[starts[number]..starts[number + 1]];
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    let count = starts.len() - 1;
    for at in 0..count - 1 {
        let order = |numbers: &[usize]| {
            let mut changed = bytes[..starts[at]].to_vec();
            changed.extend(numbers.iter().flat_map(|number| frame(*number)));
            changed.extend((at + 2..count).flat_map(frame));
            changed
        };
        for numbers in [&[at, at, at + 1][..], &[at], &[at + 1], &[at + 1, at]] {
            let result = receiver_hears(&mut listener, &place, &order(numbers));
            let error = result.expect_err("frames are not as they were sent");
            let known = matches!(error, Error::Protocol { .. } | Error::Closed { .. });
            assert!(known, "{numbers:?}: {error:?}");
        }
    }
}

/// What a receiver that waits for RAM says to a frame with this header, all of it right otherwise.
fn receiver_says(kind: u16, flags: u16, length: u32, body: &[u8]) -> Error {
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    let mut client = UnixStream::connect(place.path()).unwrap();
    client
        .write_all(&preamble(Purpose::Join { index: 1 }).encode())
        .unwrap();
    let mut link = listener.accept(&Unwatched, None).unwrap();
    link.accept_it().unwrap();
    let mut header = match Kind::of(kind) {
        Ok(kind) => {
            let (head, data) = body.split_at(message::head_bytes(kind).min(body.len()));
            Direction::new(ATTEMPT, 1, Side::Sender).header(kind, head, data)
        }
        Err(_) => [0; FRAME_HEADER],
    };
    header[..2].copy_from_slice(&kind.to_be_bytes());
    header[2..4].copy_from_slice(&flags.to_be_bytes());
    header[4..8].copy_from_slice(&length.to_be_bytes());
    client.write_all(&header).unwrap();
    client.write_all(body).unwrap();
    // Nothing more comes, and so nothing waits for it.
    let error = link.receive(&Unwatched).unwrap_err();
    let again = link.receive(&Unwatched).unwrap_err();
    assert!(matches!(again, Error::Broken { .. }), "{again}");
    error
}

fn violation(error: Error) -> Violation {
    match error {
        Error::Protocol { violation, .. } => violation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn headers_that_cannot_be_are_refused_before_the_body() {
    let page = 4096 + 8;
    assert_eq!(
        violation(receiver_says(99, 0, 0, &[])),
        Violation::Unknown(99)
    );
    assert_eq!(
        violation(receiver_says(Kind::Pages as u16, 1, page, &[])),
        Violation::Flags(Kind::Pages)
    );
    for length in [0, 8, 8 + 4095, 8 + 4097, 8 + (1 << 20) + 4096, u32::MAX] {
        let said = violation(receiver_says(Kind::Pages as u16, 0, length, &[]));
        assert_eq!(
            said,
            Violation::Length {
                kind: Kind::Pages,
                length
            }
        );
    }
    for kind in Kind::ALL {
        let length = u32::MAX;
        let said = violation(receiver_says(kind as u16, 0, length, &[]));
        assert_eq!(said, Violation::Length { kind, length });
    }
    // Of the other side, or for another time.
    for kind in [Kind::Ready, Kind::Commit, Kind::Describe, Kind::Outcome] {
        let length = match kind {
            Kind::Commit => 24,
            Kind::Describe => 8,
            Kind::Outcome => 1,
            _ => 0,
        };
        let said = violation(receiver_says(kind as u16, 0, length, &[]));
        assert!(matches!(said, Violation::Order { .. }), "{said}");
    }
}

#[test]
fn bodies_that_cannot_be_are_refused() {
    let say =
        |kind: Kind, body: &[u8]| violation(receiver_says(kind as u16, 0, body.len() as u32, body));
    let content = |said: Violation| assert!(matches!(said, Violation::Content { .. }), "{said}");
    let numbers = |a: u64, b: u64| [a.to_be_bytes(), b.to_be_bytes()].concat();
    for (gpa, bytes) in [
        (0, 0),
        (1, 4096),
        (0, 4095),
        (0, BLOCK + 4096),
        (BLOCK - 4096, 8192),
        (u64::MAX - 4095, 8192),
        (0, u64::MAX - 4095),
    ] {
        content(say(Kind::Zeros, &numbers(gpa, bytes)));
    }
    for gpa in [1, 4095, BLOCK - 4096, u64::MAX] {
        let body = [&gpa.to_be_bytes()[..], &[0; 8192]].concat();
        content(say(Kind::Pages, &body));
    }
    content(say(Kind::End, &numbers(1, 2)));
    content(say(Kind::End, &[0; 32]));
    content(say(Kind::Failed, &[0]));
    content(say(Kind::Failed, &[0, 1]));
    content(say(Kind::Failed, &[0, 1, 0xff]));
    content(say(Kind::Failed, &[0; 34]));
    let long = [&1025u16.to_be_bytes()[..], &[b'x'; 1025]].concat();
    content(say(Kind::Failed, &long));
}

#[test]
fn answers_that_cannot_be_are_refused() {
    let decode = |kind, body: &[u8]| message::decode(kind, body, ATTEMPT).map(drop);
    for outcome in [0, 6, 255] {
        assert!(decode(Kind::Outcome, &[outcome]).is_err());
    }
    let timing = |length: u8| {
        let since = [0; 8];
        [
            &since[..],
            &[length],
            &[b'x'; 8],
            &vec![b'x'; length.into()],
        ]
        .concat()
    };
    assert!(decode(Kind::Running, &timing(32)).is_ok());
    assert!(decode(Kind::Running, &timing(33)).is_err());
    for length in [0, 7, 48] {
        assert!(decode(Kind::Running, &timing(32)[..length]).is_err());
    }
    assert!(decode(Kind::Running, &[0; 8 + 64 * 9]).is_ok());
    assert!(decode(Kind::Running, &[0; 8 + 65 * 9]).is_err());
    assert!(decode(Kind::Commit, &[1; 24]).is_err());
    assert!(decode(Kind::Chunk, &[0, 1, 0, 0, 0, 0, 0, 1, 9]).is_err());
    assert!(decode(Kind::Describe, &[2, 0, 0, 0, 0, 0, 0, 0]).is_err());
}

#[test]
fn a_receiver_may_lie_in_its_answer() {
    let [_, bytes] = recorded();
    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    let hears = |version, reason, rest: &[u8]| {
        let answer = wire::Answer {
            version,
            reason,
            attempt: ATTEMPT,
        };
        let bytes = [&answer.encode()[..], rest].concat();
        sender_hears(&listener, &place, &bytes).unwrap_err()
    };
    assert!(matches!(hears(NEWEST + 1, 0, &[]), Error::Protocol { .. }));
    assert!(matches!(hears(NEWEST, 5, b"hello"), Error::Protocol { .. }));
    assert!(matches!(hears(0, 0, &[]), Error::Protocol { .. }));
    assert!(matches!(
        hears(0, 1025, &[b'x'; 1025]),
        Error::Protocol { .. }
    ));
    assert!(matches!(hears(0, 5, &[0xff; 5]), Error::Protocol { .. }));
    assert!(matches!(hears(0, 5, b"hel"), Error::Closed { .. }));
    assert!(matches!(hears(0, 5, b"hello"), Error::Refused { reason, .. } if reason == "hello"));
    assert!(bytes.len() > ANSWER);
}
