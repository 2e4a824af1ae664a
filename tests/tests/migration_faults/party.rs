//! A Ferry that takes part in a migration, as others may reach for it at any time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ferry_api::client::{Client, ClientError, Limits};
use ferry_tests::{Process, TINY_GUEST, ferry_binary};
use serde_json::{Value, json};

/// Seconds for which a Ferry of these tests waits for an answer of a back-end, or of the other side.
pub const REQUEST_TIMEOUT: u64 = 3;
/// How often something is looked at that has no event.
pub const LOOK: Duration = Duration::from_millis(60);

/// What guests write before the number of records that are done.
const RECORDS: [&str; 2] = ["blk written=", "fuse at="];

/// What a Ferry says of its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// There is no such Ferry any more.
    Gone,
    /// It does not answer.
    Silent,
    /// There is no virtual machine.
    Absent,
    /// `vm.info`'s word.
    There(String),
}

impl Guest {
    pub fn runs(&self) -> bool {
        *self == Guest::There("Running".to_owned())
    }
}

/// A way from one Ferry to another.
pub struct Route {
    /// Where the sender connects to.
    pub sender: String,
    /// Where the receiver listens.
    pub receiver: String,
    pub connections: u32,
    /// Whether it is a hand-over within a host.
    pub local: bool,
    /// Where both sides' keys are.
    pub tls: Option<PathBuf>,
}

impl Route {
    /// Over unix sockets.
    pub fn unix(sender: &Path, receiver: &Path) -> Route {
        Route {
            sender: format!("unix:{}", sender.display()),
            receiver: format!("unix:{}", receiver.display()),
            connections: 1,
            local: false,
            tls: None,
        }
    }
}

/// A Ferry.
pub struct Party {
    pub name: &'static str,
    process: Mutex<Process>,
    /// It was stopped, and never goes on.
    is_lost: AtomicBool,
    /// For looking, also at somebody who is stopped.
    api: Client,
    /// For what has to be done, however long it takes.
    orders: Client,
    directory: PathBuf,
    log: PathBuf,
    /// Where guests write to, one file for each; the last one is that of the guest that is here, or comes.
    serials: Mutex<Vec<PathBuf>>,
}

impl Party {
    /// One with a guest.
    pub fn with_guest(
        name: &'static str,
        directory: &Path,
        cmdline: &str,
        devices: &[String],
    ) -> Party {
        let serial = directory.join(format!("{name}-serial-0"));
        let mut command = Command::new(ferry_binary());
        command.arg("--kernel").arg(TINY_GUEST);
        command.arg("--cmdline").arg(cmdline);
        command.args([
            "--cpus",
            "boot=1",
            "--memory",
            "size=64M",
            "--console",
            "off",
        ]);
        command
            .arg("--serial")
            .arg(format!("file={}", serial.display()));
        command.args(devices);
        Party::start(name, directory, command, vec![serial])
    }

    /// One without.
    pub fn empty(name: &'static str, directory: &Path) -> Party {
        Party::start(name, directory, Command::new(ferry_binary()), Vec::new())
    }

    fn start(
        name: &'static str,
        directory: &Path,
        mut command: Command,
        serials: Vec<PathBuf>,
    ) -> Party {
        let socket = directory.join(format!("{name}-api"));
        let log = directory.join(format!("{name}-log"));
        command.arg("--api-socket").arg(&socket).arg("-v");
        let request = REQUEST_TIMEOUT.to_string();
        command.args(["--request-timeout", &request, "--dead-timeout", "20"]);
        let party = Party {
            name,
            process: Mutex::new(Process::start(command, Some(&log))),
            is_lost: AtomicBool::new(false),
            orders: Client::new(socket.clone(), limits(60)),
            api: Client::new(socket, limits(3)),
            directory: directory.to_owned(),
            log,
            serials: Mutex::new(serials),
        };
        party.within("an answer to ping", Duration::from_secs(60), || {
            assert!(party.is_alive(), "{name} has ended");
            party.api.get("vmm.ping").ok()
        });
        party
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        lock(&self.process)
    }

    /// Whether there is such a process, which may go on.
    pub fn is_alive(&self) -> bool {
        !self.is_lost.load(Ordering::SeqCst)
            && matches!(self.process().child().try_wait(), Ok(None))
    }

    pub fn kill(&self) {
        self.process().kill();
    }

    /// From then on it is as good as dead.
    pub fn stop_for_good(&self) {
        self.signal(libc::SIGSTOP);
        self.is_lost.store(true, Ordering::SeqCst);
    }

    /// Sends a signal, if there is still somebody to get it.
    pub fn signal(&self, signal: i32) {
        let mut process = self.process();
        if let Ok(None) = process.child().try_wait() {
            process.signal(signal);
        }
    }

    /// What it says of its guest.
    pub fn guest(&self) -> Guest {
        if !self.is_alive() {
            return Guest::Gone;
        }
        match self.api.get("vm.info") {
            Ok(reply) => {
                let info: Value = serde_json::from_slice(&reply.body).unwrap();
                Guest::There(info["state"].as_str().unwrap().to_owned())
            }
            Err(ClientError::Refused(refused)) if refused.status == 404 => Guest::Absent,
            Err(_) if !self.is_alive() => Guest::Gone,
            Err(_) => Guest::Silent,
        }
    }

