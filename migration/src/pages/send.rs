//! The sending side.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::{BLOCK, Bitmap, PAGE, Progress, Region, Run};
use crate::link::{Error, Link, Message, Tally};
use crate::ram::is_zero;
use crate::sys;
use crate::watch::Watch;

/// Pages are copied, looked at and sent in pieces of this size, which stay in a core's cache.
const PIECE: u64 = 256 << 10;

/// How long the reason may take to come after a connection was lost.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often a lane that is done looks whether the others are.
const TICK: Duration = Duration::from_millis(20);

/// What a round has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of pages that were sent.
    pub data: u64,
    /// Bytes of pages that are zero, holes included.
    pub zeros: u64,
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Sent) {
        self.data += other.data;
        self.zeros += other.zeros;
    }
}

/// Sends all RAM that is not zero to a receiver whose RAM is new. `links` are all connections, by index. `watch` hears of
/// every byte of RAM, sent or not.
///
/// # Errors
/// RAM cannot be read, a connection fails, or it was cancelled.
pub fn send_all(
    links: &mut [Link],
    regions: &[Region<'_>],
    progress: &Progress,
    watch: &dyn Watch,
) -> Result<Sent, Error> {
    over_all(links, watch, |lane| {
        for region in regions {
            lane.whole(region, progress)?;
        }
        Ok(())
    })
}

/// Sends the pages of `dirty` that are RAM. `links` are all connections, by index. `watch` hears of every byte of them.
///
/// # Errors
/// RAM cannot be read, a connection fails, or it was cancelled.
pub fn send_dirty(
    links: &mut [Link],
    regions: &[Region<'_>],
    dirty: &Bitmap,
    progress: &Progress,
    watch: &dyn Watch,
) -> Result<Sent, Error> {
    over_all(links, watch, |lane| {
        for run in dirty.runs() {
            if lane.is_its(run.gpa) {
                for region in regions {
                    lane.dirty(region, run, progress)?;
                }
            }
        }
        Ok(())
    })
}

/// Ends the extra connections, once all RAM is sent. `links` are all connections, by index.
///
/// # Errors
/// A connection fails, or it was cancelled.
pub fn end_extra(links: &mut [Link], watch: &dyn Watch) -> Result<(), Error> {
    links.iter_mut().skip(1).try_for_each(|link| {
        let tallies = vec![link.sent()].into();
        link.send(&Message::End { tallies }, watch)
    })
}

/// Ends the main connection, the last, which says what went over all of them. `links` are all connections, by index.
///
/// # Errors
/// The connection fails, or it was cancelled.
pub fn end_main(links: &mut [Link], watch: &dyn Watch) -> Result<(), Error> {
    let tallies: Vec<Tally> = links.iter().map(Link::sent).collect();
    links.first_mut().map_or(Ok(()), |link| {
        let tallies = tallies.into();
        link.send(&Message::End { tallies }, watch)
    })
}

/// One connection, with the blocks that travel on it.
struct Lane<'a> {
    link: &'a mut Link,
    index: u64,
    of: u64,
    watch: &'a dyn Watch,
    buffer: Vec<u8>,
    sent: Sent,
}

/// What zeros mean to the other side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// It has them.
    There,
    Tell,
}

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

