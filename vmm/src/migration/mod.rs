//! Moving a guest that runs to another Ferry: the jobs, which run beside the vmm thread and may wait for the network and
//! for back-ends. When the guest stands still, and who may let it go on, is the business of
//! [`lifecycle`](crate::lifecycle).
//!
//! ```text
//!  sender    connect │ describe │ log writes │ copy RAM │ pause │ rest of RAM, state │        │ COMMIT │           BYE
//!                         │          ▲            │                    │             ▲           │     ▲            │
//!                         ▼          │ PREPARED   ▼                    ▼             │ READY     ▼     │ RUNNING    ▼
//!  receiver  listen ──── connect to back-ends,  RAM ──────────── machine, back-ends ─┘ wait      start the guest ── end
//! ```
//!
//! Before COMMIT the guest is the sender's, whatever happens; from then on it is the receiver's. A sender that has lost the
//! connection in between asks the receiver what became of the attempt ([`Attempts`]), and never lets its guest go on unless it
//! is told that it was not started there.
//!
//! | file | holds |
//! |---|---|
//! | `describe` | what the receiver is told beforehand |
//! | `send`, `precopy`, `handover` | the sender's job: its course; RAM while the guest runs; from the pause to the end |
//! | `listen`, `fill`, `committing`, `farewell` | the receiver's: until a sender is there; filling a machine; until the commit; after it |
//! | `local` | the same for a hand-over to a process of the same host |
//! | `asking` | devices' workers that are asked for something |
//! | `attempts` | what became of attempts |
//! | `rehearsal` | both, for a machine that never runs, so that it is quicker for the guest's |
//! | `meter`, `going_on` | how far it is; when the guest went on elsewhere |

mod asking;
mod attempts;
mod committing;
mod describe;
mod error;
mod farewell;
mod fill;
mod going_on;
mod handover;
mod listen;
mod local;
mod meter;
mod precopy;
mod pulse;
mod rehearsal;
mod revival;
pub mod send;

use std::time::Duration;

use ferry_api::config::Timeouts;
use ferry_api::migration::MigrationUrl;
use vm_migration::link::Address;

pub use attempts::Attempts;
pub use describe::ArrivalV1;
pub use error::Error;
pub use farewell::Farewell;
pub use fill::{Adopt, Arrived, Place};
pub use listen::{Incoming, listen};
pub use local::{Lender, LentOutside, SerialPort, Service};
pub use meter::Meter;

/// For how long the other side may say no more than that it is there. Its guest and its back-ends may be slow, one after the other.
fn most_idle(timeouts: &Timeouts) -> Duration {
    4 * (timeouts.request + timeouts.dead)
}

fn address(url: &MigrationUrl) -> Address {
    match url {
        MigrationUrl::Unix(path) => Address::Unix(path.clone()),
        MigrationUrl::Tcp { host, port } => Address::Tcp {
            host: host.clone(),
            port: *port,
        },
    }
}
