//! Connecting to a back-end, and agreeing on everything that has to be agreed on before a guest may
//! see the device.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::VHOST_USER_MAX_VRINGS;
use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::EventFd;

use super::BackendSpec;
use super::backend_channel::BackendChannel;
use super::error::Cause;
use super::frontend::{Frontend, MAX_CONFIG};
use super::negotiated::Negotiated;
use super::profile::{BackendView, COMMON_FEATURES, Rules};
use super::socket::Socket;
use crate::sys::poll::{self, Interest};

/// How long to wait before a socket without a listener is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Connects to the listener at `path`, which may not be there yet.
pub(super) fn connect(path: &Path, limit: Duration, stop: &EventFd) -> Result<Socket, Cause> {
    let began = Instant::now();
    loop {
        let source = match Socket::connect(path) {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        if !may_pass(&source) {
            return Err(Cause::CannotConnect { source });
        }
        let waited = began.elapsed();
        if waited >= limit {
            return Err(Cause::NoListener {
                waited: limit,
                source,
            });
        }
        let mut entries = [poll::entry(Some(stop), Interest::Read)];
        let until = Instant::now() + RETRY.min(limit - waited);
        poll::wait(&mut entries, Some(until)).map_err(|source| Cause::Io {
            step: "wait for a listener",
            source,
        })?;
        if poll::ready(&entries[0]) {
            return Err(Cause::Stopped);
        }
    }
}

/// Whether a connection was refused for a reason that goes away when the back-end starts: no socket
/// there, nobody listening, or too many waiting to be accepted.
fn may_pass(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}

/// Agrees with a back-end that has just been connected to. Nothing here sets up memory or rings.
pub(super) fn negotiate(frontend: &mut Frontend, spec: &BackendSpec) -> Result<Negotiated, Cause> {
    let rules = spec.profile.rules();
    let backend_features = frontend.get_features().map_err(|cause| match cause {
        Cause::Late { waited, .. } | Cause::Dead { waited, .. } => Cause::NeverAnswered { waited },
        cause => cause,
    })?;
    check_features(backend_features)?;
    let offered = frontend.get_protocol_features()?;
    let config_sizes = rules.config_sizes(backend_features);
    let protocol = choose_protocol(offered, !config_sizes.is_empty());
    frontend.set_protocol_features(protocol)?;
    frontend.set_owner()?;
    let backend_queues = queue_count(frontend, protocol)?;
    check_queues(spec, rules, backend_queues)?;
    if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
        open_channel(frontend)?;
    }
    let fetched = match protocol.contains(VhostUserProtocolFeatures::CONFIG) {
        true => first_config(frontend, &config_sizes)?,
        false => None,
    };
    let view = BackendView {
        features: backend_features,
        config: fetched.as_deref(),
        requested_queues: spec.num_queues,
    };
    let config = rules
        .config(&view)
        .map_err(|reason| Cause::Unusable { reason })?;
    if let Some(caution) = rules.caution(&view) {
        tracing::warn!(device = spec.id, "{caution}");
    }
    let guest_features = (backend_features & COMMON_FEATURES) | rules.device_features(&view);
    Ok(Negotiated {
        backend_features,
        offered_protocol: offered,
        protocol,
        backend_queues,
        guest_features,
        config_size: fetched.as_ref().map_or(0, |config| config.len() as u32),
        config,
    })
}

fn check_features(features: u64) -> Result<(), Cause> {
    let needed = [
        (1 << VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1"),
        (
            VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            "VHOST_USER_F_PROTOCOL_FEATURES",
        ),
    ];
    for (bit, name) in needed {
        if features & bit == 0 {
            return Err(Cause::Unusable {
                reason: format!("it does not offer {name}, which Ferry cannot do without"),
            });
        }
    }
    Ok(())
}

/// The protocol features to use of those `offered`. The back-end channel serves for changes of
/// the configuration space only, so it goes with that. LOG_SHMFD is what makes LOG_ALL a feature that may be accepted, from
/// which on a back-end keeps its state ready to be saved.
fn choose_protocol(offered: u64, wants_config: bool) -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as P;
    let mut used = P::MQ | P::REPLY_ACK | P::RESET_DEVICE | P::LOG_SHMFD | P::DEVICE_STATE;
    let offered = P::from_bits_truncate(offered);
    if wants_config && offered.contains(P::CONFIG) {
        used |= P::CONFIG | P::BACKEND_REQ;
    }
    offered & used
}

fn queue_count(
    frontend: &mut Frontend,
    protocol: VhostUserProtocolFeatures,
) -> Result<Option<u16>, Cause> {
    if !protocol.contains(VhostUserProtocolFeatures::MQ) {
        return Ok(None);
    }
    // More than any device may have is as good as all that it may have.
    let count = frontend.get_queue_num()?.min(VHOST_USER_MAX_VRINGS);
    Ok(Some(u16::try_from(count).unwrap_or(u16::MAX)))
}

fn check_queues(
    spec: &BackendSpec,
    rules: &dyn Rules,
    backend_queues: Option<u16>,
) -> Result<(), Cause> {
    let wanted = rules.queue_count(spec.num_queues);
    let unusable = |reason| Err(Cause::Unusable { reason });
    if spec.num_queues == 0 || wanted > super::device::MAX_QUEUES {
        return unusable(format!(
            "{wanted} queues were asked for, and a device has 1 to {}",
            super::device::MAX_QUEUES
        ));
    }
    let Some(has) = backend_queues.or(rules.queues_without_mq()) else {
        return Ok(());
    };
    if u32::from(has) < wanted {
        return unusable(format!(
            "it has {has} queues and the device needs {wanted}; give the back-end more queues, or the device fewer \
             (num_queues=)"
        ));
    }
    Ok(())
}

/// Gives the back-end its end of the back-end channel. No copy of that end stays here: else a back-end
/// that has gone would never show.
fn open_channel(frontend: &mut Frontend) -> Result<(), Cause> {
    let ends = Socket::pair().map_err(|source| Cause::Io {
        step: "make the back-end channel",
        source,
    })?;
    frontend
        .connection()
        .set_channel(BackendChannel::new(ends.ours));
    frontend.set_backend_req_fd(ends.theirs.as_fd())
}

/// Asks for the configuration space in each of `sizes` until the back-end agrees.
fn first_config(frontend: &mut Frontend, sizes: &[u32]) -> Result<Option<Vec<u8>>, Cause> {
    for size in sizes {
        debug_assert!(*size <= MAX_CONFIG);
        match frontend.get_config(*size) {
            Ok(config) => return Ok(Some(config)),
            Err(Cause::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
