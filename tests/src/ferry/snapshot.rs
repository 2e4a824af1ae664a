//! Snapshots and restores, as a test asks for them.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use ferry_api::client::ClientError;
use serde_json::{Map, Value, json};

use super::{Guest, Listener};

/// What came of a request: what was answered, or the reasons why not, outermost first.
pub type Answer = Result<Value, Vec<String>>;

/// A snapshot that is to be taken.
#[derive(Clone, Debug)]
pub struct Snapshot(Map<String, Value>);

impl Snapshot {
    /// Of a running guest: Ferry pauses it, and afterwards it runs on. Nothing is prepared for.
    pub fn to(directory: &Path) -> Self {
        Self::of_paused(directory)
            .with("pause", json!(true))
            .with("after", json!("resume"))
            .with("prepare_ms", json!(0))
    }

    /// As every client of this API asks for it: of a guest that is paused, and stays so.
    pub fn of_paused(directory: &Path) -> Self {
        let url = format!("file://{}", directory.display());
        Snapshot(Map::new()).with("destination_url", json!(url))
    }

    /// What becomes of the guest: "pause", "resume", "stop".
    pub fn after(self, what: &str) -> Self {
        self.with("after", json!(what))
    }

    /// Holds the guest until it is released, for so long at most.
    pub fn hold(self, limit: Duration) -> Self {
        self.with("hold_s", json!(limit.as_secs_f64()))
    }

    /// How long back-ends have to get ready.
    pub fn prepare(self, time: Duration) -> Self {
        self.with("prepare_ms", json!(time.as_millis() as u64))
    }

    /// The most that a back-end's state may have, in bytes.
    pub fn state_most(self, bytes: u64) -> Self {
        self.with("state_most", json!(bytes))
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.0.insert(key.to_owned(), value);
        self
    }

    fn body(&self) -> Vec<u8> {
        Value::Object(self.0.clone()).to_string().into_bytes()
    }
}

/// A restore that is to be done.
#[derive(Clone, Debug)]
pub struct Restore {
    directory: PathBuf,
    mode: &'static str,
    resume: &'static str,
    sockets: Vec<(String, PathBuf)>,
}

impl Restore {
    /// With a copy of the RAM; the guest runs at once.
    pub fn from(directory: &Path) -> Self {
        Restore {
            directory: directory.to_owned(),
            mode: "copy",
            resume: "on",
            sockets: Vec::new(),
        }
    }

    /// What becomes of the RAM's files: "copy", "ondemand", "adopt".
    pub fn mode(mut self, mode: &'static str) -> Self {
        self.mode = mode;
        self
    }

    /// The guest stays paused.
    pub fn paused(mut self) -> Self {
        self.resume = "off";
        self
    }

    /// A device's back-end is here now.
    pub fn device(mut self, id: &str, backend: &impl Listener) -> Self {
        self.sockets
            .push((id.to_owned(), backend.socket().to_owned()));
        self
    }

    fn body(&self) -> Vec<u8> {
        let mode = match self.mode {
            "copy" => "Copy",
            "ondemand" => "OnDemand",
            _ => "Adopt",
        };
        let devices: Map<String, Value> = self
            .sockets
            .iter()
            .map(|(id, socket)| (id.clone(), json!({"socket": socket})))
            .collect();
        json!({
            "source_url": format!("file://{}", self.directory.display()),
            "memory_restore_mode": mode,
            "resume": self.resume == "on",
            "devices": devices,
        })
        .to_string()
        .into_bytes()
    }

    /// The same on Ferry's command line.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec![
            "--restore".to_owned(),
            format!(
                "source_url=file://{},memory_restore_mode={},resume={}",
                self.directory.display(),
                self.mode,
                self.resume
            ),
        ];
        for (id, socket) in &self.sockets {
            flags.push("--restore-socket".to_owned());
            flags.push(format!("{id}={}", socket.display()));
        }
        flags
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Asked(Receiver<Answer>);

