//! A connection to a back-end on its way from one process to another, while the guest stands still and the back-end works on.
//!
//! ```text
//!   here    Active ──── lend ────▶ lent ───── resume: it was not taken ────▶ Active
//!                                   │ descriptors and [`LiveStateV1`]
//!   there                           └────▶ lent ───── resume: it is taken ─▶ Active
//! ```
//!
//! (A device whose guest is paused and stays so is suspended; instead of resuming it, its owner says that it is the only one, `own`.)
//! Nothing is said to the back-end, and nothing is read of what it says, until one of the two does that. What is half said on either
//! side is finished before, so that no byte belongs to two processes. Descriptors are shared by then: a process that ends closes its own, which the
//! back-end does not notice.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vhost::vhost_user::VhostUserProtocolFeatures;
use vm_memory::GuestAddress;
use vm_migration::stream::Saved;
use vmm_sys_util::eventfd::EventFd;

use super::device::MAX_WRITE;
use super::frontend::MAX_CONFIG;
use super::inbox::MAX_WRITES;
use super::negotiated::Negotiated;
use super::rings;
use crate::virtio::ActiveQueue;

/// A connection that is lent.
#[derive(Debug)]
pub struct Live {
    /// What is known of it.
    pub state: LiveStateV1,
    /// What it is made of: see [`LiveStateV1::descriptors`].
    pub fds: Vec<OwnedFd>,
}

/// What a process has to know of a connection that it takes over, beside the device's definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveStateV1 {
    /// What was agreed on.
    pub negotiated: NegotiatedV1,
    /// The configuration space, as the guest sees it.
    pub config: Vec<u8>,
    /// Its generation.
    pub generation: u8,
    /// Whether the back-end has announced another one.
    pub config_is_stale: bool,
    /// What the guest has written into it and the back-end has not been told, by offset.
    pub writes: Vec<(u32, Vec<u8>)>,
    /// Whether there is a channel for requests of the back-end.
    pub has_channel: bool,
    /// Whether the back-end knows guest RAM.
    pub knows_ram: bool,
    /// Whether LOG_ALL is, or may be, among the features that the back-end has been told.
    pub log_all: bool,
    /// Whether the back-end may be busy with a move of its state that nobody has asked it about.
    pub unsettled: bool,
    /// The features that the driver has accepted, if it has started the device.
    pub features: Option<u64>,
    /// Whether all rings of a device that was started were enabled.
    pub complete: bool,
    /// The rings that the back-end has been given since.
    pub rings: Vec<LiveRingV1>,
    /// Where rings of drivers before are, for the back-end.
    pub former: Vec<PartsV1>,
}

impl Saved for LiveStateV1 {
    const SCHEMA: &'static str = "vhost-user-live";
    const VERSION: u16 = 1;
}

/// What was agreed on with a back-end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NegotiatedV1 {
    /// The virtio features that the back-end offers.
    pub backend_features: u64,
    /// The protocol features that it offers.
    pub offered_protocol: u64,
    /// Those in use.
    pub protocol: u64,
    /// How many queues it has, if it said so.
    pub backend_queues: Option<u16>,
    /// The features offered to the guest.
    pub guest_features: u64,
    /// How many bytes of configuration space it serves.
    pub config_size: u32,
    /// The configuration space at the beginning.
    pub config: Vec<u8>,
}

impl From<&Negotiated> for NegotiatedV1 {
    fn from(negotiated: &Negotiated) -> Self {
        let Negotiated {
            backend_features,
            offered_protocol,
            protocol,
            backend_queues,
            guest_features,
            config_size,
            config,
        } = negotiated.clone();
        NegotiatedV1 {
            backend_features,
            offered_protocol,
            protocol: protocol.bits(),
            backend_queues,
            guest_features,
            config_size,
            config,
        }
    }
}

impl From<&NegotiatedV1> for Negotiated {
    fn from(saved: &NegotiatedV1) -> Self {
        let NegotiatedV1 {
            backend_features,
            offered_protocol,
            protocol,
            backend_queues,
            guest_features,
            config_size,
            config,
        } = saved.clone();
        Negotiated {
            backend_features,
            offered_protocol,
            protocol: VhostUserProtocolFeatures::from_bits_retain(protocol),
            backend_queues,
            guest_features,
            config_size,
            config,
        }
    }
}

/// Where a ring is, as a back-end was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartsV1 {
    /// Index within the device.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

impl From<rings::Parts> for PartsV1 {
    fn from(parts: rings::Parts) -> Self {
        let rings::Parts {
            index,
            size,
            descriptors,
            available,
            used,
        } = parts;
        PartsV1 {
            index,
            size,
            descriptors: descriptors.0,
            available: available.0,
            used: used.0,
        }
    }
}

