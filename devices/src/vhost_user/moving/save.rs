//! Reading the state out of a back-end.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use vm_migration::Watch;
use vm_migration::chunk::CHUNK_MOST;

use super::StateLimits;
use super::error::{StateCause, StateError, StateStep};
use super::half::{Half, Open};
use crate::sys::poll::Interest;
use crate::vhost_user::frontend::Direction;
use crate::vhost_user::shared::Shared;

/// State on its way out of a back-end. Dropping it gives that up, which leaves the device suspended.
pub struct Transfer {
    half: Half,
}

impl Transfer {
    pub(in crate::vhost_user) fn begin(shared: &Arc<Shared>, limits: &StateLimits) -> Self {
        Transfer {
            half: Half::begin(shared, limits, Direction::Save),
        }
    }

    /// Hands the whole state to `sink`, in pieces of at most 1 MiB whose boundaries mean nothing, and asks the back-end
    /// whether it was all. Returns how many bytes it were; `watch` is told of them as they come. This waits for the back-end,
    /// within the limits.
    ///
    /// # Errors
    /// What `sink` was given is not a state then. The device is suspended as before, unless the error was its end, and
    /// may be asked again.
    pub fn read<E>(
        mut self,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
        watch: &dyn Watch,
    ) -> Result<u64, StateError<E>> {
        let Open { stream, ticket } = self.half.open(watch).map_err(widen)?;
        let mut buffer = vec![0; CHUNK_MOST];
        let mut total = 0;
        loop {
            let filled = self
                .fill(&stream, &mut buffer, total, watch)
                .map_err(widen)?;
            total += filled as u64;
            if filled > 0 {
                sink(&buffer[..filled]).map_err(StateError::Sink)?;
            }
            if filled < buffer.len() {
                break;
            }
        }
        // A back-end may wait for that.
        drop(stream);
        self.half.check(ticket, watch).map_err(widen)?;
        Ok(total)
    }

    /// Fills `buffer`, unless the state ends before.
    fn fill(
        &mut self,
        stream: &super::Stream,
        buffer: &mut [u8],
        before: u64,
        watch: &dyn Watch,
    ) -> Result<usize, StateError> {
        let most = self.half.limits.most;
        let mut filled = 0;
        while filled < buffer.len() {
            let after = before + filled as u64;
            match stream.try_read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(got) if after + got as u64 > most => {
                    return self.fails(StateCause::TooMuch { most });
                }
                Ok(got) => {
                    filled += got;
                    self.half.pace.note_moved(got);
                    watch.done(got as u64);
                    if watch.cancelled() {
                        return Err(StateError::Cancelled);
                    }
                }
                Err(source) if source.kind() == io::ErrorKind::WouldBlock => {
                    self.half.wait(stream, Interest::Read, after, watch)?;
                }
                Err(source) => return self.fails(StateCause::Broken { after, source }),
            }
        }
        Ok(filled)
    }

    fn fails<T>(&self, cause: StateCause) -> Result<T, StateError> {
        Err(self.half.error(StateStep::Read, cause).into())
    }
}

fn widen<E>(error: StateError<Infallible>) -> StateError<E> {
    match error {
        StateError::BackEnd(error) => StateError::BackEnd(error),
        StateError::Sink(never) => match never {},
        StateError::Cancelled => StateError::Cancelled,
    }
}
