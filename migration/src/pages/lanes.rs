//! Work that is spread over connections: on a thread for each of them, or for one after the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::send::{Lane, Sent};
use crate::link::{Error, Link};
use crate::watch::Watch;

/// How often a lane that is done looks whether the others are.
const TICK: Duration = Duration::from_millis(20);

/// Ends when another lane has failed, too.
struct Together<'a> {
    watch: &'a dyn Watch,
    failed: &'a AtomicBool,
}

impl Watch for Together<'_> {
    fn done(&self, bytes: u64) {
        self.watch.done(bytes);
    }

    fn cancelled(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.watch.cancelled()
    }
}

/// How a round ends: how many lanes are still at work, and what came out of the others.
struct Ending {
    working: u64,
    outcome: Result<Sent, Error>,
}

impl Ending {
    /// What has come of a lane. Of errors the first of those that say the most stays.
    fn add(&mut self, result: Result<Sent, Error>, failed: &AtomicBool) {
        match (&mut self.outcome, result) {
            (Ok(all), Ok(sent)) => *all += sent,
            (Ok(_), Err(error)) => {
                self.outcome = Err(error);
                failed.store(true, Ordering::Relaxed);
            }
            (Err(first), Err(error)) if error.cause() > first.cause() => *first = error,
            (Err(_), _) => (),
        }
    }
}

/// Does `work` for each connection, on a thread of its own if there are several.
pub(super) fn over_all(
    links: &mut [Link],
    watch: &dyn Watch,
    work: impl Fn(&mut Lane<'_>) -> Result<(), Error> + Sync,
) -> Result<Sent, Error> {
    let of = links.len() as u64;
    let failed = AtomicBool::new(false);
    let watch = Together {
        watch,
        failed: &failed,
    };
    let ending = Mutex::new(Ending {
        working: of,
        outcome: Ok(Sent::default()),
    });
    let ended = Condvar::new();
    let run = |(index, link): (u64, &mut Link)| {
        let result = Lane::run(link, (index, of), &watch, &work);
        // Under the lock, so that a lane that ends because of this one comes later.
        let mut ending = locked(&ending);
        ending.working = ending.working.saturating_sub(1);
        ending.add(result, &failed);
        ended.notify_all();
        // The other side hears from this connection while others are at work.
        while ending.working > 0 {
            if let Err(error) = link.keep_alive_if_due() {
                ending.add(Err(error), &failed);
                break;
            }
            let waited = ended.wait_timeout(ending, TICK);
            ending = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    };
    let mut lanes = (0..of).zip(links.iter_mut());
    let first = lanes.next();
    thread::scope(|scope| {
        for lane in lanes {
            let builder = thread::Builder::new().name(format!("pages-{}", lane.0));
            if let Err(source) = builder.spawn_scoped(scope, || run(lane)) {
                failed.store(true, Ordering::Relaxed);
                let mut ending = locked(&ending);
                ending.working = 0;
                ending.outcome = Err(Error::Ram { gpa: 0, source });
                return;
            }
        }
        if let Some(first) = first {
            run(first);
        }
    });
    let ending = ending.into_inner();
    let outcome = ending.unwrap_or_else(PoisonError::into_inner).outcome;
    outcome.map_err(|error| explained(links, error))
}

/// Does `work` for one connection after the other. It must not be much: the others wait.
pub(super) fn one_by_one(
    links: &mut [Link],
    watch: &dyn Watch,
    work: impl Fn(&mut Lane<'_>) -> Result<(), Error>,
) -> Result<Sent, Error> {
    let of = links.len() as u64;
    let mut all = Sent::default();
    for index in 0..links.len() {
        let sent = Lane::run(&mut links[index], (index as u64, of), watch, &work);
        // The other side has not heard from the others meanwhile.
        let alive = links.iter_mut().try_for_each(Link::keep_alive_if_due);
        match sent.and_then(|sent| alive.map(|()| sent)) {
            Ok(sent) => all += sent,
            Err(error) => return Err(explained(links, error)),
        }
    }
    Ok(all)
}

/// What a receiver that has several connections has said on the main one, if an error does not tell why there is one.
fn explained(links: &mut [Link], error: Error) -> Error {
    match links {
        [main, _, ..] => main.explain(error),
        _ => error,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
