//! The serial port as a guest and as the far end see it, with real files, sockets and pipes.

mod lending;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_migration::stream::{decode, encode};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::output::OUTPUT_MOST;
use super::sink::{Opened, Sink};
use super::*;

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_IDENTIFICATION: u8 = 2;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const SCRATCH: u8 = 7;

/// Nothing here takes long; this keeps a failure from hanging.
const LIMIT: Duration = Duration::from_secs(20);

/// A serial port with what it signals.
struct Port {
    port: SerialPort,
    interrupt: EventFd,
    escape: EventFd,
}

impl Port {
    fn new(sink: &Sink) -> Self {
        Self::serve(sink::open(sink).unwrap())
    }

    fn on_pipes(input: impl AsFd, output: impl AsFd) -> Self {
        let line = stdio::open_on(input.as_fd(), output.as_fd()).unwrap();
        Self::serve(Opened {
            line: Some(line),
            pty: None,
            socket: None,
        })
    }

    fn serve(opened: Opened) -> Self {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let escape = EventFd::new(EFD_NONBLOCK).unwrap();
        let events = SerialEvents {
            interrupt: interrupt.try_clone().unwrap(),
            escape: escape.try_clone().unwrap(),
        };
        let port = SerialPort::on(opened, events).unwrap();
        Self {
            port,
            interrupt,
            escape,
        }
    }

    fn print(&self, text: &[u8]) {
        for byte in text {
            self.port.write(DATA, *byte);
        }
    }