    /// How the migration stands; null if there is none.
    pub fn migration(&self) -> Value {
        if !self.is_alive() {
            return Value::Null;
        }
        match self.api.get("vm.migration") {
            Ok(reply) => serde_json::from_slice(&reply.body).unwrap_or(Value::Null),
            Err(_) => Value::Null,
        }
    }

    /// The state of the migration.
    pub fn migration_state(&self) -> String {
        self.migration()["state"].as_str().unwrap_or("").to_owned()
    }

    /// Has the API do something.
    pub fn put(&self, route: &str, body: &Value) -> Result<(), String> {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let outcome = self.orders.put(route, body.as_bytes());
        outcome.map(drop).map_err(|error| error.chain().join(": "))
    }

    /// How often it has begun to listen for senders.
    fn receivers(&self) -> usize {
        let events = self.api.get("vm.events?after=0&wait=0");
        let events = events.map(|reply| String::from_utf8_lossy(&reply.body).into_owned());
        events.map_or(0, |events| events.matches("\"receive-ready\"").count())
    }

    /// Begins to wait for a guest whose devices' back-ends are at these sockets.
    pub fn receive(
        &self,
        route: &Route,
        sockets: &[(&str, PathBuf)],
    ) -> Receiver<Result<(), String>> {
        let mut serials = lock(&self.serials);
        let serial = format!("{}-serial-{}", self.name, serials.len() + 1);
        let serial = self.directory.join(serial);
        serials.push(serial.clone());
        let devices: serde_json::Map<String, Value> = sockets
            .iter()
            .map(|(id, socket)| ((*id).to_owned(), json!({ "socket": socket })))
            .collect();
        let body = json!({
            "receiver_url": route.receiver,
            "tls_dir": route.tls,
            "devices": devices,
            "serial": { "mode": "File", "file": serial },
        });
        let before = self.receivers();
        let api = Client::new(self.api.socket(), limits(60));
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let outcome = api.put("vm.receive-migration", body.to_string().as_bytes());
            let _ = sender.send(outcome.map(drop).map_err(|error| error.chain().join(": ")));
        });
        self.within("a receiver", Duration::from_secs(60), || {
            let listens = self.receivers() > before;
            if let (false, Ok(outcome)) = (listens, receiver.try_recv()) {
                panic!("{}: it does not receive: {outcome:?}", self.name);
            }
            listens.then_some(())
        });
        receiver
    }

    /// Sends the guest; stays itself.
    pub fn send(&self, route: &Route) -> Result<(), String> {
        self.put(
            "vm.send-migration",
            &json!({
                "destination_url": route.sender,
                "tls_dir": route.tls,
                "connections": route.connections,
                "local": route.local,
                "preserve_source": true,
            }),
        )
    }

    /// Where the guest writes to that is here, or comes.
    pub fn serial(&self) -> PathBuf {
        lock(&self.serials).last().cloned().unwrap_or_default()
    }

    /// How many lines the guest has written here lately, and the number of records in the last that has one.
    pub fn said(&self) -> (usize, u64) {
        let serials = lock(&self.serials);
        let text = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let last = serials.last().map(text).unwrap_or_default();
        let records = |text: String| {
            let numbers = RECORDS.iter().flat_map(|record| text.split(record).skip(1));
            let complete = numbers.filter_map(|rest| rest.split_once('\n'));
            complete
                .filter_map(|(number, _)| number.trim().parse().ok())
                .max()
        };
        let most = serials.iter().map(text).filter_map(records).max();
        (last.lines().count(), most.unwrap_or(0))
    }

    /// What it has logged and its guests have said, for a failed test's message.
    pub fn transcript(&self) -> String {
        let tail = |path: &PathBuf| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(60);
            lines[from..]
                .iter()
                .map(|line| format!("    {line}\n"))
                .collect::<String>()
        };
        let mut text = format!("  {}:\n{}", self.name, tail(&self.log));
        for serial in lock(&self.serials).iter() {
            let said = std::fs::read_to_string(serial).unwrap_or_default();
            let from = said.char_indices().rev().nth(400).map_or(0, |(at, _)| at);
            text += &format!("    serial port: …{:?}\n", &said[from..]);
        }
        text
    }

    /// Waits for something; panics when it does not come in time.
    pub fn within<T>(&self, what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
        within(limit, look).unwrap_or_else(|| panic!("{}: no {what} within {limit:?}", self.name))
    }
}

/// Waits for something; none if it does not come in time.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begun.elapsed() > limit {
            return None;
        }
        thread::sleep(LOOK);
    }
}

/// Seconds for an answer.
fn limits(seconds: u64) -> Limits {
    let limit = Duration::from_secs(seconds);
    Limits {
        connect: limit,
        silence: limit,
        total: limit,
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
