//! The receiver's last duty: a guest that was committed runs or does not, and the sender is to know.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use ferry_api::migration::Phase;
use vm_migration::link::{Link, Listener, Message, Outcome, Timing};
use vm_migration::ownership::Ownership;

use super::committing::Moment;
use super::{Attempts, Error, Meter, Service};
use crate::memory::GuestRam;

/// How long a sender has to say that it has heard.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the teller's stack.
const STACK: usize = 256 << 10;

/// What is left of a migration once the guest is here. Dropped before [`Farewell::started`], it tells the sender that the guest was
/// never started, so that it can go on there.
pub struct Farewell {
    attempts: Arc<Attempts>,
    meter: Arc<Meter>,
    /// Of a guest that was handed over within this host.
    ownership: Option<Ownership>,
    /// If this process takes the sender's place.
    service: Option<Service>,
    teller: Teller,
    /// Until when the guest may be started, if it is not the ownership that says so.
    good_until: Option<Moment>,
    /// Until it is said.
    rest: Option<Box<Rest>>,
}

struct Rest {
    link: Link,
    listener: Listener,
}

impl Farewell {
    pub(super) fn new(
        attempts: &Arc<Attempts>,
        meter: &Arc<Meter>,
        link: Link,
        listener: Listener,
        ownership: Option<Ownership>,
        teller: Teller,
    ) -> Self {
        Farewell {
            attempts: attempts.clone(),
            meter: meter.clone(),
            ownership,
            service: None,
            teller,
            good_until: None,
            rest: Some(Box::new(Rest { link, listener })),
        }
    }

    pub(super) fn good_until(self, moment: Option<Moment>) -> Self {
        let mut farewell = self;
        farewell.good_until = moment;
        farewell
    }

    pub(super) fn with_service(self, service: Option<Service>) -> Self {
        let mut farewell = self;
        farewell.service = service;
        farewell
    }

    /// Through what the sender was reached, and this process is from now on, if it takes that one's place.
    pub fn take_service(&mut self) -> Option<Service> {
        self.service.take()
    }

    /// Makes the guest, which has the commit, this process's. To be said before anything of it runs.
    ///
    /// # Errors
    /// A sender within this host has taken it back; another one may have by now.
    pub fn take(&self, ram: &GuestRam) -> Result<(), Error> {
        if self.good_until.is_some_and(Moment::is_over) {
            return Err(Error::LateCommit);
        }
        if let Some(ownership) = &self.ownership {
            ownership.start()?;
            ram.own();
        }
        Ok(())
    }

    /// How far the migration is.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// The guest is about to run. From now on nobody is told otherwise.
    pub fn started(mut self) -> Started {
        let rest = self.rest.take();
        if let Some(rest) = &rest {
            self.attempts.note(rest.link.attempt(), Outcome::Running);
        }
        Started {
            teller: self.teller.clone(),
            word: LastWord {
                attempts: self.attempts.clone(),
                meter: self.meter.clone(),
                rest,
            },
        }
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            let Rest { link, listener } = *rest;
            self.attempts.note(link.attempt(), Outcome::NeverStarted);
            // It asks then.
            drop(link);
            self.attempts.keep_answering(listener);
        }
    }
}

/// The guest runs, and the sender is still to be told.
pub struct Started {
    teller: Teller,
    word: LastWord,
}

impl Started {
    /// Has the sender told.
    pub fn tell(self) {
        // The thread ends only when there is nobody left to say something.
        let _ = self.teller.0.send(self.word);
    }
}

/// A thread that waits for the last word to the sender. It is made while nobody waits for it: a guest that runs would have to share its
/// processor with the making of it.
#[derive(Clone)]
pub(super) struct Teller(Sender<LastWord>);

impl Teller {
    /// Makes it. It ends with the last of those who can have it say something.
    pub(super) fn start() -> Result<Self, Error> {
        let (teller, words) = channel::<LastWord>();
        let work = move || {
            if let Ok(word) = words.recv() {
                word.say();
            }
        };
        let builder = std::thread::Builder::new().name("farewell".into());
        let thread = builder.stack_size(STACK).spawn(work);
        thread.map_err(Error::Thread)?;
        Ok(Teller(teller))
    }
}

struct LastWord {
    attempts: Arc<Attempts>,
    meter: Arc<Meter>,
    rest: Option<Box<Rest>>,
}

impl LastWord {
    /// Tells the sender. One that does not say that it has heard may ask later.
    fn say(self) {
        let Some(rest) = self.rest else { return };
        let Rest { mut link, listener } = *rest;
        // Of what came before, the guest has not noticed anything.
        let phases = self.meter.phases().into_iter();
        let still = phases.skip_while(|(phase, _)| *phase != Phase::Machine);
        let timings = still.map(|(phase, time)| Timing {
            name: phase.name().to_owned(),
            micros: u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
        });
        let timings: Vec<Timing> = timings.collect();
        let since = self.meter.in_last_phase_since();
        if let Err(error) = say_goodbye(&mut link, since, timings) {
            tracing::warn!("the sender has not heard that its guest runs here: {error}");
            drop(link);
            self.attempts.keep_answering(listener);
        }
    }
}

fn say_goodbye(link: &mut Link, since: u64, timings: Vec<Timing>) -> Result<(), Error> {
    let watch = vm_migration::Unwatched;
    let timings = timings.into();
    link.send(&Message::Running { since, timings }, &watch)?;
    link.set_silence(LIMIT);
    let deadline = Instant::now() + LIMIT;
    loop {
        match link.receive_for(&watch, deadline)? {
            Some(Message::Bye) => return Ok(()),
            Some(_) => {}
            None => return Err(Error::NoFarewell),
        }
    }
}
