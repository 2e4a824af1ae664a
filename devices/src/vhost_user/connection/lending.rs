//! A connection on its way to another process: between messages, with nothing owed.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::Connection;
use crate::sys::poll::{self, Interest};
use crate::vhost_user::error::Cause;

/// The descriptors of a connection, for another process.
pub struct Lent {
    /// The main socket.
    pub socket: OwnedFd,
    /// The back-end's channel, if there is one.
    pub channel: Option<OwnedFd>,
}

impl Connection {
    /// Finishes what is half said on either side, and gives descriptors of both sockets out. Nothing may be said or heard here
    /// afterwards, unless nobody else does.
    pub fn lend(&mut self, patience: Duration) -> Result<Lent, Cause> {
        let deadline = Instant::now() + patience;
        let result = self.come_to_rest(deadline).and_then(|()| self.copied());
        self.poison_if_fatal(result)
    }

    fn come_to_rest(&mut self, deadline: Instant) -> Result<(), Cause> {
        self.settle_owed(deadline)?;
        self.serve_channel_inner()?;
        while self
            .channel
            .as_ref()
            .is_some_and(|channel| channel.is_amid())
        {
            if Instant::now() >= deadline {
                return Err(Cause::NotAtRest {
                    reason: "its back-end has sent a part of a request, and not the rest of it"
                        .into(),
                });
            }
            let mut entries = [
                poll::entry(Some(&*self.stop), Interest::Read),
                poll::entry(self.channel(), Interest::Read),
            ];
            poll::wait(&mut entries, Some(deadline)).map_err(io("wait for the back-end"))?;
            if poll::ready(&entries[0]) {
                return Err(Cause::Stopped);
            }
            self.serve_channel_inner()?;
        }
        Ok(())
    }

    fn copied(&self) -> Result<Lent, Cause> {
        let copying = io("copy a descriptor of the connection");
        let channel = self.channel.as_ref().map(|channel| channel.copied());
        Ok(Lent {
            socket: self.socket.copied().map_err(&copying)?,
            channel: channel.transpose().map_err(&copying)?,
        })
    }
}

fn io(step: &'static str) -> impl Fn(std::io::Error) -> Cause {
    move |source| Cause::Io { step, source }
}
