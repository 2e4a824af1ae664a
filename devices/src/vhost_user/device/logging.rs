//! Knowing which pages of guest RAM a device's back-end writes to, as far as its handle goes.

use std::sync::Arc;

use super::VhostUserDevice;
use crate::vhost_user::dirty_log::DirtyLog;
use crate::vhost_user::error::Error;
use crate::vhost_user::inbox::{Done, Order};

impl VhostUserDevice {
    /// Whether the back-end can note which pages of guest RAM it writes to (LOG_ALL, and LOG_SHMFD for where).
    pub fn can_log(&self) -> bool {
        self.negotiated.offers_log()
    }

    /// Has the back-end note in `log` which pages of guest RAM it writes to, until [`VhostUserDevice::stop_log`]; in place of any
    /// other log. A device that no driver has started remembers the log for when one does; a reset and another activation keep it,
    /// and so do a suspension and a resumption, whatever becomes of the attempt they belong to.
    ///
    /// This does all that [`VhostUserDevice::prepare_save`] does, which has nothing to do while there is a log.
    ///
    /// *Who calls, and when*: a job, once for each attempt, while the guest runs or the device is suspended; not
    /// while it is being restored. One log may serve all devices of a guest. It covers all of guest RAM.
    ///
    /// *Afterwards*, if `done` is told `Ok`: every page that the back-end writes to from now on has its bit in the log, those of the
    /// used rings included. What was written before is not there, so all of RAM is read only now. The pages of the last requests are
    /// there when [`VhostUserDevice::suspend`] has ended well.
    ///
    /// *An error* that leaves the device alive means that there is no log: the back-end cannot do it, has refused or
    /// not answered SET_LOG_BASE or SET_FEATURES; or the log was given up for another order of this kind before the
    /// worker came to it. `stop_log` then still puts LOG_ALL back, should it have been set.
    ///
    /// `done` is called as for `suspend`.
    pub fn start_log(
        &self,
        log: Arc<DirtyLog>,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::StartLog(log, done));
    }

    /// Ends [`VhostUserDevice::start_log`], or takes it back if the worker has not come to it yet. Nothing happens if there is no
    /// log.
    ///
    /// *Who calls, and when*: whoever called `start_log`, once for each attempt that leaves the guest here, however the attempt
    /// and `start_log` ended; before, after or instead of a suspension and its `resume`.
    ///
    /// *Afterwards*, if `done` is told `Ok`: the log is forgotten here. Most back-ends do not write to it any more; virtiofsd
    /// cannot be stopped, and goes on setting bits in what it has mapped until it is given another log or other memory.
    ///
    /// *An error* that leaves the device alive: the log is forgotten, and LOG_ALL may still be set, which costs the back-end
    /// time and nothing else.
    ///
    /// `done` is called as for `suspend`.
    pub fn stop_log(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::StopLog(done));
    }

    /// Why the log lacks pages, if it does: the guest's driver has started the device since
    /// [`VhostUserDevice::start_log`], and the back-end did not take the log then. The guest has its device all the same; the
    /// attempt to move it fails, because [`VhostUserDevice::rest`] says the same. To be asked after each round: what is known
    /// early need not be copied to the end.
    pub fn log_error(&self) -> Option<Error> {
        self.shared.unlogged()
    }
}
