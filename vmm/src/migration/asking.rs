//! Asking devices' workers for something.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ferry_devices::vhost_user;
use ferry_devices::virtio::VirtioDevice;

use super::{Error, Meter};
use crate::lifecycle::Ready;
use crate::progress::LOOK;

/// Takes a device's answer.
pub type Done = Box<dyn FnOnce(Result<(), vhost_user::Error>) + Send>;

/// Devices that have been asked for the same, at once or one by one, and whose answers are still to be waited for.
pub struct Asked<'a> {
    /// What they are to do, in words.
    step: &'static str,
    /// How long each may take, with what it was told before and has not done yet.
    limit: Duration,
    waiting: Vec<Waiting<'a>>,
}

struct Waiting<'a> {
    device: &'a Ready,
    answer: Receiver<Result<(), vhost_user::Error>>,
    deadline: Instant,
}

impl<'a> Asked<'a> {
    /// Nobody has been asked yet.
    pub fn new(step: &'static str, limit: Duration) -> Self {
        Asked {
            step,
            limit,
            waiting: Vec::new(),
        }
    }

    /// Asks a device.
    pub fn ask(&mut self, device: &'a Ready, ask: impl FnOnce(&Ready, Done)) {
        let (sender, answer) = channel();
        let done = move |outcome| {
            // Who does not wait any more does not need it.
            let _ = sender.send(outcome);
        };
        ask(device, Box::new(done));
        self.waiting.push(Waiting {
            device,
            answer,
            deadline: Instant::now() + self.limit,
        });
    }

    /// Waits for all answers; `meanwhile` is called again and again.
    ///
    /// # Errors
    /// What a device, or `meanwhile`, says; [`Error::Late`]; [`Error::Cancelled`].
    pub fn wait(
        self,
        meter: &Meter,
        mut meanwhile: impl FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        for Waiting {
            device,
            answer,
            deadline,
        } in self.waiting
        {
            loop {
                let look = deadline.min(Instant::now() + LOOK);
                match meter.wait(&answer, look)? {
                    Some(outcome) => break outcome?,
                    None if look == deadline => {
                        return Err(Error::Late {
                            device: device.id().to_owned(),
                            step: self.step,
                            limit: self.limit,
                        });
                    }
                    None => meanwhile()?,
                }
            }
        }
        Ok(())
    }
}
