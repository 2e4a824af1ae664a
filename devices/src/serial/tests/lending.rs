//! A far end that goes to another port, as it does to another process, or comes back.

use std::io::ErrorKind;
use std::sync::mpsc;

use super::*;

impl Port {
    /// Waits for what is left.
    fn lend(&self) -> Rest {
        let (sender, rest) = mpsc::channel();
        self.port.lend(move |rest| sender.send(rest).unwrap());
        rest.recv_timeout(LIMIT).unwrap().unwrap()
    }

    /// The port of the next process, which does nothing yet.
    fn next(&self, rest: Rest) -> Port {
        let (what, handles) = self.port.far_end();
        let handles = handles
            .into_iter()
            .map(|fd| fd.try_clone_to_owned().unwrap());
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let escape = EventFd::new(EFD_NONBLOCK).unwrap();
        let events = SerialEvents {
            interrupt: interrupt.try_clone().unwrap(),
            escape: escape.try_clone().unwrap(),
        };
        let port = SerialPort::on_lent(&what, handles.collect(), events).unwrap();
        port.take_rest(rest).unwrap();
        Port {
            port,
            interrupt,
            escape,
        }
    }
}

fn client(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client
}

fn expect(client: &mut UnixStream, text: &[u8]) {
    let mut bytes = vec![0; text.len()];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, text);
}

#[test]
fn a_far_end_that_is_lent_is_left_alone_until_it_comes_back() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("serial");
    let port = Port::new(&Sink::Socket(path.clone()));
    let mut client = client(&path);
    port.print(b"a");
    expect(&mut client, b"a");
    for round in 0..20 {
        let rest = port.lend();
        assert_eq!(rest.state.client, ClientV1::Both);
        client.write_all(&[round]).unwrap();
        port.print(b"b");
        client.set_nonblocking(true).unwrap();
        thread::sleep(Duration::from_millis(2));
        let nothing = client.read(&mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        client.set_nonblocking(false).unwrap();
        assert!(port.port.save().fifo.is_empty());
        // Nobody waits for a far end that is another's.
        assert_eq!(port.port.flush(LIMIT), 0);
        port.port.serve();
        expect(&mut client, b"b");
        assert_eq!(port.read(1), [round]);
    }
}

#[test]
fn a_lend_that_is_taken_back_at_once_changes_nothing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("serial");
    let port = Port::new(&Sink::Socket(path.clone()));
    let mut client = client(&path);
    for _ in 0..200 {
        port.port.lend(|_| {});
        port.port.serve();
        port.print(b"x");
        expect(&mut client, b"x");
    }
}

#[test]
fn the_next_port_goes_on_where_the_one_before_stopped() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("serial");
    let mut port = Port::new(&Sink::Socket(path.clone()));
    let mut client = client(&path);
    // More than the socket holds, so that something is left each time, half a piece among it.
    let text: Vec<u8> = (0..900_000_u32).map(|n| (n % 251) as u8).collect();
    port.print(&text);
    client.write_all(b"hello").unwrap();
    assert_eq!(port.read(5), b"hello");
    let mut bytes = vec![0; text.len() / 4];
    for piece in text.chunks(bytes.len()) {
        let rest = port.lend();
        assert!(!rest.state.output.is_empty());
        let rest = Rest {
            state: decode(&encode(&rest.state).unwrap()).unwrap(),
            ..rest
        };
        let next = port.next(rest);
        // It ends as the old process does: the socket is not its own any more.
        drop(port);
        assert!(path.exists());
        next.port.serve();
        client.read_exact(&mut bytes).unwrap();
        assert!(bytes == piece);
        port = next;
    }
    client.shutdown(Shutdown::Write).unwrap();
    drop(client);
    drop(port);
    assert!(!path.exists());
}

#[test]
fn a_client_that_only_reads_goes_on_reading() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("serial");
    let port = Port::new(&Sink::Socket(path.clone()));
    let mut client = client(&path);
    port.print(b"1");
    expect(&mut client, b"1");
    client.shutdown(Shutdown::Write).unwrap();
    let begin = Instant::now();
    let rest = loop {
        let rest = port.lend();
        if rest.state.client == ClientV1::Takes {
            break rest;
        }
        port.port.serve();
        assert!(begin.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(1));
    };
    let next = port.next(rest);
    drop(port);
    next.port.serve();
    next.print(b"2");
    expect(&mut client, b"2");
}

#[test]
fn a_pseudo_terminal_and_a_file_stay_the_same() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("serial");
    let file = Port::new(&Sink::File(path.clone()));
    file.print(b"one ");
    let next = file.next(file.lend());
    next.port.serve();
    next.print(b"two");
    drop(file);
    assert_eq!(next.port.flush(LIMIT), 0);
    assert_eq!(fs::read(&path).unwrap(), b"one two");

    let pty = Port::new(&Sink::Pty);
    let client_path = pty.port.pty().unwrap().to_owned();
    let mut client = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(&client_path)
        .unwrap();
    let next = pty.next(pty.lend());
    drop(pty);
    next.port.serve();
    assert_eq!(next.port.pty(), Some(&*client_path));
    next.print(b"there");
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"there");
    client.write_all(b"here").unwrap();
    assert_eq!(next.read(4), b"here");
}

#[test]
fn what_cannot_be_is_refused() {
    let events = || SerialEvents {
        interrupt: EventFd::new(EFD_NONBLOCK).unwrap(),
        escape: EventFd::new(EFD_NONBLOCK).unwrap(),
    };
    for what in [FarEndV1::File, FarEndV1::Pty] {
        assert!(SerialPort::on_lent(&what, Vec::new(), events()).is_err());
    }
    let no_terminal = File::open("/dev/null").unwrap();
    let handles = vec![no_terminal.try_clone().unwrap().into(), no_terminal.into()];
    assert!(SerialPort::on_lent(&FarEndV1::Pty, handles, events()).is_err());
    let directory = TempDir::new().unwrap();
    let port = Port::new(&Sink::File(directory.path().join("serial")));
    let rest = port.lend();
    let next = port.next(rest);
    let too_much = Rest {
        state: RestV1 {
            output: vec![0; OUTPUT_MOST + 4097],
            client: ClientV1::None,
        },
        client: None,
    };
    assert!(next.port.take_rest(too_much).is_err());
}
