//! Sides that are silent, slow, or give up.

use super::*;

const SHORT: Duration = Duration::from_millis(200);

fn pages(data: &[u8]) -> Message<'_> {
    Message::Pages { gpa: 0, data }
}

/// Runs `wait` in a thread, and presses the button once it has begun.
fn is_cancelled(wait: impl FnOnce(&Button) -> Result<(), Error> + Send) {
    let button = Button::default();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(&button));
        thread::sleep(Duration::from_millis(50));
        let pressed = Instant::now();
        button.press();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(error.is_cancelled(), "{error}");
        assert!(pressed.elapsed() < TOO_LONG);
    });
}

/// Sends until nothing more is taken.
fn fill(link: &mut Link, watch: &dyn Watch) -> Result<(), Error> {
    let data = vec![1; FRAME_DATA_MOST];
    loop {
        link.send(&pages(&data), watch)?;
    }
}

#[test]
fn every_wait_can_be_cancelled() {
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    is_cancelled(|watch| listener.accept(watch, None).map(drop));

    // A receiver that takes nobody.
    let connect = |watch: &Button, address: &Address| {
        let patience = patience(TOO_LONG);
        Link::connect(address, None, ATTEMPT, Purpose::Ask, patience, watch).map(drop)
    };
    is_cancelled(|watch| connect(watch, &place.address()));
    let full = Place::new();
    let raw = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    raw.bind(&socket2::SockAddr::unix(full.path()).unwrap())
        .unwrap();
    raw.listen(0).unwrap();
    let _waiting = UnixStream::connect(full.path()).unwrap();
    is_cancelled(|watch| connect(watch, &full.address()));

    let [mut sender, mut receiver] = copying_pair();
    is_cancelled(|watch| sender.receive(watch).map(drop));
    is_cancelled(|watch| {
        let late = Instant::now() + TOO_LONG;
        receiver.receive_for(watch, late).map(drop)
    });
    is_cancelled(|watch| fill(&mut sender, watch));
}

#[test]
fn a_cancel_within_a_frame_ends_the_connection() {
    let [mut sender, mut receiver] = copying_pair();
    is_cancelled(|watch| fill(&mut sender, watch));
    let error = sender.send(&Message::Alive, &Unwatched).unwrap_err();
    assert!(matches!(error, Error::Broken { .. }), "{error}");
    sender.give_up(&Failure::new(["cancelled"]));
    let error = loop {
        if let Err(error) = receiver.receive(&Unwatched) {
            break error;
        }
    };
    assert!(matches!(error, Error::Closed { .. }), "{error}");
}

#[test]
fn a_silent_peer_is_an_error_in_time() {
    let [mut sender, mut receiver] = copying_pair();
    sender.set_silence(SHORT);
    receiver.set_silence(SHORT);
    let error = receiver.receive(&Unwatched).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}: nothing happened for 200ms while RAM is copied",
            receiver.peer()
        )
    );
    assert!(error.is_lost());
    // One that takes nothing.
    let error = fill(&mut sender, &Unwatched).unwrap_err();
    assert!(matches!(error, Error::Silent { .. }), "{error}");

    let place = Place::new();
    let _listener = Listener::bind(&place.address(), None).unwrap();
    let patience = Patience {
        connect: SHORT,
        silence: TOO_LONG,
    };
    let link = Link::connect(
        &place.address(),
        None,
        ATTEMPT,
        Purpose::Ask,
        patience,
        &Unwatched,
    );
    assert!(matches!(link.err().unwrap(), Error::Silent { .. }));
}

#[test]
fn a_deadline_is_no_error_and_loses_nothing() {
    let [mut sender, mut receiver] = copying_pair();
    let soon = || Instant::now() + Duration::from_millis(30);
    assert!(!receiver.has_input());
    assert_eq!(receiver.receive_for(&Unwatched, soon()).unwrap(), None);
    sender.send(&pages(&[3; 8192]), &Unwatched).unwrap();
    assert!(receiver.has_input());
    let message = receiver.receive_for(&Unwatched, Instant::now());
    assert_eq!(message.unwrap(), Some(pages(&[3; 8192])));
    assert!(!receiver.has_input());
}

#[test]
fn who_says_to_be_alive_is_not_silent() {
    let [mut sender, mut receiver] = copying_pair();
    let limit = Duration::from_secs(1);
    sender.set_silence(limit);
    receiver.set_silence(limit);
    thread::scope(|scope| {
        scope.spawn(move || {
            let started = Instant::now();
            while started.elapsed() < 2 * limit {
                sender.keep_alive_if_due().unwrap();
                thread::sleep(Duration::from_millis(5));
            }
            sender.send(&Message::StateEnd, &Unwatched).unwrap();
            // Not before it is read.
            let _ = sender.receive(&Unwatched);
        });
        assert_eq!(receiver.receive(&Unwatched).unwrap(), Message::StateEnd);
        assert!(receiver.received().frames >= 3);
    });
}

