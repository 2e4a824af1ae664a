//! A hand-over to another process of this host: the same steps as those of a migration, with other carriers. RAM travels as its
//! files, a back-end as its live connection; nothing is said to it, and nothing is copied but the machine's own state.
//!
//! ```text
//!  sender    descriptors: process, word, RAM; description │ stop vCPUs, take interrupts away, lend connections; state │ COMMIT
//!                                                         │ ▲                    machine with all of it, but no interrupts │
//!  receiver              virtual machine with that RAM ───┴─┘ PREPARED                                        READY ─┘ start ─ RUNNING
//! ```
//!
//! RAM is shared, so that a wrong word would ruin it. Who has the guest is therefore decided by a word of shared memory
//! ([`Ownership`](vm_migration::ownership::Ownership)), which the receiver changes before the first instruction, and the sender before
//! it lets its guest go on. A link that is lost, at whatever moment, leaves nothing open: whoever is left tries the word.
//! The sender's interrupts are wired to its machine until its vCPUs stand still, and the receiver's from when the guest is its own; in
//! between they wait in the eventfds.
//!
//! | file | holds |
//! |---|---|
//! | `describe` | what is said beforehand, and the descriptors that go with it |
//! | `lend` | the sender's job |
//! | `take` | the receiver's |
//! | `outside` | what goes along beside the devices: where the serial port leads, and the process's own socket |

mod describe;
mod lend;
mod outside;
mod take;

pub(super) use describe::{HandOverV1, Parts};
pub use lend::Lender;
pub(super) use outside::Lead;
pub use outside::{LentOutside, SerialPort, Service};
