//! Writing state into a back-end.

use std::io;
use std::sync::Arc;

use vm_migration::Watch;

use super::StateLimits;
use super::error::{StateCause, StateError, StateStep, TransferError};
use super::half::{Half, Open};
use crate::sys::poll::Interest;
use crate::vhost_user::frontend::Direction;
use crate::vhost_user::inbox::Order;
use crate::vhost_user::shared::Shared;

/// State on its way into a back-end.
///
/// Dropping it before [`Loading::finish`] has succeeded leaves a back-end that has a part of a state and takes it for the whole,
/// and that must not be let start: the device's `resume` is refused then, and is its end, with the reason. The connection
/// lives on, and a reset puts the device back to where it can be restored anew. Not before this has been dropped: the reset waits for the
/// back-end, which waits for the state's end.
pub struct Loading {
    half: Half,
    progress: Progress,
    written: u64,
}

enum Progress {
    /// Nobody has asked yet whether the back-end is willing.
    Waiting,
    /// State goes into the back-end.
    Open(Open),
    /// All of it is there, and good.
    Good,
    /// It will not be there.
    Failed(TransferError),
}

impl Loading {
    pub(in crate::vhost_user) fn begin(shared: &Arc<Shared>, limits: &StateLimits) -> Self {
        Loading {
            half: Half::begin(shared, limits, Direction::Load),
            progress: Progress::Waiting,
            written: 0,
        }
    }

    /// Writes the next part of the state; `watch` is told how much of it. This waits for the back-end, within the limits.
    ///
    /// # Errors
    /// The load has failed, and nothing more can be written.
    pub fn write(&mut self, data: &[u8], watch: &dyn Watch) -> Result<(), StateError> {
        let result = self.try_write(data, watch);
        self.note(result)
    }

    /// Ends the state, and asks the back-end whether it is good. Returns how many bytes it were.
    ///
    /// # Errors
    /// The load has failed: the device cannot go on, only be reset, or be loaded anew.
    pub fn finish(mut self, watch: &dyn Watch) -> Result<u64, StateError> {
        let result = self.try_finish(watch);
        self.note(result)?;
        Ok(self.written)
    }

    fn note<T>(&mut self, result: Result<T, StateError>) -> Result<T, StateError> {
        if let Err(StateError::BackEnd(error)) = &result {
            self.progress = Progress::Failed(error.clone());
        }
        if let Err(StateError::Cancelled) = &result {
            self.progress = Progress::Failed(self.given_up());
        }
        result
    }

    fn given_up(&self) -> TransferError {
        self.half.error(StateStep::Write, StateCause::GivenUp)
    }

    /// The way into the back-end, once that has said that it is willing.
    fn open(&mut self, watch: &dyn Watch) -> Result<Open, StateError> {
        match std::mem::replace(&mut self.progress, Progress::Waiting) {
            Progress::Waiting => self.half.open(watch),
            Progress::Open(open) => Ok(open),
            Progress::Failed(error) => Err(error.into()),
            Progress::Good => Err(self.given_up().into()),
        }
    }

    fn try_write(&mut self, data: &[u8], watch: &dyn Watch) -> Result<(), StateError> {
        let open = self.open(watch)?;
        let most = self.half.limits.most;
        let mut rest = data;
        while !rest.is_empty() {
            let after = self.written;
            if watch.cancelled() {
                return Err(StateError::Cancelled);
            }
            if rest.len() as u64 > most.saturating_sub(after) {
                return self.fails(StateCause::TooMuch { most });
            }
            match open.stream.try_write(rest) {
                Ok(count) => {
                    rest = &rest[count..];
                    self.written += count as u64;
                    self.half.pace.note_moved(count);
                    watch.done(count as u64);
                }
                Err(source) if source.kind() == io::ErrorKind::WouldBlock => {
                    let stream = &open.stream;
                    self.half.wait(stream, Interest::Write, after, watch)?;
                }
                Err(source) => return self.fails(StateCause::Broken { after, source }),
            }
        }
        self.progress = Progress::Open(open);
        Ok(())
    }

    fn fails(&self, cause: StateCause) -> Result<(), StateError> {
        Err(self.half.error(StateStep::Write, cause).into())
    }

    fn try_finish(&mut self, watch: &dyn Watch) -> Result<(), StateError> {
        let Open { stream, ticket } = self.open(watch)?;
        // Its end is the state's end.
        drop(stream);
        self.half.check(ticket, watch)?;
        self.progress = Progress::Good;
        Ok(())
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        let reason = match &self.progress {
            Progress::Good => return,
            Progress::Failed(error) => error.clone(),
            Progress::Waiting | Progress::Open(_) => self.given_up(),
        };
        self.half.shared.post_order(Order::GiveUpLoad(reason));
    }
}
