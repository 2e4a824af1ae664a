//! Virtual processors: what they say of themselves, the state they start in, their threads, their time, and
//! their state once they stand still.

pub mod brake;
pub mod clock;
pub mod cpuid;
pub mod gate;
pub mod registers;
pub mod state;
pub mod vcpu;
