//! The eyes on a migration, on either side.

use std::time::Duration;

use ferry_api::client::{Client, ClientError};
use ferry_api::wire::{Migration, MigrationPhase, MigrationRole, MigrationState};

use super::report;
use crate::commands::Session;
use crate::failure::Failure;
use crate::view::View;

/// How often Ferry is asked how it stands.
pub const OFTEN: Duration = Duration::from_millis(200);
/// How often when the guest stands still, and the end is near.
const VERY_OFTEN: Duration = Duration::from_millis(20);
/// How many questions in a row may get no answer.
pub const UNANSWERED_MOST: u32 = 6;

/// A migration that is watched.
#[derive(Debug)]
pub struct Watch<'a> {
    session: &'a Session<'a>,
    questions: Client,
    role: MigrationRole,
    url: String,
    view: View<(MigrationPhase, u32)>,
    /// What Ferry has said last of it.
    last: Option<Migration>,
}

impl<'a> Watch<'a> {
    /// Watches the migration at `url`, which is as Ferry shows it.
    pub fn new(role: MigrationRole, url: String, session: &'a Session<'a>) -> Self {
        Watch {
            session,
            questions: session.questions(),
            role,
            url,
            view: View::new(session.form),
            last: None,
        }
    }

    /// How our migration stands or has ended; `None` if Ferry knows only of others, or of none.
    pub fn ask(&mut self) -> Result<Option<&Migration>, Failure> {
        let reply = match self.questions.get("vm.migration") {
            Ok(reply) => reply,
            Err(ClientError::Refused(refused)) if refused.status == 404 => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let progress: Migration = self.session.parse(&reply)?;
        let attempt = self.last.as_ref().map_or("", |last| &last.attempt);
        let ours = progress.role == self.role
            && progress.url == self.url
            && (attempt.is_empty() || attempt == progress.attempt);
        if !ours {
            return Ok(None);
        }
        Ok(Some(self.last.insert(progress)))
    }

    /// What was said last.
    pub fn last(&self) -> Option<&Migration> {
        self.last.as_ref()
    }

    /// The same, for good.
    pub fn into_last(mut self) -> Option<Migration> {
        self.last.take()
    }

    /// Shows what was said last.
    pub fn show(&mut self) -> Result<(), Failure> {
        match &self.last {
            Some(last) => self
                .view
                .show((last.phase, last.round), &report::line(last)),
            None => Ok(()),
        }
    }

    /// Makes room for other output.
    pub fn clear(&mut self) {
        self.view.clear();
    }

    /// Asks Ferry to give it up, if it goes on. What is not heard now is said again.
    pub fn cancel(&self) {
        if self
            .last
            .as_ref()
            .is_some_and(|last| last.state == MigrationState::UnderWay)
        {
            let _ = self.questions.put("vm.migration-cancel", b"");
        }
    }

    /// How long to wait until the next question.
    pub fn interval(&self) -> Duration {
        match self.last.as_ref().map(|last| (last.state, last.phase)) {
            Some((MigrationState::UnderWay, phase)) if report::stands_still(phase) => VERY_OFTEN,
            _ => OFTEN,
        }
    }
}
