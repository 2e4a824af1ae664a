//! The jobs that bring a saved guest back: one that only reads, and one that fills a new machine.

mod fill;
mod look;
#[cfg(test)]
mod tests;

pub use fill::{Content, Place};
pub use look::{Found, look};
