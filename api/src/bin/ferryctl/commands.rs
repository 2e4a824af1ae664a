//! From a command to its request, and from the answer to what is printed.

use std::path::Path;
use std::time::Duration;

use ferry_api::client::{Client, ClientError, Limits, Reply, WireError};
use ferry_api::control::Counters;
use ferry_api::wire::{Ping, VmInfo};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::arguments::{About, Arguments, Command, Global, Shell};
use super::failure::Failure;
use super::output::{self, Form};
use super::table::{Side, Table};
use super::text::printable;
use super::{create, events, handing, info, migrating, saving};

/// How long a change of the VM's state may take. By default, Ferry may wait for a back-end for 130 s in all: a guest that
/// ends while it is being paused leaves twice `--dead-timeout` to its devices, and `--request-timeout` to the rest.
const CHANGE: Duration = Duration::from_secs(150);
/// How long it may take to save a guest, to bring it back or to move it: as long as there is progress, but not for ever.
const SAVE: Duration = Duration::from_secs(86400);
/// How long anything else may take, which Ferry answers at once.
const QUESTION: Duration = Duration::from_secs(10);

/// What cannot be done if the command fails, as a clause after "cannot".
pub fn goal(command: &Command) -> &'static str {
    match command {
        Command::Ping => "reach Ferry",
        Command::Info => "show the VM",
        Command::Create(_) => "create the VM",
        Command::Boot => "boot",
        Command::Pause => "pause",
        Command::Resume => "resume",
        Command::Shutdown => "shut down",
        Command::Reboot => "reboot",
        Command::PowerButton => "press the power button",
        Command::Delete => "delete the VM",
        Command::AddDisk { .. } => "add the disk",
        Command::AddFs { .. } => "add the share",
        Command::RemoveDevice { .. } => "remove the device",
        Command::Counters => "show the counters",
        Command::Metrics => "show the metrics",
        Command::Events(_) => "show events",
        Command::Snapshot(snapshot) => saving::snapshot_goal(snapshot),
        Command::Restore(_) => "bring the guest back",
        Command::Progress => "show the progress",
        Command::Cancel => "cancel",
        Command::Migrate(_) => "move the guest",
        Command::Handover(_) => "hand the guest over",
        Command::Receive(_) => "receive a guest",
        Command::Migration(migration) => migrating::goal(migration.what),
        Command::VmmShutdown => "end Ferry",
        Command::Completions { .. } => "print completions",
    }
}

/// Does what the command line says.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let global = &arguments.global;
    let form = match global.json {
        true => Form::Json,
        false => Form::Words,
    };
    let question = || Session::new(global, QUESTION, form);
    let change = |route, done| Session::new(global, CHANGE, form)?.act(route, b"", done);
    match &arguments.command {
        Command::Ping => question()?.show("vmm.ping", ping),
        Command::Info => question()?.show("vm.info", |info: VmInfo| info::describe(&info)),
        Command::Create(create) => {
            let body = create::vm(create)?;
            question()?.act("vm.create", &body, "created")
        }
        Command::Boot => change("vm.boot", "running"),
        Command::Pause => change("vm.pause", "paused"),
        Command::Resume => change("vm.resume", "running"),
        Command::Shutdown => change("vm.shutdown", "shut down"),
        Command::Reboot => change("vm.reboot", "running again"),
        Command::PowerButton => {
            question()?.act("vm.power-button", b"", "pressed; the guest decides")
        }
        Command::Delete => change("vm.delete", "deleted"),
        Command::AddDisk { disk } => question()?.add("vm.add-disk", &create::disk(disk)?),
        Command::AddFs { fs } => question()?.add("vm.add-fs", &create::fs(fs)?),
        Command::RemoveDevice { id } => {
            let body = serde_json::json!({ "id": id }).to_string();
            question()?.act("vm.remove-device", body.as_bytes(), "removed")
        }
        Command::Counters => question()?.show("vm.counters", counters),
        Command::Metrics => {
            let reply = question()?.client(Duration::ZERO).metrics()?;
            output::write(&String::from_utf8_lossy(&reply.body))
        }
        Command::Events(events) => events::show(events, &question()?),
        Command::Snapshot(snapshot) => match &snapshot.look {
            Some(look) => saving::look(look, form),
            None => saving::save(snapshot, &Session::new(global, SAVE, form)?),
        },
        Command::Restore(restore) => saving::restore(restore, &Session::new(global, SAVE, form)?),
        Command::Progress => {
            question()?.show("vm.progress", |progress| saving::describe(&progress))
        }
        Command::Cancel => question()?.act("vm.cancel", b"", "cancelled"),
        Command::Migrate(migrate) => migrating::send(migrate, &Session::new(global, SAVE, form)?),
        Command::Handover(handover) => {
            handing::hand_over(handover, &Session::new(global, SAVE, form)?)
        }
        Command::Receive(receive) => {
            migrating::receive(receive, &Session::new(global, SAVE, form)?)
        }
        Command::Migration(migration) => match migration.what {
            None => question()?.show("vm.migration", |progress| migrating::describe(&progress)),
            Some(About::Cancel) => question()?.act("vm.migration-cancel", b"", "cancelled"),
            Some(About::Reclaim) => change("vm.migration-reclaim", "taken back"),
        },
        Command::VmmShutdown => change("vmm.shutdown", "Ferry ends"),
        Command::Completions { shell } => output::write(completions(*shell)),
    }
}