impl From<PartsV1> for rings::Parts {
    fn from(saved: PartsV1) -> Self {
        let PartsV1 {
            index,
            size,
            descriptors,
            available,
            used,
        } = saved;
        rings::Parts {
            index,
            size,
            descriptors: GuestAddress(descriptors),
            available: GuestAddress(available),
            used: GuestAddress(used),
        }
    }
}

/// A ring that a back-end has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRingV1 {
    /// Where it is.
    pub parts: PartsV1,
    /// `None`: it may be running. Else where it is to go on when it is started.
    pub stopped_at: Option<u16>,
    /// What the back-end has been told of it.
    pub told: ToldV1,
}

/// What a back-end has been told of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToldV1 {
    /// Nothing.
    Nothing,
    /// All but what starts it.
    SetUp,
    /// Everything.
    Past,
}

impl LiveStateV1 {
    /// How many descriptors go with it: the connection; the back-end's channel, if there is one; for each ring its
    /// kick and its call.
    pub fn descriptors(&self) -> usize {
        1 + usize::from(self.has_channel) + 2 * self.rings.len()
    }

    /// Whether it is what Ferry can have said of a device with so many queues, as far as that is not about guest RAM. Else it says what is not.
    pub(super) fn check(&self, queues: u32) -> Result<(), &'static str> {
        let negotiated = &self.negotiated;
        let foreign = |used: u64, offered: u64| used & !offered != 0;
        if foreign(negotiated.protocol, negotiated.offered_protocol) {
            return Err("protocol features are in use that are not offered");
        }
        if foreign(self.features.unwrap_or(0), negotiated.guest_features) {
            return Err("the driver has features that are not offered");
        }
        let config = self.config.len();
        let most = MAX_CONFIG as usize;
        if negotiated.config_size > MAX_CONFIG || config > most || config != negotiated.config.len()
        {
            return Err("the configuration space has an impossible size");
        }
        let is_possible = |(offset, data): &(u32, Vec<u8>)| {
            let start = usize::try_from(*offset).ok();
            let end = start.and_then(|start| start.checked_add(data.len()));
            (1..=MAX_WRITE).contains(&data.len()) && end.is_some_and(|end| end <= config)
        };
        if self.writes.len() > MAX_WRITES || !self.writes.iter().all(is_possible) {
            return Err("there are impossible writes to the configuration space");
        }
        if !ascend(self.rings.iter().map(|ring| ring.parts.index), queues)
            || !ascend(self.former.iter().map(|parts| parts.index), queues)
        {
            return Err("the device has other queues");
        }
        Ok(())
    }
}

/// Whether each of these is a queue of a device that has so many, and behind the one before.
fn ascend(indexes: impl Iterator<Item = u16> + Clone, queues: u32) -> bool {
    indexes.clone().is_sorted_by(|one, next| one < next)
        && indexes.map(u32::from).all(|index| index < queues)
}

impl Live {
    /// The queues that the driver has started, with the eventfds that the back-end has.
    ///
    /// # Errors
    /// The descriptors are not as many as they are to be, are of another kind, or cannot be copied.
    pub fn queues(&self) -> io::Result<Vec<ActiveQueue>> {
        if self.fds.len() != self.state.descriptors() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let events = &self.fds[1 + usize::from(self.state.has_channel)..];
        let pairs = self.state.rings.iter().zip(events.chunks_exact(2));
        pairs
            .map(|(ring, pair)| {
                let event = |fd: &OwnedFd| fd.try_clone().and_then(event).map(Arc::new);
                let parts = ring.parts;
                Ok(ActiveQueue {
                    index: parts.index,
                    size: parts.size,
                    descriptors: GuestAddress(parts.descriptors),
                    available: GuestAddress(parts.available),
                    used: GuestAddress(parts.used),
                    kick: event(&pair[0])?,
                    call: event(&pair[1])?,
                })
            })
            .collect()
    }
}

/// An eventfd that came as a mere descriptor. Whoever reads it never waits.
fn event(fd: OwnedFd) -> io::Result<EventFd> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    // Where that cannot be found out, it is told by KVM's refusal.
    if link.is_ok_and(|link| link.as_os_str() != "anon_inode:[eventfd]") {
        let reason = "a descriptor is to be an eventfd, and is something else";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    // SAFETY: fcntl with these commands takes any open descriptor and touches no memory.
    let result = unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and belongs to nobody else from now on.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

/// Another descriptor of an eventfd, for another process.
pub(super) fn copied(event: &EventFd) -> io::Result<OwnedFd> {
    let fd = event.try_clone()?.into_raw_fd();
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
