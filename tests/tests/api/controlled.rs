//! A Ferry with an API socket and no machine yet.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ferry_api::client::{Client, ClientError, Limits};
use ferry_tests::{Process, TINY_GUEST, ferry_binary};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take. It takes a hundredth of that.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What came of a request: a status, and the text of what was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Of a refusal: its reasons, separated by `: `.
    pub text: String,
}

/// Ferry, and a client for it.
pub struct Controlled {
    process: Process,
    client: Client,
    directory: TempDir,
}

impl Controlled {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it with these flags beside the socket.
    pub fn start_with(flags: &[&str]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let socket = directory.path().join("api.sock");
        let mut command = Command::new(ferry_binary());
        command.arg("--api-socket").arg(&socket).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::create(directory.path().join("log")).expect("a log");
        command.arg("-v").stderr(log);
        let process = Process::start(command, None);
        let limits = Limits {
            total: LIMIT,
            silence: LIMIT,
            ..Limits::default()
        };
        let controlled = Controlled {
            process,
            client: Client::new(socket, limits),
            directory,
        };
        controlled.wait_until("an answer to ping", || {
            controlled.client.get("vmm.ping").ok()
        });
        controlled
    }

    /// A client of its own, for another thread.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A definition with this command line of the tiny guest, and these disks.
    pub fn definition(&self, cmdline: &str, disks: &[&std::path::Path]) -> Value {
        let disks: Vec<Value> = disks
            .iter()
            .map(|socket| json!({"vhost_user": true, "vhost_socket": socket}))
            .collect();
        json!({
            "payload": {"kernel": TINY_GUEST, "cmdline": cmdline},
            "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
            "memory": {"size": 64 << 20, "shared": true},
            "disks": disks,
            "serial": {"mode": "File", "file": self.serial_path()},
            "console": {"mode": "Off"},
        })
    }

    /// Creates and boots.
    pub fn boot(&self, cmdline: &str, disks: &[&std::path::Path]) {
        self.put_json("vm.create", &self.definition(cmdline, disks))
            .done();
        self.put("vm.boot").done();
    }

    pub fn put(&self, route: &str) -> Answer {
        put(&self.client, route, b"")
    }

    pub fn put_json(&self, route: &str, body: &Value) -> Answer {
        put(&self.client, route, body.to_string().as_bytes())
    }

    pub fn get(&self, route: &str) -> Answer {
        get(&self.client, route)
    }

    /// `vm.info`, which has to succeed.
    pub fn info(&self) -> Value {
        let answer = self.get("vm.info");
        assert_eq!(answer.status, 200, "{}", answer.text);
        serde_json::from_str(&answer.text).expect("vm.info is JSON")
    }

    /// The state that `vm.info` shows.
    pub fn state(&self) -> String {
        self.info()["state"].as_str().expect("a state").to_owned()
    }

    pub fn counter(&self, device: &str, name: &str) -> u64 {
        let answer = self.get("vm.counters");
        let counters: Value = serde_json::from_str(&answer.text).expect("vm.counters is JSON");
        counters[device][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no counter {name} of {device} in {counters}"))
    }

    fn serial_path(&self) -> PathBuf {
        self.directory.path().join("serial")
    }

    /// The lines on the serial port that contain `text`.
    pub fn lines(&self, text: &str) -> usize {
        let serial = fs::read(self.serial_path()).unwrap_or_default();
        let serial = String::from_utf8_lossy(&serial);
        serial.lines().filter(|line| line.contains(text)).count()
    }

    /// Waits until the serial port shows `count` more lines with `text` than now.
    pub fn wait_for_more(&self, text: &str, count: usize) {
        let now = self.lines(text);
        self.wait_until(&format!("{count} more '{text}'"), || {
            (self.lines(text) >= now + count).then_some(())
        });
    }

    pub fn wait_until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "no {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for Ferry's end.
    pub fn end(mut self) -> i32 {
        let status = self.process.wait(LIMIT).expect("Ferry ends");
        status.code().expect("no signal ended Ferry")
    }
}

impl Answer {
    /// Panics unless it was done and there is nothing to say.
    pub fn done(&self) {
        assert_eq!((self.status, self.text.as_str()), (204, ""));
    }

    /// Panics unless it was refused with this status and a reason that holds `text`.
    pub fn refused(&self, status: u16, text: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        assert!(self.text.contains(text), "{}", self.text);
    }
}

pub fn get(client: &Client, route: &str) -> Answer {
    answer(client.get(route))
}

pub fn put(client: &Client, route: &str, body: &[u8]) -> Answer {
    answer(client.put(route, body))
}

fn answer(result: Result<ferry_api::client::Reply, ClientError>) -> Answer {
    match result {
        Ok(reply) => Answer {
            status: reply.status,
            text: String::from_utf8(reply.body).expect("text"),
        },
        Err(ClientError::Refused(refused)) => Answer {
            status: refused.status,
            text: chain(&refused),
        },
        Err(error) => panic!("{}", chain(&error)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let errors = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = errors.map(ToString::to_string).collect();
    texts.join(": ")
}
