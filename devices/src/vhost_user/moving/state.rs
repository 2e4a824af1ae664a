//! What is saved of a device apart from the state inside its back-end.

use serde::{Deserialize, Serialize};
use vm_migration::stream::Saved;

/// Saved state of a vhost-user device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostUserStateV1 {
    /// The features that the driver has accepted; 0 if it has not started the device.
    pub features: u64,
    /// The configuration space, as the guest sees it.
    pub config: Vec<u8>,
    /// The rings, by ascending index; none if the driver has not started the device.
    pub rings: Vec<RingStateV1>,
    /// Where the state inside the back-end is.
    pub back_end: BackEndStateV1,
}

/// Saved state of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingStateV1 {
    /// Index within the device.
    pub index: u16,
    /// The index of the next buffer that the back-end is to take from the available ring.
    pub base: u16,
}

/// Where the state inside a back-end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackEndStateV1 {
    /// Nowhere: there is none, or it is all in the rings.
    Absent,
    /// Next to this one. The device must not start without it.
    Carried,
}

impl Saved for VhostUserStateV1 {
    const SCHEMA: &'static str = "vhost-user";
    const VERSION: u16 = 1;
}
