//! A guest that is being sent, followed to its end.
//!
//! ```text
//!   UnderWay ──▶ Done
//!      │ │ └───▶ Failed ────────────▶ an error; the guest goes on here
//!      │ └─────▶ Unconfirmed ───────▶ Done, Failed; or an error, when nobody has said anything for long enough
//!      └───────▶ Ferry has ended ───▶ Left, if the guest had been handed over; else an error
//! ```
//!
//! Ferry answers the request when it has begun, and ends, unless told otherwise, when the guest has gone. So the end may
//! be seen from the outside alone: nobody listens any more. What it has said before, in an event, makes it certain.

use std::time::{Duration, Instant};

use ferry_api::client::{ClientError, Refused};
use ferry_api::wire::{Migration, MigrationPhase, MigrationRole, MigrationState};

use super::news::News;
use super::watch::{UNANSWERED_MOST, Watch};
use crate::commands::Session;
use crate::failure::{Failure, Undertaking};
use crate::signals::Signals;

/// How long to wait for word from the receiver if nothing is said.
pub const CONFIRM: Duration = Duration::from_secs(30);
/// How many connections in a row have to fail until Ferry is taken to have ended.
const GONE: u32 = 3;

/// A success.
#[derive(Debug)]
pub enum End {
    /// Ferry says so, and how it has gone.
    Done(Box<Migration>),
    /// Ferry has ended before it could say so. What is known then, as a line.
    Left(String),
}

/// A guest that is being sent.
pub struct Sending<'a> {
    session: &'a Session<'a>,
    signals: Signals,
    watch: Watch<'a>,
    news: News,
    begun: Instant,
}

impl<'a> Sending<'a> {
    /// Has it begun.
    pub fn begin(body: &[u8], url: String, session: &'a Session<'a>) -> Result<Self, Failure> {
        let signals = Signals::note();
        let questions = session.questions();
        let news = News::listen(&questions, session);
        questions.put("vm.send-migration", body)?;
        Ok(Sending {
            session,
            signals,
            watch: Watch::new(MigrationRole::Send, url, session),
            news,
            begun: Instant::now(),
        })
    }

    /// Follows it to its end. `confirm` is for how long it may be unconfirmed.
    pub fn follow(mut self, confirm: Duration) -> Result<End, Failure> {
        let ended = self.until_end(confirm);
        self.watch.clear();
        match ended? {
            None => self.gone(),
            Some(MigrationState::Failed) => Err(self.failed()),
            Some(MigrationState::Done) => match self.watch.into_last() {
                Some(progress) => Ok(End::Done(Box::new(progress))),
                None => Ok(End::Left("done\n".into())),
            },
            Some(MigrationState::Unconfirmed | MigrationState::UnderWay) => Err(self.unconfirmed()),
        }
    }

    /// How it has ended, or has not; `None` if Ferry is not there to tell.
    fn until_end(&mut self, confirm: Duration) -> Result<Option<MigrationState>, Failure> {
        let mut unanswered = 0;
        let mut unconfirmed = None;
        loop {
            let state = match self.watch.ask() {
                Ok(Some(progress)) => Some(progress.state),
                Ok(None) => return Ok(None),
                Err(error) => {
                    unanswered += 1;
                    match error {
                        Failure::Client(ClientError::Refused(refused)) if refused.is_end() => {}
                        Failure::Client(
                            ClientError::Connect { .. } | ClientError::Closed { .. },
                        ) => {
                            if unanswered >= GONE {
                                return Ok(None);
                            }
                        }
                        Failure::Client(ClientError::TimedOut { .. })
                            if unanswered < UNANSWERED_MOST => {}
                        error => return Err(error),
                    }
                    None
                }
            };
            if state.is_some() {
                unanswered = 0;
                self.watch.show()?;
            }
            match state {
                Some(MigrationState::Done | MigrationState::Failed) => return Ok(state),
                Some(MigrationState::Unconfirmed) => {
                    let since = *unconfirmed.get_or_insert_with(Instant::now);
                    if since.elapsed() >= confirm || self.signals.noted().is_some() {
                        return Ok(state);
                    }
                }
                Some(MigrationState::UnderWay) => unconfirmed = None,
                None => {}
            }
            if self.signals.noted().is_some() {
                self.watch.cancel();
            }
            if self.begun.elapsed() > self.session.total() {
                return Err(self.timed_out());
            }
            std::thread::sleep(self.watch.interval());
        }
    }

    /// Nobody is there any more who could say how it has ended.
    fn gone(&self) -> Result<End, Failure> {
        if let Some(downtime) = self.news.finished() {
            let still = match downtime {
                Some(time) => format!(" after standing still for {}", super::report::precise(time)),
                None => String::new(),
            };
            return Ok(End::Left(format!(
                "the guest has left{still}; this Ferry has ended\n"
            )));
        }
        let last = self.watch.last();
        match last.map(|last| (last.state, last.phase)) {
            Some((MigrationState::UnderWay, MigrationPhase::Release)) => Ok(End::Left(
                "the guest has left; this Ferry has ended\n".into(),
            )),
            _ => Err(Failure::Vanished {
                phase: last.map_or("connect".into(), |last| super::report::name(last.phase)),
            }),
        }
    }

    fn failed(&self) -> Failure {
        match self.signals.noted() {
            Some(signal) => Failure::Interrupted {
                signal,
                kind: Undertaking::Send,
            },
            None => {
                let reasons = self.watch.last().map(|last| last.error.clone());
                let refused = Refused::because(500, reasons.unwrap_or_default());
                Failure::Client(ClientError::Refused(refused))
            }
        }
    }

    fn unconfirmed(&self) -> Failure {
        let last = self.watch.last();
        Failure::Unconfirmed {
            url: last.map(|last| last.url.clone()).unwrap_or_default(),
        }
    }

    fn timed_out(&self) -> Failure {
        Failure::Client(ClientError::TimedOut {
            socket: self.session.socket().to_owned(),
            step: "finished the migration",
            limit: self.session.total(),
        })
    }
}
