//! Lending the connection to another process, and working with one that was lent.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::session::{Ring, Service, Session, Told, kick};
use super::{CloseInbox, Worker};
use crate::vhost_user::Limits;
use crate::vhost_user::backend_channel::BackendChannel;
use crate::vhost_user::connection::{Connection, Lent};
use crate::vhost_user::counters::RunningRings;
use crate::vhost_user::device::{DeviceObserver, DeviceState};
use crate::vhost_user::error::Cause;
use crate::vhost_user::frontend::{Frontend, Patience};
use crate::vhost_user::live::{self, Live, LiveRingV1, LiveStateV1, NegotiatedV1, PartsV1, ToldV1};
use crate::vhost_user::negotiated::Negotiated;
use crate::vhost_user::rings;
use crate::vhost_user::shared::Shared;
use crate::vhost_user::socket::Socket;
use crate::virtio::ActiveQueue;

impl Worker {
    /// Gives out all that another process needs to go on in this one's place; from then on only a resumption is listened to. The guest
    /// stands still.
    pub(super) fn lend(&mut self) -> Result<Live, Cause> {
        self.may_be_lent()?;
        let patience = self.limits.request;
        let Lent { socket, channel } = self.frontend.connection().lend(patience)?;
        if self.frontend.connection().take_config_changed() {
            self.shared.counters.config_changes.add();
            self.config_is_stale = true;
        }
        let has_channel = channel.is_some();
        let mut fds: Vec<OwnedFd> = std::iter::once(socket).chain(channel).collect();
        let rings = self.session.iter().flat_map(|session| &session.rings);
        for ring in rings {
            for event in [&ring.queue.kick, &ring.queue.call] {
                fds.push(live::copied(event).map_err(|source| Cause::Io {
                    step: "copy a descriptor of a queue",
                    source,
                })?);
            }
        }
        let state = self.live_state(has_channel);
        self.lent = true;
        Ok(Live { state, fds })
    }

    fn may_be_lent(&self) -> Result<(), Cause> {
        let refused = |reason: &str| {
            Err(Cause::NotAtRest {
                reason: reason.into(),
            })
        };
        match self.session.as_ref().map(|session| session.service) {
            _ if self.lent => refused("another process has its connection already"),
            _ if self.log.is_some() => refused("its back-end logs what it writes for a migration"),
            Some(Service::Unloaded) => refused("it is being restored"),
            _ => Ok(()),
        }
    }

    fn live_state(&self, has_channel: bool) -> LiveStateV1 {
        let (config, generation) = self
            .shared
            .with_config(|config| (config.bytes.clone(), config.generation));
        let session = self.session.as_ref();
        let mut writes = Vec::new();
        while let Some(write) = self.shared.next_write() {
            writes.push(write);
        }
        let state = LiveStateV1 {
            negotiated: NegotiatedV1::from(&self.negotiated),
            config,
            generation,
            config_is_stale: self.config_is_stale,
            writes: writes
                .iter()
                .map(|it| (it.offset, it.data.clone()))
                .collect(),
            has_channel,
            knows_ram: self.told_ram.is_some(),
            log_all: self.log_all,
            unsettled: self.unsettled,
            features: session.map(|session| session.features),
            complete: session.is_some_and(|session| session.service == Service::Complete),
            rings: session.map_or(Vec::new(), |session| {
                session.rings.iter().map(LiveRingV1::from).collect()
            }),
            former: self.former.values().copied().map(PartsV1::from).collect(),
        };
        // If nobody takes the device, they are still to be told.
        writes
            .into_iter()
            .for_each(|write| self.shared.post_write(write));
        state
    }

