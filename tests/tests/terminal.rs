//! Ferry on an operator's terminal: raw while the guest runs, and as it was before once Ferry has ended.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ferry_tests::{Process, TINY_GUEST, ferry_binary};
use tempfile::TempDir;

/// Only keeps a failure from hanging.
const LIMIT: Duration = Duration::from_secs(60);
/// What makes a terminal one to type lines at.
const COOKED: libc::tcflag_t = libc::ICANON | libc::ECHO | libc::ISIG;

#[test]
fn ctrl_a_x_ends_ferry_and_puts_the_terminal_back() {
    let mut session = Session::start();
    session.terminal.type_in(b"\x01x");
    session.ends_well();
}

#[test]
fn sigterm_ends_ferry_and_puts_the_terminal_back() {
    let mut session = Session::start();
    session.ferry.signal(libc::SIGTERM);
    session.ends_well();
}

#[test]
fn sigterm_puts_the_terminal_back_while_a_back_end_is_waited_for() {
    for _ in 0..10 {
        let mut session = Session::waiting_for(Path::new("/nowhere/disk.sock"));
        session.ferry.signal(libc::SIGTERM);
        session.ends_with(0);
    }
}

#[test]
fn a_boot_that_fails_puts_the_terminal_back() {
    for _ in 0..10 {
        let place = TempDir::new().expect("a directory");
        let socket = place.path().join("disk.sock");
        let mut session = Session::waiting_for(&socket);
        // A back-end that leaves at once.
        let back_end = UnixListener::bind(&socket).expect("a socket");
        drop(back_end.accept().expect("Ferry"));
        drop(back_end);
        session.ends_with(1);
    }
}

#[test]
fn sigterm_puts_the_terminal_back_while_ram_is_being_touched() {
    let mut session = Session::begin("size=2G,prefault=on", &[]);
    session.terminal.wait_until_raw(&mut session.ferry);
    session.ferry.signal(libc::SIGTERM);
    session.ends_with(0);
}

/// Ferry on a terminal, with a guest that has halted and waits for ever.
struct Session {
    ferry: Process,
    terminal: Terminal,
    before: Settings,
}

impl Session {
    fn start() -> Self {
        let mut session = Self::begin("size=64M", &[]);
        session.terminal.wait_for("tiny: done", &mut session.ferry);
        assert_eq!(
            session.terminal.settings().local() & COOKED,
            0,
            "is not raw"
        );
        session
    }

    /// One that waits for a back-end that is not there, and has made the terminal raw.
    fn waiting_for(back_end: &Path) -> Self {
        let disk = format!("vhost_user=on,socket={}", back_end.display());
        let flags = ["--disk", &disk, "--connect-timeout", "60"];
        let mut session = Self::begin("size=64M", &flags);
        session.terminal.wait_until_raw(&mut session.ferry);
        session
    }

    fn begin(memory: &str, flags: &[&str]) -> Self {
        let terminal = Terminal::new();
        let before = terminal.settings();
        assert_eq!(before.local() & COOKED, COOKED);
        let mut command = Command::new(ferry_binary());
        command.args(["--kernel", TINY_GUEST, "--cmdline", "mode=hello end=halt"]);
        command.args(["--cpus", "boot=1", "--memory", memory]);
        command.args(flags);
        command.args(["--serial", "tty", "--console", "off"]);
        command.stdin(terminal.client());
        command.stdout(terminal.client());
        command.stderr(terminal.client());
        let ferry = Process::start_as_is(command);
        Session {
            ferry,
            terminal,
            before,
        }
    }

    /// Ferry is about to end with status 0, and leaves the terminal as it was.
    fn ends_well(&mut self) {
        self.ends_with(0);
    }

    /// Ferry is about to end with this status, and leaves the terminal as it was.
    fn ends_with(&mut self, code: i32) {
        let status = self.ferry.wait(LIMIT);
        self.terminal.read();
        let shown = &self.terminal.shown;
        let status = status.unwrap_or_else(|| panic!("Ferry has not ended\n{shown}"));
        assert_eq!(status.code(), Some(code), "{shown}");
        assert_eq!(self.terminal.settings(), self.before, "{shown}");
    }
}

/// A pseudo-terminal, with the operator's side of it.
struct Terminal {
    operator: File,
    client: OwnedFd,
    /// What has come out so far.
    shown: String,
}

impl Terminal {
    /// Waits until Ferry has made it raw.
    fn wait_until_raw(&mut self, ferry: &mut Process) {
        let deadline = Instant::now() + LIMIT;
        while self.settings().local() & COOKED != 0 {
            let ended = ferry.child().try_wait().expect("ask for the end");
            assert!(ended.is_none(), "Ferry has ended: {ended:?}");
            assert!(Instant::now() < deadline, "the terminal was not made raw");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What can be set on a terminal.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    /// Input, output, control and local flags.
    flags: [libc::tcflag_t; 4],
    characters: [libc::cc_t; libc::NCCS],
}

impl Settings {
    fn local(&self) -> libc::tcflag_t {
        self.flags[3]
    }
}

impl Terminal {
    /// Nobody's controlling terminal, and not inherited by what other tests start meanwhile.
    fn new() -> Self {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: the call takes no pointers.
        let operator = owned(unsafe { libc::posix_openpt(flags | libc::O_NONBLOCK) });
        // SAFETY: the call takes no pointers.
        assert_eq!(unsafe { libc::unlockpt(operator.as_raw_fd()) }, 0);
        // SAFETY: this request takes flags and no pointer.
        let client = owned(unsafe { libc::ioctl(operator.as_raw_fd(), libc::TIOCGPTPEER, flags) });
        Terminal {
            operator: operator.into(),
            client,
            shown: String::new(),
        }
    }

    fn client(&self) -> OwnedFd {
        self.client.try_clone().expect("a descriptor")
    }

    fn settings(&self) -> Settings {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: `settings` has room for a termios, which the call fills in when it succeeds.
        let code = unsafe { libc::tcgetattr(self.client.as_raw_fd(), settings.as_mut_ptr()) };
        assert_eq!(code, 0);
        // SAFETY: the call has succeeded.
        let settings = unsafe { settings.assume_init() };
        Settings {
            flags: [
                settings.c_iflag,
                settings.c_oflag,
                settings.c_cflag,
                settings.c_lflag,
            ],
            characters: settings.c_cc,
        }
    }

    fn type_in(&mut self, keys: &[u8]) {
        self.operator.write_all(keys).expect("a terminal");
    }

    /// Reads what has come out since the last time.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.operator.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => self
                    .shown
                    .push_str(&String::from_utf8_lossy(&buffer[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the terminal cannot be read: {error}"),
            }
        }
    }

    fn wait_for(&mut self, text: &str, ferry: &mut Process) {
        let begin = Instant::now();
        loop {
            let ended = ferry.child().try_wait().ok().flatten();
            self.read();
            if self.shown.contains(text) {
                return;
            }
            let shown = &self.shown;
            if let Some(status) = ended {
                panic!("Ferry ended ({status}) before '{text}'\n{shown}");
            }
            assert!(begin.elapsed() < LIMIT, "no '{text}'\n{shown}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn owned(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
