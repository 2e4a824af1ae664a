//! Handing a device over to another process, as far as its handle goes.

use std::io;
use std::sync::Arc;
use std::thread;

use super::{DeviceObserver, MAX_QUEUES, STACK, VhostUserDevice};
use crate::vhost_user::error::Error;
use crate::vhost_user::inbox::{ConfigWrite, Done, Order};
use crate::vhost_user::live::Live;
use crate::vhost_user::memory::RamRegion;
use crate::vhost_user::shared::Shared;
use crate::vhost_user::worker::Worker;
use crate::vhost_user::{BackendSpec, Limits};

impl VhostUserDevice {
    /// Gives out the connection to the back-end as it is, with all that another process needs to go on with it by
    /// [`VhostUserDevice::take_over`]. The back-end is told nothing and goes on working.
    ///
    /// *Who calls, and when*: the owner of the machine, after all vCPUs have stopped. From then on this device does nothing until
    /// [`VhostUserDevice::resume`], which must follow if the connection was not taken, and must not if it was. Then the device is
    /// dropped, of which the back-end does not notice anything.
    ///
    /// *An error* leaves the connection with this device: the back-end was in the midst of something and did not come to its end in
    /// time, logs what it writes, or is being restored; or the device has failed.
    ///
    /// `done` is called as for `suspend`.
    pub fn lend(&self, done: impl FnOnce(Result<Live, Error>) + Send + 'static) {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::Lend(done));
    }

    /// Ends a loan and leaves the device as it is, for a guest that is paused and stays so: the connection is this one's.
    ///
    /// *Who calls, and when*: as [`VhostUserDevice::resume`], in its place.
    ///
    /// `done` is called as for `suspend`.
    pub fn own(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let done = Done::new(&self.shared.spec, done);
        self.shared.post_order(Order::Own(done));
    }

    /// A device over a connection that another process has lent. It does nothing until [`VhostUserDevice::resume`], which says that the
    /// connection is this one's; then every running ring has been looked at once and has raised one interrupt.
    /// `ram` is all of guest RAM, as the back-end knows it.
    ///
    /// # Errors
    /// What was lent does not fit the device or guest RAM; or the system has no more descriptors or threads.
    pub fn take_over(
        spec: BackendSpec,
        limits: Limits,
        ram: Arc<[RamRegion]>,
        live: Live,
        observer: Arc<dyn DeviceObserver>,
    ) -> io::Result<Arc<Self>> {
        debug_assert!(spec.profile.rules().queue_count(spec.num_queues) <= MAX_QUEUES);
        let shared = Arc::new(Shared::new(spec, ram)?);
        let queues = live.queues()?;
        let Live { state, fds } = live;
        let worker = Worker::of_lent(&shared, limits, &state, fds, queues)?;
        let device = VhostUserDevice::new(Arc::clone(&shared), (&state.negotiated).into());
        shared.with_config(|config| {
            config.bytes = state.config;
            config.generation = state.generation;
        });
        for (offset, data) in state.writes {
            shared.post_write(ConfigWrite { offset, data });
        }
        let name: String = shared.spec.id.chars().take(15).collect();
        thread::Builder::new()
            .name(name)
            .stack_size(STACK)
            .spawn(move || worker.run_lent(&*observer))?;
        Ok(Arc::new(device))
    }
}
