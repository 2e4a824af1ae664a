//! Live migrations, as a test asks for them.
//!
//! The guest is in one Ferry, a receiver is started beside it. Both write what the guest says to the same file, so that a guest
//! that has moved has said everything it ever said.
//!
//! ```no_run
//! use ferry_tests::{Ferry, Receive, Send};
//!
//! let mut guest = Ferry::tiny("mode=ticks ticks=100").with_api().start();
//! guest.wait_for("tick n=");
//! let url = guest.unix_url();
//! let guest = guest.migrated(&Send::to(&url), &Receive::at(&url));
//! guest.end().succeeded();
//! ```

use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::{Answer, Asked, Guest, Listener};
use crate::lines::Line;

/// How a guest is to be sent (`vm.send-migration`).
#[derive(Clone, Debug)]
pub struct Send(Map<String, Value>);

/// How a guest is to be received (`vm.receive-migration`).
#[derive(Clone, Debug)]
pub struct Receive(Map<String, Value>);

/// The next port that is tried, counted from where this process begins.
static NEXT_PORT: AtomicU32 = AtomicU32::new(0);
/// Below those that the kernel hands out by itself: none of them is taken from one moment to the next.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// An address on the loopback interface at which nobody listens, and that nobody else is given.
pub fn loopback_url() -> String {
    let first = std::process::id().wrapping_mul(127);
    loop {
        let next = first.wrapping_add(NEXT_PORT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + next % (PORTS.end - PORTS.start);
        // Whoever listens here to try it out may have others inherit that for a moment.
        if TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
            return format!("tcp:127.0.0.1:{port}");
        }
    }
}

fn body(map: &Map<String, Value>) -> Vec<u8> {
    Value::Object(map.clone()).to_string().into_bytes()
}

impl Send {
    /// To a receiver that listens there: `unix:/path`, `tcp:host:port`.
    pub fn to(url: &str) -> Self {
        Send(Map::new()).with("destination_url", json!(url))
    }

    /// For how long the guest may stand still, by the estimate.
    pub fn downtime_ms(self, most: u64) -> Self {
        self.with("downtime_ms", json!(most))
    }

    /// For how long RAM may be sent while the guest runs.
    pub fn timeout_s(self, most: u64) -> Self {
        self.with("timeout_s", json!(most))
    }

    /// What is done after that: "cancel", "ignore".
    pub fn timeout_strategy(self, strategy: &str) -> Self {
        self.with("timeout_strategy", json!(strategy))
    }

    /// Connections for RAM.
    pub fn connections(self, count: u32) -> Self {
        self.with("connections", json!(count))
    }

    /// Where certificates are.
    pub fn tls_dir(self, directory: &Path) -> Self {
        self.with("tls_dir", json!(directory))
    }

    /// What is done about back-ends that cannot log: "refuse", "resend".
    pub fn unlogged(self, what: &str) -> Self {
        self.with("unlogged", json!(what))
    }

    /// Slows vCPUs down where that helps.
    pub fn throttle(self) -> Self {
        self.with("throttle", json!(true))
    }

    /// The source's Ferry stays when the guest has gone.
    pub fn preserve_source(self) -> Self {
        self.with("preserve_source", json!(true))
    }

    /// Any other word of the request.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.0.insert(key.to_owned(), value);
        self
    }
}

impl Receive {
    /// Listens there: `unix:/path`, `tcp:host:port`.
    pub fn at(url: &str) -> Self {
        Receive(Map::new()).with("receiver_url", json!(url))
    }

    /// A device's back-end listens here on this side.
    pub fn device(mut self, id: &str, backend: &impl Listener) -> Self {
        let devices = self.0.entry("devices").or_insert_with(|| json!({}));
        devices[id] = json!({"socket": backend.socket()});
        self
    }

    /// Where certificates are.
    pub fn tls_dir(self, directory: &Path) -> Self {
        self.with("tls_dir", json!(directory))
    }

    /// Anybody may send.
    pub fn insecure(self) -> Self {
        self.with("insecure", json!(true))
    }

    /// The serial port leads to this file.
    pub fn serial(self, file: &Path) -> Self {
        self.with("serial", json!({"mode": "File", "file": file}))
    }

    /// Any other word of the request.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.0.insert(key.to_owned(), value);
        self
    }

    fn is_tcp(&self) -> bool {
        let url = self.0["receiver_url"].as_str();
        url.is_some_and(|url| url.starts_with("tcp:"))
    }
}

impl Guest {
    /// An address for one migration, beside the guest's other files.
    pub fn unix_url(&self) -> String {
        format!("unix:{}", self.new_path("migration").display())
    }

