//! Virtual processors: what they say of themselves, the state they start in, their threads, and their time.

pub mod clock;
pub mod cpuid;
pub mod gate;
pub mod registers;
pub mod vcpu;
