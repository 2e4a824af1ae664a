//! Test harness.

/// The path of the tiny guest, a PVH kernel that `build.rs` makes from `guest/`.
pub const TINY_GUEST: &str = env!("TINY_GUEST");
