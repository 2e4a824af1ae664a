//! `handover`: the guest, and the place of its process, to a new process.
//!
//! ```text
//!  ferryctl      start ─▶ ping ─▶ vm.receive-migration ─▶ vm.send-migration ─▶ follow both ─▶ the socket answers as the new one
//!  new process     └──────┴────────── waits ────────────────── takes it ─────────────────────────┘
//!  old process                                                  gives it ── ends
//! ```
//!
//! The new process is ended only if the guest has not gone there for certain: it has not been sent, or the old process says that it has
//! failed. What says that it has arrived is the new process.

mod process;

use std::ffi::OsString;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ferry_api::client::{ClientError, Refused, Reply};
use ferry_api::wire::{
    self, Console, ConsoleMode, EventReport, Migration, MigrationRole, MigrationState, Ping,
    VmInfo, VmState,
};

use super::arguments::Handover;
use super::commands::Session;
use super::failure::{Failure, Left};
use super::migrating::{self, Watch};
use super::output::{self, Form};
use super::pairs;
use super::signals::Signals;
use process::{Directory, Successor};

/// How long the new process may take to listen for the guest, and to answer in place of the old one.
const SETTLE: Duration = Duration::from_secs(10);
/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(10);
/// How long the old process may take to say why it has failed.
const REASON: Duration = Duration::from_secs(5);
/// Flags with which a Ferry boots a guest by itself. It would use the disks before it is found that the new process is not free.
const BOOTS: [&str; 2] = ["--kernel", "--restore"];

/// Hands the guest over.
pub fn hand_over(handover: &Handover, session: &Session<'_>) -> Result<(), Failure> {
    match (&handover.exec, &handover.to) {
        (Some(program), _) => to_new(handover, program, session),
        (None, Some(url)) => to_waiting(&migrating::place(url)?, session),
        // The command line says so.
        (None, None) => Err(Failure::Usage("--exec or --to is missing".into())),
    }
}

fn to_new(handover: &Handover, program: &Path, session: &Session<'_>) -> Result<(), Failure> {
    let signals = Signals::note();
    let serial = usable(handover)?;
    // One that cannot be reached, or has no guest, needs no successor.
    guest_of(session)?;
    let directory = Directory::make()?;
    let url = format!("unix:{}", directory.file("guest").display());
    let api = directory.file("api");
    let mut successor = Successor::start(handover, program, api.clone()).map_err(Failure::stays)?;
    let begun = begin(&mut successor, serial, &url, &session.at(&api), &signals);
    let arrival = begun.map_err(Failure::stays)?;
    let sent = Sent::begin(&url, arrival, session, &signals);
    let followed = sent.and_then(|mut sent| sent.follow().map(|()| sent));
    let sent = match followed {
        Ok(sent) => sent,
        Err(Open::Failed(failure)) => return Err(failure),
        Err(Open::Unknown(failure)) => {
            // It may have the guest.
            let pid = successor.pid();
            successor.let_go();
            let directory = directory.leave();
            return Err(Failure::Open {
                cause: Box::new(failure),
                left: Some(Left { pid, directory }),
            });
        }
    };
    let pid = successor.pid();
    successor.let_go();
    let progress = sent.arrived(&url, |ping| ping == pid)?;
    output::write_end(progress.as_ref(), session.form, migrating::describe)?;
    match (session.form, progress) {
        (Form::Words, Some(_)) => output::write(&format!("the guest runs in process {pid}\n")),
        _ => Ok(()),
    }
}

/// To a process that somebody else has started and has told to receive.
fn to_waiting(url: &str, session: &Session<'_>) -> Result<(), Failure> {
    let signals = Signals::note();
    guest_of(session)?;
    let pid = session
        .parse::<Ping>(&session.questions().get("vmm.ping")?)?
        .pid;
    // Nothing is ever said there: the process itself answers in the old one's place.
    let (never, arrival) = mpsc::channel();
    let sent = Sent::begin(url, arrival, session, &signals);
    let followed = sent.and_then(|mut sent| sent.follow().map(|()| sent));
    drop(never);
    let sent = match followed {
        Ok(sent) => sent,
        Err(Open::Failed(failure)) => return Err(failure),
        Err(Open::Unknown(failure)) => {
            return Err(Failure::Open {
                cause: Box::new(failure),
                left: None,
            });
        }
    };
    let progress = sent.arrived(url, |ping| ping != pid)?;
    output::write_end(progress.as_ref(), session.form, migrating::describe)
}

