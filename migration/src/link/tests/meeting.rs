//! How the two sides find each other.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn migrates(mut listener: Listener, tls: Option<&Tls>, connections: u16) {
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for index in 0..connections {
        let purpose = match index {
            0 => Purpose::Migrate { connections },
            index => Purpose::Join { index },
        };
        let [sender, receiver] = pair(&mut listener, tls, purpose);
        assert_eq!(receiver.purpose(), purpose);
        assert_eq!(receiver.attempt(), ATTEMPT);
        assert_eq!([sender.version(), receiver.version()], [NEWEST; 2]);
        senders.push(sender);
        receivers.push(receiver);
    }
    let (from, to) = (filled_ram(), ram());
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_guest(receivers, &to));
        assert_eq!(send_guest(&mut senders, &from).unwrap(), timings());
        receiver.join().unwrap().unwrap();
    });
    let mut expected = content(&from);
    expected[..4096].fill(9);
    assert!(content(&to) == expected);
}

#[test]
fn a_guest_goes_over_a_unix_socket() {
    let place = Place::new();
    migrates(Listener::bind(&place.address(), None).unwrap(), None, 1);
}

#[test]
fn a_guest_goes_over_tcp() {
    migrates(Listener::bind(&tcp(), None).unwrap(), None, 1);
}

#[test]
fn a_guest_goes_over_four_connections() {
    let place = Place::new();
    migrates(Listener::bind(&place.address(), None).unwrap(), None, 4);
    migrates(Listener::bind(&tcp(), None).unwrap(), None, 4);
}

#[test]
fn a_guest_goes_over_tls() {
    let keys = tls::keys();
    for connections in [1, 4] {
        let listener = Listener::bind(&tcp(), Some(&keys)).unwrap();
        migrates(listener, Some(&keys), connections);
    }
}

#[test]
fn addresses_are_read_as_they_are_written() {
    for text in [
        "unix:/run/x y",
        "tcp:host:1",
        "tcp:10.0.0.1:65535",
        "tcp:[::1]:80",
    ] {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
    }
    for text in [
        "",
        "unix:",
        "tcp:",
        "tcp:host",
        "tcp::1",
        "tcp:::1:80",
        "tcp:h:65536",
        "udp:h:1",
    ] {
        assert!(text.parse::<Address>().is_err(), "{text}");
    }
}

#[test]
fn what_is_loopback_is_known() {
    let place = Place::new();
    let loopback = |address: &Address| Listener::bind(address, None).unwrap().is_loopback();
    assert!(loopback(&place.address()));
    assert!(loopback(&tcp()));
    assert!(loopback(&"tcp:localhost:0".parse().unwrap()));
    assert!(!loopback(&"tcp:0.0.0.0:0".parse().unwrap()));
}

#[test]
fn a_socket_is_for_its_user_and_goes_with_the_listener() {
    let place = Place::new();
    let listener = Listener::bind(&place.address(), None).unwrap();
    let mode = std::fs::metadata(place.path())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(listener);
    assert!(!place.path().exists());
}

#[test]
fn only_a_socket_without_a_listener_is_replaced() {
    let place = Place::new();
    drop(UnixListener::bind(place.path()).unwrap());
    let listener = Listener::bind(&place.address(), None).unwrap();
    let error = Listener::bind(&place.address(), None).err().unwrap();
    assert!(error.to_string().contains("unix:"), "{error}");
    drop(listener);
    std::fs::write(place.path(), "a file").unwrap();
    assert!(Listener::bind(&place.address(), None).is_err());
    assert!(place.path().exists());
}

#[test]
fn a_refusal_tells_the_reason() {
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    thread::scope(|scope| {
        let sender = scope.spawn(|| connect(&place.address(), None, Purpose::Ask));
        let link = listener.accept(&Unwatched, None).unwrap();
        link.refuse(&format!("busy\n{}", "x".repeat(5000))).unwrap();
        match sender.join().unwrap().err().unwrap() {
            Error::Refused { reason, .. } => {
                assert!(reason.starts_with("busy x") && reason.len() == 1024);
            }
            other => panic!("{other}"),
        }
    });
}

#[test]
fn an_outcome_is_asked_for() {
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    for outcome in [
        Outcome::Running,
        Outcome::Discarded,
        Outcome::NeverStarted,
        Outcome::Waiting,
        Outcome::Unknown,
    ] {
        let [mut sender, mut receiver] = pair(&mut listener, None, Purpose::Ask);
        receiver
            .send(&Message::Outcome(outcome), &Unwatched)
            .unwrap();
        drop(receiver);
        assert_eq!(
            sender.receive(&Unwatched).unwrap(),
            Message::Outcome(outcome)
        );
    }
}

#[test]
fn strangers_keep_nobody_waiting() {
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    // Silent ones, more than are heard at a time; one that talks junk; one that hangs up.
    let silent: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(place.path()).unwrap())
        .collect();
    let mut junk = UnixStream::connect(place.path()).unwrap();
    junk.write_all(&[0x55; 1000]).unwrap();
    drop(UnixStream::connect(place.path()).unwrap());
    let [sender, _] = pair(&mut listener, None, Purpose::Ask);
    assert_eq!(sender.purpose(), Purpose::Ask);
    let mut rest = Vec::new();
    assert_eq!(junk.read_to_end(&mut rest).unwrap_or(0), 0);
    drop(silent);
}

#[test]
fn a_sender_of_another_version_is_told() {
    let place = Place::new();
    let mut listener = Listener::bind(&place.address(), None).unwrap();
    let mut client = UnixStream::connect(place.path()).unwrap();
    let preamble = wire::Preamble {
        oldest: 7,
        newest: 9,
        purpose: Purpose::Ask,
        attempt: ATTEMPT,
    };
    client.write_all(&preamble.encode()).unwrap();
    let soon = Some(Instant::now() + Duration::from_millis(100));
    assert!(listener.accept(&Unwatched, soon).is_err());
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(
        text.ends_with("it speaks version 1 of the protocol, and this Ferry versions 7 to 9"),
        "{text}"
    );
}

#[test]
fn a_receiver_that_is_not_there_is_named() {
    let place = Place::new();
    let connect = |to: &Address| connect(to, None, Purpose::Ask).err().unwrap();
    let absent = |error: &Error| matches!(error, Error::Absent { .. }) && error.is_lost();
    let error = connect(&place.address());
    assert!(absent(&error) && error.to_string().contains(place.path().to_str().unwrap()));
    let listener = Listener::bind(&tcp(), None).unwrap();
    let address = listener.address().clone();
    drop(listener);
    assert!(absent(&connect(&address)));
}
