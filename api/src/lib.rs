//! What users write: the configuration of a virtual machine.
//!
//! The field names are those of Cloud Hypervisor's API, because its clients are to work with Ferry.
//! This crate knows nothing of KVM or of devices' insides.

pub mod config;
pub mod control;
pub mod events;
