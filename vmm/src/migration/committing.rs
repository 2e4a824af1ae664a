//! The receiver's wait for the commit: from its word that everything is here until the guest is its own, or never.

use std::time::{Duration, Instant};

use ferry_api::config::Timeouts;
use ferry_api::migration::Phase;
use vm_migration::link::{Error as LinkError, Link, Message, Outcome, Purpose};

use super::Error;
use super::listen::Incoming;
use crate::progress::LOOK;

/// How much longer than its own limits a sender is waited for to commit.
const COMMIT: Duration = Duration::from_secs(30);
/// How many who come meanwhile are heard at once: all who can have come before the commit, but others may come all the time.
const QUESTIONS: usize = 256;

/// A moment, on a clock that goes on while the host sleeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(Duration);

impl Moment {
    fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Moment(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    fn after(self, time: Duration) -> Self {
        Moment(self.0 + time)
    }

    pub(super) fn is_over(self) -> bool {
        Moment::now().0 >= self.0
    }
}

impl Incoming {
    /// Says that everything is here, and waits until the guest is this Ferry's; returns until when it may be started, unless a word that
    /// both share says whose it is.
    ///
    /// A sender that has heard nothing for as long as an answer may take asks, may get no answer, and may then be told to take its guest
    /// back. So a commit is good for as long as it says only. That counts from here: this process, or its host, may be stopped, and the commit
    /// may lie anywhere on its way.
    pub(super) fn wait_for_commit(&mut self, timeouts: &Timeouts) -> Result<Option<Moment>, Error> {
        let meter = self.meter.clone();
        meter.enter(Phase::Ready);
        let limit = timeouts.request + COMMIT;
        let is_shared = self.link.purpose() == Purpose::HandOver;
        self.attempts.note(self.link.attempt(), Outcome::Waiting);
        self.link.set_silence(limit);
        // It has a limit of its own.
        self.link.set_idle(Duration::MAX);
        let ready = Moment::now();
        self.link.send(&Message::Ready, &*meter)?;
        let good_until = loop {
            let message = self.link.receive_for(&*meter, Instant::now() + LOOK)?;
            let good_until = match message {
                Some(Message::Commit { .. }) if is_shared => break None,
                Some(Message::Commit { good_for }) => Some(ready.after(good_for)),
                _ => None,
            };
            self.answer_questions()?;
            match good_until {
                Some(_) => break good_until,
                None if ready.after(limit).is_over() => return Err(Error::NoCommit(limit)),
                None => {}
            }
        };
        meter.commit()?;
        meter.enter(Phase::Commit);
        Ok(good_until)
    }

    /// Answers those who ask what has become of an attempt. A sender asks about this one only when it has handed the guest over in
    /// vain: the guest is thrown away, and the sender may let it go on.
    fn answer_questions(&mut self) -> Result<(), Error> {
        for _ in 0..QUESTIONS {
            let link = match self.listener.accept(&*self.meter, Some(Instant::now())) {
                Ok(link) => link,
                Err(LinkError::Silent { .. }) => return Ok(()),
                Err(error @ LinkError::Cancelled { .. }) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!("nobody can ask what has become of the guest: {error}");
                    return Ok(());
                }
            };
            let attempt = self.link.attempt();
            if link.purpose() == Purpose::Ask && link.attempt() == attempt {
                self.attempts.note(attempt, Outcome::Discarded);
                self.attempts.answer(link);
                return Err(Error::Asked);
            }
            self.turn_away(link);
        }
        Ok(())
    }

    /// Has nothing to do with who came now, who may have a question all the same.
    pub(super) fn turn_away(&self, link: Link) {
        match link.purpose() {
            Purpose::Ask => self.attempts.answer(link),
            _ => {
                let _ = link.refuse("a migration is being received already");
            }
        }
    }
}
