//! What users say to Ferry, and what they hear from it: configuration, REST API and events.
//!
//! The field names are those of Cloud Hypervisor's API, because its clients are to work with Ferry.
//! This crate knows nothing of KVM or of devices' insides.

mod chain;
pub mod client;
pub mod config;
pub mod control;
pub mod events;
mod json;
pub mod migration;
pub mod openapi;
pub mod server;
pub mod snapshot;
pub mod url;
pub mod wire;

pub use chain::chain;
