//! Moving the state inside a back-end (vhost-user specification, "Migrating back-end state").
//!
//! ```text
//!  the job's thread              the device's worker                     the back-end
//!  begin_save ─────────────────▶ SET_DEVICE_STATE_FD, a pipe's end ────▶
//!             ◀───────────────── good, or a descriptor to be used ◀─────
//!  read to the end  ◀═══════════════════════ state ════════════════════  writes, then closes
//!             ─────────────────▶ CHECK_DEVICE_STATE ───────────────────▶
//!  Ok         ◀───────────────── 0 ◀────────────────────────────────────
//! ```
//!
//! A load is the same with the state going the other way, and the pipe's end closed here before the check. The worker
//! only speaks; the state passes by on the job's thread, through one buffer, so that memory does not depend on its size.
//!
//! The end of the pipe proves nothing, the back-end may have died: only the check's answer does. So a [`Transfer`] ends with it, and a
//! device being restored stays unable to start until the check of its [`Loading`] has gone well.
//!
//! Every wait is bounded: answers by [`StateLimits::reply`], the pipe by [`StateLimits::silence`] and a lowest pace
//! ([`LEAST_MOVED`]); and ends soon after the job has been cancelled. What fails or is given up while saving
//! leaves the device suspended, as it was. An answer that is owed by then stays owed, and nobody waits for it but who asks the back-end next.

mod error;
mod half;
mod load;
mod pace;
mod save;
mod state;
mod stream;

use std::time::Duration;

pub use error::{StateCause, StateError, StateStep, TransferError};
pub(super) use half::{Begin, Begun, Check};
pub use load::Loading;
pub use pace::LEAST_MOVED;
pub use save::Transfer;
pub use state::{BackEndStateV1, RingStateV1, VhostUserStateV1};
pub(super) use stream::Stream;

/// How long a back-end may take to hand its state over or to take it, and how much there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLimits {
    /// How long each of the two answers may take: whether the back-end is willing, and how it went.
    pub reply: Duration,
    /// How long no byte may move while there should be some; and for how long a back-end may be waited for until
    /// [`LEAST_MOVED`] bytes have moved, or the end has come.
    pub silence: Duration,
    /// The largest state, in bytes.
    pub most: u64,
}
