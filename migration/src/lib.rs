//! What it takes to move a guest and the devices that belong to it: into a snapshot, and later to another host.
//!
//! - [`Saveability`]: a device's answer to the question whether its state can be saved;
//! - [`chunk`]: the encoding of a back-end's state;
//! - [`stream`]: the container of all saved state, for a file or a socket;
//! - [`ram`]: guest RAM on its way into a file and back;
//! - [`manifest`]: what a snapshot holds, readable without Ferry;
//! - [`directory`]: a snapshot as a directory;
//! - [`link`]: the connections of a live migration;
//! - [`pages`]: guest RAM on its way over them, and which of its pages have changed;
//! - [`ownership`]: whose a guest is while two processes of one host hold its RAM;
//! - [`Watch`]: how who asked for one of these follows it, and ends it.
//!
//! This crate knows nothing of KVM, virtio or HTTP.

pub mod chunk;
pub mod directory;
pub mod link;
pub mod manifest;
pub mod ownership;
pub mod pages;
pub mod ram;
pub mod stream;
mod sys;
mod watch;
mod xxh3;

pub use watch::{Unwatched, Watch};

/// A device's answer to "can you be saved?", asked before anything is paused.
///
/// There is no default: a device that was forgotten must not compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saveability {
    /// The device has state, and knows how to hand it over.
    Saved,
    /// The device holds nothing that its queues and the guest's RAM do not hold.
    Stateless,
    /// The device cannot be saved, for the reason given, a clause that completes "it cannot be saved, because …".
    Unsupported(String),
}