/// Does `work` for each connection, on a thread of its own if there are several.
fn over_all(
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
    let run = |(index, link)| {
        let mut lane = Lane {
            link,
            index,
            of,
            watch: &watch,
            buffer: vec![0; PIECE as usize],
            sent: Sent::default(),
        };
        let result = work(&mut lane);
        // Under the lock, so that a lane that ends because of this one comes later.
        let mut ending = locked(&ending);
        ending.working = ending.working.saturating_sub(1);
        match (&mut ending.outcome, result) {
            (Ok(all), Ok(())) => *all += lane.sent,
            (Ok(_), Err(error)) => {
                ending.outcome = Err(error);
                failed.store(true, Ordering::Relaxed);
            }
            (Err(_), _) => (),
        }
        ended.notify_all();
        // The other side hears from this connection while others are at work.
        while ending.working > 0 && lane.link.keep_alive_if_due().is_ok() {
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
    match (outcome, links) {
        // The reason, if there is one, comes over the main connection, and perhaps later than an extra one ends.
        (Err(lost), [main, _, ..]) if lost.is_lost() => {
            Err(main.last_words(LAST_WORDS).unwrap_or(lost))
        }
        (outcome, _) => outcome,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane<'_> {
    fn is_its(&self, gpa: u64) -> bool {
        gpa / BLOCK % self.of == self.index
    }

    /// Sends what a region holds.
    fn whole(&mut self, region: &Region<'_>, progress: &Progress) -> Result<(), Error> {
        let end = region.gpa + region.part.bytes;
        let mut hole_until = 0;
        let mut gpa = region.gpa;
        while gpa < end {
            let border = (gpa / BLOCK + 1) * BLOCK;
            let run = Run {
                gpa,
                bytes: end.min(border) - gpa,
            };
            gpa = border;
            if !self.is_its(run.gpa) {
                continue;
            }
            if run.gpa + run.bytes > hole_until {
                hole_until = next_data(region, run.gpa)?;
            }
            if run.gpa + run.bytes <= hole_until {
                self.skip(run.bytes, progress)?;
                if self.watch.cancelled() {
                    // The error that names the connection.
                    self.link.send(&Message::Alive, self.watch)?;
                }
                continue;
            }
            self.pages(region, run, Zeros::There, progress)?;
        }
        Ok(())
    }

    /// Counts zeros. The other side may have to wait for a long time until they end.
    fn skip(&mut self, bytes: u64, progress: &Progress) -> Result<(), Error> {
        self.sent.zeros += bytes;
        progress.zeros.fetch_add(bytes, Ordering::Relaxed);
        self.watch.done(bytes);
        self.link.keep_alive_if_due()
    }

    /// Sends the part of a run that is in the region.
    fn dirty(&mut self, region: &Region<'_>, run: Run, progress: &Progress) -> Result<(), Error> {
        let from = run.gpa.max(region.gpa);
        let to = (run.gpa + run.bytes).min(region.gpa + region.part.bytes);
        if from >= to {
            return Ok(());
        }
        let run = Run {
            gpa: from,
            bytes: to - from,
        };
        self.pages(region, run, Zeros::Tell, progress)
    }

    fn pages(
        &mut self,
        region: &Region<'_>,
        run: Run,
        zeros: Zeros,
        progress: &Progress,
    ) -> Result<(), Error> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut result = Ok(());
        let mut at = 0;
        while at < run.bytes && result.is_ok() {
            let piece = Run {
                gpa: run.gpa + at,
                bytes: PIECE.min(run.bytes - at),
            };
            at += piece.bytes;
            let buffer = &mut buffer[..piece.bytes as usize];
            result = read(region, piece.gpa, buffer)
                .and_then(|()| self.piece(piece.gpa, buffer, zeros, progress));
        }
        self.buffer = buffer;
        result
    }

    /// Sends what was copied out of RAM.
    fn piece(
        &mut self,
        gpa: u64,
        data: &[u8],
        zeros: Zeros,
        progress: &Progress,
    ) -> Result<(), Error> {
        let mut gpa = gpa;
        for stretch in stretches(data) {
            let (run, bytes) = (stretch.data, stretch.data.len() as u64);
            if stretch.holds == Holds::Data {
                self.link
                    .send(&Message::Pages { gpa, data: run }, self.watch)?;
                self.sent.data += bytes;
                progress.data.fetch_add(bytes, Ordering::Relaxed);
                self.watch.done(bytes);
            } else {
                if zeros == Zeros::Tell {
                    self.link.send(&Message::Zeros { gpa, bytes }, self.watch)?;
                }
                self.skip(bytes, progress)?;
            }
            gpa += bytes;
        }
        Ok(())
    }
}

/// What a page holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Data,
    Zeros,
}

impl Holds {
    fn of(page: &[u8]) -> Self {
        match is_zero(page) {
            true => Holds::Zeros,
            false => Holds::Data,
        }
    }
}

/// Pages that are alike.
struct Stretch<'a> {
    data: &'a [u8],
    holds: Holds,
}

fn stretches(mut data: &[u8]) -> impl Iterator<Item = Stretch<'_>> {
    std::iter::from_fn(move || {
        let (first, rest) = data.split_at_checked(PAGE as usize)?;
        let holds = Holds::of(first);
        let more = rest
            .chunks(PAGE as usize)
            .take_while(|page| Holds::of(page) == holds)
            .count();
        let (stretch, rest) = data.split_at((1 + more) * PAGE as usize);
        data = rest;
        Some(Stretch {
            data: stretch,
            holds,
        })
    })
}

fn read(region: &Region<'_>, gpa: u64, buffer: &mut [u8]) -> Result<(), Error> {
    let at = gpa - region.gpa;
    let bytes = buffer.len() as u64;
    if let Some(piece) = region.memory.and_then(|memory| memory.present(at, bytes)) {
        piece.copy_to(buffer);
        return Ok(());
    }
    let at = region.part.offset + at;
    region
        .part
        .file
        .read_exact_at(buffer, at)
        .map_err(|source| Error::Ram { gpa, source })
}

/// The address from which on a region holds data, at `gpa` or behind it; the end of all addresses if it does not.
fn next_data(region: &Region<'_>, gpa: u64) -> Result<u64, Error> {
    let at = region.part.offset + (gpa - region.gpa);
    let wrong = |source: io::Error| Error::Ram { gpa, source };
    let data = sys::seek_data(region.part.file, at).map_err(wrong)?;
    Ok(data.map_or(u64::MAX, |data| {
        region.gpa.saturating_add(data - region.part.offset)
    }))
}