/// What it says in between counts.
#[test]
fn who_only_says_to_be_alive_is_waited_for_in_vain() {
    const STEPS: u32 = 6;
    let limit = Duration::from_secs(2);
    let [mut sender, mut receiver] = copying_pair();
    sender.set_silence(limit / 8);
    receiver.set_idle(limit);
    thread::scope(|scope| {
        scope.spawn(move || {
            let started = Instant::now();
            for step in 1..=STEPS {
                while started.elapsed() < step * limit / 4 {
                    sender.keep_alive_if_due().unwrap();
                    thread::sleep(Duration::from_millis(5));
                }
                sender.send(&pages(&[3; 4096]), &Unwatched).unwrap();
            }
            while sender.keep_alive_if_due().is_ok() && started.elapsed() < TOO_LONG {
                thread::sleep(Duration::from_millis(5));
            }
        });
        let mut came = 0;
        let error = loop {
            match receiver.receive_for(&Unwatched, Instant::now() + SHORT) {
                Ok(message) => came += u32::from(message.is_some()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Idle { .. }), "{error}");
        assert!(error.to_string().contains("RAM is copied"), "{error}");
        assert_eq!(came, STEPS);
        drop(receiver);
    });
}

#[test]
fn alive_never_waits() {
    let [mut sender, receiver] = copying_pair();
    sender.set_silence(Duration::ZERO);
    let mut before = Tally::default();
    // Until there is no more room.
    while sender.sent() != before {
        before = sender.sent();
        sender.keep_alive_if_due().unwrap();
    }
    drop(receiver);
}

#[test]
fn a_slow_reader_gets_everything() {
    let [mut sender, mut receiver] = copying_pair();
    sender.set_silence(Duration::from_secs(5));
    let data = vec![7; FRAME_DATA_MOST];
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..8 {
                sender.send(&pages(&data), &Unwatched).unwrap();
            }
        });
        for _ in 0..8 {
            thread::sleep(Duration::from_millis(20));
            assert_eq!(receiver.receive(&Unwatched).unwrap(), pages(&data));
        }
    });
}

#[test]
fn a_failure_is_heard_while_writing() {
    for address in [tcp(), Place::new().address()] {
        let place = Place::new();
        let address = match address {
            Address::Unix(_) => place.address(),
            tcp => tcp,
        };
        let mut listener = Listener::bind(&address, None).unwrap();
        let [mut sender, mut receiver] =
            pair(&mut listener, None, Purpose::Migrate { connections: 1 });
        sender.send(&whole(b""), &Unwatched).unwrap();
        receiver.receive(&Unwatched).unwrap();
        receiver.send(&Message::Prepared, &Unwatched).unwrap();
        sender.receive(&Unwatched).unwrap();
        thread::scope(|scope| {
            let sending = scope.spawn(|| fill(&mut sender, &Unwatched).unwrap_err());
            thread::sleep(Duration::from_millis(50));
            receiver.send(&Message::Alive, &Unwatched).unwrap();
            receiver.give_up(&Failure::new(["no room", "the disk is full"]));
            let error = sending.join().unwrap();
            let Error::PeerFailed { failure, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(
                failure.texts().collect::<Vec<_>>(),
                ["no room", "the disk is full"]
            );
            let source = std::error::Error::source(&error).unwrap();
            assert_eq!(source.source().unwrap().to_string(), "the disk is full");
        });
    }
}

#[test]
fn what_else_comes_while_writing_is_kept() {
    let [mut sender, mut receiver] = main_pair();
    sender.send(&whole(b""), &Unwatched).unwrap();
    receiver.receive(&Unwatched).unwrap();
    receiver.send(&Message::Alive, &Unwatched).unwrap();
    receiver.send(&Message::Prepared, &Unwatched).unwrap();
    // Out of turn, which only this side knows: it has not looked.
    let waste = vec![0; 64];
    let cancelled = Button::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            cancelled.press();
        });
        let mut sent = 0u64;
        while sender.send(&Message::Alive, &cancelled).is_ok() && sent < 1 << 22 {
            sent += waste.len() as u64;
        }
    });
    assert!(sender.has_input());
    assert_eq!(sender.receive(&Unwatched).unwrap(), Message::Prepared);
}

#[test]
fn a_failure_has_bounds() {
    let long = "ä".repeat(FAILURE_TEXT_MOST);
    let failure = Failure::new((0..40).map(|_| long.as_str()));
    assert_eq!(failure.texts().count(), FAILURE_TEXTS_MOST);
    assert!(failure.texts().all(|text| text.len() == FAILURE_TEXT_MOST));
    let [sender, mut receiver] = main_pair();
    thread::scope(|scope| {
        scope.spawn(|| sender.give_up(&failure));
        match receiver.receive(&Unwatched).unwrap_err() {
            Error::PeerFailed { failure: got, .. } => assert_eq!(got, failure),
            other => panic!("{other}"),
        }
    });
    assert_eq!(Failure::new([""; 0]).texts().count(), 1);
    let error = Error::Ram {
        gpa: 1,
        source: std::io::Error::other("why"),
    };
    assert_eq!(
        Failure::of(&error).texts().collect::<Vec<_>>(),
        ["guest RAM at 0x1", "why"]
    );
}

#[test]
fn a_chunk_can_be_kept_while_the_connection_is_used() {
    let [mut sender, mut receiver] = copying_pair();
    let device = 0;
    let mut spare = Vec::new();
    assert!(receiver.take_chunk(&mut spare).is_empty());
    let pieces = [&b"the first"[..], &[7; 100_000], b"the last one"];
    for (number, data) in pieces.into_iter().enumerate() {
        sender
            .send(&Message::Chunk { device, data }, &Unwatched)
            .unwrap();
        let message = receiver.receive(&Unwatched).unwrap();
        assert_eq!(message, Message::Chunk { device, data });
        let kept = receiver.take_chunk(&mut spare);
        assert!(kept == data, "{number}");
        receiver.notice().unwrap();
        assert!(receiver.take_chunk(&mut Vec::new()).is_empty());
    }
    // What is on its way stays there.
    let data = &b"another"[..];
    sender
        .send(&Message::Chunk { device, data }, &Unwatched)
        .unwrap();
    receiver.notice().unwrap();
    assert!(receiver.take_chunk(&mut spare).is_empty());
    let message = receiver.receive(&Unwatched).unwrap();
    assert_eq!(message, Message::Chunk { device, data });
}