    /// Reads as a driver that polls, until `count` bytes have come.
    fn read(&self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let start = Instant::now();
        while bytes.len() < count {
            if self.port.read(LINE_STATUS) & 1 != 0 {
                bytes.push(self.port.read(DATA));
            } else {
                assert!(start.elapsed() < LIMIT, "{} of {count} bytes", bytes.len());
                thread::yield_now();
            }
        }
        bytes
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "waited for: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that show it when one is missing or out of order.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index % 251) as u8).collect()
}

fn temporary() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn client(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client
}

fn expect(mut reader: impl Read, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    reader.read_exact(&mut bytes).unwrap();
    assert!(bytes == expected, "{}", String::from_utf8_lossy(&bytes));
}

#[test]
fn a_file_is_emptied_and_takes_all_output() {
    let dir = temporary();
    let path = dir.path().join("console");
    fs::write(&path, "left over from before, and longer").unwrap();
    let port = Port::new(&Sink::File(path.clone()));
    let text = pattern(100_000);
    port.print(&text);
    assert_eq!(port.port.flush(LIMIT), 0);
    assert!(fs::read(&path).unwrap() == text);
    assert_eq!(port.port.lost(), 0);
}

#[test]
fn a_file_that_cannot_be_made_is_an_error_with_its_path() {
    let error = SerialPort::new(
        &Sink::File("/nonexistent/console".into()),
        SerialEvents {
            interrupt: EventFd::new(0).unwrap(),
            escape: EventFd::new(0).unwrap(),
        },
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "cannot open /nonexistent/console");
}

#[test]
fn a_disk_without_room_costs_output_and_nothing_else() {
    let port = Port::new(&Sink::File("/dev/full".into()));
    port.print(&pattern(10_000));
    assert_eq!(port.port.flush(LIMIT), 0);
    assert_eq!(port.port.lost(), 10_000);
    port.print(b"x");
    assert_eq!(port.port.flush(LIMIT), 0);
    assert_eq!(port.port.lost(), 10_001);
}

#[test]
fn nobody_waits_for_the_null_sink() {
    let port = Port::new(&Sink::Null);
    port.print(&pattern(3 * OUTPUT_MOST));
    assert_eq!(port.port.flush(LIMIT), 0);
    assert_eq!(port.port.lost(), 0);
}

#[test]
fn a_reader_that_stands_still_stops_nobody_and_finds_the_newest_output() {
    let dir = temporary();
    let path = dir.path().join("fifo");
    make_fifo(&path);
    // Nobody reads the FIFO yet.
    let port = Port::new(&Sink::File(path.clone()));
    let text = pattern(3 * OUTPUT_MOST);
    port.print(&text);
    assert!(port.port.flush(Duration::from_millis(50)) >= OUTPUT_MOST);
    let lost = port.port.lost();
    assert!(lost > 0);

    let remaining = text.len() - usize::try_from(lost).unwrap();
    let mut reader = File::open(&path).unwrap();
    let mut bytes = vec![0; remaining];
    reader.read_exact(&mut bytes).unwrap();
    assert!(text.ends_with(&bytes[remaining - OUTPUT_MOST..]));
    assert_eq!(port.port.flush(LIMIT), 0);
    // What was written before the loss is there, too.
    assert!(text.starts_with(&bytes[..remaining - OUTPUT_MOST]));
}

#[test]
fn output_before_a_client_and_between_clients_is_kept() {
    let dir = temporary();
    let path = dir.path().join("socket");
    let port = Port::new(&Sink::Socket(path.clone()));
    port.print(b"early ");
    assert_eq!(port.port.flush(LIMIT), 6, "nobody to wait for");

    let first = client(&path);
    expect(&first, b"early ");
    port.print(b"first ");
    expect(&first, b"first ");
    // The second one waits its turn.
    let second = client(&path);
    drop(first);
    port.print(b"second");
    expect(&second, b"second");
    assert_eq!(port.port.flush(LIMIT), 0);
    assert_eq!(port.port.lost(), 0);
}

#[test]
fn a_client_that_has_sent_everything_still_reads() {
    let dir = temporary();
    let path = dir.path().join("socket");
    let port = Port::new(&Sink::Socket(path.clone()));
    let first = client(&path);
    (&first).write_all(b"question").unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(port.read(8), b"question");
    port.print(b"answer");
    expect(&first, b"answer");
    // Its leaving is noticed without any traffic.
    drop(first);
    let second = client(&path);
    (&second).write_all(b"next").unwrap();
    assert_eq!(port.read(4), b"next");
}

#[test]
fn what_a_client_sent_before_it_left_reaches_the_guest() {
    let dir = temporary();
    let path = dir.path().join("socket");
    let port = Port::new(&Sink::Socket(path.clone()));
    let input = pattern(50_000);
    let mut first = client(&path);
    first.write_all(&input).unwrap();
    drop(first);
    let mut second = client(&path);
    second.write_all(b"second").unwrap();
    port.print(b"x");
    let mut expected = input;
    expected.extend(b"second");
    assert!(port.read(expected.len()) == expected);
}

#[test]
fn a_socket_belongs_to_its_owner_and_goes_away_with_the_port() {
    let dir = temporary();
    let path = dir.path().join("socket");
    let port = Port::new(&Sink::Socket(path.clone()));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(port);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_was_replaced_meanwhile_is_left_alone() {
    let dir = temporary();
    let path = dir.path().join("socket");
    let port = Port::new(&Sink::Socket(path.clone()));
    let other = dir.path().join("other");
    let _listener = UnixListener::bind(&other).unwrap();
    fs::rename(&other, &path).unwrap();
    drop(port);
    assert!(path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = temporary();
    let path = dir.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    let port = Port::new(&Sink::Socket(path.clone()));
    let refused = sink::open(&Sink::Socket(path.clone())).err().unwrap();
    assert!(matches!(refused, SerialError::InUse { .. }), "{refused}");
    // The attempt, which was a short connection, disturbs nobody.
    port.print(b"still here");
    expect(client(&path), b"still here");

    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let refused = sink::open(&Sink::Socket(file.clone())).err().unwrap();
    assert!(matches!(refused, SerialError::Open { .. }), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

#[test]
fn input_is_not_lost_however_slow_the_guest_is() {
    let dir = temporary();
    let path = dir.path().join("socket");
    let port = Port::new(&Sink::Socket(path.clone()));
    let input = pattern(300_000);
    let mut sender = client(&path);
    let to_send = input.clone();
    let sending = thread::spawn(move || sender.write_all(&to_send).map(|()| sender));
    let mut received = port.read(100);
    // More than all buffers hold is under way: the sender waits.
    thread::sleep(Duration::from_millis(20));
    received.extend(port.read(input.len() - 100));
    assert!(received == input);
    sending.join().unwrap().unwrap();
}

#[test]
fn input_waits_while_the_port_loops_back() {
    let (ours, theirs) = pipe();
    let port = Port::on_pipes(&ours, devnull());
    port.port.write(MODEM_CONTROL, 0x10);
    (&theirs).write_all(b"input").unwrap();
    port.print(b"!");
    assert_eq!(port.read(1), b"!");
    until("the input", || port.port.shared.uart().waiting() == 5);
    assert_eq!(port.port.read(LINE_STATUS) & 1, 0);
    port.port.write(MODEM_CONTROL, 0x08);
    assert_eq!(port.read(5), b"input");
}

#[test]
fn input_interrupts_and_a_driver_that_stops_halfway_is_told_of_the_rest() {
    let (ours, theirs) = pipe();
    let port = Port::on_pipes(&ours, devnull());
    port.port.write(INTERRUPT_ENABLE, 1);
    (&theirs).write_all(b"abc").unwrap();
    until("the interrupt", || port.interrupt.read().is_ok());
    assert_eq!(port.port.read(INTERRUPT_IDENTIFICATION) & 0x0f, 4);
    assert_eq!(port.port.read(DATA), b'a');
    assert_eq!(port.port.read(INTERRUPT_IDENTIFICATION) & 0x0f, 4);
    assert_eq!(port.read(2), b"bc");
    assert_eq!(port.port.read(INTERRUPT_IDENTIFICATION) & 0x0f, 1);
}

#[test]
fn a_reset_clears_the_registers_and_keeps_the_far_end() {
    let dir = temporary();
    let path = dir.path().join("socket");
    let port = Port::new(&Sink::Socket(path.clone()));
    let first = client(&path);
    port.print(b"before ");
    port.port.write(SCRATCH, 0x5a);
    port.port.write(INTERRUPT_ENABLE, 1);
    port.port.reset();
    assert_eq!(port.port.read(SCRATCH), 0);
    assert_eq!(port.port.read(INTERRUPT_ENABLE), 0);
    port.print(b"after");
    expect(&first, b"before after");
    (&first).write_all(b"in").unwrap();
    assert_eq!(port.read(2), b"in");
}

#[test]
fn a_pseudo_terminal_passes_bytes_as_they_are_to_one_client_after_the_other() {
    let port = Port::new(&Sink::Pty);
    let path = port.port.pty().unwrap().to_owned();
    port.print(b"early\n");
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path)
            .unwrap()
    };
    let first = open();
    expect(&first, b"early\n");
    (&first).write_all(b"\x01x\x03\r\n").unwrap();
    assert_eq!(port.read(5), b"\x01x\x03\r\n");
    drop(first);
    port.print(b"again");
    expect(open(), b"again");
    assert!(port.escape.read().is_err());
}

#[test]
fn ctrl_a_x_is_for_ferry_on_its_own_terminal() {
    let (ours, theirs) = pipe();
    let port = Port::on_pipes(&ours, devnull());
    (&theirs).write_all(b"a\x01\x01b\x01").unwrap();
    assert_eq!(port.read(3), b"a\x01b");
    assert!(port.escape.read().is_err());
    (&theirs).write_all(b"xc").unwrap();
    until("the escape", || port.escape.read().is_ok());
    assert_eq!(port.read(1), b"c");
}

#[test]
fn standard_streams_may_end_and_their_flags_stay() {
    let (input, sender) = pipe();
    let (receiver, output) = pipe();
    let port = Port::on_pipes(&input, &output);
    for fd in [&input, &output] {
        assert_eq!(flags(fd) & libc::O_NONBLOCK, 0);
    }
    (&sender).write_all(b"last words").unwrap();
    drop(sender);
    assert_eq!(port.read(10), b"last words");
    port.print(b"heard");
    expect(&receiver, b"heard");

    drop((receiver, output));
    port.print(&pattern(2 * OUTPUT_MOST));
    assert_eq!(port.port.flush(LIMIT), 0);
}

#[test]
fn a_guest_that_prints_a_lot_at_once_wakes_the_thread_seldom() {
    let output = Output::new().unwrap();
    let mut chunk = Vec::new();
    output.take(&mut chunk, 1);
    for byte in pattern(5000) {
        output.push(&[byte]);
    }
    assert_eq!(output.wake_event().read().unwrap(), 1);
}

#[test]
fn the_end_of_a_loss_is_told_when_the_queue_is_below_half() {
    let output = Output::new().unwrap();
    output.push(&pattern(OUTPUT_MOST));
    assert!(!output.loss_begun());
    output.push(b"xyz");
    assert!(output.loss_begun());
    let mut chunk = Vec::new();
    output.take(&mut chunk, OUTPUT_MOST / 2);
    assert_eq!(output.loss_ended(), None, "still half full");
    output.take(&mut chunk, 1);
    assert_eq!(output.loss_ended(), Some(3));
    // The next one, right after it, is too soon.
    output.push(&pattern(OUTPUT_MOST));
    assert!(output.lost() > 3);
    assert!(!output.loss_begun());
}

#[test]
fn a_disk_that_is_full_now_and_then_is_told_once() {
    let output = Output::new().unwrap();
    let mut chunk = Vec::new();
    let (mut begun, mut lost) = (0, 0);
    for _ in 0..100 {
        output.push(b"abc");
        chunk.clear();
        output.take(&mut chunk, 3);
        begun += u32::from(output.give_up(3));
        output.push(b"d");
        chunk.clear();
        output.take(&mut chunk, 1);
        output.written(1);
        lost += output.loss_ended().unwrap_or(0);
    }
    assert_eq!((begun, lost), (1, 3));
    assert_eq!(output.lost(), 300);
}

fn pipe() -> (File, File) {
    let (reader, writer) = io::pipe().unwrap();
    let file = |fd: std::os::fd::OwnedFd| File::from(fd);
    (file(reader.into()), file(writer.into()))
}

fn devnull() -> File {
    File::options().write(true).open("/dev/null").unwrap()
}

fn flags(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    // SAFETY: the call takes no pointers.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) }
}

fn make_fifo(path: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

#[test]
fn saved_registers_and_input_go_on_in_another_port_before_newer_input() {
    let (input, far) = UnixStream::pair().unwrap();
    let old = Port::on_pipes(
        &input,
        File::options().write(true).open("/dev/null").unwrap(),
    );
    old.port.write(SCRATCH, 0x5a);
    old.port.write(INTERRUPT_ENABLE, 1);
    (&far).write_all(&[b'a'; 100]).unwrap();
    let start = Instant::now();
    while old.port.save().fifo.len() + old.port.save().backlog.len() < 100 {
        assert!(start.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(1));
    }
    let state = old.port.save();
    assert_eq!((state.fifo.len(), state.backlog.len()), (64, 36));

    let (input, far) = UnixStream::pair().unwrap();
    let new = Port::on_pipes(
        &input,
        File::options().write(true).open("/dev/null").unwrap(),
    );
    (&far).write_all(b"new").unwrap();
    while new.port.save().fifo.len() < 3 {
        assert!(start.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(1));
    }
    new.port.load(&state).unwrap();
    assert_eq!(new.port.read(SCRATCH), 0x5a);
    assert_eq!(new.interrupt.read().unwrap(), 1, "input is waiting");
    assert_eq!(new.port.read(INTERRUPT_IDENTIFICATION) & 0xf, 4);
    assert_eq!(new.read(103), [&[b'a'; 100][..], b"new"].concat());
}

#[test]
fn a_saved_port_is_the_same_once_loaded_and_a_part_of_it_is_refused() {
    let old = Port::new(&Sink::Null);
    old.port.write(INTERRUPT_ENABLE, 3);
    old.port.write(MODEM_CONTROL, 0x0b);
    let state = old.port.save();
    let new = Port::new(&Sink::Null);
    new.port.load(&state).unwrap();
    assert_eq!(new.port.save(), state);
    let bytes = encode(&state).unwrap();
    assert!(bytes.len() < 64);
    for length in 0..bytes.len() {
        assert!(decode::<SerialStateV1>(&bytes[..length]).is_err());
    }
    let mut impossible = state.clone();
    impossible.fifo = vec![0; 65];
    assert_eq!(new.port.load(&impossible), Err(BadSerialState));
    assert_eq!(new.port.save(), state, "nothing has changed");
}
