//! Saving and restoring a device, as far as its handle goes.

use std::ops::Range;

use vm_migration::Saveability;

use super::{DeviceState, VhostUserDevice};
use crate::vhost_user::error::{Cause, Error};
use crate::vhost_user::inbox::{Done, Order, Restoring};
use crate::vhost_user::moving::{BackEndStateV1, Loading, StateLimits, Transfer, VhostUserStateV1};
use crate::virtio::Activation;

impl VhostUserDevice {
    /// Lets the back-end get its state ready to be saved, while the guest runs: the sooner before a suspension, the shorter that
    /// is. (LOG_ALL is cleared, then set; a back-end that notices LOG_ALL collects its state from then on.) Where there is
    /// nothing to prepare, this is `Ok` at once.
    ///
    /// *Who calls, and when*: a job, once for each attempt. [`VhostUserDevice::resume`] puts it back;
    /// so does [`VhostUserDevice::unprepare`], for an attempt that has not come to the suspension. Not needed where there is a dirty
    /// log: that has prepared it, so that this and its opposite change nothing then.
    ///
    /// *An error* that leaves the device alive means that saving it will take longer; or that this or its opposite was asked for
    /// again before the worker came to it ([`Cause::GivenUp`]).
    ///
    /// `done` is called as for `suspend`.
    pub fn prepare_save(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::Prepare(done));
    }

    /// Puts [`VhostUserDevice::prepare_save`] back, or takes it back if the worker has not come to it yet. `done` is called as for
    /// `suspend`.
    pub fn unprepare(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::Unprepare(done));
    }

    /// Whether there is state inside the back-end to be saved, now.
    pub fn carries_state(&self) -> bool {
        let has_session = !self.shared.rings().places.is_empty();
        has_session
            && self.negotiated.offers_device_state()
            && self.saveability() == Saveability::Saved
    }

    /// The bytes of the configuration space that a driver may write.
    pub fn writable_config(&self) -> Range<usize> {
        let length = self.shared.with_config(|config| config.bytes.len());
        let rules = self.shared.spec.profile.rules();
        let writable = rules.writable(self.negotiated.guest_features, length);
        writable.start.min(length)..writable.end.min(length)
    }

    /// What is to be saved of the device, apart from the state inside its back-end. It is [`DeviceState::Suspended`] or
    /// [`DeviceState::Idle`], and nobody asks anything of it meanwhile.
    ///
    /// # Errors
    /// It does not rest; has buffers in flight, which would be lost; has written what its dirty log does not tell
    /// ([`VhostUserDevice::log_error`]); or has failed.
    pub fn rest(&self) -> Result<VhostUserStateV1, Error> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        if let Some(error) = self.shared.unlogged() {
            return Err(error);
        }
        let not_at_rest = |reason| Err(self.shared.error_from(Cause::NotAtRest { reason }));
        let rings = match self.state() {
            DeviceState::Idle => Vec::new(),
            DeviceState::Suspended => self.shared.stopped(),
            _ => return not_at_rest("it is not suspended".into()),
        };
        let running = self.shared.rings();
        if let Some(ring) = rings.iter().find(|ring| !running.is_settled(ring)) {
            return not_at_rest(format!(
                "its back-end holds buffers of queue {} that it has not used yet",
                ring.index
            ));
        }
        let back_end = match !rings.is_empty() && self.carries_state() {
            true => BackEndStateV1::Carried,
            false => BackEndStateV1::Absent,
        };
        Ok(VhostUserStateV1 {
            features: match rings.is_empty() {
                true => 0,
                false => running.features,
            },
            config: self.shared.with_config(|config| config.bytes.clone()),
            rings,
            back_end,
        })
    }

    /// Begins to save the state inside the back-end of a suspended device. Returns at once, so that several back-ends can
    /// collect theirs at the same time; how it goes is said by [`Transfer::read`].
    pub fn begin_save(&self, limits: &StateLimits) -> Transfer {
        Transfer::begin(&self.shared, limits)
    }

    /// Gives the back-end of an idle device what was saved of another. The rings stand still until
    /// [`VhostUserDevice::resume`].
    ///
    /// *Who calls, and when*: a job; guest RAM has its contents. `activation` is how the driver has started the
    /// device, if it has.
    ///
    /// *Afterwards*, if `done` is told `Ok`: a device that was started is suspended. If `state` says that state is carried,
    /// it has to be loaded first ([`VhostUserDevice::begin_load`]); until that has succeeded, `resume` is the device's end. A
    /// restoration that is not wanted any more, wherever it has come to short of `resume`, is undone by
    /// [`VirtioDevice::reset`](crate::virtio::VirtioDevice::reset): the device is idle then, over the same connection, and may be
    /// restored anew, also with other RAM ([`VhostUserDevice::set_ram`]).
    ///
    /// *An error* that leaves the device alive leaves it idle.
    ///
    /// `done` is called as for `suspend`.
    pub fn restore(
        &self,
        activation: Option<Activation>,
        state: &VhostUserStateV1,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        let state = state.clone();
        let restoring = Box::new(Restoring { activation, state });
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::Restore(restoring, done));
    }

    /// Begins to load the state inside the back-end of a device that is being restored. Returns at once; how it goes is said
    /// by the methods of [`Loading`].
    pub fn begin_load(&self, limits: &StateLimits) -> Loading {
        Loading::begin(&self.shared, limits)
    }

    /// Tells the back-end of guest RAM ahead of a restoration, which is shorter then. An answer says that the back-end is there and listens.
    ///
    /// *Who calls, and when*: a job, after [`VhostUserDevice::set_ram`], for a device that is [`DeviceState::Idle`].
    ///
    /// `done` is called as for `suspend`.
    pub fn tell_ram(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::TellRam(done));
    }

    /// Tells the back-end of a restored device all of its rings (NUM, BASE, ADDR, CALL) but what would start them, so
    /// that [`VhostUserDevice::resume`] has less to do. Where this was not asked for, `resume` does it all.
    ///
    /// *Who calls, and when*: a job, once all of guest RAM is there (back-ends read the used rings now) and the state inside the
    /// back-end, if there is one, is loaded.
    ///
    /// *Afterwards*, if `done` is told `Ok`: the device is suspended as before, and its rings stand still, because
    /// back-ends start a ring at its kick. They may have raised an interrupt. A device without rings, or with rings that run, has
    /// nothing to be set up: `Ok` at once.
    ///
    /// *An error* that leaves the device alive leaves the rings stopped, whatever the back-end was told of them: it can be asked for again, or be reset; if `resume` follows, it tries
    /// once more.
    ///
    /// `done` is called as for `suspend`.
    pub fn set_up_rings(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::SetUpRings(done));
    }
}