/// Where the serial port is to lead, if what was asked for can be done.
fn usable(handover: &Handover) -> Result<Option<Console>, Failure> {
    let boots = |flag: &&OsString| {
        let flag = flag.to_string_lossy();
        let name = flag.split('=').next().unwrap_or_default();
        BOOTS.contains(&name)
    };
    if let Some(flag) = handover.flags.iter().find(boots) {
        let flag = flag.display();
        return Err(Failure::Usage(format!(
            "{flag} would boot another guest in the new process, with the same disks; leave away what describes a machine: it \
             comes along"
        )));
    }
    let serial = handover.serial.as_deref().map(pairs::console).transpose()?;
    match &serial {
        Some(serial) if serial.mode == Some(ConsoleMode::Tty) => Err(Failure::Usage(
            "--serial: the new process has no terminal; write null, pty, file=PATH or socket=PATH"
                .into(),
        )),
        _ => Ok(serial),
    }
}

/// Whether the old process has a guest that could be handed over.
fn guest_of(session: &Session<'_>) -> Result<(), Failure> {
    let reply = session.questions().get("vm.info")?;
    match session.parse::<VmInfo>(&reply)?.state {
        VmState::Running | VmState::Paused => Ok(()),
        VmState::Created => Err(Failure::NoGuest("has not been booted")),
        VmState::Shutdown => Err(Failure::NoGuest("has ended")),
    }
}

/// The same failure, saying that the guest goes on in the old process, if it does.
fn staying(failure: Failure, session: &Session<'_>) -> Failure {
    match guest_of(session) {
        Ok(()) => failure.stays(),
        Err(_) => failure,
    }
}

/// Has the new process wait for the guest.
fn begin(
    successor: &mut Successor,
    serial: Option<Console>,
    url: &str,
    there: &Session<'_>,
    signals: &Signals,
) -> Result<Arrival, Failure> {
    successor.wait_until_it_answers(signals)?;
    let arrival = receive(serial, url, there)?;
    wait_until_it_listens(there, successor, &arrival)?;
    match signals.noted() {
        Some(_) => Err(Failure::interrupted(signals)),
        None => Ok(arrival),
    }
}

/// Has the new process wait for the guest; what it says in the end comes through the channel.
fn receive(serial: Option<Console>, url: &str, there: &Session<'_>) -> Result<Arrival, Failure> {
    let body = migrating::to_bytes(&wire::ReceiveMigration {
        receiver_url: Some(url.to_owned()),
        serial,
        ..wire::ReceiveMigration::default()
    })?;
    let (sender, arrival) = mpsc::channel();
    let client = there.client(Duration::ZERO);
    std::thread::spawn(move || {
        // Who does not wait any more needs no answer.
        let _ = sender.send(client.put("vm.receive-migration", &body));
    });
    Ok(arrival)
}

type Arrival = Receiver<Result<Reply, ClientError>>;

fn wait_until_it_listens(
    there: &Session<'_>,
    successor: &mut Successor,
    arrival: &Arrival,
) -> Result<(), Failure> {
    let deadline = Instant::now() + SETTLE;
    loop {
        if let Ok(Err(refused)) = arrival.try_recv() {
            return Err(refused.into());
        }
        successor.check()?;
        let reply = there.questions().get("vm.events")?;
        let events: Vec<EventReport> = there.parse(&reply)?;
        if events.iter().any(|event| event.event == "receive-ready") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::Client(ClientError::TimedOut {
                socket: there.socket().to_owned(),
                step: "begun to wait for the guest",
                limit: SETTLE,
            }));
        }
        std::thread::sleep(LOOK);
    }
}

/// A guest that is on its way.
struct Sent<'a> {
    session: &'a Session<'a>,
    signals: &'a Signals,
    watch: Watch<'a>,
    url: String,
    arrival: Arrival,
    begun: Instant,
}

/// Why the guest has not arrived, as far as it is known.
enum Open {
    /// It goes on in the old process, or nowhere: that one says so.
    Failed(Failure),
    /// Nobody has said so.
    Unknown(Failure),
}

