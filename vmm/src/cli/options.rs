//! The value of a flag such as `--disk`: `key=value,key=value`.
//!
//! - Double quotes take commas and brackets into a value: `socket="/tmp/a,b"`. The quotes
//!   themselves go away.
//! - Brackets make a list: `drain=[0,1]`.
//! - A key stands there once. Which keys there are is known before the text is looked at, so that a
//!   misspelt one is named and not ignored.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::error::{Problem, UsageError};

/// The pairs of one flag's value, taken out key by key.
#[derive(Debug)]
pub struct Options {
    flag: &'static str,
    pairs: Vec<Pair>,
}

#[derive(Debug)]
struct Pair {
    key: &'static str,
    value: String,
}

impl Options {
    /// Splits `text`, which may hold each of the keys in `known` once.
    pub fn parse(
        flag: &'static str,
        text: &str,
        known: &[&'static str],
    ) -> Result<Self, UsageError> {
        let mut options = Self {
            flag,
            pairs: Vec::new(),
        };
        for item in split(text).map_err(|problem| options.error(problem))? {
            options.add(item, known)?;
        }
        Ok(options)
    }

    fn add(&mut self, item: Item, known: &[&'static str]) -> Result<(), UsageError> {
        let Some(&key) = known.iter().find(|known| **known == item.key) else {
            let problem = Problem::UnknownKey {
                key: item.key,
                known: known.join(", "),
            };
            return Err(self.error(problem));
        };
        let Some(value) = item.value else {
            let problem = Problem::Syntax(format!("`{key}` has no value; write {key}=…"));
            return Err(self.error(problem));
        };
        if self.pairs.iter().any(|pair| pair.key == key) {
            return Err(self.error(Problem::RepeatedKey(key)));
        }
        self.pairs.push(Pair { key, value });
        Ok(())
    }

    /// A problem with this flag.
    pub fn error(&self, problem: Problem) -> UsageError {
        UsageError::new(self.flag, problem)
    }

    /// `value` is not one that `key` takes: the reason goes on from "key=value …".
    pub fn bad(
        &self,
        key: &'static str,
        value: impl fmt::Display,
        reason: impl Into<String>,
    ) -> UsageError {
        self.error(Problem::Value {
            key,
            value: value.to_string(),
            reason: reason.into(),
        })
    }

    /// Takes the text of `key`, which is never empty.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, UsageError> {
        let Some(index) = self.pairs.iter().position(|pair| pair.key == key) else {
            return Ok(None);
        };
        let pair = self.pairs.swap_remove(index);
        if pair.value.is_empty() {
            return Err(self.bad(key, "", "has no value"));
        }
        Ok(Some(pair.value))
    }

    /// Takes the text of `key`, which has to be there.
    pub fn required(&mut self, key: &'static str) -> Result<String, UsageError> {
        self.text(key)?
            .ok_or_else(|| self.error(Problem::MissingKey(key)))
    }

    /// Takes `on` or `off` (also `true` or `false`).
    pub fn switch(&mut self, key: &'static str) -> Result<Option<bool>, UsageError> {
        let Some(value) = self.text(key)? else {
            return Ok(None);
        };
        match value.as_str() {
            "on" | "true" => Ok(Some(true)),
            "off" | "false" => Ok(Some(false)),
            _ => Err(self.bad(key, value, "is neither on nor off")),
        }
    }

    /// Takes a decimal number, or one in base 16 after `0x`.
    pub fn number<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Result<Option<T>, UsageError>
    where
        T: TryFrom<u64> + PartialOrd + fmt::Display,
    {
        let Some(value) = self.text(key)? else {
            return Ok(None);
        };
        let Some(number) = whole_number(&value) else {
            return Err(self.bad(key, value, "is not a whole number"));
        };
        match T::try_from(number) {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let reason = format!("is not within {} and {}", range.start(), range.end());
                Err(self.bad(key, value, reason))
            }
        }
    }

    /// Takes a number of bytes: `512M`, `2G`, `65536`.
    pub fn size(&mut self, key: &'static str) -> Result<Option<u64>, UsageError> {
        let Some(value) = self.text(key)? else {
            return Ok(None);
        };
        match size(&value) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(self.bad(
                key,
                value,
                "is not a size; write bytes, or a whole number with K, M, G or T",
            )),
        }
    }

    /// Takes a list of numbers in brackets; a single number may stand without them.
    pub fn list<T: FromStr>(&mut self, key: &'static str) -> Result<Option<Vec<T>>, UsageError> {
        let Some(value) = self.text(key)? else {
            return Ok(None);
        };
        let inner = match value.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']'),
            None => Some(value.as_str()),
        };
        let numbers: Option<Vec<T>> = match inner.map(str::trim) {
            Some("") => Some(Vec::new()),
            Some(inner) => inner
                .split(',')
                .map(|item| item.trim().parse().ok())
                .collect(),
            None => None,
        };
        match numbers {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.bad(key, value, "is not a list of numbers such as [0,1]")),
        }
    }
}

/// One `key=value`, still without meaning.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// What stands before the first `=`.
    pub key: String,
    /// What stands after it, without quotes; absent if there is no `=`.
    pub value: Option<String>,
}

impl Item {
    fn push(&mut self, character: char) {
        match &mut self.value {
            Some(value) => value.push(character),
            None => self.key.push(character),
        }
    }
}

/// Splits at the commas that stand outside of quotes and brackets.
pub fn split(text: &str) -> Result<Vec<Item>, Problem> {
    let mut items = vec![Item::default()];
    let mut quoted = false;
    let mut depth = 0_u32;
    for character in text.chars() {
        let last = items.len() - 1;
        let item = &mut items[last];
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted && depth == 0 => items.push(Item::default()),
            '=' if !quoted && item.value.is_none() => item.value = Some(String::new()),
            _ => {
                if !quoted && character == '[' {
                    depth += 1;
                } else if !quoted && character == ']' {
                    depth = depth
                        .checked_sub(1)
                        .ok_or_else(|| syntax("a `]` has no `[` before it"))?;
                }
                item.push(character);
            }
        }
    }
    if quoted {
        return Err(syntax("a double quote is not closed"));
    }
    if depth > 0 {
        return Err(syntax("a `[` is not closed"));
    }
    if items.iter().any(|item| item.key.is_empty()) {
        return Err(syntax(match text {
            "" => "the value is empty",
            _ => "a key is missing before `=`, or between two commas, or after the last one",
        }));
    }
    Ok(items)
}

fn syntax(message: &str) -> Problem {
    Problem::Syntax(message.to_owned())
}

/// A number without sign, decimal or in base 16 after `0x`.
fn whole_number(text: &str) -> Option<u64> {
    let (digits, base) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    if !digits.chars().all(|digit| digit.is_digit(base)) {
        return None;
    }
    u64::from_str_radix(digits, base).ok()
}

/// A number of bytes, with the suffix K, M, G or T (powers of 1024, also in lower case).
pub fn size(text: &str) -> Option<u64> {
    let shift = match text.chars().last()?.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 {
        text
    } else {
        &text[..text.len() - 1]
    };
    whole_number(digits)?.checked_mul(1 << shift)
}