/// The way to one Ferry, and the way back to the user.
#[derive(Debug)]
pub struct Session<'a> {
    socket: &'a Path,
    total: Duration,
    /// For whom the output is.
    pub form: Form,
}

impl<'a> Session<'a> {
    fn new(global: &'a Global, usual: Duration, form: Form) -> Result<Self, Failure> {
        let Some(socket) = &global.api_socket else {
            let problem = "which Ferry? Say --api-socket PATH, or set FERRY_API_SOCKET";
            return Err(Failure::Usage(problem.into()));
        };
        Ok(Self {
            socket,
            total: global.timeout.unwrap_or(usual),
            form,
        })
    }

    /// The same with another Ferry.
    pub fn at<'b>(&self, socket: &'b Path) -> Session<'b> {
        Session {
            socket,
            total: self.total,
            form: self.form,
        }
    }

    /// The socket on which Ferry listens.
    pub fn socket(&self) -> &Path {
        self.socket
    }

    /// How long the command may take.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// A client that waits `longer` than the user has said, because the request says so too.
    pub fn client(&self, longer: Duration) -> Client {
        let limits = Limits {
            total: self.total + longer,
            ..Limits::default()
        };
        Client::new(self.socket, limits)
    }

    /// A client for what Ferry answers at once, whatever else goes on.
    pub fn questions(&self) -> Client {
        let limits = Limits {
            total: self.total.min(QUESTION),
            ..Limits::default()
        };
        Client::new(self.socket, limits)
    }

    /// Reads the body of an answer.
    pub fn parse<T: DeserializeOwned>(&self, reply: &Reply) -> Result<T, Failure> {
        serde_json::from_slice(&reply.body).map_err(|cause| self.strange(cause))
    }

    /// Reads a part of an answer.
    pub fn understand<T: DeserializeOwned>(&self, part: Value) -> Result<T, Failure> {
        serde_json::from_value(part).map_err(|cause| self.strange(cause))
    }

    fn strange(&self, cause: serde_json::Error) -> Failure {
        Failure::Client(ClientError::Wire {
            socket: self.socket.to_owned(),
            cause: WireError::Body(cause),
        })
    }

    /// Asks, and shows the answer.
    fn show<T: DeserializeOwned>(
        &self,
        route: &str,
        describe: impl FnOnce(T) -> String,
    ) -> Result<(), Failure> {
        let reply = self.client(Duration::ZERO).get(route)?;
        match self.form {
            Form::Json => output::write_json(&self.parse(&reply)?),
            Form::Words => output::write(&describe(self.parse(&reply)?)),
        }
    }

    /// Has something done, and says so.
    fn act(&self, route: &str, body: &[u8], done: &str) -> Result<(), Failure> {
        let reply = self.client(Duration::ZERO).put(route, body)?;
        match self.form {
            Form::Json if reply.body.is_empty() => Ok(()),
            Form::Json => output::write_json(&self.parse(&reply)?),
            Form::Words => output::write(&format!("{done}\n")),
        }
    }

    /// Has a device added. Where it is, the answer tells only if there is a machine.
    fn add(&self, route: &str, body: &[u8]) -> Result<(), Failure> {
        let reply = self.client(Duration::ZERO).put(route, body)?;
        if reply.body.is_empty() {
            return match self.form {
                Form::Json => Ok(()),
                Form::Words => output::write("added\n"),
            };
        }
        match self.form {
            Form::Json => output::write_json(&self.parse(&reply)?),
            Form::Words => {
                let added: Added = self.parse(&reply)?;
                let place = added
                    .bdf
                    .map(|bdf| format!(" at {bdf}"))
                    .unwrap_or_default();
                output::write(&format!("added {}\n", printable(&(added.id + &place))))
            }
        }
    }
}

/// Where a device was added to a machine that runs.
#[derive(Debug, Deserialize)]
struct Added {
    id: String,
    bdf: Option<String>,
}

fn ping(ping: Ping) -> String {
    let Ping { version, pid, .. } = ping;
    format!("Ferry {}, process {pid}\n", printable(&version))
}

fn counters(counters: Counters) -> String {
    let columns = [
        ("DEVICE", Side::Left),
        ("COUNTER", Side::Left),
        ("VALUE", Side::Right),
    ];
    let mut table = Table::new(&columns);
    for (device, counters) in &counters {
        for (index, (counter, value)) in counters.iter().enumerate() {
            // A name once is easier to find than a name in every line.
            let device = if index == 0 { device } else { "" };
            table.row([device, counter, &value.to_string()]);
        }
    }
    table.lines()
}

/// What `generated.rs` has made of the definitions.
pub fn completions(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!("../../../../resources/completions/ferryctl.bash"),
        Shell::Zsh => include_str!("../../../../resources/completions/_ferryctl"),
        Shell::Fish => include_str!("../../../../resources/completions/ferryctl.fish"),
    }
}

#[cfg(test)]
mod tests {
    use ferry_api::config::Timeouts;

    use super::*;

    #[test]
    fn a_change_may_take_as_long_as_ferry_waits_for_back_ends() {
        let limits = Timeouts::default();
        let worst = 2 * limits.dead + limits.request;
        assert!(CHANGE >= worst + limits.connect, "{worst:?}");
        let page = include_str!("../../../../docs/ferryctl.md");
        for time in [worst, CHANGE] {
            assert!(page.contains(&format!("{} s", time.as_secs())), "{time:?}");
        }
    }
}
