//! What a guest or Ferry says, line by line.

use std::fmt;

/// A line with `key=value` words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line(pub String);

impl Line {
    /// The value of the word `key=value`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The value as a number, decimal or with `0x` before it. Panics if it is not there.
    pub fn number(&self, key: &str) -> u64 {
        let value = self
            .get(key)
            .unwrap_or_else(|| panic!("no {key}= in: {self}"));
        let number = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        number.unwrap_or_else(|_| panic!("{key}={value} is not a number in: {self}"))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The complete lines of a text; carriage returns are dropped.
pub fn complete_lines(text: &str) -> Vec<Line> {
    let end = text.rfind('\n').map_or(0, |at| at + 1);
    text[..end]
        .lines()
        .map(|line| Line(line.trim_end_matches('\r').to_owned()))
        .collect()
}
