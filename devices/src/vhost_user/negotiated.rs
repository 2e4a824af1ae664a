//! What Ferry and a back-end have agreed on, apart from the socket they agreed over.
//!
//! With a [`Negotiated`] and the socket, a connection can be rebuilt in another process without a byte to the back-end.

use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

/// Whether a back-end can note that it has written to a used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingLog {
    /// It can: while LOG_ALL is accepted, it does.
    Offered,
    /// It cannot.
    Absent,
}

/// The result of negotiation with one back-end: plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The virtio feature bits that the back-end offers, the transport's own bits included.
    pub backend_features: u64,
    /// The protocol features that the back-end offers, also those that Ferry does not know.
    pub offered_protocol: u64,
    /// The protocol features in use.
    pub protocol: VhostUserProtocolFeatures,
    /// How many queues the back-end has, if it said so (protocol feature MQ).
    pub backend_queues: Option<u16>,
    /// The features offered to the guest.
    pub guest_features: u64,
    /// How many bytes of configuration space the back-end serves; 0: Ferry makes it up.
    pub config_size: u32,
    /// The configuration space as the guest sees it.
    pub config: Vec<u8>,
}

impl Negotiated {
    /// The bits to send in SET_FEATURES when the guest has accepted `guest`: never more than the
    /// back-end offers, though the guest may have been offered some that Ferry itself answers for.
    pub fn acknowledge(&self, guest: u64) -> u64 {
        let transport = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        (guest & self.guest_features & self.backend_features) | transport
    }

    /// Whether the back-end can hand its state over.
    pub fn offers_device_state(&self) -> bool {
        self.offered_protocol & VhostUserProtocolFeatures::DEVICE_STATE.bits() != 0
    }

    /// Whether the back-end can be told that its state is going to be saved: by LOG_ALL, which may be accepted where
    /// there is LOG_SHMFD.
    pub fn offers_preparation(&self) -> bool {
        self.offers_device_state() && self.offers_log()
    }

    /// Whether the back-end can note which pages of guest RAM it writes to.
    pub fn offers_log(&self) -> bool {
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        self.backend_features & log_all != 0
            && self.protocol.contains(VhostUserProtocolFeatures::LOG_SHMFD)
    }

    /// The same of what it writes to used rings.
    pub fn ring_log(&self) -> RingLog {
        match self.offers_log() {
            true => RingLog::Offered,
            false => RingLog::Absent,
        }
    }
}
