//! XXH3 with 64 bits: against damage, not forgery. RAM is summed up as it travels, so it is done with what the processor at hand can do.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

/// Of some bytes.
pub fn xxh3_64(data: &[u8]) -> u64 {
    XxHash3_64::oneshot(data)
}

/// The same, with a seed.
pub fn xxh3_64_with_seed(data: &[u8], seed: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, data)
}

/// Of bytes that come piece by piece.
#[derive(Clone)]
pub struct Xxh3(XxHash3_64);

impl Xxh3 {
    pub fn new() -> Self {
        Xxh3(XxHash3_64::new())
    }

    pub fn update(&mut self, data: &[u8]) {
        self.0.write(data);
    }

    /// Of all so far.
    pub fn digest(&self) -> u64 {
        self.0.finish()
    }
}