impl<'a> Sent<'a> {
    fn begin(
        url: &str,
        arrival: Arrival,
        session: &'a Session<'a>,
        signals: &'a Signals,
    ) -> Result<Self, Open> {
        let request = migrating::local_request(url).map_err(Open::Failed)?;
        let asked = session.questions().put("vm.send-migration", &request);
        asked.map_err(|error| match error {
            ClientError::Refused(_) | ClientError::Connect { .. } => {
                Open::Failed(staying(error.into(), session))
            }
            // It may have been heard.
            error => Open::Unknown(error.into()),
        })?;
        Ok(Sent {
            session,
            signals,
            watch: Watch::new(MigrationRole::Send, url.to_owned(), session),
            url: url.to_owned(),
            arrival,
            begun: Instant::now(),
        })
    }

    /// Until it is there, or is not going there any more.
    fn follow(&mut self) -> Result<(), Open> {
        let ended = loop {
            match self.arrival.recv_timeout(self.watch.interval()) {
                Ok(ended) => break ended,
                Err(RecvTimeoutError::Timeout) => {}
                // The thread cannot end without an answer.
                Err(RecvTimeoutError::Disconnected) => break Err(self.closed()),
            }
            // Once the new process answers, that is no failure: it knows of no such migration.
            let state = self.watch.ask().ok().flatten().map(|it| it.state);
            match state {
                Some(MigrationState::Failed) => return Err(Open::Failed(self.failed())),
                Some(_) if self.signals.noted().is_some() => self.watch.cancel(),
                Some(_) => drop(self.watch.show()),
                None if self.has_arrived() => return Ok(()),
                None => {}
            }
            if self.begun.elapsed() > self.session.total() {
                return Err(Open::Unknown(self.timed_out(self.session.total())));
            }
        };
        self.watch.clear();
        match ended {
            Ok(_) => Ok(()),
            Err(error) => Err(self.reason(error)),
        }
    }

    /// Whether the new process answers in place of the old one, and says so.
    fn has_arrived(&self) -> bool {
        let reply = self.session.questions().get("vm.migration").ok();
        let progress = reply.and_then(|reply| self.session.parse::<Migration>(&reply).ok());
        progress.is_some_and(|progress| {
            let done = progress.state == MigrationState::Done;
            done && progress.role == MigrationRole::Receive && progress.url == self.url
        })
    }

    /// The new process has not got it: the old one knows why, and whether it goes on there.
    fn reason(&mut self, error: ClientError) -> Open {
        let deadline = Instant::now() + REASON;
        while Instant::now() < deadline {
            if let Ok(Some(progress)) = self.watch.ask()
                && progress.state == MigrationState::Failed
            {
                return Open::Failed(self.failed());
            }
            std::thread::sleep(LOOK);
        }
        Open::Unknown(error.into())
    }

    /// The old process says that it has failed.
    fn failed(&mut self) -> Failure {
        self.watch.clear();
        if self.signals.noted().is_some() && guest_of(self.session).is_ok() {
            return Failure::interrupted(self.signals);
        }
        let reasons = self.watch.last().map(|last| last.error.clone());
        let refused = Refused::because(500, reasons.unwrap_or_default());
        let failure = Failure::Client(ClientError::Refused(refused));
        staying(failure, self.session)
    }

    /// How it has gone, once the new process answers in the old one's place.
    fn arrived(
        self,
        url: &str,
        is_new: impl Fn(u32) -> bool,
    ) -> Result<Option<Migration>, Failure> {
        let deadline = Instant::now() + SETTLE;
        let questions = self.session.questions();
        loop {
            let ping = questions.get("vmm.ping").map_err(Failure::from);
            let ping = ping.and_then(|reply| self.session.parse::<Ping>(&reply));
            match ping {
                Ok(ping) if is_new(ping.pid) => break,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Ok(_) if Instant::now() >= deadline => return Err(self.timed_out(SETTLE)),
                Ok(_) | Err(_) => std::thread::sleep(LOOK),
            }
        }
        let Ok(reply) = questions.get("vm.migration") else {
            return Ok(None);
        };
        let progress: Migration = self.session.parse(&reply)?;
        if progress.url != url {
            return Ok(None);
        }
        Ok(Some(progress))
    }

    fn closed(&self) -> ClientError {
        ClientError::Closed {
            socket: self.session.socket().to_owned(),
            cause: None,
        }
    }

    fn timed_out(&self, limit: Duration) -> Failure {
        Failure::Client(ClientError::TimedOut {
            socket: self.session.socket().to_owned(),
            step: "finished the hand-over",
            limit,
        })
    }
}