    /// One that goes on with a connection which was lent. `queues` are the rings of `state`.
    ///
    /// # Errors
    /// What was lent does not fit the device or guest RAM.
    pub fn of_lent(
        shared: &Arc<Shared>,
        limits: Limits,
        state: &LiveStateV1,
        fds: Vec<OwnedFd>,
        queues: Vec<ActiveQueue>,
    ) -> io::Result<Self> {
        let spec = &shared.spec;
        let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let count = spec.profile.rules().queue_count(spec.num_queues);
        state.check(count).map_err(invalid)?;
        let ram = shared.ram();
        if queues.iter().any(|queue| !rings::fits(&ram, queue)) {
            return Err(invalid("a queue is outside of guest RAM or misaligned"));
        }
        let mut fds = fds.into_iter();
        let socket = fds
            .next()
            .ok_or_else(|| invalid("there is no connection"))?;
        let mut connection = Connection::new(
            Socket::from(socket),
            spec.id.as_str().into(),
            limits,
            Arc::clone(&shared.stop),
        );
        connection.count_in(Arc::clone(&shared.counters));
        if let Some(channel) = fds.next().filter(|_| state.has_channel) {
            connection.set_channel(BackendChannel::new(Socket::from(channel)));
        }
        let negotiated = Negotiated::from(&state.negotiated);
        let patience = Patience::PerMessage(limits.request);
        let frontend = Frontend::new(connection, negotiated.protocol, patience);
        let mut worker = Worker::new(shared, limits, frontend, negotiated);
        worker.take_over(state, queues);
        Ok(worker)
    }

    /// The thread's whole life, with a connection that was lent.
    pub fn run_lent(self, observer: &dyn DeviceObserver) {
        let _close = CloseInbox(Arc::clone(&self.shared));
        self.live(observer);
    }

    /// Makes the session that the back-end is in. `queues` are the rings of `state`.
    fn take_over(&mut self, state: &LiveStateV1, queues: Vec<ActiveQueue>) {
        let ram = self.shared.ram();
        self.lent = true;
        self.told_ram = state.knows_ram.then(|| Arc::clone(&ram));
        self.log_all = state.log_all;
        self.unsettled = state.unsettled;
        self.config_is_stale = state.config_is_stale;
        let former = state.former.iter().copied().map(rings::Parts::from);
        self.former = former.map(|parts| (parts.index, parts)).collect();
        let Some(features) = state.features else {
            return self.shared.set_state(DeviceState::Idle);
        };
        let service = match state.complete {
            true => Service::Complete,
            false => Service::Incomplete,
        };
        if service == Service::Complete {
            self.shared
                .set_rings(RunningRings::new(features, &ram, &queues));
        }
        let rings = queues.into_iter().zip(&state.rings);
        let rings = rings.map(|(queue, ring)| Ring {
            place: rings::Place::of(&queue),
            queue,
            stopped_at: ring.stopped_at,
            told: ring.told.into(),
        });
        let session = Session {
            features,
            ram,
            rings: rings.collect(),
            service,
        };
        self.shared.set_state(session.standing());
        self.session = Some(session);
        self.publish_stopped();
    }

    /// Goes on with a connection that nobody else uses, or uses any more. The back-end is told nothing: what it may have missed is a kick,
    /// and what the guest may have missed is an interrupt.
    pub(super) fn go_on(&mut self) -> Result<(), Cause> {
        self.lent = false;
        if self.shared.state() == DeviceState::Suspended {
            // It was before.
            return self.resume();
        }
        self.shared.counters.resumes.add();
        let rings = self.session.iter().flat_map(|session| &session.rings);
        for ring in rings.filter(|ring| ring.stopped_at.is_none()) {
            kick(&ring.queue);
            let _ = ring.queue.call.write(1);
        }
        Ok(())
    }
}

impl Session {
    /// Where a device stands that nobody changes.
    fn standing(&self) -> DeviceState {
        let stopped = |ring: &Ring| ring.stopped_at.is_some();
        match self.service {
            Service::Complete if self.rings.iter().any(stopped) => DeviceState::Suspended,
            Service::Complete => DeviceState::Active,
            Service::Incomplete | Service::Unloaded => DeviceState::Idle,
        }
    }
}

impl From<&Ring> for LiveRingV1 {
    fn from(ring: &Ring) -> Self {
        LiveRingV1 {
            parts: rings::Parts::of(&ring.queue).into(),
            stopped_at: ring.stopped_at,
            told: match ring.told {
                Told::Nothing => ToldV1::Nothing,
                Told::SetUp => ToldV1::SetUp,
                Told::Past => ToldV1::Past,
            },
        }
    }
}

impl From<ToldV1> for Told {
    fn from(told: ToldV1) -> Self {
        match told {
            ToldV1::Nothing => Told::Nothing,
            ToldV1::SetUp => Told::SetUp,
            ToldV1::Past => Told::Past,
        }
    }
}
