//! Virtual processors: what they say of themselves and the state they start in.

pub mod cpuid;
pub mod registers;
