//! The vhost-user front-end: virtio devices that live in other processes.
//!
//! Each device has a worker thread of its own, the only one that ever speaks with the back-end. The handle,
//! [`VhostUserDevice`], answers the transport from what is known, and posts everything else to the worker.
//!
//! ```text
//!              connected        negotiated: ready(Ok)      activate          suspend
//!  Connecting ───────────▶ Negotiating ───────────────▶ Idle ─────────▶ Active ◀───────▶ Suspended
//!      │                        │                        ▲  reset        │  │  resume      │  │
//!      │ no listener            │ unusable, late         └───────────────┴──│──────────────┘  │
//!      ▼                        ▼                                           ▼                 ▼
//!   ready(Err): the worker ends                closed, violation, dead:   Failed
//! ```
//!
//! A device that is restored comes from *Idle* to *Suspended*, by way of *Changing* if state has to be loaded into its back-end. A reset
//! leads back to *Idle* from anywhere there, also when the load has failed or was given up: the connection stays.
//!
//! A device that has failed stays failed: it answers activations with an error and resets at once, so that the guest
//! can go on without it.
//!
//! | file | holds |
//! |---|---|
//! | `device` | the handle |
//! | `shared`, `inbox`, `counters` | what the handle and the worker share; what is to be done; what can be counted |
//! | `worker` | the thread: its loop; `orders`: one at a time; `session`: from activation to reset; `suspend`: stopping and going on in between; `drain`: requests in flight; `logging`: LOG_ALL; `config`: the configuration space; `moving`: asking for a move of state; `restore`: from a session's state back to it |
//! | `moving` | the state inside the back-end on its way, and what is saved beside it |
//! | `negotiation` | connecting, and agreeing on everything before the guest may see the device |
//! | `profile` | what is particular to a device's type |
//! | `frontend` | the messages, typed |
//! | `connection` | requests and answers, each within a deadline |
//! | `backend_channel` | requests from the back-end |
//! | `incoming`, `message`, `socket` | the wire |
//! | `negotiated` | what was agreed on, apart from the socket |
//! | `live` | a connection on its way from one process to another |
//! | `dirty_log` | the pages that back-ends write to |
//! | `memory`, `rings` | guest RAM and the rings in it |

mod backend_channel;
mod connection;
mod counters;
mod device;
mod dirty_log;
mod error;
mod frontend;
mod inbox;
mod incoming;
mod live;
mod memory;
mod message;
mod moving;
mod negotiated;
mod negotiation;
mod profile;
mod rings;
mod shared;
mod socket;
mod worker;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use counters::{DeviceCounters, RingCounters};
pub use device::{DeviceObserver, DeviceState, Rouse, Starting, VhostUserDevice};
pub use dirty_log::{DirtyLog, LOG_PAGE};
pub use error::{Cause, During, Error, Violation};
pub use live::{Live, LiveRingV1, LiveStateV1, NegotiatedV1, PartsV1, ToldV1};
pub use memory::RamRegion;
pub use message::RequestCode;
pub use moving::{
    BackEndStateV1, LEAST_MOVED, Loading, RingStateV1, StateCause, StateError, StateLimits,
    StateStep, Transfer, TransferError, VhostUserStateV1,
};
pub use negotiated::Negotiated;
pub use profile::{Access, BackendState, Blk, Fs, Generic, MAX_TAG, Profile};

/// A device that a back-end is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// The device's name, `disk0`.
    pub id: String,
    /// The back-end's listening unix socket.
    pub socket: PathBuf,
    /// How many queues carry requests. (fs: without the hiprio queue.)
    pub num_queues: u16,
    /// The largest size of each queue, a power of two from 2 to 32768.
    pub queue_size: u16,
    /// The device's type.
    pub profile: Profile,
}

/// How long a back-end is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a socket without a listener is tried.
    pub connect: Duration,
    /// How long an answer may take before what needed it is given up. The answer may still come later.
    ///
    /// Activation and reset are waited for only by the guest, and giving up would cost it the device; they may take as
    /// long as [`Limits::dead`], and the log is told when this limit has passed.
    pub request: Duration,
    /// How long an answer may take before the back-end is taken for dead. The device has then failed.
    pub dead: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(10),
            dead: Duration::from_secs(60),
        }
    }
}
