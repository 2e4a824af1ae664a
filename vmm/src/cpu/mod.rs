//! Virtual processors: what they say of themselves, the state they start in, and their threads.

pub mod cpuid;
pub mod registers;
pub mod vcpu;
