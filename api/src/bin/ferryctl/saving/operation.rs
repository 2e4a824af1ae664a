//! A snapshot or a restore under way: one connection waits for its end, others ask how it stands.
//!
//! A second thread sends the request and waits; this one asks for the progress, shows it, runs the command of
//! `--while-paused` in its time and looks for signals. What it wants of Ferry then, it says until Ferry has heard it or
//! the operation has ended, and only of an operation that is its own.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use ferry_api::client::{Client, ClientError, Reply};
use ferry_api::wire::{self, Progress, Status, Step};

use super::paused::{Stand, WhilePaused};
use super::report;
use crate::commands::Session;
use crate::failure::{End, Failure};
use crate::signals::Signals;
use crate::view::View;

/// How often Ferry is asked how it stands.
const OFTEN: Duration = Duration::from_millis(200);
/// How often where a guest is held, or is going to be: what is not noticed adds to its pause.
const VERY_OFTEN: Duration = Duration::from_millis(10);
/// How many questions in a row may get no answer.
const UNANSWERED_MOST: u32 = 6;

/// What is to be done.
pub struct Operation<'a> {
    pub kind: wire::Operation,
    pub body: Vec<u8>,
    pub while_paused: Option<WhilePaused>,
    pub directory: PathBuf,
    pub session: &'a Session<'a>,
}

/// A success.
pub struct Outcome {
    /// How it has gone; `None` if Ferry does not tell any more.
    pub progress: Option<Progress>,
}

/// What Ferry is to do with an operation that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Release,
    Cancel,
}

impl Operation<'_> {
    fn route(&self) -> &'static str {
        match self.kind {
            wire::Operation::Snapshot => "vm.snapshot",
            wire::Operation::Restore => "vm.restore",
        }
    }

    /// Does it, to its end.
    pub fn run(mut self) -> Result<Outcome, Failure> {
        let signals = Signals::note();
        let (sender, end) = mpsc::channel();
        let client = self.session.client(Duration::ZERO);
        let (route, body) = (self.route(), std::mem::take(&mut self.body));
        std::thread::spawn(move || {
            // Who does not wait any more needs no answer.
            let _ = sender.send(client.put(route, &body));
        });
        let mut watch = Watch::new(&mut self, &signals);
        let ended = loop {
            match end.recv_timeout(watch.interval()) {
                Ok(ended) => break ended,
                Err(RecvTimeoutError::Timeout) => watch.tick()?,
                // The thread cannot end without an answer.
                Err(RecvTimeoutError::Disconnected) => return Err(watch.lost()),
            }
        };
        watch.conclude(ended)
    }
}

/// The eyes on an operation.
struct Watch<'o, 'a> {
    operation: &'o mut Operation<'a>,
    signals: &'o Signals,
    questions: Client,
    view: View<Step>,
    unanswered: u32,
    wish: Option<Wish>,
}

impl<'o, 'a> Watch<'o, 'a> {
    fn new(operation: &'o mut Operation<'a>, signals: &'o Signals) -> Self {
        let questions = operation.session.questions();
        let view = View::new(operation.session.form);
        Watch {
            operation,
            signals,
            questions,
            view,
            unanswered: 0,
            wish: None,
        }
    }

    fn interval(&mut self) -> Duration {
        let command = self.operation.while_paused.as_mut();
        match command.map(WhilePaused::stand) {
            Some(Stand::Waiting | Stand::Running) => VERY_OFTEN,
            _ => OFTEN,
        }
    }

    /// Looks how it stands, and does what is due.
    fn tick(&mut self) -> Result<(), Failure> {
        let progress = match self.ask() {
            Ok(progress) => progress.filter(|it| it.status == Status::UnderWay),
            Err(error) => {
                self.unanswered += 1;
                if self.unanswered == UNANSWERED_MOST {
                    self.view.clear();
                    return Err(error);
                }
                None
            }
        };
        if self.signals.noted().is_some() {
            if let Some(command) = &mut self.operation.while_paused {
                command.end();
            }
            self.wish = Some(Wish::Cancel);
        }
        if let Some(progress) = progress {
            self.unanswered = 0;
            self.attend(&progress)?;
        }
        Ok(())
    }

    /// The operation is ours and goes on.
    fn attend(&mut self, progress: &Progress) -> Result<(), Failure> {
        let mut stand = Stand::Waiting;
        if let Some(command) = &mut self.operation.while_paused {
            if progress.step == Step::Hold && self.wish.is_none() {
                self.view.clear();
                command.start();
            }
            stand = command.stand();
        }
        let wish = match stand {
            Stand::Running => return Ok(()),
            Stand::Succeeded => Some(Wish::Release),
            Stand::Failed(_) => Some(Wish::Cancel),
            Stand::Waiting => None,
        };
        if self.wish.is_none() {
            self.wish = wish;
        }
        let route = match self.wish {
            // Once it has been heard, there is no hold any more.
            Some(Wish::Release) if progress.step == Step::Hold => "vm.snapshot-release",
            Some(Wish::Cancel) => "vm.cancel",
            _ => return self.view.show(progress.step, &report::line(progress)),
        };
        // If it is not heard now, it is said again.
        let _ = self.questions.put(route, b"");
        Ok(())
    }

    /// How our operation stands or has ended, as far as Ferry tells.
    fn ask(&self) -> Result<Option<Progress>, Failure> {
        let reply = match self.questions.get("vm.progress") {
            Ok(reply) => reply,
            Err(ClientError::Refused(refused)) if refused.status == 404 => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let progress: Progress = self.operation.session.parse(&reply)?;
        let ours = progress.operation == self.operation.kind
            && progress.directory == self.operation.directory.to_string_lossy();
        Ok(ours.then_some(progress))
    }

    /// Makes of Ferry's last word what ferryctl says.
    fn conclude(mut self, ended: Result<Reply, ClientError>) -> Result<Outcome, Failure> {
        self.view.clear();
        let signal = self.signals.noted();
        let stand = match &mut self.operation.while_paused {
            Some(command) => command.stand(),
            None => Stand::Succeeded,
        };
        if let Some(command) = &mut self.operation.while_paused {
            command.end();
        }
        let how = match (&stand, &ended) {
            (Stand::Succeeded, _) => None,
            (Stand::Failed(how), _) => Some(how.as_str()),
            // Somebody else has let it go on.
            (Stand::Running, Ok(_)) => Some("had not ended when the guest was let go on"),
            (Stand::Waiting, Ok(_)) => Some("was not run before the guest was let go on"),
            (Stand::Running | Stand::Waiting, Err(_)) => None,
        };
        let finished = match ended {
            Ok(_) => End::Finished,
            Err(_) => End::GivenUp,
        };
        match (signal, how, ended) {
            (Some(signal), _, Err(ClientError::Refused(_))) => Err(Failure::Interrupted {
                signal,
                kind: self.operation.kind.into(),
            }),
            (_, Some(how), Ok(_) | Err(ClientError::Refused(_))) => Err(Failure::WhilePaused {
                command: self.command(),
                how: how.to_owned(),
                end: finished,
            }),
            (_, _, Err(error)) => Err(error.into()),
            (_, None, Ok(_)) => Ok(Outcome {
                progress: self.ask().ok().flatten(),
            }),
        }
    }

    fn command(&self) -> String {
        let command = self.operation.while_paused.as_ref();
        command.map(WhilePaused::command).unwrap_or_default()
    }

    fn lost(&self) -> Failure {
        Failure::Client(ClientError::Closed {
            socket: self.questions.socket().to_owned(),
            cause: None,
        })
    }
}
