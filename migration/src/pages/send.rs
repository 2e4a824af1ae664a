//! The sending side.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use super::lanes::{one_by_one, over_all};
use super::staging::{PART, Staging};
use super::{BLOCK, Bitmap, PAGE, Progress, Region, Run};
use crate::link::{Error, Link, Message, Tally};
use crate::ram::is_zero;
use crate::sys;
use crate::watch::Watch;

/// A round of fewer bytes is sent over one connection after the other: threads would take longer to start than it takes to send them.
pub(super) const WORTH_THREADS: u64 = 256 << 10;

/// Pages are copied, looked at and sent in pieces of this size, which stay in a core's cache.
const PIECE: u64 = PART as u64;

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
    if dirty.count() * PAGE < WORTH_THREADS {
        let few: Vec<Run> = dirty.runs().collect();
        return one_by_one(links, watch, |lane| {
            lane.runs(few.iter().copied(), regions, progress)
        });
    }
    over_all(links, watch, |lane| {
        lane.runs(dirty.runs(), regions, progress)
    })
}

/// Waits until the receiver has what was `sent` in a round, and not only its socket. `links` are all connections, by index.
///
/// # Errors
/// A connection fails, or it was cancelled.
pub fn catch_up(links: &mut [Link], sent: Sent, watch: &dyn Watch) -> Result<(), Error> {
    let ask = |lane: &mut Lane<'_>| lane.link.send(&Message::Sync, lane.watch);
    let wait = |lane: &mut Lane<'_>| lane.link.wait_synced(0, lane.watch);
    let outcome = match sent.data + sent.zeros < WORTH_THREADS {
        // All are asked before one is waited for.
        true => one_by_one(links, watch, ask).and_then(|_| one_by_one(links, watch, wait)),
        // It may take its time, for which no connection is to be silent.
        false => over_all(links, watch, |lane| ask(lane).and_then(|()| wait(lane))),
    };
    outcome.map(drop)
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
pub(super) struct Lane<'a> {
    link: &'a mut Link,
    index: u64,
    of: u64,
    watch: &'a dyn Watch,
    staging: Staging,
    sent: Sent,
}

/// What zeros mean to the other side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// It has them.
    There,
    Tell,
}

impl<'a> Lane<'a> {
    /// Does `work` for this connection of so many.
    pub(super) fn run(
        link: &'a mut Link,
        (index, of): (u64, u64),
        watch: &'a dyn Watch,
        work: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<Sent, Error> {
        let staging = match link.staging.take() {
            Some(staging) => staging,
            None => Staging::new().map_err(|source| Error::Ram { gpa: 0, source })?,
        };
        let mut lane = Lane {
            link,
            index,
            of,
            watch,
            staging,
            sent: Sent::default(),
        };
        work(&mut lane)?;
        lane.link.flush(watch)?;
        // It may be lent. The next round goes on with it.
        lane.link.staging = Some(lane.staging);
        Ok(lane.sent)
    }

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
                self.sent.zeros += run.bytes;
                skip(self.link, run.bytes, progress, self.watch)?;
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

    /// Sends those of `runs` that are its own.
    fn runs(
        &mut self,
        runs: impl Iterator<Item = Run>,
        regions: &[Region<'_>],
        progress: &Progress,
    ) -> Result<(), Error> {
        for run in runs {
            if self.is_its(run.gpa) {
                for region in regions {
                    self.dirty(region, run, progress)?;
                }
            }
        }
        Ok(())
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
        for at in (0..run.bytes).step_by(PIECE as usize) {
            let piece = Run {
                gpa: run.gpa + at,
                bytes: PIECE.min(run.bytes - at),
            };
            let bytes = piece.bytes as usize;
            self.staging.make_room(bytes, self.link, self.watch)?;
            read(region, piece.gpa, self.staging.room(bytes))?;
            self.piece(piece, zeros, progress)?;
        }
        Ok(())
    }

    /// Sends what was copied out of RAM.
    fn piece(&mut self, piece: Run, zeros: Zeros, progress: &Progress) -> Result<(), Error> {
        let staged = self.staging.staged(piece.bytes as usize);
        let mut end = 0;
        for stretch in stretches(staged.bytes) {
            let gpa = piece.gpa + stretch.range.start as u64;
            let bytes = stretch.range.len() as u64;
            if stretch.holds == Holds::Data {
                if self.link.borrows(stretch.range.len()) {
                    end = stretch.range.end;
                }
                let pages = staged.range(stretch.range);
                self.link.send_pages(gpa, pages, self.watch)?;
                self.sent.data += bytes;
                progress.data.fetch_add(bytes, Ordering::Relaxed);
                self.watch.done(bytes);
                continue;
            }
            if zeros == Zeros::Tell {
                self.link.send(&Message::Zeros { gpa, bytes }, self.watch)?;
            }
            self.sent.zeros += bytes;
            skip(self.link, bytes, progress, self.watch)?;
        }
        self.staging.keep(end);
        Ok(())
    }
}

/// Counts zeros. The other side may have to wait for a long time until they end.
fn skip(link: &mut Link, bytes: u64, progress: &Progress, watch: &dyn Watch) -> Result<(), Error> {
    progress.zeros.fetch_add(bytes, Ordering::Relaxed);
    watch.done(bytes);
    link.keep_alive_if_due()
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
struct Stretch {
    /// Where they are.
    range: Range<usize>,
    holds: Holds,
}

fn stretches(data: &[u8]) -> impl Iterator<Item = Stretch> + '_ {
    let mut pages = data.chunks(PAGE as usize).map(Holds::of).peekable();
    let mut end = 0;
    std::iter::from_fn(move || {
        let holds = pages.next()?;
        let mut alike = 1;
        while pages.next_if_eq(&holds).is_some() {
            alike += 1;
        }
        let start = end;
        end = data.len().min(start + alike * PAGE as usize);
        Some(Stretch {
            range: start..end,
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
