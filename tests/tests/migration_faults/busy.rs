//! A machine that is so busy that somebody loses patience without any fault.
//!
//! Limits are short in these tests, so that a row does not take long. What fails for no other reason than that is tried again,
//! a few times in all rows together: more of it would be a fault of Ferry, or too many rows at once.

use std::sync::atomic::{AtomicU32, Ordering};

/// What is said when a limit was reached.
const SIGNS: [&str; 3] = [
    "nothing happened for",
    "not a byte has moved for",
    "has not done within",
];
/// In all rows together.
const MOST: u32 = 4;

static SO_FAR: AtomicU32 = AtomicU32::new(0);

/// Whether these reasons of a failure prove that the machine was too busy. Counts, and panics if it is too often.
pub fn is_why(reasons: &str) -> bool {
    let is_busy = SIGNS.iter().any(|sign| reasons.contains(sign));
    if is_busy {
        let number = SO_FAR.fetch_add(1, Ordering::Relaxed) + 1;
        println!("too busy, number {number}: {reasons}");
        assert!(number <= MOST, "the machine was too busy {number} times");
    }
    is_busy
}