    /// A Ferry without a machine that a guest can be moved to, which is this one's unless it says otherwise.
    pub fn receiver(&self) -> Guest {
        self.beside().successor().start()
    }

    /// Asks for a guest to be received. [`Guest::listen`] also waits until it can be sent.
    pub fn begin_receive(&self, receive: &Receive) -> Asked {
        let receive = match receive.is_tcp() && !receive.0.contains_key("serial") {
            // Over TCP a receiver has to say where the serial port leads.
            true => receive.clone().serial(self.serial_file()),
            false => receive.clone(),
        };
        self.ask("vm.receive-migration", body(&receive.0))
    }

    /// Asks for a guest to be received, and waits until one can be sent here.
    pub fn listen(&mut self, receive: &Receive) -> Asked {
        let counts = |guest: &Guest| {
            let events = guest.events();
            let count = |name: &str| events.iter().filter(|it| *it == name).count();
            (count("receive-ready"), count("receive-failed"))
        };
        let before = counts(self);
        let asked = self.begin_receive(receive);
        self.wait_until("a receiver that listens", |guest| {
            let now = counts(guest);
            assert_eq!(now.1, before.1, "{}", guest.transcript());
            (now.0 > before.0).then_some(())
        });
        asked
    }

    /// Asks for the guest to be sent: the answer says that it has begun.
    pub fn begin_send(&self, send: &Send) -> Asked {
        self.ask("vm.send-migration", body(&send.0))
    }

    /// Has the guest be sent. [`Guest::migration`] says what becomes of it.
    pub fn send(&self, send: &Send) {
        if let Err(reasons) = self.begin_send(send).answer() {
            panic!("{}\n{}", reasons.join(": "), self.transcript());
        }
    }

    /// How the migration stands, or how the last one has ended.
    pub fn migration(&self) -> Value {
        self.get("vm.migration")
    }

    /// The same, if Ferry answers and there has been one.
    pub fn try_migration(&self) -> Option<Value> {
        let reply = self.api().get("vm.migration").ok()?;
        serde_json::from_slice(&reply.body).ok()
    }

    /// Waits until the migration that is under way is in this phase; says how it stands.
    pub fn wait_for_phase(&mut self, phase: &str) -> Value {
        self.wait_until(&format!("the phase {phase}"), |guest| {
            let migration = guest.try_migration()?;
            let there = migration["phase"] == phase && migration["state"] == "under-way";
            there.then_some(migration)
        })
    }

    /// Waits until the migration has come to this state ("done", "failed", "unconfirmed"); says how it stands.
    pub fn wait_for_migration(&mut self, state: &str) -> Value {
        self.wait_until(&format!("a migration that is {state}"), |guest| {
            let migration = guest.try_migration()?;
            (migration["state"] == state).then_some(migration)
        })
    }

    /// Waits until the migration has failed. Panics unless its reasons hold all these texts.
    pub fn wait_for_failure(&mut self, texts: &[&str]) -> String {
        let migration = self.wait_for_migration("failed");
        let error = migration["error"].as_array().expect("reasons");
        let reasons: Vec<&str> = error.iter().filter_map(Value::as_str).collect();
        let reasons = reasons.join(": ");
        for text in texts {
            assert!(
                reasons.contains(text),
                "no '{text}' in: {reasons}\n{}",
                self.transcript()
            );
        }
        reasons
    }

    /// Gives the migration up that is under way.
    pub fn cancel_migration(&self) -> Answer {
        self.ask("vm.migration-cancel", vec![]).answer()
    }

    /// Moves the guest to a new Ferry, waits until it is there and the old Ferry has ended.
    pub fn migrated(self, send: &Send, receive: &Receive) -> Guest {
        let receiver = self.receiver();
        self.migrated_to(receiver, send, receive)
    }

    /// The same, to a Ferry that is there already.
    pub fn migrated_to(self, mut receiver: Guest, send: &Send, receive: &Receive) -> Guest {
        let asked = receiver.listen(receive);
        self.send(send);
        if let Err(reasons) = asked.answer() {
            panic!(
                "{}\n--- the source ---\n{}\n--- the destination ---\n{}",
                reasons.join(": "),
                self.transcript(),
                receiver.transcript()
            );
        }
        self.departed();
        receiver
    }

    /// Waits for the end of the Ferry that the guest has left, which has to be one with status 0; returns its log.
    pub fn departed(mut self) -> Vec<Line> {
        // It stays for a while for those who want to know how it went, unless they have asked.
        let begun = Instant::now();
        while self.is_running() && begun.elapsed() < self.patience.limit {
            let _ = self.try_migration();
            thread::sleep(self.patience.poll);
        }
        self.wait_for_exit();
        self.log()
    }
}
