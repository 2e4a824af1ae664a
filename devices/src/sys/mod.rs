//! What the standard library lacks of the operating system.

pub mod poll;
pub(crate) mod unix;