impl Asked {
    /// Waits for what comes of it.
    pub fn answer(self) -> Answer {
        self.0.recv().expect("the client's thread")
    }

    /// Whether there is no answer yet.
    pub fn is_pending(&self) -> bool {
        matches!(self.0.try_recv(), Err(TryRecvError::Empty))
    }
}

impl Guest {
    /// Asks for something that takes its time.
    pub fn ask(&self, route: &'static str, body: Vec<u8>) -> Asked {
        let api = self.api().clone();
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let answer = match api.put(route, &body) {
                Ok(reply) => Ok(serde_json::from_slice(&reply.body).unwrap_or(Value::Null)),
                Err(error) => Err(error.chain()),
            };
            sender.send(answer)
        });
        Asked(receiver)
    }

    /// Asks for a snapshot.
    pub fn begin_snapshot(&self, snapshot: &Snapshot) -> Asked {
        self.ask("vm.snapshot", snapshot.body())
    }

    /// Takes a snapshot; the reasons if that fails.
    pub fn try_snapshot(&self, snapshot: &Snapshot) -> Answer {
        self.begin_snapshot(snapshot).answer()
    }

    /// Takes a snapshot, which has to succeed.
    pub fn snapshot(&self, snapshot: &Snapshot) {
        if let Err(reasons) = self.try_snapshot(snapshot) {
            panic!("{}\n{}", reasons.join(": "), self.transcript());
        }
    }

    /// Restores a guest; the reasons if that fails.
    pub fn restore(&self, restore: &Restore) -> Answer {
        self.begin_restore(restore).answer()
    }

    /// Asks for a restore.
    pub fn begin_restore(&self, restore: &Restore) -> Asked {
        self.ask("vm.restore", restore.body())
    }

    /// How the snapshot or restore stands, or how the last one ended.
    pub fn progress(&self) -> Value {
        self.get("vm.progress")
    }

    /// Waits until the snapshot or restore that is under way is at this step; says how it stands.
    pub fn wait_for_step(&mut self, step: &str) -> Value {
        self.wait_until(&format!("the step {step}"), |guest| {
            let progress = guest.api().get("vm.progress").ok()?;
            let progress: Value = serde_json::from_slice(&progress.body).ok()?;
            let there = progress["step"] == step && progress["status"] == "under-way";
            there.then_some(progress)
        })
    }

    /// Gives up the snapshot or restore that is under way.
    pub fn cancel(&self) -> Answer {
        self.ask("vm.cancel", vec![]).answer()
    }

    /// Lets a snapshot go on that holds the guest.
    pub fn release(&self) -> Answer {
        self.ask("vm.snapshot-release", vec![]).answer()
    }

    /// Makes the back-end of `disk0` take no more requests, and waits until some are in flight that it has not taken: a guest
    /// may have had none when it was told.
    pub fn hold_requests(&mut self, disk: &crate::backend::Running) {
        disk.hold_requests();
        self.wait_until("requests that nobody serves", |guest| {
            let served = disk.requests();
            std::thread::sleep(Duration::from_millis(50));
            let in_flight = &guest.get("vm.counters")["disk0"]["queue0_in_flight"];
            (disk.requests() == served && in_flight.as_u64() > Some(0)).then_some(())
        });
    }

    /// What the API shows.
    pub fn get(&self, route: &str) -> Value {
        match self.api().get(route) {
            Ok(reply) => serde_json::from_slice(&reply.body).expect("JSON"),
            Err(ClientError::Refused(refused)) => panic!("{route}: {refused}"),
            Err(error) => panic!("{route}: {error}\n{}", self.transcript()),
        }
    }

    /// The state that `vm.info` shows.
    pub fn state(&self) -> String {
        let info = self.get("vm.info");
        info["state"].as_str().expect("a state").to_owned()
    }
}
